"""Which requirements apply to an image: those with a test that the image's layers bring (build.spec.layer_tests)."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
from pathlib import Path

from build.report import requirements
from build.spec import layer_tests


def absent(root: Path, layers: Collection[str]) -> dict[str, str]:
    """Return the requirements that do not apply to an image with these layers: id -> reason.

    A requirement does not apply if each of its tests in ``tests/image`` needs a layer that the image does not have. A
    requirement without a test there applies. Faults have separate tests, and always apply.
    """
    overlays = root / "overlays"
    words = layer_tests.words(overlays, layers)
    owners = layer_tests.owners(overlays)
    missing: dict[str, list[set[str]]] = {}
    for path in sorted((root / layer_tests.TESTS).glob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        of_file = layer_tests.lacking(owners.get(path.relative_to(root).as_posix(), []), words)
        needed = _needed(tree)
        for name, test in requirements.marks_of(tree):
            missing.setdefault(name, []).append(of_file | (needed[test] - words))
    return {
        name: f"its tests belong to {', '.join(sorted(set[str]().union(*tests)))}"
        for name, tests in missing.items() if name.startswith("R") and all(tests)
    }  # fmt: skip


def _needed(tree: ast.Module) -> dict[str, set[str]]:
    """Return the layers that the mark of each test names."""
    return {
        node.name: {word for decorator in node.decorator_list for word in _words(decorator)}
        for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
    }  # fmt: skip


def _words(decorator: ast.expr) -> Iterator[str]:
    # The mark of the test itself; those of single parameters leave the others.
    if (
        isinstance(decorator, ast.Call)
        and isinstance(decorator.func, ast.Attribute)
        and decorator.func.attr == layer_tests.MARK
    ):
        yield from (str(word.value) for word in decorator.args if isinstance(word, ast.Constant))
