"""Reads Debian packages without dpkg: control files and content, as data.

A package is an ar archive of ``debian-binary``, ``control.tar.*`` and ``data.tar.*`` (deb(5)). Only what the archive
uses for installer packages is read: xz, gzip, or no compression.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from build.core.errors import StepFailed

AR_MAGIC = b"!<arch>\n"
AR_HEADER_BYTES = 60


@contextmanager
def _member(path: Path, prefix: str) -> Iterator[tarfile.TarFile]:
    """Open the tar archive inside the package whose name starts with ``prefix``, as a stream."""
    with path.open("rb") as stream:
        name, size = _find(path, stream, prefix)
        section = _Section(stream, size)
        compression = name.rpartition(".")[2].replace("tar", "")
        if compression not in ("xz", "gz", ""):
            raise StepFailed(f"{path.name}: {name} is compressed in a way that is not supported")
        # Streams, so that a package of 150 MB is never held in memory.
        with tarfile.open(fileobj=section, mode=f"r|{compression}") as archive:  # type: ignore[call-overload]
            yield archive


def _find(path: Path, stream: IO[bytes], prefix: str) -> tuple[str, int]:
    if stream.read(len(AR_MAGIC)) != AR_MAGIC:
        raise StepFailed(f"{path.name} is not a Debian package", hint=f"delete {path} and run again")
    while header := stream.read(AR_HEADER_BYTES):
        name, size = header[:16].decode().strip().rstrip("/"), int(header[48:58])
        if name.startswith(prefix):
            return name, size
        stream.seek(size + size % 2, io.SEEK_CUR)
    raise StepFailed(f"{path.name} has no {prefix}* inside", hint=f"delete {path} and run again")


class _Section(io.RawIOBase):
    """A part of a file, readable like a file."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self._stream = stream
        self._left = size

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        count = self._left if size < 0 else min(size, self._left)
        data = self._stream.read(count)
        self._left -= len(data)
        return data


def control_files(path: Path) -> dict[str, bytes]:
    """Return the files of the control archive by name: ``control``, ``postinst``, ``templates`` and so on."""
    contents: dict[str, bytes] = {}
    with _member(path, "control.tar") as archive:
        for item in archive:
            content = archive.extractfile(item)
            if content is not None:
                contents[item.name.removeprefix("./")] = content.read()
    return contents


def content(path: Path) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """Yield the files of the package: each member with the content of a regular file (else empty), paths without "./"."""
    with _member(path, "data.tar") as archive:
        for item in archive:
            stream = archive.extractfile(item) if item.isreg() else None
            item.name = item.name.removeprefix("./").rstrip("/")
            yield item, stream.read() if stream else b""


def extract(path: Path, paths: frozenset[str]) -> dict[str, bytes]:
    """Return the content of the files in ``paths`` of the package; stop reading after the last.

    Raises StepFailed with the paths that the package does not have.
    """
    contents, _links = pick(path, paths)
    if missing := paths - contents.keys():
        raise StepFailed(f"{path.name} does not contain {', '.join(sorted(missing))}")
    return contents


def pick(path: Path, paths: frozenset[str]) -> tuple[dict[str, bytes], dict[str, str]]:
    """Return the content of those files in ``paths`` that the package has, and the targets of links."""
    contents: dict[str, bytes] = {}
    links: dict[str, str] = {}
    with _member(path, "data.tar") as archive:
        for item in archive:
            name = item.name.removeprefix("./").rstrip("/")
            stream = archive.extractfile(item) if name in paths and item.isreg() else None
            if stream:
                contents[name] = stream.read()
            elif name in paths and item.issym():
                links[name] = item.linkname
            if len(contents) + len(links) == len(paths):
                break
    return contents, links
