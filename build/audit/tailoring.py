"""The published exceptions from the CIS profile: a data file with a reason for every rule, and the XCCDF made from it.

A line is a rule's short id, white space, and the reason in one sentence; ``#`` begins a comment. The rule must be part
of the profile. An exception that nothing needs is one of the audit's figures, and fails it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from xml.etree import ElementTree

from build.core.errors import SpecError

XCCDF = "http://checklists.nist.gov/xccdf/1.2"
PREFIX = "xccdf_org.ssgproject.content_rule_"
BASE_PROFILE = "xccdf_org.ssgproject.content_profile_cis_level2_server"
PROFILE = "xccdf_goldsmith_profile_cis_level2_server"
_LINE = re.compile(r"([A-Za-z0-9_.-]+)\s+(\S.*)")
# Shorter, and it names a thing instead of giving a reason.
REASON_LENGTH = 20


def load(path: Path) -> dict[str, str]:
    """Return reason by short rule id; raise SpecError naming the line that is no exception with a reason."""
    found: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if not match or len(match[2]) < REASON_LENGTH:
            raise SpecError(f"{path}, line {number}: not a rule id and a reason", details=line)
        if match[1] in found:
            raise SpecError(f"{path}, line {number}: {match[1]} stands there twice")
        found[match[1]] = match[2]
    return found


def check(exceptions: Mapping[str, str], *, selected: Collection[str], path: Path) -> None:
    """Raise SpecError when a line names a rule that is not among those the plain profile selects (short ids)."""
    unknown = sorted(set(exceptions) - set(selected))
    if unknown:
        raise SpecError(
            f"{path} names rules that the profile does not have", details="\n".join(unknown), hint="take the lines out"
        )


def render(exceptions: Mapping[str, str], *, datastream: str, time: str) -> str:
    """Return the XCCDF tailoring: the profile of the datastream without the rules that have a reason."""
    ElementTree.register_namespace("xccdf", XCCDF)

    def element(parent: ElementTree.Element | None, name: str, text: str = "", **attributes: str) -> ElementTree.Element:
        tag = f"{{{XCCDF}}}{name}"
        node = ElementTree.Element(tag, attributes) if parent is None else ElementTree.SubElement(parent, tag, attributes)
        node.text = text or None
        return node

    root = element(None, "Tailoring", id="xccdf_goldsmith_tailoring_cis")
    element(root, "benchmark", href=datastream)
    element(root, "version", "1", time=time)
    profile = element(root, "Profile", id=PROFILE, extends=BASE_PROFILE)
    element(profile, "title", "CIS Debian 13, level 2, server: what does not fit this image left out, with reasons")
    for rule, reason in sorted(exceptions.items()):
        element(element(profile, "select", idref=PREFIX + rule, selected="false"), "remark", reason)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"
