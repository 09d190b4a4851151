"""YAML written by users: each error is found and located, and all errors are reported together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from build.core.errors import SpecError
from build.core.yaml_table import Table, load_yaml, raise_problems


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "x.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def refused(path: Path) -> SpecError:
    with pytest.raises(SpecError) as caught:
        load_yaml(path)
    return caught.value


def table(value: Any) -> Table:
    return Table(value, where="a.b", problems=[])


# --- reading ----------------------------------------------------------------------------------------------------------


def test_a_key_given_twice_is_an_error_with_its_line(tmp_path: Path) -> None:
    path = written(tmp_path, "name: one\nother: 2\nname: three\n")
    assert refused(path).render() == f"{path}, line 3: duplicate key 'name'\n  -> correct the YAML there"


def test_a_key_given_twice_is_found_at_any_depth(tmp_path: Path) -> None:
    path = written(tmp_path, "list:\n  - {a: 1, b: 2, a: 3}\n")
    assert refused(path).brief == f"{path}, line 2: duplicate key 'a'"


@pytest.mark.parametrize(
    ("text", "brief"),
    [
        ("a: [1\nb: 2\n", ", line 2: expected ',' or ']'"),
        ("a: b: c\n", ", line 1: mapping values are not allowed"),
        ("? [a, b]\n: 1\n", ", line 1: found unhashable key"),
        ("a: !!python/object:os.system {}\n", ", line 1: could not determine a constructor for the tag"),
        (b"a: \xff\n", " is not UTF-8 text: invalid start byte"),
        ("a: \x07\n", ": unacceptable character"),
    ],
)
def test_broken_yaml_is_told_with_its_place(tmp_path: Path, text: str | bytes, brief: str) -> None:
    path = written(tmp_path, text)
    assert refused(path).brief.startswith(f"{path}{brief}")


def test_a_missing_file_is_told_with_a_remedy(tmp_path: Path) -> None:
    error = refused(tmp_path / "golden.yaml")
    assert error.render() == (f"{tmp_path}/golden.yaml does not exist\n  -> run Goldsmith in its checkout, or give the path")
    assert error.exit_code == 2


# --- one value --------------------------------------------------------------------------------------------------------


def test_text_matches_whole() -> None:
    read = table({"x": "good", "y": "good and more"})
    assert read.text("x", "good", "write good") == "good"
    assert read.text("y", "good", "write good") == ""
    assert read.problems == ["a.b.y: 'good and more': write good"]


@pytest.mark.parametrize("value", [5, None, True, ["good"], {"good": 1}])
def test_text_of_another_type_is_a_problem(value: object) -> None:
    read = table({"x": value})
    assert read.text("x", ".*", "write text") == ""
    assert read.problems == [f"a.b.x: {value!r}: write text"]


def test_a_missing_key_is_told_once() -> None:
    read = table({})
    assert (read.text("x", ".*", "write text"), read.number("y", 1, 2), read.size("z")) == ("", 1, 0)
    assert read.problems == [f"a.b.{key}: None: this key is missing: add it" for key in "xyz"]


def test_a_default_stands_for_a_missing_key_and_not_for_a_wrong_one() -> None:
    assert table({}).text("x", "a|b", "write a or b", default="a") == "a"
    read = table({"x": "c"})
    assert read.text("x", "a|b", "write a or b", default="a") == ""
    assert read.problems == ["a.b.x: 'c': write a or b"]


@pytest.mark.parametrize(("text", "mib"), [("512M", 512), ("5G", 5120), ("1T", 1 << 20)])
def test_sizes_have_binary_units(text: str, mib: int) -> None:
    assert table({"x": text}).size("x") == mib


@pytest.mark.parametrize("value", ["512", "5 G", "0M", "05G", "-1G", "1.5G", "5g", "5GB", 512, None])
def test_sizes_without_a_unit_or_out_of_range_are_problems(value: object) -> None:
    read = table({"x": value})
    assert read.size("x") == 0
    assert read.problems == [f"a.b.x: {value!r}: write a size such as 512M, 5G or 1T (binary units)"]


@pytest.mark.parametrize("value", [0, 65, 2.0, "2", True])
def test_numbers_are_whole_and_within_bounds(value: object) -> None:
    read = table({"x": value})
    read.number("x", 1, 64)
    assert read.problems == [f"a.b.x: {value!r}: write a whole number from 1 to 64"]
    assert table({"x": 64}).number("x", 1, 64) == 64


def test_lists_are_checked_word_by_word() -> None:
    read = table({"x": ["a", "b", "a", "C", 5], "y": "a"})
    assert read.strings("x", "[a-z]", "write a letter") == ("a", "b", "a", "C")
    assert read.strings("y", "[a-z]", "write a letter") == ()
    assert read.problems == [
        "a.b.x: 'C': write a letter",
        "a.b.x: 5: write a letter",
        "a.b.x: 'a': duplicate entry: remove one",
        "a.b.y: 'a': write a list",
    ]


def test_a_command_may_repeat_a_word_but_is_never_empty() -> None:
    read = table({"x": ["tar", "-v", "-v"], "y": [], "z": "tar -v"})
    assert read.strings_repeated("x", "write words") == ("tar", "-v", "-v")
    assert read.strings_repeated("y", "write words") == ()
    assert read.strings_repeated("z", "write words") == ()
    assert read.problems == ["a.b.y: []: write words", "a.b.z: 'tar -v': write words"]


# --- the whole --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, [], "text", 5])
def test_what_is_no_mapping_is_a_problem(value: object) -> None:
    problems: list[str] = []
    assert Table(value, where="", problems=problems).value == {}
    assert problems == [f"the file: {value!r}: write a mapping (key: value)"]


def test_unknown_keys_are_problems_and_the_known_ones_are_told() -> None:
    read = table({"x": "a", "z": 1, 7: 2})
    read.text("x", "a", "write a")
    read.take("y", "")
    read.finish()
    assert read.problems == [
        "a.b.z: 1: unknown key; known are x, y",
        "a.b.7: 2: unknown key; known are x, y",
    ]


def test_one_error_tells_every_problem(tmp_path: Path) -> None:
    raise_problems(tmp_path / "golden.yaml", [])
    with pytest.raises(SpecError) as caught:
        raise_problems(tmp_path / "golden.yaml", ["first", "second"])
    assert caught.value.render() == (
        f"{tmp_path}/golden.yaml has 2 problems\n    first\n    second\n  -> correct golden.yaml and run again"
    )
    with pytest.raises(SpecError, match=r"has 1 problem$"):
        raise_problems(tmp_path / "golden.yaml", ["first"])
