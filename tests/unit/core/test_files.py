"""Files are complete or absent in spite of errors, concurrent processes and SIGKILL."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import stat
import sys
import threading
from pathlib import Path

import pytest

from build.core import files, run
from tests.patience import PATIENCE_SECONDS
from tests.unit.helpers import ROOT, start_python

# --- bytes and hashes -------------------------------------------------------------------------------------------------


def test_hash_of_a_file(tmp_path: Path) -> None:
    content = os.urandom(3 * files.CHUNK + 17)
    (tmp_path / "x").write_bytes(content)
    assert files.sha256_file(tmp_path / "x") == hashlib.sha256(content).hexdigest()


def test_equal_values_have_equal_bytes() -> None:
    assert files.canonical_json({"b": [1, 2], "a": "ü"}) == '{"a":"ü","b":[1,2]}'.encode()
    assert files.digest({"b": 1, "a": 2}) == files.digest({"a": 2, "b": 1})


def test_the_border_between_two_values_counts() -> None:
    assert files.digest(["ab", "c"]) != files.digest(["a", "bc"])
    assert files.digest(["1"]) != files.digest([1])


# --- atomic writes ----------------------------------------------------------------------------------------------------


def test_write_makes_parents_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "x"
    files.write_atomic(target, "tëxt", mode=0o600)
    assert target.read_text(encoding="utf-8") == "tëxt"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert [path.name for path in target.parent.iterdir()] == ["x"]


def test_a_write_that_fails_leaves_the_old_content_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "x"
    files.write_atomic(target, b"old")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("build.core.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_atomic(target, b"new")
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_json_is_readable_and_sorted(tmp_path: Path) -> None:
    files.write_json(tmp_path / "x.json", {"b": 1, "a": "ü"})
    assert (tmp_path / "x.json").read_text(encoding="utf-8") == '{\n  "a": "ü",\n  "b": 1\n}\n'


# --- locks ------------------------------------------------------------------------------------------------------------


def test_a_lock_makes_the_second_wait_and_say_so_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entered = threading.Event()

    def second() -> None:
        with files.lock(tmp_path / "x.lock", waiting="it is locked"):
            entered.set()

    with files.lock(tmp_path / "x.lock", waiting="never printed"):
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.wait(0.2)
    thread.join(PATIENCE_SECONDS)
    assert entered.is_set()
    assert capsys.readouterr().err == "it is locked\n"


# --- scratch directories ----------------------------------------------------------------------------------------------


def leftovers(parent: Path) -> list[str]:
    return [path.name for path in parent.glob(f"{files.SCRATCH_PREFIX}*")]


def test_scratch_is_gone_afterwards(tmp_path: Path) -> None:
    with files.scratch(tmp_path / "deep") as path:
        (path / "a").mkdir()
        (path / "a" / "b").write_text("x")
        assert leftovers(tmp_path / "deep") == [path.name]
    assert not path.exists()


def test_scratch_is_gone_after_an_error(tmp_path: Path) -> None:
    def fail() -> None:
        with files.scratch(tmp_path) as path:
            (path / "x").touch()
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    assert leftovers(tmp_path) == []


def test_scratch_holds_nothing_but_what_is_put_there(tmp_path: Path) -> None:
    with files.scratch(tmp_path) as path:
        assert list(path.iterdir()) == []


def test_scratch_is_taken_away_by_the_function_it_is_given(tmp_path: Path) -> None:
    removed = []

    def remove(path: Path) -> None:
        removed.append(path)
        files.remove_tree(path)

    with files.scratch(tmp_path, remove=remove) as path:
        pass
    assert removed == [path]


HOLD = """
import sys, time
from pathlib import Path
from build.core import files
with files.scratch(Path(sys.argv[1])) as path:
    (path / "big").write_text("x")
    (path / "read-only").mkdir(mode=0o500)
    print(path, flush=True)
    time.sleep(60)
