"""Reads YAML files written by people: duplicate and unknown keys are errors, and all problems are reported at once.

What is read is described at the same time: the JSON Schemas of the files come from the calls that read them.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import yaml

from build.core.errors import SpecError
from build.core.units import MIB, size_bytes

LONGEST_SHOWN = 60
PACKAGE = r"[a-z0-9][a-z0-9+.-]+"
LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
# RFC 1123; a number at the end would make it an address.
HOST = rf"(?=.{{1,253}}$)({LABEL}\.)*(?![0-9]+$){LABEL}"
SIZE = r"([1-9][0-9]{0,6})([MGT])"
SIZE_REMEDY = "write a size such as 512M, 5G or 1T (binary units)"
# In place of a mapping: a reader then reads every key once, and its tables describe them.
DESCRIBE = object()

Schema = dict[str, Any]


def network_problem(text: str) -> str:
    """Return what is wrong with a network that may reach SSH, and what to write; empty for a good one.

    The same rule as the site settings' (cidr of golden/site_keys/admin_cidrs.py): everybody is never an administrator.
    """
    try:
        network = ipaddress.ip_network(text, strict=False)
        exact = ipaddress.ip_interface(text).ip == network.network_address
    except ValueError:
        return "write a network such as 192.0.2.0/24 or 2001:db8::/64"
    if not exact:
        return f"has host bits set: an address within a network; write {network} if you mean all of it"
    return "this is everybody; name the networks that you mean" if network.prefixlen == 0 else ""


class _UniqueLoader(yaml.SafeLoader):
    """SafeLoader that rejects duplicate keys, which YAML readers otherwise drop silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 (PyYAML's)
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if not isinstance(key, Hashable):
                continue  # the base class reports the error
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # noqa: FBT001, FBT002 (PyYAML's)
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
            # PyYAML's own constructors fail so for a date such as 2026-02-30, or a tag that the value does not fit.
            problem = f"{str(node.value)[:LONGEST_SHOWN]!r} cannot be read as {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error


def load_yaml(path: Path) -> Any:
    """Read a YAML file; raise SpecError naming file, line and problem."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueLoader)  # noqa: S506 (a SafeLoader)
    except FileNotFoundError as error:
        raise SpecError(f"{path} does not exist", hint="run Goldsmith in its checkout, or give the path") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{path} is not UTF-8 text: {error.reason}", hint="save it as UTF-8") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise SpecError(f"{path}{where}: {error.problem}", hint="correct the YAML there") from error
    except yaml.YAMLError as error:
        raise SpecError(f"{path}: {error}", hint="correct the YAML there") from error
    except RecursionError as error:
        raise SpecError(f"{path}: it is nested too deeply", hint="correct the YAML there") from error


class Table:
    """A mapping that is read key by key; all problems are collected, and unknown keys are problems too.

    Each reading of a key also describes it: ``schema`` returns the JSON Schema of all keys that were read. A reader that
    gets a Table of ``DESCRIBE`` in place of a file's content reads every key once, so that its schema is complete.
    """

    def __init__(self, value: object, *, where: str, problems: list[str], about: str = "") -> None:
        self.where = where
        self.problems = problems
        self.about = about
        self.known: set[str] = set()
        self.value: dict[Any, Any] = {}
        self.describes = value is DESCRIBE
        self._keys: dict[str, Callable[[], Schema]] = {}
        self._required: set[str] = set()
        if isinstance(value, dict):
            self.value = value
        elif not self.describes:
            self.problem("", value, "write a mapping (key: value)")

    def problem(self, key: str, value: object, remedy: str) -> None:
        """Add a problem at ``key``."""
        place = ".".join(part for part in (self.where, key) if part) or "the file"
        self.problems.append(f"{place}: {value!r}: {remedy}")

    def take(self, key: str, default: object = None, *, about: str = "", schema: Schema | None = None) -> Any:
        """Return the value of ``key``; a key without default that is missing is a problem.

        ``schema`` describes the value, for a caller that checks it; ``about`` is what the key is for.
        """
        self._describe(key, {**(schema or {}), **_default(default)}, about=about, required=default is None)
        if key not in self.value and default is None:
            self.problem(key, None, "this key is missing: add it")
        return self.value.get(key, default)

    def text(self, key: str, pattern: str, remedy: str, default: str | None = None, *, about: str = "") -> str:
        """Return a string of which all matches ``pattern``; a ``default`` need not match it."""
        value = self.take(key, default, about=about, schema=_text(pattern, remedy))
        if key not in self.value and default is not None:
            return default
        if isinstance(value, str) and re.fullmatch(pattern, value):
            return value
        if key in self.value:
            self.problem(key, value, remedy)
        return ""

    def strings(self, key: str, pattern: str, remedy: str, *, about: str = "", needed: str = "") -> tuple[str, ...]:
        """Return a list of strings, each matching ``pattern``, without duplicates; ``needed``: the remedy for none."""
        schema: Schema = {"type": "array", "items": _text(pattern, remedy), "uniqueItems": True}
        values = self.take(key, (), about=about, schema={**schema, **({"minItems": 1} if needed else {})})
        if needed:
            self._required.add(key)
        if not isinstance(values, list | tuple):
            self.problem(key, values, "write a list")
            return ()
        for value in values:
            if not (isinstance(value, str) and re.fullmatch(pattern, value)):
                self.problem(key, value, remedy)
        good = tuple(value for value in values if isinstance(value, str))
        for value in sorted({value for value in good if good.count(value) > 1}):
            self.problem(key, value, "duplicate entry: remove one")
        if needed and not values:
            self.problem(key, [], needed)
        return good

    def strings_repeated(self, key: str, remedy: str, *, about: str = "") -> tuple[str, ...]:
        """Return a non-empty list of strings that may contain duplicates (the arguments of a command)."""
        values = self.take(key, about=about, schema={"type": "array", "items": {"type": "string"}, "minItems": 1})
        if isinstance(values, list) and values and all(isinstance(value, str) for value in values):
            return tuple(values)
        if key in self.value:
            self.problem(key, values, remedy)
        return ()

    def number(self, key: str, least: int, most: int, default: int | None = None, *, about: str = "") -> int:
        """Return an integer within the bounds; a ``default`` need not be within them."""
        value = self.take(key, default, about=about, schema={"type": "integer", "minimum": least, "maximum": most})
        if key not in self.value and default is not None:
            return default
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return value
        if key in self.value:
            self.problem(key, value, f"write a whole number from {least} to {most}")
        return least

    def size(self, key: str, default: str | None = None, *, about: str = "") -> int:
        """Return a size in MiB from text such as ``512M`` or ``5G`` (binary units)."""
        value = self.take(key, default, about=about, schema=_text(SIZE, SIZE_REMEDY))
        match = re.fullmatch(SIZE, value) if isinstance(value, str) else None
        if match:
            return size_bytes(match[1], match[2]) // MIB
        if key in self.value:
            self.problem(key, value, SIZE_REMEDY)
        return 0

    # --- tables in tables -------------------------------------------------------------------------------------------

    def inner(self, key: str, *, about: str = "", where: str = "") -> Table:
        """Return the table below ``key``; one that is missing is read as an empty one."""
        self.known.add(key)
        table = self._table(self.value.get(key, {}), where or self._place(key), about)
        self._keys[key] = table.schema
        # What it lacks then is named key by key.
        self._required.add(key)
        return table

    def section(self, key: str, *, about: str = "", where: str = "") -> Table | None:
        """Return the table below ``key``, or None when the file has no such key."""
        if key not in self.value and not self.describes:
            self.known.add(key)
            return None
        table = self.inner(key, about=about, where=where)
        self._required.discard(key)
        return table

    def rows(self, key: str, remedy: str, *, about: str = "", where: str = "", needed: bool = False) -> list[Table]:
        """Return the tables of the list at ``key``; ``needed``: the caller refuses an empty one."""
        self.known.add(key)
        entries = self.value.get(key, [])
        if not isinstance(entries, list | tuple):
            self.problem(key, entries, remedy)
            entries = []
        place = where or self._place(key)
        entries = [DESCRIBE] if self.describes else entries
        tables = [self._table(entry, f"{place}[{index}]") for index, entry in enumerate(entries)]
        least: Schema = {"minItems": 1} if needed else {}
        if tables:
            self._keys[key] = lambda: {
                "description": _sentence(about), "type": "array", "items": tables[0].schema(), **least,
            }  # fmt: skip
        if needed:
            self._required.add(key)
        return tables

    def entries(self, key: str, names: str, remedy: str, *, about: str = "", where: str = "") -> dict[str, Table]:
        """Return the tables of the mapping at ``key`` by their names, which the pattern ``names`` describes."""
        self.known.add(key)
        value = self.value.get(key, {})
        if not isinstance(value, dict):
            self.problem(key, value, remedy)
            value = {}
        place = where or self._place(key)
        tables = {
            str(name): self._table(entry, f"{place}.{name}")
            for name, entry in ({"": DESCRIBE} if self.describes else value).items()
        }  # fmt: skip
        if self.describes:
            self._keys[key] = lambda: {
                "description": _sentence(about), "type": "object", "propertyNames": _text(names, ""),
                "additionalProperties": tables[""].schema(),
            }  # fmt: skip
        return tables

    def _table(self, value: object, where: str, about: str = "") -> Table:
        return Table(DESCRIBE if self.describes else value, where=where, problems=self.problems, about=about)

    def _place(self, key: str) -> str:
        return f"{self.where}.{key}" if self.where else key

    def _describe(self, key: str, schema: Schema, *, about: str, required: bool) -> None:
        self.known.add(key)
        # An editor shows the description: what the key is for, and how to write it.
        text = " ".join(_sentence(part) for part in (about, schema.get("description", "")) if part)
        self._keys[key] = lambda: {**schema, **({"description": text} if text else {})}
        if required:
            self._required.add(key)

    def schema(self) -> Schema:
        """Return the JSON Schema of the keys that were read, in the order in which they were read."""
        properties = {key: describe() for key, describe in self._keys.items()}
        required = [
            key for key, schema in properties.items()
            if key in self._required and (schema.get("type") != "object" or schema.get("required"))
        ]  # fmt: skip
        return {
            **({"description": _sentence(self.about)} if self.about else {}), "type": "object", "properties": properties,
            **({"required": required} if required else {}), "additionalProperties": False,
        }  # fmt: skip

    def finish(self) -> None:
        """Add a problem for every key that was not read."""
        for key in self.value:
            if key not in self.known:
                self.problem(str(key), self.value[key], f"unknown key; known are {', '.join(sorted(self.known))}")


def _text(pattern: str, remedy: str) -> Schema:
    """Describe a string: by its words where the pattern is a choice of words, otherwise by the pattern."""
    description: Schema = {"description": remedy} if remedy else {}
    if re.fullmatch(r"[A-Za-z0-9_=-]+(\|[A-Za-z0-9_=-]+)*", pattern):
        return {"type": "string", "enum": pattern.split("|")}
    return {"type": "string", "pattern": f"^(?:{pattern})$", **description}


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _default(default: object) -> Schema:
    # An empty text or zero means that there is no value: `about` describes that case.
    return {"default": default} if isinstance(default, str | int) and default else {}


def raise_problems(path: Path, problems: list[str], *more: Path) -> None:
    """Raise one SpecError that lists all problems of the file; ``more``: the files from which it inherits keys."""
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        inherited = f" (or {', '.join(file.name for file in more)}, which it extends)" if more else ""
        raise SpecError(
            f"{path} has {count}", details="\n".join(problems), hint=f"correct {path.name}{inherited} and run again"
        )
