"""The result of each fault, read from pytest's JUnit file: a result for every id that was asked for, none left out.

A test names its faults in the property ``requirements``, its figures in ``numbers`` (JSON), and the line that an
administrator finds in ``evidence``. A fault that no test tried is reported as such, and is not a success.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from build.core import json_text

IDS = tuple(f"F{number:02}" for number in range(1, 36))
KEPT, BROKE, ABSENT, UNTRIED, ELSEWHERE = "kept", "broke", "not in this image", "not tried", "needs a clone"
BROKEN = (BROKE, ABSENT, UNTRIED)
# The first words of a failure because the image lacks something; tests/faults/conftest.py writes them.
LACKS = "not in this image:"
LONGEST_TEXT = 200


@dataclass(frozen=True)
class Result:
    """One fault: its promises (a test's title each), what came of it, figures, and lines found in a log."""

    id: str
    promises: tuple[str, ...]
    outcome: str
    problem: str
    numbers: dict[str, Any]
    evidence: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class _Case:
    ids: tuple[str, ...]
    title: str
    outcome: str
    problem: str
    numbers: dict[str, Any]
    evidence: tuple[str, ...]
    seconds: float


def read(junit: Path, *, target: str, ids: Sequence[str]) -> list[Result]:
    """Return the result of each fault of ``ids`` from a JUnit file, in their order.

    In a container a fault without a test needs a clone; on clones it is untried.
    """
    cases = [_case(element) for element in ElementTree.parse(junit).getroot().iter("testcase")]
    missing = ELSEWHERE if target == "container" else UNTRIED
    return [_judge(name, [case for case in cases if name in case.ids], missing) for name in ids]


def _case(element: ElementTree.Element) -> _Case:
    pairs = [(item.get("name") or "", item.get("value") or "") for item in element.iter("property")]
    properties = dict(pairs)
    outcome, problem = KEPT, ""
    for tag in ("failure", "error", "skipped"):
        problem_element = element.find(tag)
        if problem_element is not None and outcome == KEPT:
            text = (problem_element.get("message") or problem_element.text or "").strip()
            problem = (text.splitlines() or ["no reason given"])[0][:LONGEST_TEXT]
            outcome = ABSENT if LACKS in problem else UNTRIED if tag == "skipped" else BROKE
    numbers: dict[str, Any] = {}
    for name, value in pairs:
        if name == "numbers":
            numbers |= json_text.parse(value)
    return _Case(
        ids=tuple(properties.get("requirements", "").split()), title=properties.get("title") or element.get("name") or "",
        outcome=outcome, problem=problem, numbers=numbers,
        evidence=tuple(value for name, value in pairs if name == "evidence"), seconds=float(element.get("time") or 0),
    )  # fmt: skip


def _judge(name: str, cases: Sequence[_Case], missing: str) -> Result:
    """Return the fault's result: the worst of its tests'."""
    order = (BROKE, ABSENT, UNTRIED, KEPT)
    worst = min((case.outcome for case in cases), key=order.index, default=missing)
    problems = [case.problem for case in cases if case.outcome == worst and case.problem]
    numbers: dict[str, Any] = {}
    for case in cases:
        numbers |= case.numbers
    return Result(
        id=name, promises=tuple(dict.fromkeys(case.title for case in cases)), outcome=worst,
        problem=problems[0] if problems else "no test tried it" if worst == UNTRIED else "", numbers=numbers,
        evidence=tuple(line for case in cases for line in case.evidence),
        seconds=round(sum(case.seconds for case in cases), 1),
    )  # fmt: skip


def render(results: Iterable[Result]) -> str:
    """Return the results as a Markdown table."""
    lines = ["| fault | promise | result | figures | found in the log |", "|---|---|---|---|---|"]
    for result in results:
        figures = ", ".join(f"{name} {value}" for name, value in result.numbers.items())
        outcome = result.outcome + (f": {result.problem}" if result.problem else "")
        evidence = "; ".join(f"`{line[:LONGEST_TEXT]}`" for line in result.evidence[:3])
        cells = (result.id, "; ".join(result.promises), outcome, figures, evidence)
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
