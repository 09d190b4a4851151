"""Reads and writes cpio archives in memory, bit-for-bit reproducible.

An initial RAM file system is a cpio archive ("newc", see Documentation/driver-api/early-userspace/buffer-format.rst of
Linux). In memory, owners and device nodes need no root, and no data of the host is included: inode numbers are
consecutive, all times are the same given time, names are sorted.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

MAGIC = b"070701"
HEADER_BYTES = 110
TRAILER = "TRAILER!!!"
FIELD_OFFSETS = range(len(MAGIC), HEADER_BYTES, 8)


@dataclass(frozen=True)
class Entry:
    """One inode: ``mode`` with its type bits, owner and group as numbers, content (of a link: its target)."""

    mode: int
    content: bytes = b""
    uid: int = 0
    gid: int = 0
    device: tuple[int, int] = (0, 0)

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.mode)


Tree = Mapping[str, Entry]


class Reader(Protocol):
    """A readable binary stream, compressed or not."""

    def read(self, size: int, /) -> bytes: ...


class Writer(Protocol):
    """A writable binary stream."""

    def write(self, data: bytes, /) -> object: ...


def directory(mode: int = 0o755) -> Entry:
    """Return a directory with these permission bits."""
    return Entry(stat.S_IFDIR | mode)


def file(content: bytes, mode: int = 0o644) -> Entry:
    """Return a regular file with these permission bits."""
    return Entry(stat.S_IFREG | mode, content)


def link(target: str) -> Entry:
    """Return a symbolic link to ``target``."""
    return Entry(stat.S_IFLNK | 0o777, target.encode())


def read(stream: Reader, *, wanted: Callable[[str], bool] | None = None) -> dict[str, Entry]:
    """Return the wanted entries (default: all) of a newc archive by path, without "./" and the root entry.

    Raises ValueError if the data is not such an archive, and for hard links, which share one content.
    """
    tree: dict[str, Entry] = {}
    position = 0

    def take(size: int) -> bytes:
        nonlocal position
        data = stream.read(size + -(position + size) % 4)
        position += len(data)
        if len(data) < size:
            raise ValueError(f"the cpio archive ends too early, at byte {position}")
        return data[:size]

    while True:
        head = stream.read(HEADER_BYTES)
        position += len(head)
        if len(head) < HEADER_BYTES or not head.startswith(MAGIC):
            raise ValueError(f"no newc cpio header at byte {position - len(head)}")
        fields = [int(head[start : start + 8], 16) for start in FIELD_OFFSETS]
        _, mode, uid, gid, links, _, size, _, _, major, minor, name_size, _ = fields
        path = take(name_size)[:-1].decode().removeprefix("./")
        if path == TRAILER:
            return tree
        content = take(size)
        if links > 1 and stat.S_ISREG(mode):
            raise ValueError(f"{path} is a hard link")
        if path not in ("", ".") and (wanted is None or wanted(path)):
            tree[path] = Entry(mode, content, uid, gid, (major, minor))


def write(tree: Tree, stream: Writer, *, epoch: int) -> None:
    """Write ``tree`` as a newc archive; every time is ``epoch`` (seconds since 1970)."""
    for inode, path in enumerate(sorted(tree), start=1):
        stream.write(_record(path, tree[path], inode=inode, epoch=epoch))
    stream.write(_record(TRAILER, Entry(0), inode=0, epoch=0))


def _record(path: str, entry: Entry, *, inode: int, epoch: int) -> bytes:
    name = path.encode() + b"\0"
    links = 2 if entry.is_directory else 1
    fields = (
        inode, entry.mode, entry.uid, entry.gid, links, epoch, len(entry.content), 0, 0, *entry.device, len(name), 0,
    )  # fmt: skip
    head = MAGIC + b"".join(b"%08X" % field for field in fields) + name
    return head.ljust(_padded(len(head)), b"\0") + entry.content.ljust(_padded(len(entry.content)), b"\0")


def _padded(length: int) -> int:
    return (length + 3) & ~3
