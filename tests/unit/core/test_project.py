"""The checkout: what counts as a change of code, and what of a tree of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from build.core.project import OBSERVERS, Project, forget_code
from tests.unit.helpers import ROOT

CODE = '''"""A module."""

import os

# A comment.
LIMIT = 5


def f(x):
    """What it does."""
    return x + LIMIT
'''

SYNTAX = """
import a.b as c
from . import d
X: int = 1_000
async def f(x, /, y=2.5, *args: int, z=b"q", **kwargs) -> None:
    async with x as y, z: ...
    for i, *j in x: yield i
    else: pass
    try: raise X from None
    except (A, B) as e: del e
    match x:
        case {"k": [1, *_], **rest} if (n := 3): return lambda: f"{x!r:>{y}} 'q' {{}}"
    return [i async for i in x if i] + {**x} and not -x is ... < 1j
@dec
class K(Base, metaclass=M): attribute: str = 'é'
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "build" / "a").mkdir(parents=True)
    (tmp_path / "build" / "a" / "x.py").write_text(CODE)
    return Project(tmp_path)


def digest_of(project: Project, code: str) -> str:
    (project.root / "build" / "a" / "x.py").write_text(code)
    forget_code()
    return project.code("a/x")["a/x"]


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


def test_the_hash_is_the_same_in_every_release_of_python(project: Project) -> None:
    """Computed by Python 3.11. Newer releases know fields of the syntax tree that older ones do not have."""
    assert digest_of(project, SYNTAX) == "78606b9810c8da45"


def test_what_a_module_imports_is_code_too(project: Project) -> None:
    package = project.root / "build"
    (package / "b").mkdir()
    for name in ("a/y", "b/one", "b/two", "b/unused"):
        (package / f"{name}.py").write_text("")
    (package / "a" / "x.py").write_text("from build.a.y import A\n\ndef f():\n    from build.b import one, missing\n")
    (package / "b" / "one.py").write_text("import os\nfrom build.b import two\nfrom build.a import x\n")
    assert list(project.code("a/x")) == ["a/x", "a/y", "b/one", "b/two"]
    assert list(project.code("b/two")) == ["b/two"]


@pytest.mark.parametrize("name", sorted(OBSERVERS))
def test_what_only_observes_is_left_out(name: str) -> None:
    assert (ROOT / "build" / f"{name}.py").is_file()
    assert Project(ROOT).code(name) == {}


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
