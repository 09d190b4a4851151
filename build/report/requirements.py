"""Requirements and their proof: tests/requirements.yaml, the tests with their ids, and the newest results.

A test has an id by ``@pytest.mark.req("R59")`` on itself, its class, its module (``pytestmark``) or one of its
parameter sets. Tests are parsed, not run: the table needs no image. Results come from JUnit files that contain the ids.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from build.core import json_text
from build.core.yaml_table import Table, load_yaml, raise_problems

LIST = Path("tests/requirements.yaml")
PAGE = Path("docs/reference/requirements.md")
RESULTS = Path("tests/results/requirements.json")
ID = re.compile(r"[RF]\d{1,3}")

_HEAD = """# Requirements and faults, and what proves them

Written by `nox -s requirements` from [requirements.yaml](../../tests/requirements.yaml), from the marks of the tests, and
from the results of {source}. Tests of `tests/image` run on booted clones in every build, those of `tests/faults` by
`nox -s faults`, those of `tests/audit` by `nox -s audit`; the others by `nox -s tests`.

"""


@dataclass(frozen=True)
class Requirement:
    """One entry of the list. ``decision``: how it is interpreted; ``deviation``: why Goldsmith deliberately differs."""

    name: str
    section: str
    text: str
    decision: str
    deviation: str


def load(path: Path) -> tuple[Requirement, ...]:
    """Read the list. Raises SpecError with every invalid entry."""
    problems: list[str] = []
    entries = []
    for name, entry in load_yaml(path).items():
        if not ID.fullmatch(str(name)):
            problems.append(f"{path.name}: {name!r}: write an id such as R7 or F07")
            continue
        table = Table(entry, where=f"{path.name}: {name}", problems=problems)
        entries.append(
            Requirement(
                str(name), table.text("section", r".+", "write the section of the guide"),
                table.text("text", r".{10,}", "write the requirement"),
                table.text("decision", r".*", "write the interpretation", default=""),
                table.text("deviation", r".*", "write the reason", default=""),
            )
        )  # fmt: skip
        table.finish()
    raise_problems(path, problems)
    return tuple(entries)


def marks(root: Path) -> dict[str, list[str]]:
    """Return the tests below ``root``/tests by id: id -> ``tests/image/test_x.py::test_y``, sorted."""
    tests_of: dict[str, set[str]] = {}
    for path in sorted((root / "tests").rglob("test_*.py")):
        for name, test in marks_of(ast.parse(path.read_text(encoding="utf-8"))):
            tests_of.setdefault(name, set()).add(f"{path.relative_to(root).as_posix()}::{test}")
    return {name: sorted(tests) for name, tests in tests_of.items()}


def marks_of(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield (id, test) for every mark in a module."""
    marks_of_module = [node.value for node in tree.body if isinstance(node, ast.Assign) and _is_pytestmark(node)]
    whole = [name for mark in marks_of_module for name in _ids(mark)]
    for node in tree.body:
        inherited = whole + [name for decorator in getattr(node, "decorator_list", []) for name in _ids(decorator)]
        functions = node.body if isinstance(node, ast.ClassDef) else [node]
        for function in functions:
            if isinstance(function, ast.FunctionDef) and function.name.startswith("test_"):
                own = [name for decorator in function.decorator_list for name in _ids(decorator)]
                yield from ((name, function.name) for name in dict.fromkeys([*inherited, *own]))


def _is_pytestmark(node: ast.Assign) -> bool:
    return any(isinstance(target, ast.Name) and target.id == "pytestmark" for target in node.targets)


def _ids(node: ast.AST) -> Iterator[str]:
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "req":
            yield from (str(word.value) for word in call.args if isinstance(word, ast.Constant))


def render(
    requirements: Iterable[Requirement], tests: Mapping[str, list[str]], outcome: Mapping[str, str], *, source: str
) -> str:
    """Return docs/reference/requirements.md; ``outcome``: the result of each id; ``source``: where the results come from."""
    lines = [_HEAD.format(source=source), "| id | requirement | proven by | result |\n|---|---|---|---|\n"]
    for requirement in requirements:
        read = f". Decision: {requirement.decision}." if requirement.decision else ""
        otherwise = f". **Deviation:** {requirement.deviation}." if requirement.deviation else ""
        proof = "<br>".join(f"`{_short(test)}`" for test in tests.get(requirement.name, [])) or "**nothing yet**"
        lines.append(
            f"| {requirement.name} | {requirement.text}{read}{otherwise} | {proof} | {outcome.get(requirement.name, '')} |\n"
        )
    return "".join(lines)


def _short(test: str) -> str:
    return test.removeprefix("tests/")


def page(root: Path) -> str:
    """Return the page as it should be now, with the results that were stored last."""
    stored: dict[str, Any] = {"source": "no build yet", "results": {}}
    if (root / RESULTS).exists():
        stored = json_text.parse((root / RESULTS).read_text())
    return render(load(root / LIST), marks(root), stored["results"], source=stored["source"])
