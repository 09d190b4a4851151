"""Reading YAML that people write: duplicate and unknown keys are errors, and all problems are told at once."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from build.errors import SpecError

PACKAGE = r"[a-z0-9][a-z0-9+.-]+"
MIB_PER_UNIT = {"M": 1, "G": 1024, "T": 1024 * 1024}


class _UniqueLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, which YAML readers otherwise drop in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 (PyYAML's)
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if not isinstance(key, Hashable):
                continue  # the base class says what is wrong with it
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def load_yaml(path: Path) -> Any:
    """Read a YAML file; raise SpecError naming file, line and problem."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueLoader)  # noqa: S506 (a SafeLoader)
    except FileNotFoundError as error:
        raise SpecError(f"{path} does not exist", hint="run Goldsmith in its checkout, or name the file") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{path} is not UTF-8 text: {error.reason}", hint="save it as UTF-8") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise SpecError(f"{path}{where}: {error.problem}", hint="correct the YAML there") from error
    except yaml.YAMLError as error:
        raise SpecError(f"{path}: {error}", hint="correct the YAML there") from error


class Table:
    """A mapping that is read key by key; every problem is kept, and unknown keys are problems too."""

    def __init__(self, value: object, *, where: str, problems: list[str]) -> None:
        self.where = where
        self.problems = problems
        self.known: set[str] = set()
        self.value: dict[Any, Any] = {}
        if isinstance(value, dict):
            self.value = value
        else:
            self.problem("", value, "write a mapping (key: value)")

    def problem(self, key: str, value: object, remedy: str) -> None:
        """Note a problem at ``key``."""
        place = ".".join(part for part in (self.where, key) if part) or "the file"
        self.problems.append(f"{place}: {value!r}: {remedy}")

    def take(self, key: str, default: object = None) -> Any:
        """Return the value of ``key``; a key without default that is missing is a problem."""
        self.known.add(key)
        if key not in self.value and default is None:
            self.problem(key, None, "this key is missing: add it")
        return self.value.get(key, default)

    def text(self, key: str, pattern: str, remedy: str, default: str | None = None) -> str:
        """Return a string that matches ``pattern`` whole."""
        value = self.take(key, default)
        if isinstance(value, str) and re.fullmatch(pattern, value):
            return value
        if key in self.value or default is not None:
            self.problem(key, value, remedy)
        return ""

    def strings(self, key: str, pattern: str, remedy: str) -> tuple[str, ...]:
        """Return a list of strings, each matching ``pattern`` and none twice."""
        values = self.take(key, ())
        if not isinstance(values, list | tuple):
            self.problem(key, values, "write a list")
            return ()
        for value in values:
            if not (isinstance(value, str) and re.fullmatch(pattern, value)):
                self.problem(key, value, remedy)
        good = tuple(value for value in values if isinstance(value, str))
        for value in sorted({value for value in good if good.count(value) > 1}):
            self.problem(key, value, "it stands there twice: remove one")
        return good

    def strings_repeated(self, key: str, remedy: str) -> tuple[str, ...]:
        """Return a non-empty list of strings in which a word may stand more than once (a command)."""
        values = self.take(key)
        if isinstance(values, list) and values and all(isinstance(value, str) for value in values):
            return tuple(values)
        if key in self.value:
            self.problem(key, values, remedy)
        return ()

    def number(self, key: str, least: int, most: int) -> int:
        """Return an integer within the bounds."""
        value = self.take(key)
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return value
        if key in self.value:
            self.problem(key, value, f"write a whole number from {least} to {most}")
        return least

    def size(self, key: str) -> int:
        """Return a size in MiB from text such as ``512M`` or ``5G`` (binary units)."""
        value = self.take(key)
        match = re.fullmatch(r"([1-9][0-9]{0,6})([MGT])", value) if isinstance(value, str) else None
        if match:
            return int(match[1]) * MIB_PER_UNIT[match[2]]
        if key in self.value:
            self.problem(key, value, "write a size such as 512M, 5G or 1T (binary units)")
        return 0

    def finish(self) -> None:
        """Note every key that nobody asked for."""
        for key in self.value:
            if key not in self.known:
                self.problem(str(key), self.value[key], f"unknown key; known are {', '.join(sorted(self.known))}")


def raise_problems(path: Path, problems: list[str]) -> None:
    """Raise one SpecError that tells every problem of the file."""
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise SpecError(f"{path} has {count}", details="\n".join(problems), hint=f"correct {path.name} and run again")
