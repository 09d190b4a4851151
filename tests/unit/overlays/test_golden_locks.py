"""The locks of the golden-* commands: one holder, in a directory writable only by its owner, and no traceback."""

from __future__ import annotations

import fcntl
import threading
from pathlib import Path

import pytest

from tests.unit.golden_modules import golden_module

golden = golden_module("golden.core")


@pytest.fixture
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the locks are."""
    place = tmp_path / "locks"
    monkeypatch.setattr(golden, "LOCKS", place)
    return place


def test_a_second_holder_is_refused(locks: Path) -> None:
    refused = pytest.raises(golden.Problem, match="another golden-backup is running")
    with golden.only_one("backup"), refused, golden.only_one("backup"):
        pass
    with golden.only_one("backup"):
        assert locks.stat().st_mode & 0o777 == 0o700


def test_a_unit_waits_for_the_holder(
    locks: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(golden.LOCK_SECONDS, "30")
    locks.mkdir(mode=0o700)
    with (locks / "golden-backup.lock").open("wb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        release = threading.Timer(0.2, fcntl.flock, (stream, fcntl.LOCK_UN))
        release.start()
        with golden.only_one("backup"):
            release.join()
    assert capsys.readouterr().err == "waiting for another golden-backup to end\n"


def test_a_unit_does_not_wait_without_end(locks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(golden.LOCK_SECONDS, "0.1")
    refused = pytest.raises(golden.Problem, match="another golden-backup is running")
    with golden.only_one("backup"), refused, golden.only_one("backup"):
        pass


@pytest.mark.parametrize("kind", ["link", "directory", "dangling"])
def test_what_is_in_the_place_of_the_lock_file_is_named(locks: Path, kind: str) -> None:
    locks.mkdir(mode=0o700)
    path = locks / "golden-backup.lock"
    if kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("/etc/passwd" if kind == "link" else locks / "absent")
    with pytest.raises(golden.Problem, match=r"golden-backup\.lock") as caught, golden.only_one("backup"):
        pass
    assert "remove what is in the place" in caught.value.hint


def test_a_directory_that_others_may_write_is_refused(locks: Path) -> None:
    locks.mkdir()
    locks.chmod(0o1777)
    with pytest.raises(golden.Problem, match="its owner alone can write"), golden.only_one("backup"):
        pass


def test_a_file_in_the_place_of_the_directory_is_named(locks: Path) -> None:
    locks.write_text("")
    with pytest.raises(golden.Problem, match=r"golden-backup\.lock"), golden.only_one("backup"):
        pass
