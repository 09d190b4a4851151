"""The checkout: what counts as a change of code, and what of a tree of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from build.project import Project
from tests.unit.helpers import ROOT

CODE = '''"""A module."""

import os

# A comment.
LIMIT = 5


def f(x):
    """What it does."""
    return x + LIMIT
'''


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "x.py").write_text(CODE)
    return Project(tmp_path)


def digest_of(project: Project, code: str) -> str:
    (project.root / "build" / "x.py").write_text(code)
    return project.code("x")["x"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# A comment.\n", ""),
        ('"""A module."""', '"""Another story."""'),
        ('    """What it does."""\n', ""),
        ("import os\n\n", "import os\n\n\n\n"),
        ("x + LIMIT", "(x + LIMIT)"),
    ],
)
def test_words_about_code_are_no_change(project: Project, old: str, new: str) -> None:
    assert CODE.replace(old, new) != CODE
    assert digest_of(project, CODE.replace(old, new)) == digest_of(project, CODE)


@pytest.mark.parametrize(("old", "new"), [("5", "6"), ("x + LIMIT", "LIMIT + x"), ("import os", "import sys")])
def test_code_is_a_change(project: Project, old: str, new: str) -> None:
    assert digest_of(project, CODE.replace(old, new)) != digest_of(project, CODE)


def test_a_function_of_words_alone_is_still_code(project: Project) -> None:
    assert digest_of(project, 'def f():\n    """Words."""\n') == digest_of(project, "def f():\n    pass\n")


def test_a_tree_is_its_files(project: Project, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for name in ("a", "deep/b", "README.md", "tools/c", "__pycache__/d.pyc"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(name)
    found = project.tree(tree, leave_out=("tools/", "README"))
    assert list(found) == ["a", "deep/b"]
    (tree / "deep" / "b").write_text("changed")
    changed = project.tree(tree, leave_out=("tools/", "README"))
    assert (changed["a"], changed["deep/b"] == found["deep/b"]) == (found["a"], False)


def test_a_tree_tells_what_may_be_run(project: Project, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "x").touch(mode=0o644)
    plain = project.tree(tmp_path / "tree")
    (tmp_path / "tree" / "x").chmod(0o755)
    assert project.tree(tmp_path / "tree") == {"x": plain["x"] + "x"}


def test_every_place_of_this_checkout_is_there() -> None:
    project = Project(ROOT)
    for path in (project.spec, project.overlays, project.preseed, project.packer, project.image_tests):
        assert path.exists(), path
    assert project.installer_lock.parent == project.preseed
