"""A new layer is complete: it is read without an error, and has a check and a test; nothing is overwritten."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from build.cli import main
from build.core.errors import SpecError
from build.spec import layer_skeleton
from tests.unit.golden_modules import golden_module
from tests.unit.helpers import read_stack, write_layer


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with one layer."""
    write_layer(tmp_path, "10-base")
    return tmp_path


def test_a_new_layer_is_complete(checkout: Path, tmp_path: Path) -> None:
    paths = layer_skeleton.write(checkout, "45-redis-cache")
    assert all((checkout / path).is_file() for path in paths)
    stack = read_stack(checkout, "10-base", "45-redis-cache")
    layer = stack.layers[1]
    assert (layer.requires, layer.tests) == (("10-base",), ("tests/image/test_redis_cache.py",))
    (node,) = layer.nodes
    (tmp_path / "verify.d").mkdir()
    (tmp_path / "verify.d" / Path(node.path).name).write_bytes(node.content)
    (check,) = golden_module("golden.check_list").read(tmp_path / "verify.d")
    assert list(check["paths"]) == [node.path]
    tree = ast.parse((checkout / layer.tests[0]).read_text())
    (test,) = (part for part in tree.body if isinstance(part, ast.FunctionDef))
    assert ast.get_docstring(test)


def test_nothing_is_overwritten(checkout: Path) -> None:
    with pytest.raises(SpecError, match="10-base already exists"):
        layer_skeleton.write(checkout, "10-base")
    with pytest.raises(SpecError, match=r"test_x\.py already exists"):
        layer_skeleton.write(checkout, "45-x")
    assert not (checkout / "overlays/45-x").exists()


@pytest.mark.parametrize("name", ["redis", "4-redis", "45-Redis", "../45-redis", "45-"])
def test_a_wrong_name_is_refused(checkout: Path, name: str) -> None:
    with pytest.raises(SpecError, match="is not the name of a layer") as caught:
        layer_skeleton.write(checkout, name)
    assert "45-redis" in caught.value.hint


def test_the_command_prints_what_it_wrote(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["layer", "--project", str(checkout), "45-redis"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "overlays/45-redis/layer.yaml"
    assert printed[-1] == "Next: add 45-redis to layers: of golden.yaml or of a profile, then nox -s plan"
