"""The verb ``vulnerabilities``: which data is looked into, what is told, and the exit code."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from build import accepted, artifact, debsecan, lock, sources
from build import vulnerabilities as known
from build.apt import Store
from build.artifact import Artifact
from build.errors import HostError, SpecError, VerificationFailed
from build.project import Project
from build.sources import Origin
from build.vulnerabilities import Finding, Given
from build.vulnerability_data import DEBIAN_NUMBERS, URGENCIES

NO_DATA = "known vulnerabilities were not looked at: there is no data"
NO_DATA_HINT = (
    "give a file: --debsecan FILE, --osv PATH or --tracker FILE (docs/vulnerabilities.md says where they come from), "
    "or install the tool that fetches its own: apt-get install --yes debsecan   (as root)"
)
NOT_COVERED = "Debian's data knows Debian's packages: the Python wheels in the image were not looked at"


def options(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("artifact", nargs="?", type=Path, help="artifact directory (default: the newest)")
    parser.add_argument("--debsecan", type=Path, action="append", default=[], metavar="FILE", help="data of debsecan")
    parser.add_argument("--osv", type=Path, action="append", default=[], metavar="PATH", help="OSV: JSON, directory or zip")
    parser.add_argument("--tracker", type=Path, action="append", default=[], metavar="FILE", help="the tracker's JSON")
    parser.add_argument("--all", action="store_true", help="list those without a fix and the accepted ones too")
    parser.add_argument("--strict", action="store_true", help="3 for those without a fix too, but for unimportant ones")


def run(arguments: argparse.Namespace) -> tuple[str, int]:
    """Look; return what there is to tell, and the exit code. Raises HostError when there is nothing to look into."""
    project = Project(arguments.project.resolve())
    found = artifact.load(arguments.artifact) if arguments.artifact else artifact.newest(project.artifacts)
    given = _given(arguments)
    if not given:
        raise HostError(NO_DATA, hint=NO_DATA_HINT)
    release = str(found.manifest["inputs"].get("spec", {}).get("release", "trixie"))
    if release not in DEBIAN_NUMBERS:
        raise SpecError(f"{found.path} is of {release}, a release whose number is not known here")
    file_of = Store(arguments.cache.resolve() / "files").path
    origins = _origins(found, file_of)
    parts = known.components(origins, found.manifest["packages"])
    rows = accepted.load(project.root / accepted.PAGE)
    committed = sources.origins(lock.parse(project.rootfs_lock).entries, file_of)
    findings = known.judge(
        known.look(given, release, parts), rows, committed, today=datetime.now(UTC).date()
    )  # fmt: skip
    facts = {
        "artifact": found.path.name, "release": release, "data": [known.identity(one) for one in given],
        "packages": len(origins), "sources": len({part.source for part in parts}),
        "uncertain": sorted(name for name, origin in origins.items() if not origin.certain),
        "not_covered": [NOT_COVERED], "needless": known.needless(findings, rows), "findings": known.facts(findings),
    }  # fmt: skip
    text = json.dumps(facts, indent=1, sort_keys=True) if arguments.json else text_of(facts, findings, whole=arguments.all)
    return text, exit_code(findings, strict=arguments.strict)


def _given(arguments: argparse.Namespace) -> list[Given]:
    """Return the files that are named; without any, the tool debsecan where it is installed."""
    named = [Given(kind, path) for kind in ("debsecan", "osv", "tracker") for path in getattr(arguments, kind)]
    return named or ([Given("debsecan")] if debsecan.installed() else [])


def _origins(found: Artifact, file_of: Any) -> Mapping[str, Origin]:
    """Return the sources by the manifest; an older one does not tell them, the packages' own files may."""
    if "sources" in found.manifest:
        return sources.read(found.manifest["sources"])
    return sources.origins(lock.parse(found.path / artifact.ROOTFS_LOCK).entries, file_of)


def exit_code(findings: Sequence[Finding], *, strict: bool) -> int:
    """Return 3 when a finding that was not accepted has a fix (``strict``: or is more than unimportant), else 0."""
    due = any(one.open and (one.fixed or (strict and one.urgency != "unimportant")) for one in findings)
    return VerificationFailed.exit_code if due else 0


def text_of(facts: Mapping[str, Any], findings: Sequence[Finding], *, whole: bool) -> str:
    """Return what there is to tell, for people."""
    data = ", ".join(f"{one['kind']} {one['file']}".strip() for one in facts["data"])
    lines = [f"{facts['artifact']}: {facts['packages']} packages of {facts['sources']} sources; data: {data}"]
    fixable = [one for one in findings if one.open and one.fixed]
    rest = [one for one in findings if one.open and not one.fixed]
    taken = [one for one in findings if not one.open]
    lines += [_line(one) for one in findings if whole or one in fixable]
    counts = Counter(one.urgency for one in rest)
    lines.append(
        f"{len(fixable)} with a fix; {len(rest)} without"
        + (f" ({', '.join(f'{counts[name]} {name}' for name in URGENCIES if counts[name])})" if rest else "")
        + f"; {len(taken)} accepted" + ("" if whole or not (rest or taken) else "   (--all lists every one)")
    )  # fmt: skip
    lines += [f"note: {name} is accepted in {accepted.PAGE} and found no more" for name in facts["needless"]]
    if facts["uncertain"]:
        lines.append(f"note: the source of {len(facts['uncertain'])} packages was guessed from their paths in the archive")
    lines += [f"note: {text}" for text in facts["not_covered"]]
    if any(one.in_lock for one in fixable):
        lines.append("-> the committed lock has fixes already: nox -s build")
    if any(not one.in_lock for one in fixable):
        lines.append(f"-> nox -s lock, then nox -s build; or accept one for a time, with a reason, in {accepted.PAGE}")
    return "\n".join(lines)


def _line(one: Finding) -> str:
    where = f"inside {', '.join(one.packages)}" if one.inside else ", ".join(one.packages)
    said = f"fixed in {one.fixed}" + (", which the committed lock has" if one.in_lock else "") if one.fixed else "no fix"
    parts = [f"{one.urgency:<11} {one.id:<15} {one.source} {one.version} ({where}): {said}"]
    parts += [one.note] if one.note else []
    parts += [f"accepted: {one.accepted}{' (until a day that is over)' if one.expired else ''}"] if one.accepted else []
    return "; ".join(parts)
