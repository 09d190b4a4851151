"""Reads security data from files named by the user: debsecan's, OSV's, the Debian security tracker's. No network.

Each reader yields the known vulnerabilities of given components of a release. Formats:

- debsecan: what debsecan downloads (its own source, ``fetch_data`` and ``Vulnerability``): zlib or plain text, three
  sections after ``VERSION 1``: names, ``package,number,flags,unstable version,other versions``, sources.
- OSV: records of the schema at ossf.github.io/osv-schema, one a file, as a list, in a directory or in a zip; of the
  ecosystems Debian, PyPI and Go.
- tracker: the security tracker's JSON, source -> CVE -> releases -> status, fixed_version, urgency.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from build.core import json_text
from build.core.errors import SpecError
from build.packages import versions
from build.vulnerabilities import ecosystems
from build.vulnerabilities.ecosystems import DEBIAN

# Worst first; Debian's security team has not rated "unassigned" vulnerabilities yet, and does not fix "unimportant"
# ones.
URGENCIES = ("high", "medium", "low", "unassigned", "end-of-life", "unimportant")
# The words of GitHub's advisories, from which most records of PyPI and Go come.
SEVERITIES = {"critical": "high", "high": "high", "moderate": "medium", "medium": "medium", "low": "low"}
DEBIAN_NUMBERS = {"bullseye": "11", "bookworm": "12", "trixie": "13", "forky": "14"}
# The tool debsecan reports that there is a fix, but not its version.
UNNAMED = "a newer version"


@dataclass(frozen=True)
class Component:
    """A source in the image: the binary packages (name -> version) it is in; ``inside``: as a part of other sources.

    A wheel or Go module is one as well: its ``packages`` are the places where it is used.
    """

    source: str
    version: str
    packages: Mapping[str, str]
    inside: bool = False
    ecosystem: str = DEBIAN

    @property
    def name(self) -> str:
        """The name within the ecosystem: ``source`` is unique among all, such as ``PyPI:django``."""
        return self.source.removeprefix(f"{self.ecosystem}:")


@dataclass(frozen=True)
class Known:
    """A vulnerability of a component; ``fixed`` is the version of this release that has the fix, or empty."""

    id: str
    component: Component
    urgency: str
    fixed: str
    note: str = ""


Reader = Callable[[Path, str, Sequence[Component]], Iterator[Known]]


def _urgency(text: str) -> str:
    """Return one of :data:`URGENCIES`; the tracker marks guesses with asterisks."""
    word = text.strip().rstrip("*").lower()
    return word if word in URGENCIES else "unassigned"


def _earliest(installed: str, candidates: Sequence[str]) -> str:
    later = (candidate for candidate in candidates if versions.newer(candidate, installed))
    return min(later, key=ecosystems.order(DEBIAN), default="")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}", hint="give the path of the downloaded file") from error


def _json(data: bytes, path: Path | str) -> Any:
    try:
        return json_text.parse(data)
    except ValueError as error:
        raise SpecError(f"{path} is not JSON: {error}", hint="download it again; it may be truncated") from error


def _debians(components: Sequence[Component]) -> list[Component]:
    """Return the components that Debian's own data is about."""
    return [component for component in components if component.ecosystem == DEBIAN]


# --- debsecan ---------------------------------------------------------------------------------------------------------

_FLAGS = {"L": "low", "M": "medium", "H": "high"}


def read_debsecan(path: Path, release: str, components: Sequence[Component]) -> Iterator[Known]:  # noqa: ARG001 (one form)
    """Read debsecan's data of a release (the file ``trixie``), or without a release (``GENERIC``, which has no fixes)."""
    data = _read(path)
    try:
        text = (zlib.decompress(data) if not data.startswith(b"VERSION") else data).decode()
    except (zlib.error, UnicodeDecodeError) as error:
        raise SpecError(
            f"{path} is not a data file of debsecan: {error}", hint="use the file that debsecan downloads"
        ) from error
    head, _, body = text.partition("\n")
    if head != "VERSION 1":
        raise SpecError(f"{path} is not a data file of debsecan: it begins with {head[:40]!r}, not with VERSION 1")
    names, _, rest = body.partition("\n\n")
    ids = [line.split(",", 1)[0] for line in names.splitlines()]
    rows: dict[tuple[str, bool], list[list[str]]] = {}
    for number, line in enumerate(rest.partition("\n\n")[0].splitlines(), 1):
        fields = line.split(",", 4)
        known = len(fields) == 5 and re.fullmatch(r"[0-9]{1,9}", fields[1]) and int(fields[1]) < len(ids)
        if not known or len(fields[2]) < 4:
            raise SpecError(f"{path}: {line!r}, entry {number} of its packages, is not in debsecan's format")
        rows.setdefault((fields[0], fields[2][0] == "B"), []).append(fields)
    for component in _debians(components):
        about = [((component.source, False), component.version)]
        about += [((name, True), version) for name, version in component.packages.items() if not component.inside]
        for key, version in about:
            matches = (_of_debsecan(fields, ids, component, version) for fields in rows.get(key, ()))
            yield from (known for known in matches if known)


