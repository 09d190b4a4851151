"""A comparison as text and as JSON data: grouped, and so short that ten thousand changed files stay readable."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from build.artifact.contents import Side
from build.report.compare import Change, Comparison, Section

# The number of lines that are printed of a section; the rest is counted.
LINES = 12
GROUPS = 24
# A directory has a separate line when it has at least 1/SHARE of the changes of its parent group.
SHARE = 30
NOTES = 3
SIGN = {"added": "+", "removed": "-", "changed": "~"}


@dataclass(frozen=True)
class Group:
    """Changed paths below one directory, or the ``rest`` of them; a single path is a separate group."""

    path: str
    changes: tuple[Change, ...]
    rest: bool = False

    @property
    def place(self) -> str:
        """The directory as shown to the user."""
        return f"{self.path.rstrip('/')}/, the rest" if self.rest else self.path

    @property
    def shown(self) -> str:
        """The counts as shown to the user: ``+812 -3 ~40``."""
        counts = {kind: sum(change.kind == kind for change in self.changes) for kind in SIGN}
        return " ".join(f"{SIGN[kind]}{count}" for kind, count in counts.items() if count)


def groups(changes: Sequence[Change], most: int = GROUPS) -> list[Group]:
    """Return the changed paths as at most ``most`` groups (or a few more): the largest are split first."""
    todo = [Group("/", tuple(changes))] if changes else []
    done: list[Group] = []
    while todo and len(todo) + len(done) < most:
        whole = max(todo, key=lambda group: len(group.changes))
        todo.remove(whole)
        parts = _split(whole) if len(whole.changes) > 1 and not whole.rest else [whole]
        # A directory with very many entries is more informative than some of its entries.
        if len(parts) == 1 or len(todo) + len(done) + len(parts) > 1.5 * most:
            done.append(whole)
        else:
            todo += parts
    return sorted(todo + done, key=lambda group: group.path)


def _split(whole: Group) -> list[Group]:
    """Return the group's changes, grouped by the first part of their paths that differs."""
    depth = whole.path.count("/") if whole.path == "/" else whole.path.count("/") + 1
    while True:
        parts: dict[str, list[Change]] = {}
        for change in whole.changes:
            parts.setdefault("/".join(change.name.split("/")[: depth + 1]), []).append(change)
        if len(parts) > 1:
            break
        depth += 1
    # Directories with few changes are combined: a line for each would hide the large ones.
    own = {path: inside for path, inside in parts.items() if len(inside) * SHARE >= len(whole.changes)}
    rest = [change for path, inside in parts.items() if path not in own for change in inside]
    groups_of_own = [Group(path, tuple(inside)) for path, inside in own.items()]
    parent = "/".join(next(iter(parts)).split("/")[:depth]) or "/"
    return groups_of_own + ([Group(parent, tuple(rest), rest=bool(own) or len(rest) < len(whole.changes))] if rest else [])


def text_of(comparison: Comparison, *, whole: bool = False) -> str:
    """Return the comparison as text; ``whole``: with every change."""
    lines = [f"{_headline(comparison.before)} -> {_headline(comparison.after)}"]
    shown = [section for section in comparison.sections if section.changes]
    width = max((len(section.title) for section in shown), default=0)
    for section in shown:
        lines.append(
            f"{section.title:<{width}}  {counts(section)}{'  (measured in each build)' if section.measured else ''}"
        )
        lines += [f"  {line}" for line in _lines(section, whole=whole)]
    same = [section.title for section in comparison.sections if not section.changes and not section.missing]
    if same:
        lines.append(f"the same: {', '.join(same)}")
    lines += [f"not compared: {', '.join(titles)}: {why}" for why, titles in missing(comparison).items()]
    return "\n".join(lines)


def counts(section: Section) -> str:
    """Return the counts of a section as text: ``2 added, 1 changed``."""
    return ", ".join(f"{count:,} {kind}" for kind in SIGN if (count := section.count(kind)))


def missing(comparison: Comparison) -> dict[str, list[str]]:
    """Return the sections that could not be compared, by the reason."""
    reasons: dict[str, list[str]] = {}
    for section in comparison.sections:
        if section.missing:
            reasons.setdefault(section.missing, []).append(section.title)
    return reasons


def _headline(side: Side) -> str:
    return f"{side.name} (archive of {side.manifest.inputs.archive_date[:10]})"


def _lines(section: Section, *, whole: bool) -> Iterable[str]:
    if section.key == "files" and not whole and len(section.changes) > LINES:
        for group in groups(section.changes):
            yield line_of(group.changes[0]) if len(group.changes) == 1 else f"{group.shown:<16} {group.place}"
        return
    shown = section.changes if whole else section.changes[:LINES]
    for change in shown:
        yield line_of(change)
        yield from (f"    {note}" for note in (change.notes if whole else change.notes[:NOTES]))
        if not whole and len(change.notes) > NOTES:
            yield f"    ... {len(change.notes) - NOTES} more lines"
    if len(section.changes) > len(shown):
        yield f"... {len(section.changes) - len(shown):,} more: --all"


def line_of(change: Change) -> str:
    """Return a change as one line: ``~ nginx 1.26.3-3 -> 1.26.3-4``."""
    what = f"{change.before} -> {change.after}" if change.kind == "changed" else change.before or change.after
    return f"{SIGN[change.kind]} {change.name} {what}"


def data_of(comparison: Comparison) -> dict[str, Any]:
    """Return the whole comparison as JSON data."""
    return {
        "before": _identity(comparison.before), "after": _identity(comparison.after), "differs": comparison.differs,
        "sections": {section.key: _section(section) for section in comparison.sections},
    }  # fmt: skip


def _identity(side: Side) -> dict[str, Any]:
    manifest = side.manifest
    return {"artifact": side.name, "name": manifest.name, "version": manifest.version, "sha256": manifest.image.sha256}


def _section(section: Section) -> dict[str, Any]:
    return {
        "title": section.title, "missing": section.missing, "measured": section.measured,
        "changes": [
            {
                "name": change.name, "kind": change.kind, "before": change.before, "after": change.after,
                "notes": list(change.notes),
            }
            for change in section.changes
        ],
    }  # fmt: skip