"""


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path: Path) -> None:
    killed = start_python(HOLD, tmp_path)
    assert killed.stdout is not None
    left = Path(killed.stdout.readline().decode().strip())
    try:
        with files.scratch(tmp_path):
            assert left.is_dir(), "its maker lives"
        killed.send_signal(signal.SIGKILL)
        killed.wait(PATIENCE_SECONDS)
        assert left.is_dir(), "a killed process removes nothing"
        with files.scratch(tmp_path) as path:
            assert leftovers(tmp_path) == [path.name]
    finally:
        killed.kill()
        killed.communicate()
    assert leftovers(tmp_path) == []


CROWD = """
import sys, time
from pathlib import Path
from build.core import files
parent, mark = Path(sys.argv[1]), sys.argv[2]
end = time.monotonic() + 1.0
rounds = 0
while time.monotonic() < end:
    with files.scratch(parent) as path:
        (path / "deep").mkdir()
        (path / "deep" / "x").write_text(mark)
        if rounds % 2:
            files.commit_directory(path, parent / f"{mark}-{rounds}")
            assert (parent / f"{mark}-{rounds}" / "deep" / "x").read_text() == mark
        else:
            assert (path / "deep" / "x").read_text() == mark
    rounds += 1
print(rounds)
"""


def test_concurrent_runs_do_not_take_each_others_scratch(tmp_path: Path) -> None:
    crowd = [start_python(CROWD, tmp_path, mark) for mark in ("one", "two", "three")]
    said = [one.communicate(timeout=PATIENCE_SECONDS)[0].decode() for one in crowd]
    assert [one.returncode for one in crowd] == [0, 0, 0], "".join(said)
    rounds = dict(zip(("one", "two", "three"), map(int, said), strict=True))
    assert min(rounds.values()) > 2
    committed = sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("."))
    assert committed == sorted(f"{mark}-{number}" for mark, count in rounds.items() for number in range(1, count, 2))
    assert leftovers(tmp_path) == []


def test_an_interrupted_removal_is_finished_by_the_next_run(tmp_path: Path) -> None:
    half = tmp_path / f"{files.SCRATCH_PREFIX}99999-00000000"
    (half / "deep").mkdir(parents=True)
    with files.scratch(tmp_path):
        assert not half.exists()


# --- removing and committing ------------------------------------------------------------------------------------------


def test_remove_tree_takes_files_links_and_nothing_at_all(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "x").touch()
    link = tmp_path / "link"
    link.symlink_to(kept)
    for path in (link, tmp_path / "absent"):
        files.remove_tree(path)
    assert not link.is_symlink()
    assert (kept / "x").exists(), "a link is not followed"


def test_remove_tree_takes_what_was_made_read_only(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "b" / "x").touch(mode=0o444)
    for path in (tree / "a" / "b", tree / "a", tree):
        path.chmod(0o555)
    # Without capabilities root may do no more than the owner of a file.
    bare = ["setpriv", "--inh-caps=-all", "--bounding-set=-all", "--"] if run.is_root() else []
    code = "import sys, pathlib; from build.core import files; files.remove_tree(pathlib.Path(sys.argv[1]))"
    run.run([*bare, sys.executable, "-c", code, str(tree)], timeout=PATIENCE_SECONDS, cwd=ROOT)
    assert not tree.exists()


def test_commit_gives_the_final_name_in_one_step(tmp_path: Path) -> None:
    with files.scratch(tmp_path) as hidden:
        (hidden / "a").mkdir()
        (hidden / "a" / "x").write_text("content")
        (hidden / "dangling").symlink_to("nowhere")
        files.commit_directory(hidden, tmp_path / "deep" / "final")
        assert not hidden.exists()
    final = tmp_path / "deep" / "final"
    assert sorted(path.relative_to(final).as_posix() for path in final.rglob("*")) == ["a", "a/x", "dangling"]


def test_commit_never_replaces_what_is_there(tmp_path: Path) -> None:
    final = tmp_path / "final"
    final.mkdir()
    (final / "old").touch()
    with files.scratch(tmp_path) as hidden, pytest.raises(OSError, match="not empty"):
        files.commit_directory(hidden, final)
    assert [path.name for path in final.iterdir()] == ["old"]


def test_commit_flushes_every_file_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    real = os.fsync

    def note(descriptor: int) -> None:
        events.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real(descriptor)

    monkeypatch.setattr("build.core.files.os.fsync", note)
    with files.scratch(tmp_path) as hidden:
        for name in ("x", "y"):
            (hidden / name).write_text(name)
        files.commit_directory(hidden, tmp_path / "final")
    assert events == ["x", "y", tmp_path.name]