def _of_debsecan(fields: Sequence[str], ids: Sequence[str], component: Component, version: str) -> Known | None:
    _, number, flags, unstable, others = fields
    good = others.split()
    if version in good or (unstable and not versions.newer(unstable, version)):
        return None
    note = f"fixed in unstable: {unstable}" if unstable and flags[3] != "F" else ""
    fixed = (_earliest(version, good) or unstable) if flags[3] == "F" else ""
    return Known(ids[int(number)], component, _FLAGS.get(flags[1], "unassigned"), fixed, note)


# --- OSV --------------------------------------------------------------------------------------------------------------


def read_osv(path: Path, release: str, components: Sequence[Component]) -> Iterator[Known]:
    """Read OSV records of the components' ecosystems (such as ``Debian:13``): a file, a directory of files, or a zip.

    Raises SpecError if none of them is about one of these.
    """
    by_name: dict[tuple[str, str], list[Component]] = {}
    for component in components:
        by_name.setdefault((component.ecosystem, component.name), []).append(component)
    expected = {f"{DEBIAN}:{DEBIAN_NUMBERS[release]}", *(name for name, _component in by_name if name != DEBIAN)}
    about = 0
    for record, where in _records(path, expected):
        entries = _affected(record, expected, where)
        about += len(entries)
        for affected in () if record.get("withdrawn") else entries:
            for component in by_name.get(_key(affected), ()):
                yield from _of_osv(record, affected, component, where)
    if not about:
        # With the data of another distribution the image would seem to have no vulnerabilities.
        raise SpecError(f"{path} has no record of {', '.join(sorted(expected))}", hint="use OSV records of these ecosystems")


def covered(path: Path, release: str) -> set[str]:
    """Return the ecosystems of which OSV data has records."""
    expected = {f"{DEBIAN}:{DEBIAN_NUMBERS[release]}", ecosystems.PYPI, ecosystems.GO}
    return {
        _key(affected)[0] for record, where in _records(path, expected) for affected in _affected(record, expected, where)
    }  # fmt: skip


def _key(affected: Mapping[str, Any]) -> tuple[str, str]:
    """Return the ecosystem and the name of an entry, as components have them."""
    package = affected["package"]
    ecosystem, name = str(package["ecosystem"]).partition(":")[0], str(package["name"])
    # PEP 503: one name has several spellings.
    return ecosystem, re.sub(r"[-_.]+", "-", name).lower() if ecosystem == ecosystems.PYPI else name


def _records(path: Path, expected: Collection[str]) -> Iterator[tuple[dict[str, Any], str]]:
    words = {name.partition(":")[0].encode() for name in expected}
    release = next((name.encode() for name in expected if ":" in name), b"")
    for where, data in _documents(path):
        # Most records of a full dump are about others: a text search avoids parsing them.
        others = any(b'"%s"' % word in data for word in words)
        if not others and release not in data:
            continue
        content = _json(data, where)
        for record in content if isinstance(content, list) else [content]:
            if not isinstance(record, dict) or "id" not in record:
                raise SpecError(f"{where} is not an OSV record: it has no id", hint="see ossf.github.io/osv-schema")
            yield record, where


