"""Plots as SVG text: pure functions of numbers, for pages without a network.

Each plot has a title and a description for screen readers, and takes its colours from the page. Texts never overlap: each
item has a row, labels have a separate column, and the marks of an axis are far enough apart for their texts. Lengths are in
pixels.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

ROW = 22
TEXT = 12
# A digit or letter of the page's font at TEXT is narrower than this, on average.
LETTER = 7.2
LONGEST_LABEL = 44
GAP = 8
BAR_WIDTH = 420
AXIS = 24
SPARK_WIDTH, SPARK_HEIGHT = 120, 28
STEPS = (1, 2, 5)


@dataclass(frozen=True)
class Bar:
    """One row: its label, its value, and the value as text."""

    label: str
    value: float
    shown: str


@dataclass(frozen=True)
class Span:
    """One row of a timeline: from ``start``, for ``length`` (seconds)."""

    label: str
    start: float
    length: float
    shown: str


def bars(rows: Sequence[Bar], *, title: str, description: str) -> str:
    """Return horizontal bars, one below the other; the longest fills the width."""
    labels, values = _width([row.label for row in rows]), _width([row.shown for row in rows])
    most = max((row.value for row in rows), default=0) or 1
    parts = []
    for number, row in enumerate(rows):
        top, length = number * ROW, max(1.0, BAR_WIDTH * max(row.value, 0) / most)
        parts += [
            _text(labels, top, _short(row.label), "end"),
            _rect(labels + GAP, top, length, row.label, row.shown),
            _text(labels + GAP + length + GAP, top, row.shown, "start"),
        ]
    return _svg(labels + 2 * GAP + BAR_WIDTH + values, len(rows) * ROW, parts, title=title, description=description)


def timeline(rows: Sequence[Span], *, title: str, description: str) -> str:
    """Return spans on an axis of seconds, one below the other."""
    labels, values = _width([row.label for row in rows]), _width([row.shown for row in rows])
    end = max((row.start + row.length for row in rows), default=0) or 1
    height = AXIS + len(rows) * ROW
    left = labels + GAP
    parts = []
    for second in marks(end):
        x, shown = left + BAR_WIDTH * second / end, f"{second:g} s"
        parts.append(f'<line class="mark" x1="{x:.1f}" y1="{AXIS - 4}" x2="{x:.1f}" y2="{height}" />')
        parts.append(_text(x, 0, shown, "middle"))
    for number, row in enumerate(rows):
        top = AXIS + number * ROW
        x, length = left + BAR_WIDTH * row.start / end, max(1.5, BAR_WIDTH * row.length / end)
        parts += [
            _text(labels, top, _short(row.label), "end"),
            _rect(x, top, length, row.label, row.shown),
            # There is always room behind its end: the axis ends with the last span.
            _text(x + length + GAP, top, row.shown, "start"),
        ]
    return _svg(left + BAR_WIDTH + GAP + max(values, 40), height, parts, title=title, description=description)


def marks(end: float) -> list[float]:
    """Return the marks of an axis from 0 to ``end``: round numbers, far enough apart for their texts."""
    room = len(f"{end:g} s") * LETTER + 2 * GAP + 2 * LETTER
    least = end * room / BAR_WIDTH
    power = 10 ** math.floor(math.log10(least))
    step = next(factor * power for factor in (*STEPS, 10, 20) if factor * power >= least)
    return [round(number * step, 9) for number in range(int(end / step) + 1)]


def sparkline(values: Sequence[tuple[str, float]], *, shown: tuple[str, str], title: str, description: str) -> str:
    """Return a line through the values, with the texts of the first and last value at its ends; one value is a dot.

    ``values`` are pairs of a name (of a release) and a number, the oldest first.
    """
    left, right = (_width([text]) for text in shown)
    if len(values) < 2:
        left, shown = 0, ("", shown[1])
    numbers = [value for _, value in values]
    least, most = min(numbers), max(numbers)
    height = (SPARK_HEIGHT - 10) / ((most - least) or 1)
    across = SPARK_WIDTH / max(1, len(values) - 1)
    points = [
        (left + GAP + number * across, 5 + (most - value) * height if most > least else SPARK_HEIGHT / 2)
        for number, value in enumerate(numbers)
    ]
    if len(points) == 1:
        points = [(left + GAP + SPARK_WIDTH, SPARK_HEIGHT / 2)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5"><title>{html.escape(name)}: {value:g}</title></circle>'
        for (x, y), (name, value) in zip(points, values, strict=True)
    ]
    parts = [f'<polyline class="line" points="{path}" />', *dots]
    if shown[0]:
        parts.append(_text(left, 3, shown[0], "end"))
    parts.append(_text(left + 3 * GAP + SPARK_WIDTH, 3, shown[1], "start"))
    return _svg(left + 3 * GAP + SPARK_WIDTH + right, SPARK_HEIGHT, parts, title=title, description=description)


def _short(label: str) -> str:
    return label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "…"


def _width(labels: Sequence[str]) -> float:
    return math.ceil(max((len(_short(label)) for label in labels), default=0) * LETTER)


def _text(x: float, top: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{top + ROW * 0.68:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _rect(x: float, top: float, width: float, label: str, shown: str) -> str:
    tooltip = html.escape(f"{label}: {shown}")
    return (
        f'<rect class="bar" x="{x:.1f}" y="{top + 4}" width="{width:.1f}" height="{ROW - 8}" rx="2">'
        f"<title>{tooltip}</title></rect>"
    )


def _svg(width: float, height: float, parts: Sequence[str], *, title: str, description: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" role="img" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" font-size="{TEXT}"><title>{html.escape(title)}</title>'
        f"<desc>{html.escape(description)}</desc>{''.join(parts)}</svg>"
    )
