"""Reads JUnit XML: the tests of a file with title, requirements, place (where the test ran) and result."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

# The result of a requirement is the worst result of its tests.
ORDER = ("failed", "skipped", "passed")


@dataclass(frozen=True)
class Case:
    """One test of the JUnit file."""

    name: str
    title: str
    requirements: str
    place: str
    result: str
    message: str


def read_cases(junit: Path) -> list[Case]:
    """Return the tests of a JUnit file, failures first, then by name."""
    return cases_of(junit.read_text(encoding="utf-8"))


def cases_of(text: str) -> list[Case]:
    """Return the tests of a JUnit file's text, failures first, then by name."""
    # As bytes: ElementTree rejects text with an encoding declaration.
    cases = [_case(element) for element in ElementTree.fromstring(text.encode()).iter("testcase")]
    return sorted(cases, key=lambda case: (ORDER.index(case.result), case.name))


def _case(element: ElementTree.Element) -> Case:
    result, message = "passed", ""
    for tag, tag_result in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
        child = element.find(tag)
        if child is not None:
            result, message = tag_result, child.get("message") or ""
    properties = {item.get("name"): item.get("value") or "" for item in element.iter("property")}
    module = (element.get("classname") or "").rsplit(".", 1)[-1]
    name = f"{module}::{element.get('name')}"
    return Case(
        name, properties.get("title") or name, properties.get("requirements") or "", properties.get("place") or "", result,
        message,
    )  # fmt: skip


def results(junit: Iterable[Path]) -> dict[str, str]:
    """Return the worst result of each id in the JUnit files: ``passed``, ``skipped`` or ``failed``."""
    cases = (case for path in junit for case in read_cases(path))
    return worst((name, case.result) for case in cases for name in case.requirements.split())


def worst(results: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the worst result of each name."""
    worst_results: dict[str, str] = {}
    for name, result in results:
        worst_results[name] = min(worst_results.get(name, result), result, key=ORDER.index)
    return worst_results
