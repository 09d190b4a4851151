"""Each command offers only the options that it reads, and commands for Proxmox VE alone import its packages."""

from __future__ import annotations

import argparse
import ast
import inspect
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from build.cli import loading, main, plan
from build.cli import options as common
from build.core import run
from build.core.errors import HostError
from tests.unit.helpers import ROOT, make_checkout

NAMESPACE = "argparse.Namespace"
# What main.py reads of every command.
OF_MAIN = {"help", "log_json", "verbose"}
PROXMOX = ("proxmoxer", "paramiko", "requests_toolbelt")


class Reader:
    """Collects the arguments that a function reads: itself, and the functions that it passes its arguments to."""

    def __init__(self) -> None:
        self.read: set[str] = set()
        self._seen: set[tuple[str, str]] = set()

    def visit(self, module: ModuleType, name: str) -> None:
        """Read a function of a module; raises AssertionError for a use of the arguments that cannot be followed."""
        if (module.__name__, name) in self._seen:
            return
        self._seen.add((module.__name__, name))
        tree = ast.parse(inspect.getsource(module))
        (function,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
        taken = {
            argument.arg for argument in function.args.args
            if argument.annotation and ast.unparse(argument.annotation) == NAMESPACE
        }  # fmt: skip
        followed = 0
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in taken:
                self.read.add(node.attr)
                followed += 1
            elif isinstance(node, ast.Call):
                passed = [value for value in node.args if isinstance(value, ast.Name) and value.id in taken]
                if passed:
                    followed += len(passed)
                    self.visit(*_called(module, node.func))
        uses = sum(isinstance(node, ast.Name) and node.id in taken for node in ast.walk(function))
        assert uses == followed, f"{module.__name__}.{name}: a use of the arguments that is neither a read nor a call"


def _called(module: ModuleType, function: ast.expr) -> tuple[ModuleType, str]:
    """Return the module and the name of a function that is called in a module."""
    if isinstance(function, ast.Name):
        called = getattr(module, function.id)
        return sys.modules[called.__module__], function.id
    assert isinstance(function, ast.Attribute)
    if isinstance(function.value, ast.Call):
        # A module that is loaded by its name, in a literal.
        (name,) = function.value.args
        assert ast.unparse(function.value.func) == "loading.load"
        assert isinstance(name, ast.Constant)
        return loaded(str(name.value)), function.attr
    assert isinstance(function.value, ast.Name)
    return getattr(module, function.value.id), function.attr


def loaded(command: str) -> ModuleType:
    module: Any = loading.load(command)
    assert isinstance(module, ModuleType)
    return module


def read_by(module: ModuleType) -> set[str]:
    reader = Reader()
    reader.visit(module, "run")
    return reader.read


def offered(command: str) -> dict[str, str]:
    """Return what a command offers: the option or argument by the name of its attribute."""
    top = main.parser(command)
    (commands,) = [action for action in top._actions if isinstance(action, argparse._SubParsersAction)]
    actions = commands.choices[command]._actions
    return {action.dest: "/".join(action.option_strings) or str(action.metavar) for action in actions}


@pytest.mark.parametrize("command", main.COMMANDS)
def test_a_command_offers_what_it_reads_and_nothing_else(command: str) -> None:
    options = offered(command)
    read = read_by(loaded(command))
    unread = {text for name, text in options.items() if name not in read | OF_MAIN}
    assert not unread, f"{command} offers {unread}, and does not read it"
    assert not read - options.keys(), f"{command} reads what it does not offer"


def test_an_option_that_is_not_read_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def options(parser: argparse.ArgumentParser) -> None:
        common.add_build(parser)
        parser.add_argument("--colour")

    monkeypatch.setattr(plan, "options", options)
    with pytest.raises(AssertionError, match=r"plan offers \{'--colour'\}"):
        test_a_command_offers_what_it_reads_and_nothing_else("plan")


@pytest.mark.parametrize("command", main.COMMANDS)
def test_every_command_has_the_same_shape(command: str) -> None:
    module = loaded(command)
    assert str(inspect.signature(module.options)) == "(parser: 'argparse.ArgumentParser') -> 'None'"
    assert str(inspect.signature(module.run)) == "(arguments: 'argparse.Namespace') -> 'int'"
    assert (module.__doc__ or "").startswith(f"The command ``{command}``: ")


def modules() -> Iterator[str]:
    yield from (path.stem for path in (ROOT / "build" / "cli").glob("*.py") if path.stem != "__init__")


def test_every_module_is_a_command_or_part_of_one() -> None:
    parts = {"build_on_proxmox", "cluster", "doctor_cluster", "loading", "main", "options", "release"}
    assert set(modules()) == parts | {command.replace("-", "_") for command in main.COMMANDS}


IMPORTS = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {{name!r}}")

sys.meta_path.insert(0, Refuse())
from build.cli import main
for command in {commands}:
    main.parse([command, *{words}.get(command, [])])
"""
ON_CLUSTER = {
    "publish", "clone", "drift", "promote", "rollback", "history", "revoke", "restore", "prune", "replace", "fleet",
}  # fmt: skip
REQUIRED = {"bundle": ["DIR", "-o", "FILE"], "layer": ["45-redis"]}


def test_only_commands_for_a_cluster_need_the_packages_for_proxmox() -> None:
    """In a Python that has none of them, every other command is imported and parsed."""
    code = IMPORTS.format(names=PROXMOX, commands=sorted(main.COMMANDS.keys() - ON_CLUSTER), words=REQUIRED)
    run.run([sys.executable, "-c", code], cwd=ROOT, timeout=60)


def test_boot_needs_no_debian_mirror(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    def none() -> Any:
        raise HostError("the host's apt has no Debian mirror")

    monkeypatch.setattr("build.packages.apt.host_mirrors", none)
    project = make_checkout(tmp_path / "checkout")
    for command in ("boot", "long-tests", "faults"):
        words = ["--no-install", "--project", str(project.root), "--cache", str(tmp_path / "cache")]
        assert main.main([command, *words]) == 2
        said = capsys.readouterr().err
        assert "no Debian mirror" not in said, command
