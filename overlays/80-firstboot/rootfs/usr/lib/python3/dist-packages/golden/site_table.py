"""Reads a mapping of site.yaml key by key: collects what is wrong, and describes what it reads as a JSON Schema.

A bad value never opens anything: it is as if nothing had been given.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LONGEST_SHOWN = 100
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = LONGEST_SHOWN

Schema = dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong in the file: where, what stands there, and what to write instead."""

    key: str
    value: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.key}: {self.value}: {self.remedy}"


class Wrong(Exception):
    """A value that cannot be used; the text contains what to write instead."""


@dataclass(frozen=True)
class Kind:
    """A kind of value: a function that returns the value in its usual form or raises Wrong, and its JSON Schema."""

    read: Callable[[object], Any]
    schema: Schema

    def __call__(self, value: object) -> Any:
        """Return the value in its usual form; raise Wrong when it is not of this kind."""
        return self.read(value)


def kind(description: str, **schema: Any) -> Callable[[Callable[[object], Any]], Kind]:
    """Return a decorator that makes a Kind of a function. The schema is that of a text, unless ``type`` is set."""
    return lambda read: Kind(read, {"type": "string", **schema, **({"description": description} if description else {})})


@dataclass(frozen=True)
class Key:
    """A key of site.yaml. The layer that owns it registers it by a module golden/site_keys/NAME.py with a Key called KEY.

    ``read`` gets the table of the whole file and the key's name, and returns the setting, also for a file without the key.
    ``files`` returns files for /run/golden, by name, that units need besides site.json. ``from_hypervisor``: the hypervisor
    may set the key too (see golden.site). For the packet filter: ``outgoing`` returns who calls which address (a URL);
    ``networks`` returns networks by the name of their sets (NAME_inet4, NAME_inet6); ``destinations`` returns users with the
    address and TCP port that each may reach, by the name of their sets (NAME_out4, NAME_out6).
    """

    read: Callable[[Table, str], Any]
    files: Callable[[Any], Mapping[str, bytes]] = lambda _setting: {}
    from_hypervisor: bool = False
    outgoing: Callable[[Any], Iterable[tuple[str, str | None]]] = lambda _setting: ()
    networks: Callable[[Any], Mapping[str, Sequence[str]]] = lambda _setting: {}
    destinations: Callable[[Any], Mapping[str, Sequence[tuple[str, str, int]]]] = lambda _setting: {}


