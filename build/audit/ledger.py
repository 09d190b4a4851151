"""Figures of an audit, the ledger that they are compared with, and the table for people.

A figure is compared twice: with its limit, which is what the image promises, and with the ledger, which has the value that
it once reached. Worse than either is a failure; for a better one, update the ledger, so that the gain is kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from build.core import files, records
from build.spec.audit_ledger import FORMAT, Entry

SHOWN_ITEMS = 8


class Better(StrEnum):
    """Which way a figure may move."""

    LOWER = "lower"
    HIGHER = "higher"
    SAME = "same"


@dataclass(frozen=True)
class Figure:
    """One measured value: ``limit`` is what the image promises, ``items`` are what was found, by name."""

    name: str
    value: float
    better: Better
    limit: float | None = None
    text: str = ""
    items: tuple[str, ...] = ()
    limit_text: str = ""

    @property
    def shown(self) -> str:
        return self.text or f"{self.value:g}"

    @property
    def promise(self) -> str:
        """The limit for people, such as ``>= 90``; empty without one."""
        sign = "<=" if self.better is Better.LOWER else ">="
        return "" if self.limit is None else f"{sign} {self.limit_text or self.limit}"

    @property
    def holds(self) -> bool:
        """Whether the figure is within its limit."""
        if self.limit is None:
            return True
        return self.value <= self.limit if self.better is Better.LOWER else self.value >= self.limit

    def worse_than(self, value: float) -> bool:
        """Whether the figure is worse than another value of it."""
        if self.better is Better.SAME:
            return self.value != value
        return self.value > value if self.better is Better.LOWER else self.value < value


@dataclass(frozen=True)
class Line:
    """The result of the comparison for one figure: ``ok``, ``better``, ``new``; or ``worse``, ``limit``, ``gone``."""

    name: str
    verdict: str
    shown: str
    limit: str
    before: str
    items: tuple[str, ...]

    @property
    def fails(self) -> bool:
        return self.verdict in ("worse", "limit", "gone")


def save(path: Path, figures: Iterable[Figure], *, kept: Mapping[str, Entry], tools: Mapping[str, str]) -> None:
    """Write the figures as the new ledger; ``kept`` are entries of auditors that did not run this time."""
    measured = {
        figure.name: Entry(figure.value, figure.shown, figure.promise, tuple(sorted(figure.items))) for figure in figures
    }
    entries = {name: records.write(entry) for name, entry in sorted({**kept, **measured}.items())}
    content = {"format": FORMAT, "tools": dict(sorted(tools.items())), "figures": entries}
    files.write_atomic(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def compare(figures: Sequence[Figure], ledger: Mapping[str, Entry]) -> list[Line]:
    """Compare every figure with its limit and the ledger; an entry of the ledger that was not measured is ``gone``."""
    lines = [_compared(figure, ledger.get(figure.name)) for figure in figures]
    measured = {figure.name for figure in figures}
    gone = [
        Line(name, "gone", "not measured", "", f"{entry.value:g}", ())
        for name, entry in sorted(ledger.items()) if name not in measured
    ]  # fmt: skip
    return lines + gone


def _compared(figure: Figure, entry: Entry | None) -> Line:
    limit = figure.promise
    before = "" if entry is None else f"{entry.value:g}"
    known = set(entry.items) if entry is not None else set()
    added = tuple(sorted(set(figure.items) - known)) if entry is not None else figure.items
    gone = bool(known - set(figure.items))
    if not figure.holds:
        return Line(figure.name, "limit", figure.shown, limit, before, added or figure.items)
    if entry is None:
        return Line(figure.name, "new", figure.shown, limit, before, figure.items)
    if added or figure.worse_than(entry.value):
        return Line(figure.name, "worse", figure.shown, limit, before, added)
    verdict = "better" if gone or figure.value != entry.value else "ok"
    return Line(figure.name, verdict, figure.shown, limit, before, ())


def render(lines: Sequence[Line], *, title: str, tools: Mapping[str, str]) -> str:
    """Return the report as a Markdown table, failures first."""
    order = {"limit": 0, "worse": 1, "gone": 2, "better": 3, "new": 4, "ok": 5}
    rows = [
        f"| {line.verdict} | `{line.name}` | {line.shown} | {line.limit} | {line.before} | {_items(line.items)} |"
        for line in sorted(lines, key=lambda line: (order[line.verdict], line.name))
    ]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(tools.items()))
    head = [f"# {title}", "", f"Auditors: {versions}.", ""]
    return "\n".join([*head, "| | figure | is | limit | ledger | what |", "|---|---|---|---|---|---|", *rows]) + "\n"


def _items(items: Sequence[str]) -> str:
    more = f" and {len(items) - SHOWN_ITEMS} more" if len(items) > SHOWN_ITEMS else ""
    return ", ".join(item.replace("|", "/") for item in items[:SHOWN_ITEMS]) + more
