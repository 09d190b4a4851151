"""Backups on the host: encryption as a stream, what is kept, what is sent, and what fails says why."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import Fakes
from tests.unit.golden_modules import golden_module

golden = golden_module("golden")
backup = golden_module("golden_backup")
targets = golden_module("golden_targets")
stream = golden_module("golden_stream")
postgres = golden_module("golden_postgres")
NOW = datetime(2026, 11, 22, 2, 0, 0, tzinfo=UTC)
TARGET = "scp://keeper@backup.example:2222/srv/backups"


def make_archive(directory: Path, *, days: int, sent_to: str = "") -> Path:
    made = (NOW - timedelta(days=days)).strftime(backup.STAMP)
    path = directory / f"{made}-clone{backup.SUFFIX}"
    path.write_bytes(b"age")
    path.with_name(f"{path.name}.sha256").touch()
    if sent_to:
        path.with_name(f"{path.name}.sent").write_text(f"{sent_to}\n")
    return path


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that sending over SSH needs."""
    for name, constant in (("key", "KEY"), ("known_hosts", "KNOWN_HOSTS")):
        (tmp_path / name).touch()
        monkeypatch.setattr(targets, constant, tmp_path / name)
    return tmp_path / "key"


@pytest.fixture(autouse=True)
def _short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "ENDING_SECONDS", 0.5)


# --- streams ----------------------------------------------------------------------------------------------------------


def feed(process: Any) -> None:
    """Write into a program for ever."""
    while True:
        process.stdin.write(b"x" * 65536)


def test_what_a_program_reads_and_writes(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out, stream.program(["cat"], stdin=-1, stdout=out) as process:
        process.stdin.write(b"through")
    assert (tmp_path / "out").read_bytes() == b"through"


def test_a_failing_program_tells_its_last_words(tmp_path: Path) -> None:
    failing = stream.program(["sh", "-c", "echo no room >&2; exit 3"], stdin=-1, name="first")
    with pytest.raises(golden.Problem, match=r"first failed.*no room"), stream.program(["cat"], stdin=-1), failing as first:
        feed(first)


def test_the_program_whose_pipe_broke_is_the_one_that_is_named() -> None:
    failing = stream.program(["sh", "-c", "exit 4"], stdin=-1, name="outer")
    inner = stream.program(["sleep", "60"], name="inner")
    with pytest.raises(golden.Problem, match="outer failed"), failing as outer, inner:
        feed(outer)


def test_an_error_in_the_block_ends_the_program() -> None:
    with pytest.raises(ZeroDivisionError), stream.program(["sleep", "60"]) as process:
        raise ZeroDivisionError
    assert process.returncode == -9


def test_a_missing_program_is_named() -> None:
    with pytest.raises(golden.Problem, match="absent-program is not installed"), stream.program(["absent-program"]):
        pass


@pytest.mark.parametrize("given", [b"AGE-SECRET-KEY-X\n", None])
def test_the_key_reaches_age_and_no_disk(fakes: Fakes, tmp_path: Path, given: bytes | None) -> None:
    (tmp_path / "archive").write_bytes(b"content")
    (fakes.directory / "age").write_text('#!/bin/sh\n[ "$3" != - ] || read -r key\ncat "$4"; echo "$key"\n')
    (fakes.directory / "age").chmod(0o755)
    with backup.decrypting(tmp_path / "archive", given or tmp_path / "key") as plain:
        assert plain.read() == b"content" + (given or b"\n")


def test_a_wrong_key_is_told_in_ages_words(fakes: Fakes, tmp_path: Path) -> None:
    (fakes.directory / "age").write_text("#!/bin/sh\necho 'age: error: no identity matched' >&2; exit 1\n")
    (fakes.directory / "age").chmod(0o755)
    archive = golden_module("golden_archive")
    plain = backup.decrypting(tmp_path / "archive", tmp_path / "key")
    with pytest.raises(golden.Problem, match="no identity matched") as caught, plain as content:
        archive.read(content, archive.Nowhere())
    assert caught.value.code == golden.CHECK_FAILED


def test_a_failing_backup_leaves_nothing(fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (fakes.directory / "age").write_text("#!/bin/sh\nhead -c 1000; echo no space left on device >&2; exit 1\n")
    (fakes.directory / "age").chmod(0o755)
    kept = tmp_path / "kept"
    kept.mkdir()
    monkeypatch.setattr(backup, "_fill", lambda out, recipient, **_names: _endless(out, recipient))
    with pytest.raises(golden.Problem, match="no space left on device"):
        backup.make("age1x", kept)
    assert list(kept.iterdir()) == []


def _endless(out: object, recipient: str) -> None:
    with backup.encrypting(out, recipient) as plain:
        while True:
            plain.write(b"x" * 65536)


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("found", [None, {}, {"recipient": ""}])
def test_without_a_recipient_the_way_is_told(monkeypatch: pytest.MonkeyPatch, found: object) -> None:
    monkeypatch.setattr(backup, "site", lambda: {"backup": found})
    with pytest.raises(golden.Problem, match="no recipient for backups is set") as caught:
        backup.settings()
    assert "/etc/golden/site.yaml" in caught.value.hint


def test_a_recipient_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backup, "site", lambda: {"backup": {"recipient": "AGE-SECRET-KEY-1X"}})
    with pytest.raises(golden.Problem, match="is no public key of age"):
        backup.settings()


# --- retention --------------------------------------------------------------------------------------------------------


def test_old_backups_go_with_what_is_beside_them(tmp_path: Path) -> None:
    old, new = make_archive(tmp_path, days=15, sent_to=TARGET), make_archive(tmp_path, days=13, sent_to=TARGET)
    make_archive(tmp_path, days=0)
    assert backup.prune(tmp_path, keep_days=14, target=TARGET, now=NOW) == [old.name]
    assert not list(tmp_path.glob(f"{old.name}*"))
    assert new in backup.archives(tmp_path)


def test_what_the_target_lacks_is_kept(tmp_path: Path) -> None:
    make_archive(tmp_path, days=30)
    make_archive(tmp_path, days=20, sent_to="scp://a@elsewhere/x")
    make_archive(tmp_path, days=0)
    assert backup.prune(tmp_path, keep_days=14, target=TARGET, now=NOW) == []
    assert len(backup.prune(tmp_path, keep_days=14, target="", now=NOW)) == 2


def test_the_newest_stays_however_old(tmp_path: Path) -> None:
    make_archive(tmp_path, days=100)
    assert backup.prune(tmp_path, keep_days=1, target="", now=NOW) == []


# --- targets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "login", "port", "path"),
    [
        (TARGET, "keeper@backup.example", 2222, "/srv/backups"),
        ("scp://k@192.0.2.1/", "k@192.0.2.1", 22, "/"),
        ("scp://k@[2001:db8::1]:22/x", "k@[2001:db8::1]", 22, "/x"),
    ],
)
def test_scp_targets(target: str, login: str, port: int, path: str) -> None:
    assert targets.parse(target) == targets.Scp(login, port, path)


