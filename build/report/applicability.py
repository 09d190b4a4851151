"""Determines the requirements that apply to an image: those with a test that belongs to the image's layers.

A test of ``tests/image`` belongs to the layers whose ``layer.yaml`` lists its file, and needs the layers of its mark
(``@pytest.mark.layers``).
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from build.core.yaml_table import load_yaml
from build.report import requirements
from build.spec.layers import PARTS

MARK = "layers"
TESTS = Path("tests/image")


@dataclass(frozen=True)
class Owner:
    """A layer, or a part of one, that lists a test file; ``needs``: layers, or features that layers provide."""

    name: str
    needs: tuple[str, ...]


def absent(root: Path, layers: Collection[str]) -> dict[str, str]:
    """Return the requirements that do not apply to an image with these layers: id -> reason.

    A requirement does not apply if each of its tests in ``tests/image`` needs a layer that the image does not have. A
    requirement without a test there applies. Faults have separate tests, and always apply.
    """
    overlays = root / "overlays"
    words = {*layers, *(word for name in layers for word in _provided(overlays / name))}
    owners = _owners(overlays)
    missing: dict[str, list[set[str]]] = {}
    for path in sorted((root / TESTS).glob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        lacking = [set(owner.needs) - words for owner in owners.get(path.relative_to(root).as_posix(), [])]
        of_file = min(lacking, key=len, default=set())
        needed = _needed(tree)
        for name, test in requirements.marks_of(tree):
            missing.setdefault(name, []).append(of_file | (needed[test] - words))
    return {
        name: f"its tests belong to {', '.join(sorted(set[str]().union(*tests)))}"
        for name, tests in missing.items() if name.startswith("R") and all(tests)
    }  # fmt: skip


def _provided(directory: Path) -> tuple[str, ...]:
    path = directory / "layer.yaml"
    return tuple(load_yaml(path).get("provides", ())) if path.is_file() else ()


def _owners(overlays: Path) -> Mapping[str, list[Owner]]:
    """Return the layers and parts that list each test file."""
    owners: dict[str, list[Owner]] = {}
    for path in (*overlays.glob("*/layer.yaml"), *overlays.glob(f"*/{PARTS}/*/layer.yaml")):
        name = path.parent.relative_to(overlays).as_posix()
        owner = Owner(name, tuple(name.split(f"/{PARTS}/")))
        for test in load_yaml(path)["tests"]:
            owners.setdefault(test, []).append(owner)
    return owners


def _needed(tree: ast.Module) -> dict[str, set[str]]:
    """Return the layers that the mark of each test names."""
    return {
        node.name: {word for decorator in node.decorator_list for word in _words(decorator)}
        for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
    }  # fmt: skip


def _words(decorator: ast.expr) -> Iterator[str]:
    # Only the mark of the test itself: a mark of one parameter set does not apply to the others.
    if isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Attribute) and decorator.func.attr == MARK:
        yield from (str(word.value) for word in decorator.args if isinstance(word, ast.Constant))
