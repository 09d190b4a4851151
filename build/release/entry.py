"""An entry of the ledger of releases: user, action and version, and the hash of the previous entry.

Nothing in it depends on the host that wrote it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

from build.core import files, json_text
from build.core.errors import SpecError
from build.core.units import seconds_of

NOTHING_BEFORE = "0" * 64
HASH = re.compile(r"[0-9a-f]{64}")
# They are mirrored in descriptions, which hold 8 KiB.
LONGEST_REASON, LONGEST_WHO = 300, 120


class Action(StrEnum):
    """An operation on a version."""

    PROMOTE = "promote"
    ROLLBACK = "rollback"
    REVOKE = "revoke"
    RESTORE = "restore"
    PRUNE = "prune"


class Phase(StrEnum):
    """An intent is recorded before the first change, ``done`` after the last one."""

    INTENT = "intent"
    DONE = "done"


@dataclass(frozen=True)
class Assignment:
    """A version and the digest of its image; both empty: nothing."""

    version: str
    digest: str

    def __str__(self) -> str:
        return f"{self.version}@{self.digest}" if self.digest else ""

    def __bool__(self) -> bool:
        return bool(self.digest)


NONE = Assignment("", "")


def assignment(text: str) -> Assignment:
    """Return the assignment in a text such as ``1.2.3@DIGEST``."""
    version, _, digest = text.rpartition("@")
    return Assignment(version, digest)


@dataclass(frozen=True)
class Entry:
    """One line of the ledger."""

    number: int
    previous: str
    time: str
    who: str
    action: Action
    phase: Phase
    channel: str
    version: str
    digest: str
    before: str = ""
    reason: str = ""
    commit: str = ""

    @property
    def hash(self) -> str:
        return files.digest(asdict(self))

    @property
    def subject(self) -> Assignment:
        """The version of the entry."""
        return Assignment(self.version, self.digest)

    @property
    def key(self) -> str:
        """The channel, or without one the image: each may have one unfinished operation at a time."""
        return self.channel or self.digest

    @property
    def operation(self) -> tuple[str, str, str]:
        """The requested operation, without user and time."""
        return self.action, self.channel, self.digest

    def line(self) -> str:
        """Return the line of the file, with its end."""
        return files.canonical_json(asdict(self) | {"hash": self.hash}).decode() + "\n"


@dataclass(frozen=True)
class Gap:
    """Entries that a rebuilt ledger lacks: numbers ``first`` to ``number``, the last one's hash."""

    first: int
    number: int
    hash: str

    def line(self) -> str:
        """Return the line of the file, with its end."""
        return files.canonical_json({"missing": [self.first, self.number], "hash": self.hash}).decode() + "\n"

    def __str__(self) -> str:
        return f"entry {self.number}" if self.first == self.number else f"entries {self.first} to {self.number}"


def entry_of(facts: Mapping[str, Any]) -> Entry:
    """Return the entry of a parsed line; raise ValueError with the problem."""
    known = {entry_field.name for entry_field in fields(Entry)}
    if set(facts) != known | {"hash"}:
        raise ValueError("it is not an entry of a ledger")
    texts = {name: value for name, value in facts.items() if name != "number"}
    number = facts["number"]
    if not isinstance(number, int) or isinstance(number, bool) or not all(isinstance(text, str) for text in texts.values()):
        raise ValueError("it is not an entry of a ledger")
    values = {name: value for name, value in facts.items() if name != "hash"}
    entry = Entry(**{**values, "action": Action(facts["action"]), "phase": Phase(facts["phase"])})
    seconds_of(entry.time)
    if not facts["hash"] or not entry.hash.startswith(facts["hash"]):
        raise ValueError("it was modified: its content does not match its hash")
    return entry


def line_of(text: str) -> Entry | Gap:
    """Return the entry or gap in a line of the file; raise ValueError, TypeError or KeyError if it is neither."""
    facts = dict(json_text.parse(text))
    if set(facts) != {"missing", "hash"}:
        if not HASH.fullmatch(str(facts.get("hash", ""))):
            raise ValueError("it is not an entry of a ledger")
        return entry_of(facts)
    first, last = facts["missing"]
    if not (isinstance(first, int) and isinstance(last, int) and 1 <= first <= last and HASH.fullmatch(facts["hash"])):
        raise ValueError("it is not a record of missing entries")
    return Gap(first, last, facts["hash"])


def one_line(option: str, text: str, longest: int = LONGEST_REASON) -> str:
    """Return a reason or a name for the ledger; raise SpecError if it is not one line, or too long for a mirror."""
    line = text.strip()
    if len(line) > longest or not line.isprintable():
        raise SpecError(
            f"{option}: {line[:60]!r}…: this is not a single line of at most {longest} characters",
            hint="write one sentence, and refer to a ticket for the rest",
        )  # fmt: skip
    return line
