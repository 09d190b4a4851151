"""noxfile.py and the command line have the same commands, and texts name a command by its session."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from build.cli import main
from build.core import run
from tests.unit.cli.test_options import ON_CLUSTER
from tests.unit.helpers import ROOT

# Sessions that run something else than a command.
OTHERS = {"tests", "packers", "newcomer", "lab", "projects", "compositions", "two-machines"}
SESSION = re.compile(r"nox -s ([a-z][a-z-]*)")


@pytest.fixture(scope="module")
def noxfile() -> ModuleType:
    # By its name: a second copy of the module would register every session twice.
    return importlib.import_module("noxfile")


@pytest.fixture(scope="module")
def listed() -> dict[str, str]:
    """The sessions and their descriptions, as nox lists them."""
    text = run.run([sys.executable, "-m", "nox", "--list"], cwd=ROOT, timeout=60).stdout
    return dict(re.findall(r"^[-*] ([a-z-]+)(?: -> (.*))?$", text, re.MULTILINE))


def test_the_table_has_every_command(noxfile: ModuleType) -> None:
    assert set(noxfile.COMMANDS) == set(main.COMMANDS)


def test_every_session_has_a_description(noxfile: ModuleType, listed: dict[str, str]) -> None:
    assert set(listed) == set(main.COMMANDS) | OTHERS
    assert [name for name, text in listed.items() if not text] == []
    for name, command in noxfile.COMMANDS.items():
        assert listed[name] == command.description


def test_commands_for_a_cluster_get_its_packages(noxfile: ModuleType) -> None:
    with_packages = {name for name, one in noxfile.COMMANDS.items() if set(noxfile.PROXMOX) <= set(one.packages)}
    # The completion reads the options of every command.
    assert with_packages == ON_CLUSTER | {"completion"}


def texts() -> Iterator[tuple[Path, str]]:
    """Yield every text of the package but docstrings."""
    for path in sorted((ROOT / "build").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documents = {
            node.body[0].value for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None
            and isinstance(node.body[0], ast.Expr)
        }  # fmt: skip
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in documents:
                yield path, node.value


def test_texts_name_a_command_by_its_session() -> None:
    spelled = [f"{path.relative_to(ROOT)}: {text}" for path, text in texts() if "python -m build" in text]
    # The usage line of the command line itself.
    assert spelled == ["build/cli/main.py: python -m build"]


def test_sessions_in_texts_exist() -> None:
    named = {name for _, text in texts() for name in SESSION.findall(text)}
    assert len(named) > 5
    assert named <= set(main.COMMANDS) | OTHERS
