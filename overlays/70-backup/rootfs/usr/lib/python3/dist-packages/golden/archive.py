"""The inside of a backup: a tar archive that is written and read as a stream, in constant memory.

Members, in this order: ``database/000000`` and on (pg_dump's custom format, in pieces, because a tar member's size
stands before it), ``media/...`` (directories and regular files), ``manifest.json`` (what all of it must add up to).
By hand: ``age --decrypt -i KEY FILE | tar --extract; cat database/* >dump``.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import stat
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Protocol

from golden.core import CHECK_FAILED, Problem
from golden.stream import CHUNK, Meter, drain
from golden.tar import plain

FORMAT = 2
DATABASE, MEDIA, MANIFEST = "database", "media", "manifest.json"
MANIFEST_LIMIT = 16 << 20


class Sink(Protocol):
    """Takes what an archive holds, in its order."""

    def dump(self, piece: bytes) -> None:
        """Take the next piece of the database's dump."""

    def directory(self, path: str, mode: int) -> None:
        """Take a directory of the media tree."""

    def file(self, path: str, mode: int, content: Iterator[bytes]) -> None:
        """Take a file of the media tree."""


class Nowhere:
    """A sink that keeps nothing: reading into it is a check."""

    def dump(self, piece: bytes) -> None:
        """Drop it."""

    def directory(self, path: str, mode: int) -> None:
        """Drop it."""

    def file(self, path: str, mode: int, content: Iterator[bytes]) -> None:  # noqa: ARG002 (there is no place for it)
        """Read it, and drop it."""
        for _ in content:
            pass


class TreeDigest:
    """What a tree of files adds up to: numbers, and one hash over paths and contents in their order."""

    def __init__(self) -> None:
        self.files = self.bytes = self.left_out = 0
        self._hash = hashlib.sha256()

    def directory(self, path: str) -> None:
        """Take note of a directory."""
        self._hash.update(b"d " + os.fsencode(path) + b"\0")

    def file(self, path: str, meter: Meter) -> None:
        """Take note of a file that was read to its end."""
        self.files += 1
        self.bytes += meter.bytes
        self._hash.update(f"f {meter.facts()['sha256']} ".encode() + os.fsencode(path) + b"\0")

    def facts(self) -> dict[str, Any]:
        """Return the entries of the tree for the manifest."""
        return {"files": self.files, "bytes": self.bytes, "sha256": self._hash.hexdigest()}


class Writer:
    """Writes an archive into a stream."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._tar = tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT, encoding="utf-8")  # noqa: SIM115

    def add_dump(self, stream: IO[bytes]) -> dict[str, Any]:
        """Copy the dump from ``stream``; return its size and hash."""
        meter = Meter()
        number = 0
        while piece := stream.read(CHUNK):
            self._add(f"{DATABASE}/{number:06d}", meter.add(piece))
            number += 1
        return meter.facts()

    def add_media(self, root: Path) -> dict[str, Any]:
        """Copy the tree below ``root``; return what it adds up to.

        Links, devices and hidden files, which are uploads that are not complete yet, are counted and left out.
        """
        digest = TreeDigest()
        for path, found, descriptor in walk(root):
            info = tarfile.TarInfo(f"{MEDIA}/{path}")
            info.mtime, info.mode = int(found.st_mtime), stat.S_IMODE(found.st_mode)
            if stat.S_ISDIR(found.st_mode):
                info.type = tarfile.DIRTYPE
                digest.directory(path)
                self._put(info)
            elif descriptor >= 0:
                with os.fdopen(descriptor, "rb") as stream:
                    info.size = os.fstat(descriptor).st_size
                    source = _Exactly(stream, info.size, path)
                    self._put(info, source)
                digest.file(path, source.meter)
            else:
                digest.left_out += 1
        return digest.facts() | {"left_out": digest.left_out}

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest, and the archive's end."""
        self._add(MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode())
        self._tar.close()

    def _add(self, name: str, content: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        info.mode = 0o600
        self._put(info, io.BytesIO(content))

    def _put(self, info: tarfile.TarInfo, stream: Any = None) -> None:
        self._tar.addfile(info, stream)
        # The module remembers every member, and a media tree may have millions.
        self._tar.members.clear()  # type: ignore[attr-defined]


class _Exactly:
    """Reads as many bytes as a file had when it was opened: it may grow meanwhile, and must not shrink."""

    def __init__(self, stream: IO[bytes], size: int, path: str) -> None:
        self._stream, self._left, self._path = stream, size, path
        self.meter = Meter()

    def read(self, size: int) -> bytes:
        data = self._stream.read(min(size, self._left))
        if len(data) < min(size, self._left):
            raise Problem(f"{self._path} became shorter while it was read", hint="run it again")
        self._left -= len(data)
        return self.meter.add(data)


def walk(root: Path) -> Iterator[tuple[str, os.stat_result, int]]:
    """Go through a tree in a fixed order: path below ``root``, status, and for regular files an open descriptor, else -1.

    Nothing is followed out of the tree, whatever its owner does meanwhile. What vanishes is left out.
    """
    if not root.is_dir():
        return
    for place, directories, names, here in os.fwalk(root, follow_symlinks=False):
        directories.sort()
        base = os.path.relpath(place, root)
        if base != ".":
            yield base, os.fstat(here), -1
        for name in sorted(names):
            if name.startswith("."):
                yield os.path.normpath(f"{base}/{name}"), os.stat(name, dir_fd=here, follow_symlinks=False), -1
                continue
            try:
                # Without O_NONBLOCK, opening a named pipe would wait for its writer.
                descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=here)
            except FileNotFoundError:
                continue
            except OSError:
                descriptor = -1
            found = os.fstat(descriptor) if descriptor >= 0 else os.stat(name, dir_fd=here, follow_symlinks=False)
            if descriptor >= 0 and not stat.S_ISREG(found.st_mode):
                os.close(descriptor)
                descriptor = -1
            yield os.path.normpath(f"{base}/{name}"), found, descriptor


