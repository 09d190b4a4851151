"""Debian packages read without dpkg: control files and content, as data.

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
    """A part of a file that is read as if it were all of it."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self._stream = stream
        self._left = size

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        data = self._stream.read(wanted)
        self._left -= len(data)
        return data


def control_files(path: Path) -> dict[str, bytes]:
    """Return the files of the control archive by name: ``control``, ``postinst``, ``templates`` and so on."""
    found: dict[str, bytes] = {}
    with _member(path, "control.tar") as archive:
        for item in archive:
            content = archive.extractfile(item)
            if content is not None:
                found[item.name.removeprefix("./")] = content.read()
    return found


def content(path: Path) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """Yield what the package installs: each member with the bytes of a regular file (else none), paths without "./"."""
    with _member(path, "data.tar") as archive:
        for item in archive:
            stream = archive.extractfile(item) if item.isreg() else None
            item.name = item.name.removeprefix("./").rstrip("/")
            yield item, stream.read() if stream else b""


def extract(path: Path, wanted: frozenset[str]) -> dict[str, bytes]:
    """Return the content of the files of the package whose paths are ``wanted``; stop reading after the last.

    Raises StepFailed naming those that the package does not hold.
    """
    found, _links = pick(path, wanted)
    if missing := wanted - found.keys():
        raise StepFailed(f"{path.name} does not hold {', '.join(sorted(missing))}")
    return found


def pick(path: Path, wanted: frozenset[str]) -> tuple[dict[str, bytes], dict[str, str]]:
    """Return the files of the package whose paths are ``wanted``, as far as it holds them, and the targets of links."""
    found: dict[str, bytes] = {}
    links: dict[str, str] = {}
    with _member(path, "data.tar") as archive:
        for item in archive:
            name = item.name.removeprefix("./").rstrip("/")
            stream = archive.extractfile(item) if name in wanted and item.isreg() else None
            if stream:
                found[name] = stream.read()
            elif name in wanted and item.issym():
                links[name] = item.linkname
            if len(found) + len(links) == len(wanted):
                break
    return found, links
