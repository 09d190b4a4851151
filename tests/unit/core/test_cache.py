"""A stage is completely in the cache or not at all; keys are chained; the reason for a run is reported."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from build.core import cache as caches
from build.core import files
from build.core.cache import Cache, StageKey, stage_key
from build.core.errors import StepFailed
from build.core.records import Record
from tests.patience import PATIENCE_SECONDS


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def key(number: int = 0, **inputs: Any) -> StageKey:
    return stage_key("base", {"number": number, **inputs})


def maker(content: str = "made") -> Callable[[Path], Mapping[str, Any]]:
    def make(out: Path) -> Mapping[str, Any]:
        (out / "x").write_text(content)
        return {"bytes": len(content)}

    return make


def never(_out: Path) -> Mapping[str, Any]:
    raise AssertionError("the stage is in the cache and must not be made again")


def visible(cache: Cache) -> list[str]:
    """Return the names of the results in the stage's directory."""
    home = cache.root / "stages" / "base"
    return sorted(path.name for path in home.iterdir() if path.is_dir()) if home.is_dir() else []


# --- keys -------------------------------------------------------------------------------------------------------------


def test_the_key_follows_stage_inputs_and_the_stage_before() -> None:
    first = stage_key("base", {"x": 1})
    others = [
        stage_key("base", {"x": 2}),
        stage_key("base", {"y": 1}),
        stage_key("rootfs", {"x": 1}),
        stage_key("base", {"x": 1}, previous=first),
        stage_key("base", {"x": 1}, previous=stage_key("base", {"x": 2})),
    ]
    assert len({first.key, *(other.key for other in others)}) == 6
    assert stage_key("base", {"x": 1}) == first
    assert len(first.key) == caches.KEY_HEX


def test_a_change_reaches_every_later_stage() -> None:
    def chain(value: int) -> list[str]:
        base = stage_key("base", {"x": value})
        rootfs = stage_key("rootfs", {"y": 1}, previous=base)
        return [base.key, rootfs.key, stage_key("media", {}, previous=rootfs).key]

    assert not set(chain(1)) & set(chain(2))


# --- making and reusing -----------------------------------------------------------------------------------------------


def test_a_stage_is_made_once(cache: Cache) -> None:
    made = cache.obtain(key(), maker())
    assert (made.reused, made.facts, (made.path / "x").read_text()) == (False, {"bytes": 4}, "made")
    again = cache.obtain(key(), never)
    assert (again.reused, again.path, again.facts, again.seconds) == (True, made.path, made.facts, made.seconds)


def test_the_record_tells_what_made_it(cache: Cache) -> None:
    made = cache.obtain(key(colour="red"), maker())
    record = json.loads((made.path / caches.RECORD).read_text())
    assert (record["stage"], record["key"], record["facts"]) == ("base", made.key, {"bytes": 4})
    assert record["inputs"] == {"number": 0, "colour": "red", "previous": ""}
    assert record["seconds"] == made.seconds


def test_nothing_half_made_is_visible(cache: Cache) -> None:
    def make(out: Path) -> Mapping[str, Any]:
        (out / "x").touch()
        assert out != cache.stage_path(key())
        assert not cache.stage_path(key()).exists()
        assert cache.lookup(key()) is None
        return {}

    cache.obtain(key(), make)
    assert visible(cache) == [key().key]


@pytest.mark.parametrize("error", [StepFailed("broken"), KeyboardInterrupt(), ValueError("a defect")])
def test_a_stage_that_fails_leaves_nothing(cache: Cache, error: BaseException) -> None:
    def fail(out: Path) -> Mapping[str, Any]:
        (out / "x").touch()
        raise error

    with pytest.raises(type(error)):
        cache.obtain(key(), fail)
    assert visible(cache) == []
    assert cache.lookup(key()) is None
    assert cache.why(key()) == "not cached"
    assert cache.obtain(key(), maker()).reused is False


