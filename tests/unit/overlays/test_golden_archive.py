"""The content of a backup is restored unchanged, and no other content is accepted."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.golden_modules import golden_module

golden = golden_module("golden.core")
archive = golden_module("golden.archive")
DUMP = bytes(range(256)) * 40
PIECE = 4096


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "CHUNK", PIECE)


class Kept:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.body = b""
        self.tree: dict[str, bytes | None] = {}

    def dump(self, piece: bytes) -> None:
        self.body += piece

    def directory(self, path: str, _mode: int) -> None:
        self.tree[path] = None

    def file(self, path: str, _mode: int, content: Iterator[bytes]) -> None:
        self.tree[path] = b"".join(content)


def make_tree(root: Path) -> Path:
    """Make a media tree with unusual names, and files that are not uploads."""
    (root / "a" / "b c").mkdir(parents=True)
    (root / "a" / "b c" / "ä\n.txt").write_bytes(b"text")
    Path(os.fsdecode(os.fsencode(root / "a") + b"/\xff\xfe")).write_bytes(b"no text")
    (root / "large.bin").write_bytes(os.urandom(3 * PIECE + 1))
    (root / "empty").touch()
    (root / ".incoming").write_bytes(b"half")
    (root / "link").symlink_to("/etc/passwd")
    (root / "round").symlink_to(".")
    os.mkfifo(root / "pipe")
    return root


def packed(tree: Path, *, dump: bytes = DUMP) -> bytes:
    buffer = io.BytesIO()
    writer = archive.Writer(buffer)
    database = writer.add_dump(io.BytesIO(dump))
    media = writer.add_media(tree)
    facts = {"made": "2026-11-22T02:00:00+00:00", "host": "clone", "versions": {"postgresql": "17.6"}}
    table = {"public.pages_page": {"rows": 1, "content": "5"}}
    writer.finish({"format": archive.FORMAT, **facts, "database": {**database, "tables": table}, "media": media})
    return buffer.getvalue()


def read(content: bytes, sink: Any = None) -> dict[str, Any]:
    found: dict[str, Any] = archive.read(io.BytesIO(content), sink or archive.Nowhere())
    return found


def members(content: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        found = []
        for member in tar:
            stream = tar.extractfile(member)
            found.append((member, stream.read() if stream else b""))
        return found


def repacked(parts: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member, content in parts:
            member.pax_headers = {}
            if member.isreg():
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "media")
    kept = Kept()
    manifest = read(packed(tree), kept)
    assert kept.body == DUMP
    names = {os.fsencode(name): content for name, content in kept.tree.items()}
    assert names == {
        b"a": None, b"a/b c": None, "a/b c/ä\n.txt".encode(): b"text", b"a/\xff\xfe": b"no text", b"empty": b"",
        b"large.bin": (tree / "large.bin").read_bytes(),
    }  # fmt: skip
    assert manifest["media"]["files"] == 4
    assert manifest["media"]["left_out"] == 3, "a hidden file, a link and a pipe"


def test_pieces_keep_memory_constant(tmp_path: Path) -> None:
    sizes = [len(content) for member, content in members(packed(tmp_path)) if member.name.startswith("database/")]
    assert sizes == [PIECE, PIECE, len(DUMP) - 2 * PIECE]


def test_a_restored_tree_measures_the_same(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "media")
    kept = Kept()
    manifest = read(packed(tree), kept)
    copy = tmp_path / "copy"
    copy.mkdir()
    for name, content in kept.tree.items():
        if content is None:
            (copy / name).mkdir()
        else:
            (copy / name).write_bytes(content)
    assert archive.measure(copy) == {key: value for key, value in manifest["media"].items() if key != "left_out"}
    (copy / "empty").write_bytes(b"x")
    assert archive.measure(copy)["sha256"] != manifest["media"]["sha256"]


def test_a_missing_tree_is_an_empty_one(tmp_path: Path) -> None:
    assert read(packed(tmp_path / "absent"))["media"]["files"] == 0


def test_a_file_that_grows_is_copied_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "log").write_bytes(b"x" * 10)
    real = archive.walk

    def growing(root: Path) -> Iterator[Any]:
        for path, found, descriptor in real(root):
            yield path, found, descriptor
            (tmp_path / "log").write_bytes(b"x" * 20)

    monkeypatch.setattr(archive, "walk", growing)
    assert read(packed(tmp_path))["media"]["bytes"] == 10


def test_a_file_that_shrinks_fails_the_backup() -> None:
    source = archive._Exactly(io.BytesIO(b"short"), 10, "upload")
    with pytest.raises(golden.Problem, match="upload became shorter while it was read"):
        source.read(10)


@pytest.mark.parametrize("part", range(0, 100, 7))
def test_a_missing_end_is_found(tmp_path: Path, part: int) -> None:
    whole = packed(make_tree(tmp_path / "media"))
    # What follows the manifest is padding, which a reader may do without.
    length = whole.rindex(b'"tables"') * part // 100
    with pytest.raises(golden.Problem, match="the archive is broken") as caught:
        read(whole[:length])
    assert caught.value.code == golden.CHECK_FAILED


def test_changed_content_is_found(tmp_path: Path) -> None:
    whole = packed(make_tree(tmp_path / "media"))
    parts = members(whole)
    for number, (member, content) in enumerate(parts):
        if not content or member.name == archive.MANIFEST:
            continue
        changed = [*parts[:number], (member, bytes([content[0] ^ 1]) + content[1:]), *parts[number + 1 :]]
        with pytest.raises(golden.Problem, match=r"not the one|not those"):
            read(repacked(changed))


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("other", tarfile.REGTYPE, "does not belong there"),
        ("media/../x", tarfile.REGTYPE, "does not belong there"),
        ("media//x", tarfile.REGTYPE, "does not belong there"),
        ("media", tarfile.DIRTYPE, "does not belong there"),
        ("/media/x", tarfile.REGTYPE, "does not belong there"),
        ("media/x", tarfile.SYMTYPE, "neither a plain file nor a directory"),
        ("media/x", tarfile.CHRTYPE, "neither a plain file nor a directory"),
        ("media/x", tarfile.CONTTYPE, "neither a plain file nor a directory"),
        ("media/x", tarfile.GNUTYPE_SPARSE, "neither a plain file nor a directory"),
        ("database/000009", tarfile.REGTYPE, "does not belong there"),
    ],
)
def test_strange_members_are_refused(tmp_path: Path, name: str, kind: bytes, message: str) -> None:
    *parts, manifest = members(packed(tmp_path / "absent"))
    strange = tarfile.TarInfo(name)
    strange.type, strange.linkname = kind, "/etc/passwd"
    with pytest.raises(golden.Problem, match=message):
        read(repacked([*parts, (strange, b""), manifest]))


def test_nothing_may_follow_the_manifest(tmp_path: Path) -> None:
    parts = members(packed(tmp_path / "absent"))
    with pytest.raises(golden.Problem, match="stands behind the manifest"):
        read(repacked([*parts, (tarfile.TarInfo("media/x"), b"")]))


def test_another_format_is_named(tmp_path: Path) -> None:
    *parts, (member, content) = members(packed(tmp_path / "absent"))
    manifest = json.dumps(json.loads(content) | {"format": 1}).encode()
    with pytest.raises(golden.Problem, match="has format 1, and this program reads 2"):
        read(repacked([*parts, (member, manifest)]))


@pytest.mark.parametrize("manifest", [b"{", b"[]", b"{}", b'{"database": {}, "media": {}}', b"[" * 99999])
def test_a_manifest_that_is_none(tmp_path: Path, manifest: bytes) -> None:
    *parts, (member, _content) = members(packed(tmp_path / "absent"))
    with pytest.raises(golden.Problem, match="its manifest"):
        read(repacked([*parts, (member, manifest)]))
