"""The ledger of releases: one JSON object a line, each with the hash of the one before, verified at every reading.

::

    {"number": 2, "previous": SHA-256 of entry 1, "time": UTC, "who", "action", "phase": "intent" or "done",
     "channel", "version", "digest": of the image, "before": "VERSION@DIGEST" that the channel pointed at, "reason",
     "commit": that the image was built from, "hash": SHA-256 of all of this without itself, as canonical JSON}
    {"missing": [3, 4], "hash": SHA-256 of entry 4}     where a rebuilt ledger lacks entries: told at every reading

Nothing in it depends on the machine that wrote it. A line is added by writing the file anew under another name, flushed
and renamed, so that no reader and no power cut sees a part of a line. What the chain cannot show, that its end was cut
off, shows in the mirror on the cluster: see :mod:`build.channels`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Any

from build import files, log
from build.errors import VerificationFailed
from build.release_entry import NOTHING_BEFORE, Entry, Gap, line_of, stamp

REBUILD = "nox -s history -- --rebuild makes it anew from the cluster, and keeps this one beside it"


class LedgerError(VerificationFailed):
    """The ledger is not what was written: the details name the lines."""


class Ledger:
    """The lines of a ledger in order; made by :func:`parse` or :func:`rebuilt`, so they are a whole chain."""

    def __init__(self, lines: Sequence[Entry | Gap] = ()) -> None:
        self.lines = tuple(lines)
        self._by_number = {one.number: one for one in self.entries}

    @property
    def entries(self) -> tuple[Entry, ...]:
        return tuple(one for one in self.lines if isinstance(one, Entry))

    @property
    def gaps(self) -> tuple[Gap, ...]:
        return tuple(one for one in self.lines if isinstance(one, Gap))

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
        return "".join(one.line() for one in self.lines)

    def follow(self, entry: Entry) -> Ledger:
        """Return the ledger with one more entry; raise ValueError when it does not follow."""
        if (entry.number, entry.previous) != (self.head + 1, self.head_hash):
            raise ValueError(f"entry {entry.number} does not follow entry {self.head}")
        return Ledger([*self.lines, entry])

    def next(self, now: datetime, **facts: Any) -> Entry:
        """Return the entry that would follow, at ``now``.

        When the clock is behind the last entry, that one's time is taken and a warning given: to roll back and to revoke
        must be possible on a machine whose clock is wrong, and an order that contradicts the times helps nobody later. The
        gate that counts time refuses by itself.
        """
        time = stamp(now)
        if time < self.last_time:
            log.warn(f"this machine's clock says {time}, and the ledger's last entry is of {self.last_time}: that is noted")
            time = self.last_time
        return Entry(number=self.head + 1, previous=self.head_hash, time=time, **facts)


def parse(text: str, where: str) -> Ledger:
    """Return the ledger in a text; raise LedgerError that names every line which is not as it was written."""
    problems: list[str] = []
    lines: list[Entry | Gap] = []
    head, head_hash, head_time = 0, NOTHING_BEFORE, ""
    rows = text.split("\n")
    if rows.pop():
        problems.append(f"line {len(rows) + 1}: it is cut off: the end of the line is missing")
    for row, content in enumerate(rows, 1):
        try:
            found = line_of(content)
        except (ValueError, TypeError, KeyError) as error:
            # Without its content nobody knows what follows: the next line is judged by itself.
            said = "it is no JSON" if isinstance(error, json.JSONDecodeError) else str(error)
            problems.append(f"line {row}: {said}")
            head, head_hash = head + 1, ""
            continue
        problems += [f"line {row}: {said}" for said in _sequence(found, head, head_hash, head_time)]
        head, head_hash = found.number, found.hash
        head_time = found.time if isinstance(found, Entry) else head_time
        lines.append(found)
    if problems:
        raise LedgerError(f"{where} is not what was written", details="\n".join(problems), hint=REBUILD)
    return Ledger(lines)


def _sequence(found: Entry | Gap, head: int, head_hash: str, head_time: str) -> Iterator[str]:
    """Say what is wrong with the place of a line."""
    first = found.first if isinstance(found, Gap) else found.number
    if first <= head:
        yield f"entry {first} stands after entry {head}: it is there twice, or was moved"
    elif first > head + 1:
        gap = Gap(head + 1, first - 1, "")
        yield f"{gap} {'is' if gap.first == gap.number else 'are'} missing before it"
    elif isinstance(found, Entry) and head_hash and found.previous != head_hash:
        yield f"it does not follow the line before: that one's hash is {head_hash[:12]}, not {found.previous[:12]}"
    if isinstance(found, Entry) and found.time < head_time:
        yield f"it is of {found.time}, and the line before of {head_time}"


def salvaged(path: Path) -> list[Entry]:
    """Return the entries of a ledger that was changed whose content is what their hash says. Their order proves nothing."""
    found = []
    for row in path.read_bytes().decode(errors="replace").split("\n"):
        try:
            one = line_of(row)
        except (ValueError, TypeError, KeyError):
            continue
        if isinstance(one, Entry):
            found.append(one)
    return found


def rebuilt(found: Iterable[Entry], *, trusted: Sequence[Entry]) -> tuple[Ledger, list[Entry]]:
    """Return the chain that ends with the newest of the trusted entries, and the trusted ones that are not on it.

    Where entries are lacking stands a note. Others than the trusted are taken where a hash of the chain names them. Of two
    newest ones, that is taken which more entries lead to.
    """
    if not trusted:
        return Ledger(), []
    by_hash = {one.hash: one for one in found}
    newest = max(one.number for one in trusted)
    heads = {one.hash: one for one in trusted if one.number == newest}
    chains = [_chain(head, by_hash, trusted) for head in heads.values()]
    lines = max(chains, key=lambda chain: (sum(isinstance(one, Entry) for one in chain), chain[-1].hash))
    kept = {one.hash for one in lines}
    return Ledger(lines), [one for one in trusted if one.hash not in kept]


def _chain(newest: Entry, by_hash: Mapping[str, Entry], trusted: Sequence[Entry]) -> list[Entry | Gap]:
    lines: list[Entry | Gap] = [newest]
    while (last := lines[-1]).number > 1 and isinstance(last, Entry):
        before = by_hash.get(last.previous)
        if before is None or before.number != last.number - 1:
            # Beyond a gap no hash leads on: the trusted entry with the next lower number is taken.
            lower = max((one for one in trusted if one.number < last.number - 1), key=lambda one: one.number, default=None)
            lines.append(Gap(lower.number + 1 if lower else 1, last.number - 1, last.previous))
            if lower is None:
                break
            before = lower
        lines.append(before)
    return lines[::-1]


class Book:
    """The ledger's file, and beside it the entry that is being written.

    ``pending`` is kept before an entry is shown to the cluster and removed when it is in the file: a run that is killed
    between the two is finished by the next one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def _pending(self) -> Path:
        return self.path.with_name(f".{self.path.name}.pending")

    def held(self) -> AbstractContextManager[None]:
        """Hold the ledger alone on this host."""
        lock = self.path.with_name(f".{self.path.name}.lock")
        return files.lock(lock, waiting="another release is being made on this host: waiting for it")

    def exists(self) -> bool:
        """Say whether there is a ledger here."""
        return self.path.exists()

    def read(self) -> Ledger:
        """Read and verify the ledger; an empty one when there is no file. Raises LedgerError that names the lines."""
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return Ledger()
        except UnicodeDecodeError as error:
            raise LedgerError(f"{self.path} is no text", hint=REBUILD) from error
        return parse(text, str(self.path))

    def append(self, entry: Entry) -> Ledger:
        """Add an entry, flushed to the disk; one that is the last already is not added twice. Raises LedgerError."""
        ledger = self.read()
        if ledger.head_hash != entry.hash:
            try:
                ledger = ledger.follow(entry)
            except ValueError as error:
                raise LedgerError(f"{self.path} was changed meanwhile: {error}", hint=REBUILD) from error
            files.write_atomic(self.path, ledger.text())
        self._pending.unlink(missing_ok=True)
        return ledger

    def propose(self, entry: Entry) -> None:
        """Keep an entry that the cluster is about to be shown."""
        files.write_atomic(self._pending, entry.line())

    def withdraw(self) -> None:
        """Forget the entry that was proposed: the cluster has not taken it."""
        self._pending.unlink(missing_ok=True)

    def proposed(self) -> Entry | None:
        """Return the entry that a killed run has left, or None."""
        try:
            found = line_of(self._pending.read_text(encoding="utf-8").removesuffix("\n"))
        except (FileNotFoundError, ValueError, TypeError):
            return None
        return found if isinstance(found, Entry) else None

    def replace(self, ledger: Ledger) -> Path | None:
        """Write a rebuilt ledger; return where the old one is kept, if there was another one."""
        kept = None
        if self.path.exists() and self.path.read_bytes() != ledger.text().encode():
            kept = self.path.with_name(f"{self.path.name}.before-{files.sha256_file(self.path)[:12]}")
            files.write_atomic(kept, self.path.read_bytes())
        files.write_atomic(self.path, ledger.text())
        self.withdraw()
        return kept