def _documents(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        paths = sorted(path.rglob("*.json"))
        if not paths:
            raise SpecError(f"{path} contains no OSV record (*.json)")
        yield from ((str(document), _read(document)) for document in paths)
    elif path.suffix == ".zip":
        try:
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    if name.endswith(".json"):
                        yield f"{path}: {name}", archive.read(name)
        except (OSError, zipfile.BadZipFile) as error:
            raise SpecError(f"{path} cannot be read: {error}", hint="download it again; it may be truncated") from error
    else:
        yield str(path), _read(path)


def _affected(record: Mapping[str, Any], expected: Collection[str], where: str) -> list[Mapping[str, Any]]:
    """Return the entries of a record for these ecosystems; those for Debian in general if none is for the release."""
    try:
        by_ecosystem = [
            (entry["package"]["ecosystem"], entry) for entry in record.get("affected", ()) if entry["package"]["name"]
        ]
    except (KeyError, TypeError) as error:
        raise SpecError(f"{where}: an entry of affected names no package: {error}") from error
    exact = [entry for name, entry in by_ecosystem if name in expected]
    if any(_key(entry)[0] == DEBIAN for entry in exact):
        return exact
    return exact + [entry for name, entry in by_ecosystem if name == DEBIAN]


def _of_osv(
    record: Mapping[str, Any], affected: Mapping[str, Any], component: Component, where: str
) -> Iterator[Known]:  # fmt: skip
    kind, key = ecosystems.RANGES[component.ecosystem], ecosystems.order(component.ecosystem)
    try:
        ranges = [entry["events"] for entry in affected.get("ranges", ()) if entry.get("type") == kind]
        listed = component.version in affected.get("versions", ())
        if not listed and not any(_in_range(component.version, events, key) for events in ranges):
            return
        later = [event["fixed"] for events in ranges for event in events if "fixed" in event]
        fixed = min((version for version in later if key(version) > key(component.version)), key=key, default="")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SpecError(f"{where}: the ranges of {component.source} {component.version} cannot be read: {error}") from error
    urgency = _urgency_of(record, affected)
    for name in _names(record):
        note = record["id"] if name not in record["id"] else ""
        yield Known(name, component, urgency, fixed, note)


def _urgency_of(record: Mapping[str, Any], affected: Mapping[str, Any]) -> str:
    """Return Debian's urgency of an entry, or what a database of advisories calls severity."""
    if urgency := (affected.get("ecosystem_specific") or {}).get("urgency"):
        return _urgency(str(urgency))
    severity = str((record.get("database_specific") or {}).get("severity", "")).lower()
    return SEVERITIES.get(severity, "unassigned")


def _in_range(version: str, events: Sequence[Mapping[str, str]], key: ecosystems.Order) -> bool:
    """Return True if a version is affected, by the schema's algorithm: events in the order of their versions."""
    hit, mine = False, key(version)
    for kind, value in sorted((pair for event in events for pair in event.items()), key=lambda pair: key(pair[1])):
        if kind == "introduced" and (value == "0" or not key(value) > mine):
            hit = True
        elif (kind == "fixed" and not key(value) > mine) or (kind == "last_affected" and mine > key(value)):
            hit = False
    return hit


def _names(record: Mapping[str, Any]) -> list[str]:
    """Return the CVEs that a record is about (a DSA is about several), or its own id."""
    own = str(record["id"]).removeprefix("DEBIAN-")
    if own.startswith("CVE-"):
        return [own]
    others = {str(name) for key in ("aliases", "upstream") for name in record.get(key) or ()}
    return sorted({name.removeprefix("DEBIAN-") for name in others if re.search(r"^(DEBIAN-)?CVE-", name)}) or [own]


# --- the security tracker ---------------------------------------------------------------------------------------------


def read_tracker(path: Path, release: str, components: Sequence[Component]) -> Iterator[Known]:
    """Read the security tracker's JSON."""
    content = _json(_read(path), path)
    if not isinstance(content, dict) or not all(isinstance(entries, dict) for entries in content.values()):
        raise SpecError(f"{path} is not JSON of the security tracker: source -> CVE -> …")
    if not any(release in (entry.get("releases") or ()) for entries in content.values() for entry in entries.values()):
        raise SpecError(f"{path} has no entry of {release}", hint="download the tracker's JSON again")
    for component in _debians(components):
        for name, entry in sorted(content.get(component.source, {}).items()):
            status_entry = (entry.get("releases") or {}).get(release)
            if status_entry and (known := _of_tracker(name, status_entry, component)):
                yield known


def _of_tracker(name: str, status_entry: Mapping[str, str], component: Component) -> Known | None:
    status, fixed = status_entry.get("status", "undetermined"), status_entry.get("fixed_version", "")
    if status == "resolved":
        # "0" means that no version of this release was ever affected.
        if fixed == "0" or not versions.newer(fixed, component.version):
            return None
        return Known(name, component, _urgency(status_entry.get("urgency", "")), fixed)
    reasons = (status_entry.get("nodsa_reason", ""), status_entry.get("nodsa", ""))
    note = ": ".join(filter(None, reasons)) if status == "open" else "not determined yet whether it is affected"
    return Known(name, component, _urgency(status_entry.get("urgency", "")), "", note)


READERS: Mapping[str, Reader] = {"debsecan": read_debsecan, "osv": read_osv, "tracker": read_tracker}
