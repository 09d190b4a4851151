"""The mirror of the ledger in a template's description: one more HTML comment, beside the one of its label.

Each template keeps revocations and the entries about its own version; where there is room, the newest of the others. The
newest of all is kept in any case. An entry carries the first digits of its hash, so that an edit by hand is noticed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict

from build.release_entry import Action, Entry, entry_of

MARK = re.compile(r"\n?<!-- goldsmith-ledger: (?P<entries>\[.*\]) -->")
# pve-manager: maxLength of a description.
LONGEST = 8192
HASH_DIGITS = 12
RECORDS = (Action.REVOKE, Action.RESTORE)


def entries_of(description: str) -> tuple[list[Entry], list[str]]:
    """Return the entries in a description, by number, and what is wrong with others."""
    entries: dict[str, Entry] = {}
    problems: list[str] = []
    for found in MARK.finditer(description or ""):
        try:
            listed = json.loads(found["entries"])
        except ValueError:
            problems.append("its mirror of the ledger cannot be read")
            continue
        for facts in listed:
            try:
                one = entry_of(facts)
            except (ValueError, TypeError, KeyError) as error:
                number = facts.get("number", "?") if isinstance(facts, dict) else "?"
                problems.append(f"entry {number} in its mirror of the ledger: {error}")
                continue
            entries[one.hash] = one
    return sorted(entries.values(), key=lambda one: one.number), problems


def without(description: str) -> str:
    """Return a description without its mirror."""
    return MARK.sub("", description or "").rstrip("\n")


def with_entries(description: str, entries: Iterable[Entry], version: str) -> str:
    """Return a description that mirrors the entries as far as they fit.

    First the newest, then revocations, whatever they are about, then what is about ``version``, then the others.
    """
    plain = without(description)
    newest_first = sorted({one.hash: one for one in entries}.values(), key=lambda one: -one.number)
    wanted = sorted(
        newest_first,
        key=lambda one: (one is not newest_first[0], one.action not in RECORDS, one.version != version, -one.number),
    )
    kept: list[Entry] = []
    for one in wanted:
        if len(_text(plain, [*kept, one]).encode()) <= LONGEST:
            kept.append(one)
    return _text(plain, kept) if kept else plain


def _text(plain: str, entries: Iterable[Entry]) -> str:
    facts = [asdict(one) | {"hash": one.hash[:HASH_DIGITS]} for one in sorted(entries, key=lambda one: one.number)]
    # JSON that cannot end the comment it stands in.
    written = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False).replace(">", "\\u003e")
    return f"{plain}\n<!-- goldsmith-ledger: {written} -->"