def measure(root: Path) -> dict[str, Any]:
    """Return what the tree below ``root`` adds up to, in the manifest's words."""
    digest = TreeDigest()
    for path, found, descriptor in walk(root):
        if stat.S_ISDIR(found.st_mode):
            digest.directory(path)
        elif descriptor >= 0:
            meter = Meter()
            with os.fdopen(descriptor, "rb") as stream:
                while data := stream.read(CHUNK):
                    meter.add(data)
            digest.file(path, meter)
    return digest.facts()


def read(stream: IO[bytes], sink: Sink) -> dict[str, Any]:
    """Read an archive to its end, give its parts to ``sink``, and return its manifest.

    Raises Problem when a part is missing, unknown, out of order, or differs from the manifest.
    """
    dump, digest = Meter(), TreeDigest()
    manifest: dict[str, Any] | None = None
    try:
        with tarfile.open(fileobj=stream, mode="r|", encoding="utf-8") as tar:
            number = 0
            for member in tar:
                tar.members.clear()  # type: ignore[attr-defined]
                _need(manifest is None, f"{member.name} stands behind the manifest")
                if member.name == MANIFEST:
                    manifest = _manifest(tar, member)
                elif member.name == f"{DATABASE}/{number:06d}" and plain(member) and member.size <= CHUNK:
                    sink.dump(dump.add(b"".join(_content(tar, member))))
                    number += 1
                else:
                    _read_media(tar, member, sink, digest)
    except (tarfile.TarError, ArithmeticError, LookupError, ValueError) as error:
        # Besides its own errors, tarfile has those of numbers and texts that it takes from headers as they are.
        raise Problem(f"the archive is broken: {error}", code=CHECK_FAILED) from error
    # What is decrypted is authentic only when the last of it is.
    drain(stream)
    _need(manifest is not None, "it ends before its manifest")
    assert manifest is not None
    media = {key: value for key, value in manifest["media"].items() if key != "left_out"}
    database = {key: manifest["database"][key] for key in ("bytes", "sha256")}
    _need(dump.facts() == database, "the database's dump is not the one that the manifest names")
    _need(digest.facts() == media, "the media are not those that the manifest names")
    return manifest


def _need(condition: bool, what: str) -> None:  # noqa: FBT001 (as assert has it)
    if not condition:
        raise Problem(f"the archive is broken: {what}", code=CHECK_FAILED)


def _manifest(tar: tarfile.TarFile, member: tarfile.TarInfo) -> dict[str, Any]:
    _need(plain(member) and member.size <= MANIFEST_LIMIT, "its manifest is no manifest")
    try:
        found = json.loads(b"".join(_content(tar, member)))
    except (ValueError, RecursionError) as error:
        raise Problem(f"the archive is broken: its manifest: {error}", code=CHECK_FAILED) from error
    _need(isinstance(found, dict) and "format" in found, "its manifest does not name a format")
    if found.get("format") != FORMAT:
        raise Problem(f"the archive has format {str(found.get('format'))[:20]}, and this program reads {FORMAT}",
                      hint="restore it on a clone of the image that made it", code=CHECK_FAILED)  # fmt: skip
    _need(_has(found, made=str, host=str, versions=dict, database=dict, media=dict), "its manifest is not complete")
    _need(bool(re.fullmatch(r"[0-9]{1,4}(\.[0-9]+)*", str(found["versions"].get("postgresql")))), "it names no PostgreSQL")
    _need(_has(found["database"], bytes=int, sha256=str, tables=dict), "its manifest does not describe the database")
    _need(_has(found["media"], files=int, bytes=int, sha256=str), "its manifest does not describe the media")
    for name, table in found["database"]["tables"].items():
        _need(isinstance(table, dict) and _has(table, rows=int, content=str), f"its manifest does not describe {name!r}")
    manifest: dict[str, Any] = found
    return manifest


def _has(table: Mapping[str, Any], **kinds: type) -> bool:
    """Return True if a table has these keys with values of these types."""
    return all(isinstance(table.get(key), kind) for key, kind in kinds.items())


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[bytes]:
    stream = tar.extractfile(member)
    assert stream is not None
    while data := stream.read(CHUNK):
        yield data


def _read_media(tar: tarfile.TarFile, member: tarfile.TarInfo, sink: Sink, digest: TreeDigest) -> None:
    top, _, path = member.name.partition("/")
    inside = bool(path) and all(part not in ("", ".", "..") for part in path.split("/"))
    _need(top == MEDIA and inside and "\0" not in path, f"{member.name!r} does not belong there")
    _need(plain(member) or member.isdir(), f"{member.name!r} is neither a plain file nor a directory")
    if member.isdir():
        sink.directory(path, member.mode)
        digest.directory(path)
        return
    meter = Meter()
    sink.file(path, member.mode, (meter.add(data) for data in _content(tar, member)))
    digest.file(path, meter)
