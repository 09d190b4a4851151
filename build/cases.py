"""The tests of a JUnit file: title, requirements, the place where each ran, its result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree


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
    # As bytes: text with an encoding declaration is refused.
    cases = [_case(element) for element in ElementTree.fromstring(text.encode()).iter("testcase")]
    order = {"failed": 0, "skipped": 1, "passed": 2}
    return sorted(cases, key=lambda case: (order[case.result], case.name))


def _case(element: ElementTree.Element) -> Case:
    result, message = "passed", ""
    for tag, verdict in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
        found = element.find(tag)
        if found is not None:
            result, message = verdict, found.get("message") or ""
    properties = {item.get("name"): item.get("value") or "" for item in element.iter("property")}
    module = (element.get("classname") or "").rsplit(".", 1)[-1]
    name = f"{module}::{element.get('name')}"
    return Case(
        name, properties.get("title") or name, properties.get("requirements") or "", properties.get("place") or "", result,
        message,
    )  # fmt: skip
