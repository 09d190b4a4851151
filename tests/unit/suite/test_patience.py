"""No test has a limit that a loaded host reaches."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.patience import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]
FILES = sorted(path for place in ("unit", "contract", "interruption") for path in (ROOT / place).rglob("*.py"))
# Waits, joins and bounded durations with a literal number of seconds. Less than 2 s is meant to expire.
LIMIT = re.compile(
    r"(?:\btimeout=|\.wait\(|\.join\(|settimeout\(|\bseconds=|begun < |--timeout\", \")"
    r"([2-9]|[1-9]\d+)(?:\.\d+)?(?![\d.])(?! \*)"
)
# Limits of the product, which a test gives to a fake or expects to expire, and the samples of another test of this kind.
MEANT = {
    "contract/publish/test_node_install.py": ["seconds=2"],
    "contract/lab/test_lab_install.py": ["seconds=3"],
    "unit/suite/test_remote.py": ["settimeout(2"],
}


def short(text: str) -> list[str]:
    """Return the limits of a program that are shorter than a minute."""
    return [match[0] for match in LIMIT.finditer(text) if float(match[1]) < PATIENCE_SECONDS / 2]


@pytest.mark.parametrize(
    "line",
    [
        "run(argv, timeout=10)",
        "process.wait(5)",
        "thread.join(20)",
        "wait_for(ready, seconds=3)",
        "assert now - begun < 8.5",
    ],
)
def test_a_short_limit_is_found(line: str) -> None:
    assert short(line)


@pytest.mark.parametrize("line", ["run(argv, timeout=0.3)", "process.wait(60)", "Policy(soak_seconds=24 * 3600)"])
def test_what_is_meant_to_expire_is_none(line: str) -> None:
    assert short(line) == []


def test_no_test_has_a_short_limit() -> None:
    found = {path.relative_to(ROOT).as_posix(): short(path.read_text(encoding="utf-8")) for path in FILES}
    found.pop("unit/suite/test_patience.py")
    assert {name: limits for name, limits in found.items() if limits} == MEANT
