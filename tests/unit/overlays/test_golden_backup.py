"""Backups on the host: encryption as a stream, retention, transfer, and a reason for every failure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import Fakes
from tests.unit.golden_modules import golden_module

golden = golden_module("golden.core")
backup = golden_module("golden.backup")
targets = golden_module("golden.targets")
stream = golden_module("golden.stream")
postgres = golden_module("golden.postgres")
signature = golden_module("golden.signature")
application = golden_module("golden.application_data")
restore = golden_module("golden.restore")
NOW = datetime(2026, 11, 22, 2, 0, 0, tzinfo=UTC)
OTHER_SIGNER = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0y0kqPqXzW0bT8vJtP1Kq7bq0q5m9m3vXJc2m5rO3F"
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
    """Write into a program forever."""
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
    checksum = backup.checksum_of(tmp_path / "archive")
    with backup.decrypting(tmp_path / "archive", given or tmp_path / "key", checksum=checksum) as plain:
        assert plain.read() == b"content" + (given or b"\n")


def test_a_wrong_key_is_told_in_ages_words(fakes: Fakes, tmp_path: Path) -> None:
    (fakes.directory / "age").write_text("#!/bin/sh\necho 'age: error: no identity matched' >&2; exit 1\n")
    (fakes.directory / "age").chmod(0o755)
    archive = golden_module("golden.archive")
    (tmp_path / "archive").write_bytes(b"content")
    checksum = backup.checksum_of(tmp_path / "archive")
    plain = backup.decrypting(tmp_path / "archive", tmp_path / "key", checksum=checksum)
    with pytest.raises(golden.Problem, match="no identity matched") as caught, plain as content:
        archive.read(content, archive.Nowhere())
    assert caught.value.code == golden.CHECK_FAILED


def test_an_archive_that_is_not_the_verified_one_is_refused(fakes: Fakes, tmp_path: Path) -> None:
    (fakes.directory / "age").write_text('#!/bin/sh\ncat "$4"\n')
    (fakes.directory / "age").chmod(0o755)
    (tmp_path / "archive").write_bytes(b"verified")
    checksum = backup.checksum_of(tmp_path / "archive")
    (tmp_path / "archive").write_bytes(b"another")
    plain = backup.decrypting(tmp_path / "archive", tmp_path / "key", checksum=checksum)
    with pytest.raises(golden.Problem, match="changed while it was read") as caught, plain as content:
        content.read()
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


# --- signatures -------------------------------------------------------------------------------------------------------


@pytest.fixture
def signed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str, str]:
    """A backup with the signature of this machine, its checksum, and the signer's public key."""
    monkeypatch.setattr(signature, "STATE", tmp_path / "state")
    monkeypatch.setattr(signature, "KEY", tmp_path / "state" / "signing_key")
    archive = tmp_path / f"x{backup.SUFFIX}"
    archive.write_bytes(b"encrypted")
    checksum = backup.checksum_of(archive)
    archive.with_name(f"{archive.name}.sig").write_bytes(signature.sign(checksum))
    return archive, checksum, signature.signer()


def test_a_known_signer_is_accepted(signed: tuple[Path, str, str]) -> None:
    archive, checksum, key = signed
    signature.verify(archive, checksum, [key])
    assert signature.KEY.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in signature.STATE.iterdir()) == ["signing_key"]


def test_the_key_is_made_once(signed: tuple[Path, str, str]) -> None:
    assert signature.signer() == signed[2]


@pytest.mark.parametrize("signers", [[], [OTHER_SIGNER]])
def test_an_unknown_signer_is_refused_and_named(signed: tuple[Path, str, str], signers: list[str]) -> None:
    archive, checksum, _key = signed
    with pytest.raises(golden.Problem, match=r"is signed by SHA256:\S{43}, and this machine does not know") as caught:
        signature.verify(archive, checksum, signers)
    assert caught.value.code == golden.CHECK_FAILED
    assert "--signer" in caught.value.hint


def test_another_file_than_the_signed_one_is_refused(signed: tuple[Path, str, str]) -> None:
    archive, _checksum, key = signed
    with pytest.raises(golden.Problem, match="is not a signature of this file"):
        signature.verify(archive, "0" * 64, [key])


@pytest.mark.parametrize("content", [b"", b"rubbish", b"-----BEGIN SSH SIGNATURE-----\n" + b"A" * 99999])
def test_what_is_not_a_signature_is_refused(signed: tuple[Path, str, str], content: bytes) -> None:
    archive, checksum, key = signed
    archive.with_name(f"{archive.name}.sig").write_bytes(content)
    with pytest.raises(golden.Problem, match="is not a signature of this file"):
        signature.verify(archive, checksum, [key])


def test_a_missing_signature_is_named(signed: tuple[Path, str, str]) -> None:
    archive, checksum, key = signed
    archive.with_name(f"{archive.name}.sig").unlink()
    with pytest.raises(golden.Problem, match="is not signed") as caught:
        signature.verify(archive, checksum, [key])
    assert "--unsigned" in caught.value.hint


@pytest.mark.parametrize("text", ["", "ssh-ed25519", "AAAA", f"{OTHER_SIGNER}\n{OTHER_SIGNER}", f"* {OTHER_SIGNER}"])
def test_what_is_not_a_public_key(text: str) -> None:
    with pytest.raises(golden.Problem, match="is not a public key"):
        signature.public_key(text)


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
    (fakes.directory / "sftp").write_text(f"#!/bin/sh\ncat >{tmp_path}/commands\n")
    (fakes.directory / "sftp").chmod(0o755)
    archive = make_archive(tmp_path, days=0)
    targets.send_pending(tmp_path, TARGET)
    commands = (tmp_path / "commands").read_text().splitlines()
    put, remove, rename = commands[:3]
    assert [line.split("/")[-1] for line in commands if line.startswith("rename")] == [
        f'{archive.name}{end}"' for end in ("", ".sha256", ".sig")
    ]
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


# --- names ------------------------------------------------------------------------------------------------------------

MANIFEST = {"made": "2026-11-22T02:00:00+00:00", "host": "clone"}


@pytest.mark.parametrize(
    "name", ["20261122T020000Z-clone.tar.age", "latest.tar.age", "copy-of-20261122T020000Z-clone.tar.age"]
)
def test_a_name_of_its_own_or_of_no_form_is_taken(name: str) -> None:
    restore.not_renamed(Path(name), MANIFEST)


@pytest.mark.parametrize("name", ["20261123T020000Z-clone.tar.age", "20261122T020000Z-other.tar.age"])
def test_an_old_backup_under_the_name_of_another_is_refused(name: str) -> None:
    """A user who can write to the store can rename a signed file."""
    with pytest.raises(golden.Problem, match="has the name of a backup of") as caught:
        restore.not_renamed(Path(name), MANIFEST)
    assert caught.value.code == golden.CHECK_FAILED


def test_restored_media_are_given_away_from_the_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner of a directory could put a link into it, which root would follow."""
    (tmp_path / "media" / "a" / "b").mkdir(parents=True)
    (tmp_path / "media" / "a" / "b" / "file.txt").touch()
    given: list[str] = []
    monkeypatch.setattr(application.shutil, "chown", lambda path, _user, _group: given.append(Path(path).name))
    application.adopt(tmp_path / "media")
    assert given == ["file.txt", "b", "a", "media"]
