"""Bundles: the same directory gives the same bytes, golden-deploy takes them, and takes nothing that only looks like one."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from build import bundle, wheels
from build.errors import SpecError
from tests.unit.golden_modules import golden_module

golden = golden_module("golden")
receiver = golden_module("golden_bundle")
LOCK = f"demo==1.0 \\\n    --hash=sha256:{'0' * 64}\n"


@pytest.fixture
def application(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An application with everything that does and does not belong into its bundle."""
    directory = tmp_path / "My App"
    own = ("manage.py", "project/__init__.py", "project/static/a b.css")
    for path in (*own, "project/__pycache__/x.pyc", ".git/config", ".env"):
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_text(path)
    (directory / "requirements.lock").write_text(LOCK)
    house = tmp_path / "wheels"
    house.mkdir()
    (house / "demo-1.0-py3-none-any.whl").write_bytes(b"wheel")
    monkeypatch.setattr(wheels, "fetch", lambda _lock, **_names: house)
    return directory


def make(application: Path, name: str = "app.bundle") -> tuple[Path, str]:
    target = application.parent / name
    return target, bundle.make(application, target, cache=application.parent)


def altered(source: Path, change: Callable[[list[tuple[tarfile.TarInfo, bytes]]], Any]) -> tuple[Path, str]:
    """Write a bundle whose members ``change`` was let loose on; return it with its own, right hash."""
    with tarfile.open(source) as archive:
        members = [(member, archive.extractfile(member).read()) for member in archive]  # type: ignore[union-attr]
    change(members)
    target = source.with_name("altered.bundle")
    with tarfile.open(target, "w") as archive:
        for member, content in members:
            member.size = len(content) if member.isreg() else 0
            archive.addfile(member, io.BytesIO(content))
    return target, hashlib.sha256(target.read_bytes()).hexdigest()


def info(name: str, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, "/etc/passwd"
    return made


# --- making -----------------------------------------------------------------------------------------------------------


def test_what_is_made_is_taken(application: Path, tmp_path: Path) -> None:
    path, digest = make(application)
    found = receiver.read(path, digest)
    assert (found.name, found.digest) == ("my-app", digest[:12])
    into = tmp_path / "release"
    into.mkdir()
    receiver.unpack(found, into)
    assert sorted(str(one.relative_to(into)) for one in into.rglob("*") if one.is_file()) == [
        "code/manage.py", "code/project/__init__.py", "code/project/static/a b.css", "requirements.lock",
        "wheels/demo-1.0-py3-none-any.whl",
    ]  # fmt: skip
    assert (into / "code/manage.py").read_text() == "manage.py"
    assert {one.stat().st_mode & 0o777 for one in into.rglob("*") if one.is_file()} == {0o600}
    assert receiver.changed(into, found.files) == []
    (into / "code/manage.py").write_text("other")
    (into / "requirements.lock").unlink()
    assert receiver.changed(into, found.files) == ["code/manage.py", "requirements.lock"]


def test_same_directory_same_bytes(application: Path) -> None:
    first, digest = make(application)
    for path in application.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700)
    second, again = make(application, "again.bundle")
    assert first.read_bytes() == second.read_bytes()
    assert digest == again == hashlib.sha256(first.read_bytes()).hexdigest()


@pytest.mark.parametrize("missing", ["manage.py", "requirements.lock"])
def test_what_an_application_needs(application: Path, missing: str) -> None:
    (application / missing).unlink()
    with pytest.raises(SpecError, match=f"{missing} is missing"):
        make(application)


@pytest.mark.parametrize("line", ["demo==1.0", "demo==1.0 --hash=md5:0", "-r other.txt"])
def test_a_requirement_without_a_hash(application: Path, line: str) -> None:
    (application / "requirements.lock").write_text(f"# a comment\n\n{LOCK}{line}\n")
    with pytest.raises(SpecError, match="has no hash"):
        make(application)


def test_links_do_not_travel(application: Path) -> None:
    (application / "link").symlink_to("/etc/passwd")
    with pytest.raises(SpecError, match="is neither a file nor a directory"):
        make(application)
    assert not (application.parent / "app.bundle").exists()


# --- taking -----------------------------------------------------------------------------------------------------------


def refused(path: Path, digest: str) -> str:
    with pytest.raises(golden.Problem) as caught:
        receiver.read(path, digest)
    assert caught.value.code == golden.CHECK_FAILED
    return str(caught.value)


def test_another_hash(application: Path) -> None:
    path, digest = make(application)
    assert f"has the hash {digest}, and {'1' * 64} was asked for" in refused(path, "1" * 64)