class Table:
    """A mapping that is read key by key, and puts what is wrong onto the common list.

    Each reading of a key also describes it. With ``describes`` a reader reads every part once: ``schema`` is then complete.
    """

    def __init__(
        self, content: object, faults: list[Fault], *, where: str = "", about: str = "", describes: bool = False
    ) -> None:
        self.content: Mapping[Any, Any] = content if isinstance(content, Mapping) else {}
        self.where, self.faults, self.about, self.describes = where, faults, about, describes
        self._keys: dict[str, Callable[[], Schema]] = {}
        self._needed: list[str] = []

    def complain(self, key: object, value: object, remedy: str, *, secret: bool = False) -> None:
        """Add a fault at ``key``; a secret value is not shown."""
        name = key if isinstance(key, str) and key.isprintable() and len(key) <= LONGEST_SHOWN else shown(key)
        self.faults.append(Fault(f"{self.where}{name}", "(not shown)" if secret else shown(value), remedy))

    def value(self, key: str, kind: Kind, *, about: str, default: Any = None, secret: bool = False) -> Any:
        """Return one value, or the default when there is none or a bad one."""
        written: Schema = {"default": default} if isinstance(default, str | int) and default else {}
        self._keys[key] = lambda: _described(about, {**_or_null(kind.schema), **written})
        return self._value(key, kind, default=default, secret=secret)

    def needed(self, key: str, kind: Kind, *, about: str) -> Any:
        """Return one value that must be there."""
        self._keys[key] = lambda: _described(about, kind.schema)
        self._needed.append(key)
        if self.content.get(key) is None:
            self.complain(key, None, "is needed here")
        return self._value(key, kind, default=None, secret=False)

    def _value(self, key: str, kind: Kind, *, default: Any, secret: bool) -> Any:
        found = self.content.get(key)
        if found is None:
            return default
        try:
            return kind(found)
        except Wrong as wrong:
            self.complain(key, found, str(wrong), secret=secret)
            return default

    def items(self, key: str, kind: Kind, *, about: str) -> list[Any]:
        """Return the good ones of a list of values, each once."""
        self._keys[key] = lambda: _described(about, {"type": ["array", "null"], "items": kind.schema})
        found = self.content.get(key)
        if found is None:
            return []
        if not isinstance(found, list):
            self.complain(key, found, f"write a list: {key}: [...]")
            return []
        good: dict[Any, None] = {}
        for number, item in enumerate(found):
            try:
                good[kind(item)] = None
            except Wrong as wrong:
                self.complain(f"{key}[{number}]", item, str(wrong))
        return list(good)

    def parts(self, key: str, read_part: Callable[[Table], dict[str, Any]], *, about: str) -> list[dict[str, Any]]:
        """Return the mappings in a list that have no fault."""
        described = Table(None, [], describes=True)
        read_part(described)
        self._keys[key] = lambda: _described(about, {"type": ["array", "null"], "items": described.schema()})
        found = self.content.get(key)
        if found is not None and not isinstance(found, list):
            self.complain(key, found, f"write a list: {key}: [{{...}}]")
        good = []
        for number, item in enumerate(found if isinstance(found, list) else ()):
            before = len(self.faults)
            if not isinstance(item, Mapping):
                self.complain(f"{key}[{number}]", item, "write keys and values")
                continue
            inner = Table(item, self.faults, where=f"{self.where}{key}[{number}].")
            values = read_part(inner)
            inner.refuse_others()
            good += [values] if len(self.faults) == before else []
        return good

    def part(self, key: str, *, about: str) -> Table:
        """Return the mapping under a key."""
        found = self.content.get(key)
        if found is not None and not isinstance(found, Mapping):
            self.complain(key, found, "write keys and values below it")
        inner = Table(found, self.faults, where=f"{self.where}{key}.", about=about, describes=self.describes)
        self._keys[key] = lambda: _or_null(inner.schema())
        return inner

    def whole(self, key: str, read_part: Callable[[Table], dict[str, Any]], *, about: str) -> dict[str, Any] | None:
        """Return the mapping under a key if all of it is good: a part of it could have an unwanted effect."""
        before = len(self.faults)
        part = self.part(key, about=about)
        if self.content.get(key) is None and not self.describes:
            return None
        found = read_part(part) if len(self.faults) == before else None
        part.refuse_others()
        return found if len(self.faults) == before else None

    def refuse_others(self, problem: str = "there is no such key") -> None:
        """Report the unknown keys."""
        for key, value in self.content.items():
            if key not in self._keys:
                self.complain(key, value, f"{problem}; known here: {', '.join(sorted(self._keys))}", secret=True)

    def schema(self) -> Schema:
        """Return the JSON Schema of the keys that were read."""
        return {
            **({"description": self.about} if self.about else {}), "type": "object",
            "properties": {key: describe() for key, describe in self._keys.items()},
            **({"required": self._needed} if self._needed else {}), "additionalProperties": False,
        }  # fmt: skip


def _described(about: str, schema: Schema) -> Schema:
    """Return a schema with what the key is for before how its value is written."""
    return {**schema, "description": " ".join(filter(None, (about, schema.get("description", ""))))}


def _or_null(schema: Schema) -> Schema:
    """Return the schema of a value that may be null as well, which is as if the key was left out."""
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    words: Schema = {"enum": [*schema["enum"], None]} if "enum" in schema else {}
    return {**schema, **words, "type": [*kinds, "null"]}


def shown(value: object) -> str:
    """Return a value as text of bounded length, in bounded time."""
    text = _REPR.repr(value)
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."
