"""The ledger of releases: one JSON object a line, each with the hash of the one before, verified at every read.

::

    {"number": 2, "previous": SHA-256 of entry 1, "time": UTC, "who", "action", "phase": "intent" or "done",
     "channel", "version", "digest": of the image, "before": "VERSION@DIGEST" that the channel pointed at, "reason",
     "commit": that the image was built from, "hash": SHA-256 of all of this without itself, as canonical JSON}
    {"missing": [3, 4], "hash": SHA-256 of entry 4}     where a rebuilt ledger lacks entries: reported at every read

Nothing in it depends on the host that wrote it. To add a line, the whole file is written under another name, flushed
and renamed, so that neither a reader nor a power loss leaves part of a line. The chain cannot show that its end was cut
off; the mirror on the cluster does: see :mod:`build.release.channels`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Any

from build.core import files, log
from build.core.errors import VerificationFailed
from build.core.units import stamp
from build.release.entry import NOTHING_BEFORE, Entry, Gap, line_of

REBUILD = "rebuild it from the cluster (the old file is kept beside it): nox -s history -- --rebuild"


class LedgerError(VerificationFailed):
    """The ledger was modified or is damaged: the details name the lines."""


class Ledger:
    """The lines of a ledger in order; created by :func:`parse` or :func:`rebuilt`, so they are a complete chain."""

    def __init__(self, lines: Sequence[Entry | Gap] = ()) -> None:
        self.lines = tuple(lines)
        self._by_number = {entry.number: entry for entry in self.entries}

    @property
    def entries(self) -> tuple[Entry, ...]:
        return tuple(line for line in self.lines if isinstance(line, Entry))

    @property
    def gaps(self) -> tuple[Gap, ...]:
        return tuple(line for line in self.lines if isinstance(line, Gap))

    @property
    def head(self) -> int:
        """The number of the last entry; 0 when there is none."""
        return self.lines[-1].number if self.lines else 0

    @property
    def head_hash(self) -> str:
        return self.lines[-1].hash if self.lines else NOTHING_BEFORE

    @property
    def last_time(self) -> str:
        """The time of the last entry; empty when there is none."""
        return self.entries[-1].time if self.entries else ""

    def get(self, number: int) -> Entry | None:
        """Return the entry of a number, if it is there."""
        return self._by_number.get(number)

    def text(self) -> str:
        """Return the file's content."""
        return "".join(line.line() for line in self.lines)

    def follow(self, entry: Entry) -> Ledger:
        """Return the ledger with one more entry; raise ValueError if it does not follow the last one."""
        if (entry.number, entry.previous) != (self.head + 1, self.head_hash):
            raise ValueError(f"entry {entry.number} does not follow entry {self.head}")
        return Ledger([*self.lines, entry])

    def next(self, now: datetime, **facts: Any) -> Entry:
        """Return the entry that would follow, at ``now``.

        If the clock is behind the last entry, the time of that entry is used, with a warning: rollback and revocation
        must be possible on a host with a wrong clock, and times must not contradict the order. The soak gate checks the
        clock itself.
        """
        time = stamp(now)
        if time < self.last_time:
            log.warn(
                f"the clock of this host is at {time}, before the ledger's last entry: recording the time of "
                f"that entry, {self.last_time}"
            )
            time = self.last_time
        return Entry(number=self.head + 1, previous=self.head_hash, time=time, **facts)


def parse(text: str, where: str) -> Ledger:
    """Return the ledger in a text; raise LedgerError that names every modified or damaged line."""
    problems: list[str] = []
    lines: list[Entry | Gap] = []
    head, head_hash, head_time = 0, NOTHING_BEFORE, ""
    rows = text.split("\n")
    if rows.pop():
        problems.append(f"line {len(rows) + 1}: it is truncated: the end of the line is missing")
    for row, content in enumerate(rows, 1):
        try:
            line = line_of(content)
        except (ValueError, TypeError, KeyError) as error:
            # Its number and hash are unknown: the next line is checked without them.
            problem = "it is not JSON" if isinstance(error, json.JSONDecodeError) else str(error)
            problems.append(f"line {row}: {problem}")
            head, head_hash = head + 1, ""
            continue
        problems += [f"line {row}: {problem}" for problem in _sequence(line, head, head_hash, head_time)]
        head, head_hash = line.number, line.hash
        head_time = line.time if isinstance(line, Entry) else head_time
        lines.append(line)
    if problems:
        raise LedgerError(f"{where} was modified or is damaged", details="\n".join(problems), hint=REBUILD)
    return Ledger(lines)


def _sequence(line: Entry | Gap, head: int, head_hash: str, head_time: str) -> Iterator[str]:
    """Yield the problems of the position of a line."""
    first = line.first if isinstance(line, Gap) else line.number
    if first <= head:
        yield f"entry {first} comes after entry {head}: it is a duplicate, or was moved"
    elif first > head + 1:
        gap = Gap(head + 1, first - 1, "")
        yield f"{gap} {'is' if gap.first == gap.number else 'are'} missing before it"
    elif isinstance(line, Entry) and head_hash and line.previous != head_hash:
        yield f"it does not follow the line before: the hash of that line is {head_hash[:12]}, not {line.previous[:12]}"
    if isinstance(line, Entry) and line.time < head_time:
        yield f"it is of {line.time}, and the line before of {head_time}"


