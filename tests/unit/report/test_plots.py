"""Plots are SVG for readers and screen readers: escaped, described, and with space for every text."""

from __future__ import annotations

from itertools import pairwise
from xml.etree import ElementTree

import pytest

from build.report import plots
from build.report.plots import Bar, Span

SVG = "{http://www.w3.org/2000/svg}"
NASTY = '<script>"&'


def test_bars_have_a_row_each_and_lengths_by_their_values() -> None:
    root = ElementTree.fromstring(
        plots.bars([Bar("a", 10, "10 s"), Bar("b", 5, "5 s"), Bar(NASTY, 0, "0 s")], title="T & U", description="D")
    )
    assert (root.findtext(f"{SVG}title"), root.findtext(f"{SVG}desc"), root.get("role")) == ("T & U", "D", "img")
    lengths = [float(shape.get("width", "")) for shape in root.iter(f"{SVG}rect")]
    assert lengths == [plots.BAR_WIDTH, plots.BAR_WIDTH / 2, 1.0]
    assert [text.text for text in root.iter(f"{SVG}text")] == ["a", "10 s", "b", "5 s", NASTY, "0 s"]
    assert len({text.get("y") for text in root.iter(f"{SVG}text")}) == 3


def test_a_long_label_is_cut_and_said_in_full() -> None:
    root = ElementTree.fromstring(plots.bars([Bar("x" * 90, 1, "1")], title="T", description="D"))
    label = next(root.iter(f"{SVG}text")).text or ""
    assert len(label) == plots.LONGEST_LABEL
    assert (next(root.iter(f"{SVG}rect")).findtext(f"{SVG}title") or "").startswith("x" * 90)


@pytest.mark.parametrize("end", [0.004, 0.37, 1, 3.5, 9.99, 34.849, 99, 100, 340.6, 5000, 86400])
def test_the_marks_of_an_axis_have_room(end: float) -> None:
    marks = plots.marks(end)
    assert marks[0] == 0
    assert marks[-1] <= end
    assert 2 <= len(marks) <= 12
    widest = max(len(f"{mark:g} s") for mark in marks) * plots.LETTER
    assert all((after - before) * plots.BAR_WIDTH / end > widest for before, after in pairwise(marks))


def test_a_timeline_places_spans_on_its_axis() -> None:
    root = ElementTree.fromstring(
        plots.timeline([Span("a", 0, 5, "5 s"), Span("b", 5, 5, "5 s")], title="T", description="D")
    )
    first, second = root.iter(f"{SVG}rect")
    assert float(second.get("x", "")) == pytest.approx(float(first.get("x", "")) + plots.BAR_WIDTH / 2)


def test_a_sparkline_has_a_dot_for_each_release_and_both_ends_in_words() -> None:
    values = [("v1", 90.0), ("v2", 92.0), (NASTY, 91.0)]
    root = ElementTree.fromstring(plots.sparkline(values, shown=("90", "91"), title="T", description="D"))
    assert [dot.findtext(f"{SVG}title") for dot in root.iter(f"{SVG}circle")] == ["v1: 90", "v2: 92", f"{NASTY}: 91"]
    assert [text.text for text in root.iter(f"{SVG}text")] == ["90", "91"]
    heights = [float(dot.get("cy", "")) for dot in root.iter(f"{SVG}circle")]
    assert heights[1] < heights[2] < heights[0], "greater is higher"


@pytest.mark.parametrize("values", [[("v1", 5.0)], [("v1", 5.0), ("v2", 5.0)], [("v1", 0.0), ("v2", 0.0)]])
def test_values_that_do_not_change_are_a_level_line(values: list[tuple[str, float]]) -> None:
    root = ElementTree.fromstring(plots.sparkline(values, shown=("5", "5"), title="T", description="D"))
    assert {dot.get("cy") for dot in root.iter(f"{SVG}circle")} == {f"{plots.SPARK_HEIGHT / 2:.1f}"}
    assert len(list(root.iter(f"{SVG}text"))) == len(values)


def test_nothing_to_show_is_an_empty_plot() -> None:
    for plot in (plots.bars([], title="T", description="D"), plots.timeline([], title="T", description="D")):
        assert ElementTree.fromstring(plot).get("role") == "img"