def test_a_full_disk_is_a_failed_step_with_a_hint(cache: Cache) -> None:
    def fail(out: Path) -> Mapping[str, Any]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out / "x"))

    with pytest.raises(StepFailed) as caught:
        cache.obtain(key(), fail)
    assert caught.value.brief.startswith(f"base: No space left on device: {cache.root}/stages/base/.scratch-")
    assert caught.value.hint == f"free disk space: df -h {cache.root}"
    assert visible(cache) == []


def test_another_trouble_with_files_is_not_called_a_full_disk(cache: Cache) -> None:
    def fail(_out: Path) -> Mapping[str, Any]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/etc/x")

    with pytest.raises(StepFailed) as caught:
        cache.obtain(key(), fail)
    assert caught.value.render() == "base: Permission denied: /etc/x"


@pytest.mark.parametrize("record", ["", "{", "[]", "{}", '{"seconds": 1}'])
def test_a_damaged_result_is_made_anew(cache: Cache, record: str) -> None:
    made = cache.obtain(key(), maker("old"))
    (made.path / caches.RECORD).write_text(record)
    assert cache.lookup(key()) is None
    again = cache.obtain(key(), maker("new"))
    assert (again.reused, (again.path / "x").read_text()) == (False, "new")


def test_a_second_build_of_the_same_key_waits_and_reuses(cache: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(out: Path) -> Mapping[str, Any]:
        begun.set()
        assert go_on.wait(PATIENCE_SECONDS)
        (out / "x").touch()
        return {}

    results: dict[str, caches.StageResult] = {}
    first = threading.Thread(target=lambda: results.update(first=cache.obtain(key(), slow)))
    second = threading.Thread(target=lambda: results.update(second=cache.obtain(key(), never)))
    first.start()
    assert begun.wait(PATIENCE_SECONDS)
    second.start()
    second.join(0.2)
    assert second.is_alive()
    go_on.set()
    for thread in (first, second):
        thread.join(PATIENCE_SECONDS)
    assert (results["first"].reused, results["second"].reused) == (False, True)
    assert f"another build is running stage base {key().key}: waiting for it\n" in capsys.readouterr().err


def test_builds_of_two_keys_do_not_wait_for_each_other(cache: Cache) -> None:
    def outer(out: Path) -> Mapping[str, Any]:
        (out / "x").write_text("outer")
        inner = threading.Thread(target=lambda: cache.obtain(key(2), maker("inner")))
        inner.start()
        inner.join(PATIENCE_SECONDS)
        assert not inner.is_alive()
        return {}

    made = cache.obtain(key(1), outer)
    assert (made.path / "x").read_text() == "outer"
    assert (cache.stage_path(key(2)) / "x").read_text() == "inner"


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_the_newest_results_are_kept(cache: Cache) -> None:
    for number in range(5):
        made = cache.obtain(key(number), maker())
        os.utime(made.path, (number, number))
    assert visible(cache) == sorted(key(number).key for number in (2, 3, 4))


def test_use_makes_a_result_new_again(cache: Cache) -> None:
    for number in range(3):
        os.utime(cache.obtain(key(number), maker()).path, (number, number))
    cache.obtain(key(0), never)
    cache.obtain(key(3), maker())
    assert visible(cache) == sorted(key(number).key for number in (0, 2, 3))


def test_other_stages_are_left_alone(cache: Cache) -> None:
    other = stage_key("rootfs", {})
    cache.obtain(other, maker())
    for number in range(5):
        cache.obtain(key(number), maker())
    assert cache.lookup(other) is not None


# --- why a stage runs -------------------------------------------------------------------------------------------------


def test_why_names_the_inputs_that_changed(cache: Cache) -> None:
    cache.obtain(key(1, colour="red", size=1), maker())
    assert cache.why(key(2, colour="red", size=2)) == "changed: number, size"
    assert cache.why(stage_key("base", {"number": 1, "colour": "red"})) == "changed: size"


def test_why_names_the_parts_of_an_input(cache: Cache) -> None:
    cache.obtain(key(overlays={"/a": 1, "/b": 1, "/c": 1}), maker())
    assert cache.why(key(overlays={"/a": 2, "/c": 1, "/d": 1})) == "changed: overlays (/a, /b, /d)"
    many = {f"/{letter}": 1 for letter in "defgh"}
    assert cache.why(key(overlays={"/a": 1, "/b": 1, "/c": 1, **many})) == "changed: overlays (/d, /e, /f …)"


def test_why_points_to_the_stage_before(cache: Cache) -> None:
    cache.obtain(stage_key("base", {"x": 1}, previous=key(1)), maker())
    assert cache.why(stage_key("base", {"x": 1}, previous=key(2))) == "the previous stage changed"


def test_why_says_that_a_result_is_gone(cache: Cache) -> None:
    made = cache.obtain(key(), maker())
    (made.path / caches.RECORD).unlink()
    assert cache.why(key()) == "its result is no longer in the cache"


def test_why_compares_with_the_last_use_and_not_the_last_making(cache: Cache) -> None:
    cache.obtain(key(1), maker())
    cache.obtain(key(2), maker())
    cache.obtain(key(1), never)
    assert cache.why(key(1)) == "its result is no longer in the cache"
    assert cache.why(key(2)) == "changed: number"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": "x"}'])
def test_why_survives_a_damaged_note(cache: Cache, text: str) -> None:
    cache.obtain(key(), maker())
    (cache.root / "stages" / "base" / "latest.json").write_text(text)
    assert cache.why(key(1)) == "not cached"


@pytest.mark.parametrize("record", ["", "{", "[]", "{}", '{"seconds": null}'])
def test_a_damaged_record_expects_nothing(cache: Cache, record: str) -> None:
    (cache.obtain(key(), maker()).path / caches.RECORD).write_text(record)
    assert cache.expected_seconds("base") == 0.0


def test_the_expected_time_is_that_of_the_last_run(cache: Cache) -> None:
    assert cache.expected_seconds("base") == 0.0
    for number, took in ((1, 30.0), (2, 20.0)):
        record = cache.obtain(key(number), maker()).path / caches.RECORD
        record.write_text(json.dumps({**json.loads(record.read_text()), "seconds": took}))
        os.utime(record, (number, number))
    assert cache.expected_seconds("base") == 20.0


@dataclass(frozen=True)
class Facts(Record):
    """The facts that the stage of these tests records."""

    bytes: int


def test_facts_have_the_type_of_their_stage(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", {key().stage: Facts})
    made = cache.obtain(key(), lambda _out: Facts(4, other={"later": [1]}))
    again = cache.obtain(key(), never)
    assert (made.facts, again.facts) == (Facts(4, other={"later": [1]}),) * 2
    assert again.facts_as(Facts).bytes == 4
    assert json.loads((made.path / caches.RECORD).read_text())["facts"] == {"bytes": 4, "later": [1]}
    plain = Cache(tmp_path / "cache").lookup(key())
    assert plain is not None
    assert (plain.facts, plain.facts_as(Facts)) == ({"bytes": 4, "later": [1]}, made.facts)


@pytest.mark.parametrize("facts", [{}, {"bytes": "4"}, [], None])
def test_a_result_of_other_code_is_made_again(tmp_path: Path, facts: object) -> None:
    cache = Cache(tmp_path / "cache", {key().stage: Facts})
    record = cache.obtain(key(), lambda _out: Facts(4)).path / caches.RECORD
    files.write_json(record, {**json.loads(record.read_text()), "facts": facts})
    assert cache.lookup(key()) is None
    again = cache.obtain(key(), lambda _out: Facts(5))
    assert (again.reused, again.facts) == (False, Facts(5))
