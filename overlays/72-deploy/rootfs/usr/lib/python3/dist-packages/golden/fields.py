"""Keys of a settings file as data: one description reads the file, reports every fault, and is its JSON Schema.

A kind reads one value: it returns the value that is used, and adds what is wrong to a list of faults. ``schema`` describes
the same value (JSON Schema, draft 2020-12).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from golden.site_table import LONGEST_SHOWN, Fault, Schema, shown

MOST_FAULTS = 100
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class Kind(Protocol):
    """A kind of value."""

    def read(self, value: object, key: str, faults: list[Fault]) -> Any:
        """Return the value as it is used; add a fault for each part of it that is wrong."""

    def schema(self) -> Schema:
        """Return the JSON Schema of the value."""


@dataclass(frozen=True)
class Text:
    """A text in one line of which all matches a pattern."""

    pattern: str
    remedy: str
    # Returns what is wrong with a text that matches; empty for nothing.
    check: Callable[[str], str] | None = None

    def read(self, value: object, key: str, faults: list[Fault]) -> str:
        if not isinstance(value, str) or not value.isprintable() or not re.fullmatch(self.pattern, value):
            faults.append(Fault(key, shown(value), self.remedy))
            return ""
        if self.check and (problem := self.check(value)):
            faults.append(Fault(key, shown(value), problem))
            return ""
        return value

    def schema(self) -> Schema:
        return {"type": "string", "pattern": f"^(?:{self.pattern})$", "description": self.remedy}


@dataclass(frozen=True)
class Word:
    """One of some words."""

    words: Sequence[str]

    def read(self, value: object, key: str, faults: list[Fault]) -> str:
        if value not in self.words:
            faults.append(Fault(key, shown(value), f"write one of {', '.join(self.words)}"))
            return self.words[0]
        return str(value)

    def schema(self) -> Schema:
        return {"type": "string", "enum": list(self.words)}


@dataclass(frozen=True)
class Flag:
    """True or false."""

    def read(self, value: object, key: str, faults: list[Fault]) -> bool:
        if not isinstance(value, bool):
            faults.append(Fault(key, shown(value), "write true or false"))
        return value is True

    def schema(self) -> Schema:
        return {"type": "boolean"}


@dataclass(frozen=True)
class Number:
    """A whole number within bounds."""

    least: int
    most: int
    unit: str = ""

    def read(self, value: object, key: str, faults: list[Fault]) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not self.least <= value <= self.most:
            unit = f" ({self.unit})" if self.unit else ""
            faults.append(Fault(key, shown(value), f"write a whole number from {self.least} to {self.most}{unit}"))
            return self.least
        return value

    def schema(self) -> Schema:
        described = {"description": f"in {self.unit}"} if self.unit else {}
        return {"type": "integer", "minimum": self.least, "maximum": self.most, **described}


@dataclass(frozen=True)
class Size:
    """A size such as 512K, 8M or 1G (binary units), read as bytes."""

    least: str
    most: str

    def read(self, value: object, key: str, faults: list[Fault]) -> int:
        size = size_bytes(value)
        if not size_bytes(self.least) <= size <= size_bytes(self.most):
            faults.append(Fault(key, shown(value), f"write a size from {self.least} to {self.most}, such as {self.most}"))
            return size_bytes(self.least)
        return size

    def schema(self) -> Schema:
        return {
            "type": "string", "pattern": "^[1-9][0-9]{0,9}[KMG]?$",
            "description": f"a size from {self.least} to {self.most} (binary units)",
        }  # fmt: skip


def size_bytes(value: object) -> int:
    """Return a size in bytes; -1 for what is not a size."""
    match = re.fullmatch(r"([1-9][0-9]{0,9})([KMG]?)", value) if isinstance(value, str) else None
    return int(match[1]) * UNITS[match[2]] if match else -1


@dataclass(frozen=True)
class Items:
    """A list, each entry once."""

    kind: Kind
    most: int = 100
    least: int = 0
    repeats: bool = False

    def read(self, value: object, key: str, faults: list[Fault]) -> list[Any]:
        if not isinstance(value, list) or not self.least <= len(value) <= self.most:
            bounds = f"{self.least} to {self.most} entries"
            faults.append(Fault(key, shown(value), f"write a list of {bounds}: {key.rpartition('.')[2]}: [...]"))
            return []
        good: list[Any] = []
        for number, item in enumerate(value):
            before = len(faults)
            entry = self.kind.read(item, f"{key}[{number}]", faults)
            if len(faults) > before:
                continue
            if entry in good and not self.repeats:
                faults.append(Fault(f"{key}[{number}]", shown(item), "duplicate entry: remove one"))
            else:
                good.append(entry)
        return good

    def schema(self) -> Schema:
        least = {"minItems": self.least} if self.least else {}
        return {"type": "array", "items": self.kind.schema(), "maxItems": self.most, **least,
                **({} if self.repeats else {"uniqueItems": True})}  # fmt: skip


@dataclass(frozen=True)
class Names:
    """A mapping from names of one form to values of one kind."""

    name: Text
    kind: Kind
    most: int = 50

    def read(self, value: object, key: str, faults: list[Fault]) -> dict[str, Any]:
        if not isinstance(value, Mapping) or len(value) > self.most:
            faults.append(Fault(key, shown(value), f"write at most {self.most} names, each with its value, below it"))
            return {}
        return {
            self.name.read(name, f"{key} (a name)", faults): self.kind.read(entry, f"{key}.{plain(name)}", faults)
            for name, entry in value.items()
        }

    def schema(self) -> Schema:
        return {
            "type": "object", "propertyNames": self.name.schema(), "additionalProperties": self.kind.schema(),
            "maxProperties": self.most,
        }  # fmt: skip


@dataclass(frozen=True)
class Key:
    """A key of a section: what it means, the kind of its value, and the value without it (already read)."""

    about: str
    kind: Kind
    default: Any = None
    needed: bool = False


@dataclass(frozen=True)
class Section:
    """A mapping with known keys; any other key is a fault."""

    keys: Mapping[str, Key] = field(default_factory=dict)

    def read(self, value: object, key: str, faults: list[Fault]) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            faults.append(Fault(key or "the file", shown(value), "write keys and values"))
            value = {}
        where = f"{key}." if key else ""
        content = {name: self._read_one(name, entry, value, where, faults) for name, entry in self.keys.items()}
        for name, other in value.items():
            if name not in self.keys:
                known = ", ".join(sorted(self.keys))
                faults.append(Fault(f"{where}{plain(name)}", shown(other), f"there is no such key; known here: {known}"))
        return content

    def _read_one(self, name: str, entry: Key, value: Mapping[Any, Any], where: str, faults: list[Fault]) -> Any:
        given = value.get(name)
        if given is not None:
            return entry.kind.read(given, f"{where}{name}", faults)
        if entry.needed:
            faults.append(Fault(f"{where}{name}", "None", "this key is missing: add it"))
        if isinstance(entry.kind, Section) and entry.default is None:
            return entry.kind.read({}, f"{where}{name}", [])
        return entry.default

    def schema(self) -> Schema:
        properties = {name: _described(entry) for name, entry in self.keys.items()}
        required = [name for name, entry in self.keys.items() if entry.needed]
        return {"type": "object", "properties": properties, "additionalProperties": False,
                **({"required": required} if required else {})}  # fmt: skip


def _described(entry: Key) -> Schema:
    schema = entry.kind.schema()
    texts = [text for text in (entry.about, schema.get("description", "")) if text]
    default = {"default": entry.default} if entry.default is not None and not isinstance(entry.kind, Size) else {}
    if isinstance(entry.kind, Size) and entry.default is not None:
        default = {"default": size_text(entry.default)}
    return {**schema, "description": " ".join(f"{text[:1].upper()}{text[1:]}." for text in texts), **default}


def size_text(size: int) -> str:
    """Return a number of bytes as the largest unit that has it as a whole number."""
    return next(f"{size // number}{unit}" for unit, number in reversed(UNITS.items()) if size % number == 0)


def plain(name: object) -> str:
    """Return the name of a key as it is shown."""
    usable = isinstance(name, str) and name.isprintable() and len(name) <= LONGEST_SHOWN
    return str(name) if usable else shown(name)
