"""Lock files: the archive files that a build uses, with size and hash. All locks have the same format.

A lock is tab-separated text so that a change reads well in a diff::

    # format: 1
    # release: trixie
    # date: 2026-11-20T02:11:10Z        the archive as of this moment; also the build's SOURCE_DATE_EPOCH
    # request: 5d1c…                    hash of the request; a lock with another request is not used
    adduser  3.152  debian  pool/main/a/adduser/adduser_3.152_all.deb  192428  9f0e…

Columns: package, version, archive (``debian`` or ``security``), path in the archive, bytes, SHA-256. No host name: the
mirror is the host's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from build.core.errors import SpecError

FORMAT = "1"
COLUMNS = 6
HEADERS = ("format", "release", "date", "request")


class Archive(StrEnum):
    """The two Debian archives."""

    DEBIAN = "debian"
    SECURITY = "security"


@dataclass(frozen=True, order=True)
class Entry:
    """One file of an archive: ``size`` in bytes, ``sha256`` as hexadecimal."""

    package: str
    version: str
    archive: Archive
    path: str
    size: int
    sha256: str

    @property
    def filename(self) -> str:
        return self.path.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Lock:
    """A consistent set of archive files, and the hash of the request that it was resolved for."""

    release: str
    date: str
    request: str
    entries: tuple[Entry, ...]

    @property
    def epoch(self) -> int:
        """Seconds since 1970 of the archive's date: the newest timestamp that a built file may have."""
        return int(datetime.fromisoformat(self.date).timestamp())

    def versions(self) -> dict[str, str]:
        """Return package -> version."""
        return {entry.package: entry.version for entry in self.entries}

    def render(self, title: str) -> str:
        """Return the text of the lock file; ``title`` is its first line."""
        values = {"format": FORMAT, "release": self.release, "date": self.date, "request": self.request}
        lines = [f"# {title}", *(f"# {key}: {values[key]}" for key in HEADERS)]
        lines += [
            "\t".join((entry.package, entry.version, entry.archive, entry.path, str(entry.size), entry.sha256))
            for entry in sorted(self.entries)
        ]
        return "\n".join(lines) + "\n"


def parse(path: Path) -> Lock:
    """Read a lock file; raise SpecError with file, line and fix when it is damaged."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise SpecError(f"{path} does not exist", hint="write it: nox -s lock") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{path} is not UTF-8: {error}", hint="write it again: nox -s lock") from error
    headers: dict[str, str] = {}
    entries: list[Entry] = []
    for number, line in enumerate(lines, 1):
        if header := re.fullmatch(r"# ([a-z]+): (\S+)", line):
            headers[header[1]] = header[2]
        elif line and not line.startswith("#"):
            entries.append(_entry(line, path=path, number=number))
    missing = [key for key in HEADERS if key not in headers]
    if missing or headers["format"] != FORMAT:
        raise SpecError(
            f"{path} is not a lock of format {FORMAT}", details=f"missing: {', '.join(missing)}" if missing else "",
            hint="write it again: nox -s lock",
        )  # fmt: skip
    if not entries:
        raise SpecError(f"{path} has no entries", hint="write it again: nox -s lock")
    return Lock(headers["release"], _date(headers["date"], path), headers["request"], tuple(sorted(entries)))


def _date(text: str, path: Path) -> str:
    with suppress(ValueError):
        # Without a zone the time would depend on the host.
        if datetime.fromisoformat(text).tzinfo is not None:
            return text
    raise SpecError(f"{path}: date: {text!r} is not an ISO 8601 time with a zone", hint="write it again: nox -s lock")


def _entry(line: str, *, path: Path, number: int) -> Entry:
    fields = line.split("\t")
    good = (
        len(fields) == COLUMNS
        and fields[2] in set(Archive)
        and re.fullmatch(r"[0-9]{1,15}", fields[4])
        and re.fullmatch(r"[0-9a-f]{64}", fields[5])
        and re.fullmatch(r"pool/[A-Za-z0-9+._~/-]+", fields[3])
        and ".." not in fields[3]
    )
    if not good:
        raise SpecError(
            f"{path}, line {number}: {line!r} is not an entry (package, version, archive, path, bytes, SHA-256)",
            hint="write it again: nox -s lock",
        )
    return Entry(fields[0], fields[1], Archive(fields[2]), fields[3], int(fields[4]), fields[5])


def compare(old: Iterable[Entry], new: Iterable[Entry]) -> list[str]:
    """Return the differences as text, one per entry: ``nginx 1.26.3-3 -> 1.26.3-4``."""
    before = {entry.package: entry.version for entry in old}
    after = {entry.package: entry.version for entry in new}
    lines = []
    for package in sorted(before.keys() | after.keys()):
        a, b = before.get(package), after.get(package)
        if a != b:
            lines.append(f"{package} {a or '(new)'} -> {b or '(gone)'}")
    return lines