def salvaged(path: Path) -> list[Entry]:
    """Return the entries of a modified ledger whose content matches their hash. Their order proves nothing."""
    entries = []
    for row in path.read_bytes().decode(errors="replace").split("\n"):
        try:
            line = line_of(row)
        except (ValueError, TypeError, KeyError):
            continue
        if isinstance(line, Entry):
            entries.append(line)
    return entries


def rebuilt(known: Iterable[Entry], *, trusted: Sequence[Entry]) -> tuple[Ledger, list[Entry]]:
    """Return the chain that ends with the newest of the trusted entries, and the trusted ones that are not on it.

    Missing entries are recorded as a gap. Untrusted entries are used only if a hash of the chain names them. If there
    are two newest entries, the one with more predecessors is used.
    """
    if not trusted:
        return Ledger(), []
    by_hash = {entry.hash: entry for entry in known}
    newest = max(entry.number for entry in trusted)
    heads = {entry.hash: entry for entry in trusted if entry.number == newest}
    chains = [_chain(head, by_hash, trusted) for head in heads.values()]
    lines = max(chains, key=lambda chain: (sum(isinstance(entry, Entry) for entry in chain), chain[-1].hash))
    kept = {entry.hash for entry in lines}
    return Ledger(lines), [entry for entry in trusted if entry.hash not in kept]


def _chain(newest: Entry, by_hash: Mapping[str, Entry], trusted: Sequence[Entry]) -> list[Entry | Gap]:
    lines: list[Entry | Gap] = [newest]
    while (last := lines[-1]).number > 1 and isinstance(last, Entry):
        before = by_hash.get(last.previous)
        if before is None or before.number != last.number - 1:
            # No hash leads across a gap: the trusted entry with the next lower number is used.
            earlier = [entry for entry in trusted if entry.number < last.number - 1]
            lower = max(earlier, key=lambda entry: entry.number, default=None)
            lines.append(Gap(lower.number + 1 if lower else 1, last.number - 1, last.previous))
            if lower is None:
                break
            before = lower
        lines.append(before)
    return lines[::-1]


class LedgerFile:
    """The ledger's file, and beside it the entry that is being written.

    The pending entry is stored before an entry is written to the cluster, and removed when the entry is in the file: if
    a run is killed between the two, the next run completes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def _pending(self) -> Path:
        return self.path.with_name(f".{self.path.name}.pending")

    def held(self) -> AbstractContextManager[None]:
        """Hold the exclusive lock of the ledger on this host."""
        lock = self.path.with_name(f".{self.path.name}.lock")
        return files.lock(lock, waiting="another release is running on this host: waiting for it")

    def exists(self) -> bool:
        """Return True if the ledger's file exists."""
        return self.path.exists()

    def read(self) -> Ledger:
        """Read and verify the ledger; return an empty one if there is no file. Raises LedgerError that names the lines."""
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return Ledger()
        except UnicodeDecodeError as error:
            raise LedgerError(f"{self.path} is not UTF-8 text", hint=REBUILD) from error
        return parse(text, str(self.path))

    def append(self, entry: Entry) -> Ledger:
        """Add an entry, flushed to the disk; an entry that is already the last one is not added twice.

        Raises LedgerError.
        """
        ledger = self.read()
        if ledger.head_hash != entry.hash:
            try:
                ledger = ledger.follow(entry)
            except ValueError as error:
                raise LedgerError(f"{self.path} was modified concurrently: {error}", hint=REBUILD) from error
            files.write_atomic(self.path, ledger.text())
        self._pending.unlink(missing_ok=True)
        return ledger

    def propose(self, entry: Entry) -> None:
        """Store an entry before it is written to the cluster."""
        files.write_atomic(self._pending, entry.line())

    def withdraw(self) -> None:
        """Remove the proposed entry: it is not on the cluster."""
        self._pending.unlink(missing_ok=True)

    def proposed(self) -> Entry | None:
        """Return the entry left by a killed run, or None."""
        try:
            entry = line_of(self._pending.read_text(encoding="utf-8").removesuffix("\n"))
        except (FileNotFoundError, ValueError, TypeError):
            return None
        return entry if isinstance(entry, Entry) else None

    def replace(self, ledger: Ledger) -> Path | None:
        """Write a rebuilt ledger; return the path of the backup if the old ledger was different."""
        backup = None
        if self.path.exists() and self.path.read_bytes() != ledger.text().encode():
            backup = self.path.with_name(f"{self.path.name}.before-{files.sha256_file(self.path)[:12]}")
            files.write_atomic(backup, self.path.read_bytes())
        files.write_atomic(self.path, ledger.text())
        self.withdraw()
        return backup
