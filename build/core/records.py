"""Frozen dataclasses as JSON objects: one reader that checks every key and its type, and one writer that undoes it.

The types of the fields are the schema: text, numbers, true or false, ``Any``, other dataclasses, ``Mapping[str, T]``,
``tuple[T, ...]``. A field whose default is None may be missing, and is not written then.
"""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, TypeVar

OTHER = "other"
SHOWN = 40
R = TypeVar("R")
# What a field may hold, and what a problem calls it. A whole number is a number too, true and false are none.
PLAIN: Mapping[Any, tuple[tuple[type, ...], str]] = {
    str: ((str,), "text"), bool: ((bool,), "true or false"), int: ((int,), "a whole number"),
    float: ((float, int), "a number"),
}  # fmt: skip
JSON_TYPES: Mapping[Any, str] = {str: "string", bool: "boolean", int: "integer", float: "number"}


@dataclass(frozen=True, kw_only=True)
class Record:
    """A JSON object whose unknown keys are kept: another version of Goldsmith may have written them."""

    other: Mapping[str, Any] = field(default_factory=dict, repr=False)


class Unreadable(ValueError):
    """A JSON value is not the record that was expected; ``problems`` has one line for each key, by its path."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


def codec(read: Callable[[Any], Any], write: Callable[[Any], Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata of a field with a separate JSON format, which the JSON Schema ``schema`` describes.

    ``read`` may raise AttributeError, KeyError, TypeError or ValueError.
    """
    return {"read": read, "write": write, "schema": schema}


def read(kind: type[R], value: object) -> R:
    """Return the record that a parsed JSON value holds. Raises Unreadable with every problem."""
    problems: list[str] = []
    record = _object(kind, value, "", problems)
    if problems:
        raise Unreadable(problems)
    return typing.cast("R", record)


def write(record: object) -> dict[str, Any]:
    """Return a record as plain data for JSON."""
    plain: dict[str, Any] = {}
    for key in fields(record):  # type: ignore[arg-type]
        value = getattr(record, key.name)
        if key.name == OTHER:
            plain = {**value, **plain}
        elif not (value is None and key.default is None):
            plain[key.name] = key.metadata.get("write", _plain)(value)
    return plain


def schema(kind: Any) -> dict[str, Any]:
    """Return the JSON Schema of what :func:`read` takes for a dataclass. Unknown keys are allowed, as they are kept."""
    known = [field for field in fields(kind) if field.name != OTHER]
    return {
        "description": " ".join((kind.__doc__ or "").split("\n\n")[0].split()), "type": "object",
        "properties": {
            field.name: field.metadata.get("schema") or _schema(_hints(kind)[field.name]) for field in known
        },
        "required": [field.name for field in known if field.default is MISSING and field.default_factory is MISSING],
    }  # fmt: skip


def _schema(hint: Any) -> dict[str, Any]:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return {}
    if origin in (types.UnionType, typing.Union):
        return _schema(next(kind for kind in inner if kind is not type(None)))
    if origin is tuple:
        return {"type": "array", "items": _schema(inner[0])}
    if origin is Mapping:
        return {"type": "object", "additionalProperties": _schema(inner[1])}
    return schema(hint) if is_dataclass(hint) else {"type": JSON_TYPES[hint]}


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return write(value)
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple | list) else value


def _object(kind: Any, value: object, place: str, problems: list[str]) -> Any:
    if not isinstance(value, dict):
        problems.append(f"{place or 'it'}: {_shown(value)} is not an object")
        return None
    known = {key.name: key for key in fields(kind) if key.name != OTHER}
    before, values = len(problems), {}
    for name, key in known.items():
        where = f"{place}.{name}" if place else name
        if name in value:
            values[name] = _field(key.metadata, _hints(kind)[name], value[name], where, problems)
        elif key.default is MISSING and key.default_factory is MISSING:
            problems.append(f"{where}: missing")
    if issubclass(kind, Record):
        values[OTHER] = {name: inner for name, inner in value.items() if name not in known}
    return kind(**values) if len(problems) == before else None


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _field(metadata: Mapping[str, Any], hint: Any, value: object, place: str, problems: list[str]) -> Any:
    if "read" not in metadata:
        return _value(hint, value, place, problems)
    try:
        return metadata["read"](value)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        problems.append(f"{place}: {type(error).__name__}: {error}")
        return None


def _value(hint: Any, value: object, place: str, problems: list[str]) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        return _value(next(part for part in inner if part is not type(None)), value, place, problems)
    if origin is tuple:
        return _list(inner[0], value, place, problems)
    if origin is Mapping:
        return _mapping(inner[1], value, place, problems)
    if is_dataclass(hint):
        return _object(hint, value, place, problems)
    accepted, name = PLAIN[hint]
    if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
        problems.append(f"{place}: {_shown(value)} is not {name}")
    return value


def _list(inner: Any, value: object, place: str, problems: list[str]) -> Any:
    if not isinstance(value, list | tuple):
        problems.append(f"{place}: {_shown(value)} is not a list")
        return ()
    return tuple(_value(inner, item, f"{place}[{number}]", problems) for number, item in enumerate(value))


def _mapping(inner: Any, value: object, place: str, problems: list[str]) -> Any:
    if not isinstance(value, Mapping):
        problems.append(f"{place}: {_shown(value)} is not an object")
        return {}
    return {name: _value(inner, item, f"{place}.{name}", problems) for name, item in value.items()}


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
