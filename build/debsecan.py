"""The tool debsecan of Debian, which fetches its own data: asked about our packages, not about this host's."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from build import run
from build.errors import CommandFailed, StepFailed
from build.vulnerability_data import UNNAMED, Component, Known

TOOL = "debsecan"
ASK_SECONDS = 300
_LINE = re.compile(r"(?P<id>[A-Z]+-\S+) (?P<package>[a-z0-9][a-z0-9+.-]*)(?: \((?P<notes>[^)]*)\))?")


def installed() -> bool:
    """Say whether the host has it."""
    return shutil.which(TOOL, path=run.search_path()) is not None


def ask(release: str, components: Sequence[Component]) -> Iterator[Known]:
    """Return what debsecan knows of the components; raise StepFailed when it cannot fetch its data.

    Its format "summary" (debsecan(1)): id, package, and in brackets "fixed", "remotely exploitable", "high urgency",
    "obsolete". It names no versions.
    """
    own = [one for one in components if not one.inside]
    by_package = {package: one for one in own for package in one.packages}
    with tempfile.TemporaryDirectory() as scratch:
        status = Path(scratch) / "status"
        status.write_text("\n".join(_stanzas(own)), encoding="utf-8")
        try:
            done = run.run([TOOL, "--suite", release, "--status", status, "--format", "summary"], timeout=ASK_SECONDS)
        except CommandFailed as error:
            raise StepFailed(
                "debsecan cannot tell: known vulnerabilities were not looked at", details=error.details,
                hint="is its source reachable? or give data from a file: --debsecan, --osv, --tracker",
            ) from error  # fmt: skip
    for line in done.stdout.splitlines():
        match = _LINE.fullmatch(line.strip())
        if not match or match["package"] not in by_package:
            raise StepFailed(f"debsecan said something unknown: {line!r}")
        notes = (match["notes"] or "").split(", ")
        urgency = next((note.removesuffix(" urgency") for note in notes if note.endswith(" urgency")), "unassigned")
        fixed = UNNAMED if "fixed" in notes else ""
        yield Known(match["id"], by_package[match["package"]], urgency, fixed)


def _stanzas(components: Sequence[Component]) -> Iterator[str]:
    for one in components:
        for package, version in one.packages.items():
            yield (
                f"Package: {package}\nStatus: install ok installed\nArchitecture: amd64\n"
                f"Source: {one.source} ({one.version})\nVersion: {version}\n"
            )
