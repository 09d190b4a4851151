"""Records are read with every key checked, and written as they were read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from build.core import records
from build.core.records import Record, Unreadable


@dataclass(frozen=True)
class Part(Record):
    name: str
    size: int


@dataclass(frozen=True)
class Plain:
    ratio: float


def _pair(value: Any) -> tuple[str, str]:
    first, second = value
    return str(first), str(second)


@dataclass(frozen=True)
class Whole(Record):
    name: str
    good: bool
    parts: tuple[Part, ...]
    plain: Plain
    numbers: Mapping[str, Mapping[str, float]]
    anything: Any = None
    note: str | None = None
    words: tuple[str, ...] = ()
    pair: tuple[str, str] | None = field(default=None, metadata=records.codec(_pair, list, {"type": "array"}))


VALUE: dict[str, Any] = {
    "name": "x", "good": True, "parts": [{"name": "a", "size": 1, "new": [1]}], "plain": {"ratio": 2},
    "numbers": {"a": {"b": 1.5}}, "words": [], "pair": ["a", "b"], "anything": {"x": [None]}, "later": {"y": 1},
}  # fmt: skip


def test_what_is_read_is_written_byte_for_byte() -> None:
    found = records.read(Whole, VALUE)
    assert (found.parts[0].size, found.numbers["a"]["b"], found.pair, found.note) == (1, 1.5, ("a", "b"), None)
    assert json.dumps(records.write(found), sort_keys=True) == json.dumps(VALUE, sort_keys=True)


def test_keys_of_another_version_are_kept() -> None:
    found = records.read(Whole, VALUE)
    assert (found.other, found.parts[0].other) == ({"later": {"y": 1}}, {"new": [1]})


def test_what_has_the_default_none_is_not_written() -> None:
    without = {key: value for key, value in VALUE.items() if key not in ("pair", "anything")}
    assert records.write(records.read(Whole, without)) == without


@pytest.mark.parametrize(("change", "problem"), [
    ({"name": 1}, "name: 1 is not text"), ({"good": 1}, "good: 1 is not true or false"),
    ({"good": None}, "good: None is not true or false"), ({"note": None}, "note: None is not text"),
    ({"parts": {}}, "parts: {} is not a list"), ({"parts": ["a"]}, "parts[0]: 'a' is not an object"),
    ({"parts": [{"name": "a"}]}, "parts[0].size: missing"),
    ({"parts": [{"name": "a", "size": True}]}, "parts[0].size: True is not a whole number"),
    ({"parts": [{"name": "a", "size": 1.5}]}, "parts[0].size: 1.5 is not a whole number"),
    ({"plain": {"ratio": "2"}}, "plain.ratio: '2' is not a number"), ({"plain": {}}, "plain.ratio: missing"),
    ({"numbers": []}, "numbers: [] is not an object"),
    ({"numbers": {"a": {"b": False}}}, "numbers.a.b: False is not a number"),
    ({"pair": ["a"]}, "pair: ValueError: not enough values to unpack (expected 2, got 1)"),
    ({"name": ["x" * 80]}, f"name: ['{'x' * 38}… is not text"),
])  # fmt: skip
def test_a_wrong_part_is_named(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(Unreadable) as caught:
        records.read(Whole, {**VALUE, **change})
    assert caught.value.problems == (problem,)


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(Unreadable) as caught:
        records.read(Whole, {"name": 1, "good": True, "parts": [{"name": 2}], "plain": {}})
    assert caught.value.problems == (
        "name: 1 is not text", "parts[0].name: 2 is not text", "parts[0].size: missing", "plain.ratio: missing",
        "numbers: missing",
    )  # fmt: skip


@pytest.mark.parametrize("value", [[], "x", None, 1])
def test_what_is_no_object_is_refused(value: object) -> None:
    with pytest.raises(Unreadable, match=r"^it: .* is not an object$"):
        records.read(Whole, value)


@dataclass(frozen=True)
class Counted:
    """A class that is not a record, with a property named like the unknown keys of a record."""

    names: tuple[str, ...]

    @property
    def other(self) -> tuple[str, ...]:
        return self.names[1:]


def test_a_property_is_not_taken_for_unknown_keys() -> None:
    assert records.write(Counted(("one", "two"))) == {"names": ["one", "two"]}
