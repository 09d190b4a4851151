"""The ledger: a metric worse than its limit or its recorded value fails; for a better one an update is suggested."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from build.audit import ledger
from build.audit.ledger import Better, Figure
from build.core.errors import SpecError
from build.spec import audit_ledger
from build.spec.audit_ledger import Entry

LEDGER = {
    "systemd.nginx.service": Entry(0.4, "0.4", "<= 0.7", ()),
    "cis.failing": Entry(2, "2", "", ("one", "two")),
    "lynis.index": Entry(91, "91", ">= 90", ()),
}
SAME = [
    Figure("systemd.nginx.service", 0.4, Better.LOWER, 0.7),
    Figure("cis.failing", 2, Better.LOWER, items=("one", "two")),
    Figure("lynis.index", 91, Better.HIGHER, 90),
]


def verdicts(*figures: Figure) -> dict[str, str]:
    replaced = {figure.name: figure for figure in figures}
    everything = [replaced.pop(figure.name, figure) for figure in SAME] + list(replaced.values())
    return {line.name: line.verdict for line in ledger.compare(everything, LEDGER)}


def test_what_is_as_it_was_is_well() -> None:
    assert set(verdicts().values()) == {"ok"}


@pytest.mark.parametrize(
    ("figure", "verdict"),
    [
        (Figure("systemd.nginx.service", 0.5, Better.LOWER, 0.7), "worse"),
        (Figure("systemd.nginx.service", 0.8, Better.LOWER, 0.7), "limit"),
        (Figure("systemd.nginx.service", 0.3, Better.LOWER, 0.7), "better"),
        (Figure("lynis.index", 90, Better.HIGHER, 90), "worse"),
        (Figure("lynis.index", 89, Better.HIGHER, 90), "limit"),
        (Figure("lynis.index", 95, Better.HIGHER, 90), "better"),
        (Figure("cis.failing", 1, Better.LOWER, items=("one",)), "better"),
        # As many as before, but another one: the count alone would hide it.
        (Figure("cis.failing", 2, Better.LOWER, items=("one", "three")), "worse"),
        (Figure("systemd.new.service", 1.0, Better.LOWER, 2.0), "new"),
        (Figure("systemd.new.service", 3.0, Better.LOWER, 2.0), "limit"),
    ],
)
def test_a_figure_that_moved(figure: Figure, verdict: str) -> None:
    assert verdicts(figure)[figure.name] == verdict


def test_what_may_not_move_at_all() -> None:
    recorded = {"cis.profile": Entry(519, "519", "", ())}
    (line,) = ledger.compare([Figure("cis.profile", 520, Better.SAME)], recorded)
    assert line.fails


def test_the_new_item_is_named() -> None:
    figures = [Figure("cis.failing", 2, Better.LOWER, items=("one", "three"))]
    (line,) = ledger.compare(figures, {"cis.failing": LEDGER["cis.failing"]})
    assert line.items == ("three",)


def test_a_figure_that_was_not_measured_fails() -> None:
    lines = ledger.compare(SAME[:2], LEDGER)
    assert [(line.name, line.verdict) for line in lines if line.fails] == [("lynis.index", "gone")]


def test_a_ledger_is_written_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    ledger.save(path, SAME[:2], kept={"lynis.index": LEDGER["lynis.index"]}, tools={"lynis": "3.1.4-1"})
    assert audit_ledger.load(path) == LEDGER
    assert json.loads(path.read_text())["tools"] == {"lynis": "3.1.4-1"}


def test_no_ledger_is_an_empty_one(tmp_path: Path) -> None:
    assert audit_ledger.load(tmp_path / "ledger.json") == {}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 9, "figures": {}}', '{"format": 1, "figures": {"a": {}}}'])
def test_a_damaged_ledger_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "ledger.json").write_text(content)
    with pytest.raises(SpecError):
        audit_ledger.load(tmp_path / "ledger.json")


def test_the_table_shows_failures_first() -> None:
    lines = ledger.compare([*SAME[:2], Figure("lynis.index", 80, Better.HIGHER, 90)], LEDGER)
    table = ledger.render(lines, title="Audit of x", tools={"lynis": "3.1.4-1"})
    rows = [row for row in table.splitlines() if row.startswith("| ") and "`" in row]
    assert rows[0] == "| limit | `lynis.index` | 80 | >= 90 | 91 |  |"
    assert "Auditors: lynis 3.1.4-1." in table
