"""Known vulnerabilities of a set of packages: combines the data, the available fixes and the accepted entries."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from build.core import files
from build.core.errors import SpecError
from build.packages import versions
from build.packages.source_packages import Origin
from build.vulnerabilities import debsecan
from build.vulnerabilities.accepted import Accepted
from build.vulnerabilities.ecosystems import DEBIAN, GO, PYPI
from build.vulnerabilities.feeds import READERS, UNNAMED, URGENCIES, Component, Known


@dataclass(frozen=True)
class Given:
    """One source of data: its kind (a reader's name), and the file or directory; ``debsecan`` without a path is the tool."""

    kind: str
    path: Path | None = None


@dataclass(frozen=True)
class Finding:
    """One vulnerability of one source in the image.

    ``fixed``: the version of this release with the fix, or empty. ``in_lock``: whether the committed lock has the fix.
    ``accepted``: the reason; ``expired``: the acceptance is over.
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
    """Return the sources in the image: each with its binary packages, and sources built into other packages."""
    own: dict[tuple[str, str], dict[str, str]] = {}
    inside: dict[tuple[str, str], dict[str, str]] = {}
    for package, origin in sorted(origins.items()):
        own.setdefault((origin.source.name, origin.source.version), {})[package] = binary_versions[package]
        for source in origin.built_using:
            inside.setdefault((source.name, source.version), {})[package] = binary_versions[package]
    main = [Component(*key, packages) for key, packages in sorted(own.items())]
    return (*main, *(Component(*key, packages, inside=True) for key, packages in sorted(inside.items())))


def wheels(environments: Mapping[str, Mapping[str, str]]) -> tuple[Component, ...]:
    """Return the Python wheels of the image; ``environments``: the versions by name, of each environment by its path."""
    places: dict[tuple[str, str], dict[str, str]] = {}
    for place, packages in sorted(environments.items()):
        for name, version in packages.items():
            places.setdefault((re.sub(r"[-_.]+", "-", name).lower(), version), {})[place] = version
    return tuple(Component(f"{PYPI}:{name}", version, where, ecosystem=PYPI) for (name, version), where in places.items())


def go_modules(path: Path) -> tuple[Component, ...]:
    """Return the Go modules whose code a go.sum names. Raises SpecError for a line in another form."""
    modules: dict[tuple[str, str], dict[str, str]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fields = line.split()
        if len(fields) != 3 or not fields[2].startswith("h1:"):
            raise SpecError(f"{path}, line {number}: {line!r} is not a module, its version and its hash")
        # Of the others only the go.mod was read, to choose versions.
        if not fields[1].endswith("/go.mod"):
            version = fields[1].removeprefix("v").removesuffix("+incompatible")
            modules[fields[0], version] = {path.as_posix(): version}
    return tuple(Component(f"{GO}:{name}", version, where, ecosystem=GO) for (name, version), where in modules.items())


def look(data_sources: Iterable[Given], release: str, parts: Sequence[Component]) -> list[Finding]:
    """Return the vulnerabilities in the data, each once per source: fixable ones first, then by urgency.

    Raises SpecError for a file in a wrong format, StepFailed if the tool debsecan fails.
    """
    merged: dict[tuple[str, str, str, bool], Finding] = {}
    for data_source in data_sources:
        for known in _known(data_source, release, parts):
            finding = _finding(known, data_source.kind)
            key = (finding.id, finding.source, finding.version, finding.inside)
            merged[key] = _merge(merged[key], finding) if key in merged else finding
    return sorted(
        merged.values(), key=lambda known: (not known.fixed, URGENCIES.index(known.urgency), known.source, known.id)
    )


def _known(data_source: Given, release: str, parts: Sequence[Component]) -> Iterator[Known]:
    if data_source.path is None:
        return debsecan.ask(release, [part for part in parts if part.ecosystem == DEBIAN])
    return READERS[data_source.kind](data_source.path, release, parts)


def _finding(known: Known, kind: str) -> Finding:
    part = known.component
    return Finding(
        known.id, part.source, part.version, tuple(sorted(part.packages)), part.inside, known.urgency, known.fixed, (kind,),
        known.note,
    )  # fmt: skip


def _merge(one: Finding, other: Finding) -> Finding:
    """Merge the findings of two data sources: the worse urgency, and the fix if one of them has it."""
    return replace(
        one, urgency=min(one.urgency, other.urgency, key=URGENCIES.index), fixed=max(one.fixed, other.fixed, key=_knowledge),
        data=tuple(sorted({*one.data, *other.data})), note=one.note or other.note,
    )  # fmt: skip


def _knowledge(fixed: str) -> int:
    """Return how much is known of a fix: 0 nothing, 1 that there is one, 2 its version."""
    return ("", UNNAMED).index(fixed) if fixed in ("", UNNAMED) else 2


def judge(
    findings: Iterable[Finding], accepted: Sequence[Accepted], committed: Mapping[str, Origin], *, today: date
) -> list[Finding]:
    """Return the findings with acceptances, and whether the committed lock (package -> origin) has the fix."""
    by_key = {(entry.id, entry.source): entry for entry in accepted}
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
    """Return True if every package of the finding comes, by the committed lock, from a source with the fix."""
    if _knowledge(finding.fixed) < 2:
        return False
    locked = [
        source.version
        for package in finding.packages if package in committed
        for source in (committed[package].source, *committed[package].built_using) if source.name == finding.source
    ]  # fmt: skip
    return bool(locked) and not any(versions.newer(finding.fixed, version) for version in locked)


def needless(findings: Iterable[Finding], accepted: Iterable[Accepted]) -> list[str]:
    """Return the accepted entries that are no longer found, and can be removed from the file."""
    present = {(entry.id, entry.source) for entry in findings}
    return [f"{entry.id} of {entry.source}" for entry in accepted if (entry.id, entry.source) not in present]


def facts(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """Return the findings as plain data."""
    return [asdict(finding) | {"open": finding.open} for finding in findings]


def identity(data_source: Given) -> dict[str, str]:
    """Return what identifies the data: the name, and the hash of a file."""
    if data_source.path is None:
        return {"kind": data_source.kind, "file": "", "sha256": ""}
    digest = files.sha256_file(data_source.path) if data_source.path.is_file() else ""
    return {"kind": data_source.kind, "file": data_source.path.name, "sha256": digest}
