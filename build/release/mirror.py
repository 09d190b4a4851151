"""The mirror of the ledger in a template's description: an HTML comment, after the comment of its label.

Each template keeps revocations, the entries about its own version and, if there is room, the newest other entries. The
newest entry of all is always kept. An entry has the first digits of its hash, so that a manual edit is detected.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict

from build.core import json_text
from build.release.entry import Action, Entry, entry_of

MARK = re.compile(r"\n?<!-- goldsmith-ledger: (?P<entries>\[.*\]) -->")
# pve-manager: maxLength of a description.
LONGEST = 8192
HASH_DIGITS = 12
RECORDS = (Action.REVOKE, Action.RESTORE)


def entries_of(description: str) -> tuple[list[Entry], list[str]]:
    """Return the entries in a description, by number, and the problems of the others."""
    entries: dict[str, Entry] = {}
    problems: list[str] = []
    for match in MARK.finditer(description or ""):
        try:
            listed = json_text.parse(match["entries"])
        except ValueError:
            problems.append("its mirror of the ledger cannot be read")
            continue
        for facts in listed:
            try:
                entry = entry_of(facts)
            except (ValueError, TypeError, KeyError) as error:
                number = facts.get("number", "?") if isinstance(facts, dict) else "?"
                problems.append(f"entry {number} in its mirror of the ledger: {error}")
                continue
            entries[entry.hash] = entry
    return sorted(entries.values(), key=lambda entry: entry.number), problems


def without(description: str) -> str:
    """Return a description without its mirror."""
    return MARK.sub("", description or "").rstrip("\n")


def with_entries(description: str, entries: Iterable[Entry], version: str) -> str:
    """Return a description that mirrors the entries as far as they fit.

    Order: the newest entry, revocations and restorations of any version, entries about ``version``, the others.
    """
    plain = without(description)
    newest_first = sorted({entry.hash: entry for entry in entries}.values(), key=lambda entry: -entry.number)
    ordered = sorted(
        newest_first,
        key=lambda entry: (
            entry is not newest_first[0],
            entry.action not in RECORDS,
            entry.version != version,
            -entry.number,
        ),
    )
    kept: list[Entry] = []
    for entry in ordered:
        if len(_text(plain, [*kept, entry]).encode()) <= LONGEST:
            kept.append(entry)
    return _text(plain, kept) if kept else plain


def _text(plain: str, entries: Iterable[Entry]) -> str:
    facts = [asdict(entry) | {"hash": entry.hash[:HASH_DIGITS]} for entry in sorted(entries, key=lambda entry: entry.number)]
    # Escaped, so that the JSON cannot end the HTML comment.
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False).replace(">", "\\u003e")
    return f"{plain}\n<!-- goldsmith-ledger: {text} -->"
