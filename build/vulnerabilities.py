"""Known vulnerabilities of a set of packages: what the data says, what is fixed, what was accepted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from build import debsecan, files, versions
from build.accepted import Accepted
from build.sources import Origin
from build.vulnerability_data import READERS, UNNAMED, URGENCIES, Component, Known


@dataclass(frozen=True)
class Given:
    """One source of data: its kind (a reader's name), and the file or directory; ``debsecan`` without one is the tool."""

    kind: str
    path: Path | None = None


@dataclass(frozen=True)
class Finding:
    """One vulnerability of one source in the image.

    ``fixed``: the version of this release with the fix, or empty. ``in_lock``: whether the committed lock has it.
    ``accepted``: the reason; ``expired``: that it was accepted for a time that is over.
    """

    id: str
    source: str
    version: str
    packages: tuple[str, ...]
    inside: bool
    urgency: str
    fixed: str
    data: tuple[str, ...]
    note: str = ""
    in_lock: bool = False
    accepted: str = ""
    expired: bool = False

    @property
    def open(self) -> bool:
        return not self.accepted or self.expired


def components(origins: Mapping[str, Origin], binary_versions: Mapping[str, str]) -> tuple[Component, ...]:
    """Return the sources in the image: each with its binary packages, and those that are inside of other packages."""
    own: dict[tuple[str, str], dict[str, str]] = {}
    inside: dict[tuple[str, str], dict[str, str]] = {}
    for package, origin in sorted(origins.items()):
        own.setdefault((origin.source.name, origin.source.version), {})[package] = binary_versions[package]
        for one in origin.built_using:
            inside.setdefault((one.name, one.version), {})[package] = binary_versions[package]
    made = [Component(*key, packages) for key, packages in sorted(own.items())]
    return (*made, *(Component(*key, packages, inside=True) for key, packages in sorted(inside.items())))


def look(given: Iterable[Given], release: str, parts: Sequence[Component]) -> list[Finding]:
    """Return what the data knows, each vulnerability of a source once: the fixable first, then by urgency.

    Raises SpecError for a file that is not what it should be, StepFailed when the tool debsecan fails.
    """
    merged: dict[tuple[str, str, str, bool], Finding] = {}
    for one in given:
        for known in _known(one, release, parts):
            finding = _finding(known, one.kind)
            key = (finding.id, finding.source, finding.version, finding.inside)
            merged[key] = _merge(merged[key], finding) if key in merged else finding
    return sorted(merged.values(), key=lambda one: (not one.fixed, URGENCIES.index(one.urgency), one.source, one.id))


def _known(given: Given, release: str, parts: Sequence[Component]) -> Iterator[Known]:
    if given.path is None:
        return debsecan.ask(release, parts)
    return READERS[given.kind](given.path, release, parts)


def _finding(known: Known, kind: str) -> Finding:
    part = known.component
    return Finding(
        known.id, part.source, part.version, tuple(sorted(part.packages)), part.inside, known.urgency, known.fixed, (kind,),
        known.note,
    )  # fmt: skip


def _merge(one: Finding, other: Finding) -> Finding:
    """Return what two sources of data say together: the worse urgency, and the fix that one of them knows."""
    return replace(
        one, urgency=min(one.urgency, other.urgency, key=URGENCIES.index), fixed=max(one.fixed, other.fixed, key=_knowledge),
        data=tuple(sorted({*one.data, *other.data})), note=one.note or other.note,
    )  # fmt: skip


def _knowledge(fixed: str) -> int:
    """Return how much is known of a fix: nothing, that there is one, its version."""
    return ("", UNNAMED).index(fixed) if fixed in ("", UNNAMED) else 2


def judge(
    findings: Iterable[Finding], accepted: Sequence[Accepted], committed: Mapping[str, Origin], *, today: date
) -> list[Finding]:
    """Return the findings with what was accepted, and whether the committed lock (package -> origin) has the fix."""
    by_key = {(one.id, one.source): one for one in accepted}
    judged = []
    for finding in findings:
        row = by_key.get((finding.id, finding.source))
        judged.append(
            replace(
                finding, in_lock=_in_lock(finding, committed), accepted=row.reason if row else "",
                expired=bool(row and row.until < today),
            )
        )  # fmt: skip
    return judged


def _in_lock(finding: Finding, committed: Mapping[str, Origin]) -> bool:
    """Say whether every package of the finding comes, by the committed lock, from a source with the fix."""
    if _knowledge(finding.fixed) < 2:
        return False
    found = [
        one.version
        for package in finding.packages if package in committed
        for one in (committed[package].source, *committed[package].built_using) if one.name == finding.source
    ]  # fmt: skip
    return bool(found) and not any(versions.newer(finding.fixed, version) for version in found)


def needless(findings: Iterable[Finding], accepted: Iterable[Accepted]) -> list[str]:
    """Return what was accepted and is found no more: it can be taken out of the file."""
    found = {(one.id, one.source) for one in findings}
    return [f"{one.id} of {one.source}" for one in accepted if (one.id, one.source) not in found]


def facts(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """Return the findings as plain data."""
    return [asdict(one) | {"open": one.open} for one in findings]


def identity(given: Given) -> dict[str, str]:
    """Return what identifies the data: the name, and the hash of a file."""
    if given.path is None:
        return {"kind": given.kind, "file": "", "sha256": ""}
    digest = files.sha256_file(given.path) if given.path.is_file() else ""
    return {"kind": given.kind, "file": given.path.name, "sha256": digest}