@pytest.mark.parametrize("given", ["", "abc", "g" * 64, "0" * 63])
def test_what_is_no_hash(given: str) -> None:
    with pytest.raises(golden.Problem, match="is no SHA-256"):
        receiver.checked_digest(given)
    assert receiver.checked_digest("A" * 64 + "\n") == "a" * 64


@pytest.mark.parametrize(
    "name",
    [
        "code/../x", "code/./x", "code//x", "code", "code/", "/code/x", "other/x", "code/.env", "code/a/.git/x", "code/a\nb",
        "code/a\\b", "code/a:b", "code/\x1b[0m", "code/" + "a" * 256, "../x", "wheels/../../x", "",
    ],
)  # fmt: skip
def test_names_that_are_refused(application: Path, name: str) -> None:
    assert not receiver.safe(name)
    if name:
        path, digest = altered(make(application)[0], lambda members: members.append((info(name), b"x")))
        assert "the bundle is refused" in refused(path, digest)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_only_plain_files(application: Path, kind: bytes) -> None:
    path, digest = altered(make(application)[0], lambda members: members.append((info("code/x", kind), b"")))
    assert "is not a plain file" in refused(path, digest)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda members: members.append((info("code/more.py"), b"x")), "'code/more.py' is not in the manifest"),
        (lambda members: members.append(members[1]), "is there twice"),
        (lambda members: members.pop(), "in the manifest is not there"),
        (lambda members: members.reverse(), "it does not begin with manifest.json"),
        (lambda members: members.__setitem__(1, (members[1][0], b"other")), "is not what the manifest says"),
        (lambda members: members.__setitem__(0, (members[0][0], b"{")), "manifest.json: JSONDecodeError"),
        (lambda members: members.__setitem__(0, (members[0][0], b"[]")), "manifest.json: TypeError"),
        (lambda members: members.clear(), "it does not begin with manifest.json"),
    ],
)
def test_what_is_not_as_the_manifest_says(application: Path, change: Callable[[Any], Any], said: str) -> None:
    assert said in refused(*altered(make(application)[0], change))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("format", 2, "it has format 2"),
        ("name", "../x", "is no name of an application"),
        ("files", {}, "code/manage.py is missing"),
    ],
)
def test_manifests_that_are_refused(application: Path, key: str, value: object, said: str) -> None:
    def change(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        member, content = members[0]
        members[0] = (member, json.dumps(json.loads(content) | {key: value}).encode())

    assert said in refused(*altered(make(application)[0], change))


def test_a_lock_without_hashes_is_refused(application: Path) -> None:
    def change(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        lock = b"demo==1.0\n"
        manifest = json.loads(members[0][1])
        manifest["files"]["requirements.lock"] = {"bytes": len(lock), "sha256": hashlib.sha256(lock).hexdigest()}
        for number, (member, _content) in enumerate(members):
            if member.name in ("manifest.json", "requirements.lock"):
                members[number] = (member, json.dumps(manifest).encode() if number == 0 else lock)

    assert "requirements.lock: 'demo==1.0' has no hash" in refused(*altered(make(application)[0], change))


def test_sizes_are_bounded(application: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, digest = make(application)
    monkeypatch.setattr(receiver, "LARGEST_FILE", 3)
    assert "is larger than 3 bytes" in refused(path, digest)
    monkeypatch.undo()
    monkeypatch.setattr(receiver, "MOST_FILES", 2)
    assert "more than 2 files" in refused(path, digest)


def test_every_missing_end_is_found(application: Path) -> None:
    whole = make(application)[0].read_bytes()
    for length in range(0, len(whole) - tarfile.RECORDSIZE, 1024):
        short = application.parent / "short.bundle"
        short.write_bytes(whole[:length])
        assert "the bundle is refused" in refused(short, hashlib.sha256(whole[:length]).hexdigest())


def test_compressed_archives_are_refused(application: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.bundle"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(application, "code")
    assert "it is no tar archive" in refused(path, hashlib.sha256(path.read_bytes()).hexdigest())


def test_a_bundle_that_changes_after_the_check(application: Path, tmp_path: Path) -> None:
    path, digest = make(application)
    found = receiver.read(path, digest)
    changed, _ = altered(path, lambda members: members.__setitem__(2, (members[2][0], b"other")))
    changed.replace(path)
    (tmp_path / "into").mkdir()
    with pytest.raises(golden.Problem, match="changed while it was unpacked"):
        receiver.unpack(found, tmp_path / "into")


def test_addresses_are_https(tmp_path: Path) -> None:
    for address in ("http://a.example/x", "file:///etc/passwd", "ftp://a.example/x"):
        with pytest.raises(golden.Problem, match="a bundle is a path or an https:// address"):
            receiver.fetch(address, tmp_path / "x")
    assert not (tmp_path / "x").exists()
