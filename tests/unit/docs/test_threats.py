"""Every attack in docs/reference/threats.md names image tests that exist."""

from __future__ import annotations

import ast
import re

import pytest

from tests.unit.helpers import ROOT

PAGE = ROOT / "docs" / "reference" / "threats.md"
TEST = re.compile(r"`(test_\w+\.py)::(test_\w+)`")
ROWS = [
    line for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| attack ")
]  # fmt: skip


def test_the_page_has_rows() -> None:
    assert len(ROWS) >= 20


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:40])
def test_the_tests_of_an_attack_exist(row: str) -> None:
    attack, defence, tests = (cell.strip() for cell in row.strip("|").split("|"))
    assert attack
    assert defence
    assert TEST.findall(tests)
    for name, function in TEST.findall(tests):
        tree = ast.parse((ROOT / "tests" / "image" / name).read_text(encoding="utf-8"))
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{name}::{function}"
