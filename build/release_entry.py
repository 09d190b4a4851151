"""An entry of the ledger of releases: who did what to which version, and the hash that ties it to the entry before.

Nothing in it depends on the machine that wrote it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from build import files
from build.errors import SpecError

STAMP = "%Y-%m-%dT%H:%M:%SZ"
NOTHING_BEFORE = "0" * 64
HASH = re.compile(r"[0-9a-f]{64}")
# They are mirrored in descriptions, which hold 8 KiB.
LONGEST_REASON, LONGEST_WHO = 300, 120


class Action(StrEnum):
    """What was done to a version."""

    PROMOTE = "promote"
    ROLLBACK = "rollback"
    REVOKE = "revoke"
    RESTORE = "restore"
    PRUNE = "prune"


class Phase(StrEnum):
    """An intent stands before the first change, what was done after the last one."""

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


NOBODY = Assignment("", "")


def assignment(text: str) -> Assignment:
    """Return the assignment that a text such as ``1.2.3@DIGEST`` stands for."""
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
        """The version that it is about."""
        return Assignment(self.version, self.digest)

    @property
    def key(self) -> str:
        """What may have one unfinished operation at a time: a channel, or without one an image."""
        return self.channel or self.digest

    @property
    def operation(self) -> tuple[str, str, str]:
        """What was asked for, whoever asked, and whenever."""
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
    """Return the entry of a parsed line; raise ValueError that says what is wrong with it."""
    known = {one.name for one in fields(Entry)}
    if set(facts) != known | {"hash"}:
        raise ValueError("it is no entry of a ledger")
    texts = {name: value for name, value in facts.items() if name != "number"}
    number = facts["number"]
    if not isinstance(number, int) or isinstance(number, bool) or not all(isinstance(one, str) for one in texts.values()):
        raise ValueError("it is no entry of a ledger")
    values = {name: value for name, value in facts.items() if name != "hash"}
    found = Entry(**{**values, "action": Action(facts["action"]), "phase": Phase(facts["phase"])})
    seconds(found.time)
    if not facts["hash"] or not found.hash.startswith(facts["hash"]):
        raise ValueError("it was changed: its content is not what its hash says")
    return found


def line_of(text: str) -> Entry | Gap:
    """Return what a line of the file holds; raise ValueError, TypeError or KeyError when that is nothing of ours."""
    facts = dict(json.loads(text))
    if set(facts) != {"missing", "hash"}:
        if not HASH.fullmatch(str(facts.get("hash", ""))):
            raise ValueError("it is no entry of a ledger")
        return entry_of(facts)
    first, last = facts["missing"]
    if not (isinstance(first, int) and isinstance(last, int) and 1 <= first <= last and HASH.fullmatch(facts["hash"])):
        raise ValueError("it is no note of missing entries")
    return Gap(first, last, facts["hash"])


def stamp(when: datetime) -> str:
    """Return a time as the ledger has it."""
    return when.astimezone(UTC).strftime(STAMP)


def seconds(text: str) -> float:
    """Return a time of the ledger, or of a label, in seconds since 1970; raise ValueError when it is none."""
    return datetime.strptime(text, STAMP).replace(tzinfo=UTC).timestamp()


def one_line(option: str, text: str, longest: int = LONGEST_REASON) -> str:
    """Return words of a person for the ledger; raise SpecError when they are no line, or too long for a mirror."""
    words = text.strip()
    if len(words) > longest or not words.isprintable():
        raise SpecError(
            f"{option}: {words[:60]!r}…: this is no single line of at most {longest} characters",
            hint="write one sentence, and name the ticket that has the rest",
        )  # fmt: skip
    return words