def test_rclone_targets() -> None:
    assert targets.parse("rclone:far:a/b") == targets.Rclone("far", "a/b")


@pytest.mark.parametrize(
    "target", ["ftp://a@b/c", "scp://b/c", "scp://-o@b/c", 'scp://a@b/c"d', "scp://a@b/c d", "rclone:x", "scp://a@b"]
)
def test_what_is_no_target(target: str) -> None:
    with pytest.raises(golden.Problem, match="is no target for backups"):
        targets.parse(target)


def test_what_waits_is_sent_oldest_first_and_once(fakes: Fakes, tmp_path: Path, key: Path) -> None:
    sftp = fakes.command("sftp")
    make_archive(tmp_path, days=2, sent_to=TARGET)
    later, first = make_archive(tmp_path, days=0), make_archive(tmp_path, days=1)
    assert targets.send_pending(tmp_path, TARGET) == [first.name, later.name]
    assert targets.send_pending(tmp_path, TARGET) == []
    argv = sftp.calls()[0].argv
    assert {"StrictHostKeyChecking=yes", f"IdentityFile={key}", "GlobalKnownHostsFile=/dev/null"} <= set(argv)
    assert argv[-1] == "keeper@backup.example"


def test_a_target_that_fails_ends_the_run_and_keeps_the_rest(fakes: Fakes, tmp_path: Path, key: Path) -> None:
    fakes.command("sftp", status=255, stderr="Connection refused\n")
    first, second = make_archive(tmp_path, days=1), make_archive(tmp_path, days=0)
    with pytest.raises(golden.Problem, match=r"Connection refused \(2 not sent; they are kept"):
        targets.send_pending(tmp_path, TARGET)
    assert (backup.sent(first), backup.sent(second)) == ("", "")


def test_names_are_given_when_all_is_there(fakes: Fakes, tmp_path: Path, key: Path) -> None:
    (fakes.directory / "sftp").write_text(f"#!/bin/sh\ncat >{tmp_path}/said\n")
    (fakes.directory / "sftp").chmod(0o755)
    archive = make_archive(tmp_path, days=0)
    targets.send_pending(tmp_path, TARGET)
    put, remove, rename = (tmp_path / "said").read_text().splitlines()[:3]
    assert put == f'put "{archive}" "/srv/backups/.{archive.name}.part"'
    assert remove == f'-rm "/srv/backups/{archive.name}"'
    assert rename == f'rename "/srv/backups/.{archive.name}.part" "/srv/backups/{archive.name}"'


def test_a_missing_key_or_host_key_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "KEY", tmp_path / "absent")
    make_archive(tmp_path, days=0)
    with pytest.raises(golden.Problem, match="absent is not there: the key to log in with"):
        targets.send_pending(tmp_path, TARGET)


def test_missing_rclone_names_its_package(only_fakes: Fakes, tmp_path: Path) -> None:
    make_archive(tmp_path, days=0)
    with pytest.raises(golden.Problem, match="needs rclone, which is not installed") as caught:
        targets.send_pending(tmp_path, "rclone:far:x")
    assert "apt-get install rclone" in caught.value.hint


# --- the database -----------------------------------------------------------------------------------------------------


def test_differences_are_told_table_by_table() -> None:
    same = {"rows": 1, "content": "5"}
    assert postgres.differences({"public.a": same}, {"public.a": same}) == []
    assert postgres.differences({"public.a": same, "public.b": same}, {"public.a": {"rows": 2, "content": "5"}}) == [
        "public.a: {'rows': 1, 'content': '5'} in the backup, {'rows': 2, 'content': '5'} restored",
        "public.b: {'rows': 1, 'content': '5'} in the backup, absent restored",
    ]


def test_an_older_server_refuses_a_newer_dump() -> None:
    postgres.compatible("17.6", "17.5")
    postgres.compatible("16.1", "17.5")
    with pytest.raises(golden.Problem, match=r"the backup is of PostgreSQL 18\.0, and this clone has 17\.5"):
        postgres.compatible("18.0", "17.5")
