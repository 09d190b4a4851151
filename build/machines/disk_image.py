"""Reads files in a disk image without booting or mounting it, and without privileges.

The image is converted to a sparse raw file; sfdisk reads its partition table, debugfs its ext4 file systems at their
offsets. The image's /etc/fstab identifies the partitions.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from build.core import json_text, run
from build.core.errors import StepFailed

IMAGE = "image.qcow2"

READ_SECONDS = 120
UNFOLD_SECONDS = 900
GPT_LINUX = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
GPT_ESP = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
GPT_BIOS_GRUB = "21686148-6449-6E6F-744E-656564454649"
CHUNK = 4 << 20
# The maximum length of a match, in bytes.
OVERLAP = 4096


@dataclass(frozen=True)
class Slot:
    """One partition: number, GPT type, start and size in bytes, and the file system's UUID (ext4 only)."""

    number: int
    type: str
    start: int
    size: int
    uuid: str


@dataclass(frozen=True)
class ImageEntry:
    """One path of the image: type (``file``, ``directory``, ``link`` or ``other``), mode, owner ids, size in bytes."""

    path: str
    kind: str
    mode: int
    uid: int
    gid: int
    size: int


class DiskImage:
    """A disk image opened for reading; :func:`unfold` creates the raw file."""

    def __init__(self, raw: Path) -> None:
        self.raw = raw
        self.slots = _slots(raw)
        self.mounts = self._mounts()

    def _mounts(self) -> dict[str, Slot]:
        """Map mount points to partitions by the fstab of the file system that holds one."""
        by_uuid = {slot.uuid: slot for slot in self.slots if slot.uuid}
        for slot in self.slots:
            text = self._debugfs(slot, "cat /etc/fstab") if slot.uuid else ""
            rows = [line.split() for line in text.splitlines() if line.startswith("UUID=")]
            if rows:
                return {row[1]: by_uuid[uuid] for row in rows if (uuid := row[0][5:]) in by_uuid}
        raise StepFailed("no file system of the image contains /etc/fstab: the installation is incomplete")

    def _debugfs(self, slot: Slot, request: str) -> str:
        where = f"{self.raw}?offset={slot.start}"
        return run.run(["debugfs", "-R", request, where], timeout=READ_SECONDS).stdout

    def _locate(self, path: str) -> tuple[Slot, str, str]:
        """Return the partition that holds ``path``, the mount point, and the path inside the file system."""
        fitting = [mount for mount in self.mounts if path == mount or path.startswith(mount.rstrip("/") + "/")]
        mount = max(fitting, key=len)
        return self.mounts[mount], mount, "/" + path[len(mount.rstrip("/")) :].lstrip("/")

    def read(self, path: str) -> bytes:
        """Return the content of a file; raise FileNotFoundError if it does not exist."""
        slot, _, inner = self._locate(path)
        if self.find(path) is None:
            raise FileNotFoundError(path)
        # Through a file: the output of a command is decoded as text, and the content may be binary.
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch) / "copy"
            self._debugfs(slot, f'dump "{inner}" {copy}')
            return copy.read_bytes()

    def find(self, path: str) -> ImageEntry | None:
        """Return what is at ``path`` (links are not followed), or None."""
        parent, _, name = path.rpartition("/")
        return next((entry for entry in self.list(parent or "/") if entry.path == path and name), None)

    def list(self, directory: str) -> list[ImageEntry]:
        """Return the entries of a directory, in order; an absent directory has none."""
        slot, mount, inner = self._locate(directory)
        entries = []
        for line in self._debugfs(slot, f'ls -p "{inner}"').splitlines():
            fields = line.split("/")
            if len(fields) >= 8 and fields[5] not in (".", "..") and fields[1] != "0":
                entry = _found(mount, inner, fields)
                entries.append(self._root(entry.path) if entry.path in self.mounts else entry)
        return sorted(entries, key=lambda entry: entry.path)

    def _root(self, mount: str) -> ImageEntry:
        """Return a mount point as in a running system: the root directory of the file system mounted there."""
        for line in self._debugfs(self.mounts[mount], "ls -p /").splitlines():
            fields = line.split("/")
            if len(fields) >= 8 and fields[5] == ".":
                return replace(_found(mount, "/", fields), path=mount)
        raise StepFailed(f"the file system of {mount} has no root directory")

    def walk(self, directory: str) -> Iterator[ImageEntry]:
        """Yield everything below a directory, across the image's own mount points."""
        for entry in self.list(directory):
            yield entry
            if entry.kind == "directory":
                yield from self.walk(entry.path)

    def matches(self, pattern: re.Pattern[bytes]) -> Iterator[bytes]:
        """Search every allocated byte of the disk; yield each match, also across two chunks."""
        with self.raw.open("rb") as stream:
            for start, end in _extents(stream.fileno()):
                last_end = position = start
                while position < end:
                    base = max(start, position - OVERLAP)
                    stream.seek(base)
                    data = stream.read(min(CHUNK, end - position) + position - base)
                    for match in pattern.finditer(data):
                        if base + match.end() > last_end:
                            yield match[0]
                            last_end = base + match.end()
                    position = base + len(data)


def _found(mount: str, inner: str, fields: list[str]) -> ImageEntry:
    mode = int(fields[2], 8)
    kind = {0o040000: "directory", 0o100000: "file", 0o120000: "link"}.get(mode & 0o170000, "other")
    path = "/".join((mount.rstrip("/"), inner.strip("/"), fields[5])).replace("//", "/")
    size = int(fields[6]) if fields[6] else 0
    return ImageEntry(path, kind, mode & 0o7777, int(fields[3]), int(fields[4]), size)


def _slots(raw: Path) -> tuple[Slot, ...]:
    table = json_text.parse(run.run(["sfdisk", "--json", raw], timeout=READ_SECONDS).stdout)["partitiontable"]
    sector = int(table.get("sectorsize", 512))
    slots = []
    for number, entry in enumerate(table["partitions"], 1):
        start = int(entry["start"]) * sector
        uuid = _ext4_uuid(raw, start) if entry["type"] == GPT_LINUX else ""
        slots.append(Slot(number, entry["type"], start, int(entry["size"]) * sector, uuid))
    return tuple(slots)


def _ext4_uuid(raw: Path, start: int) -> str:
    """Return the UUID in an ext4 superblock (1024 bytes in; magic at 56, UUID at 104: kernel, ext4/ondisk)."""
    with raw.open("rb") as stream:
        stream.seek(start + 1024)
        block = stream.read(1024)
    if block[56:58] != b"\x53\xef":
        return ""
    text = block[104:120].hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def _extents(descriptor: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) in bytes of the parts of a sparse file that contain data."""
    end = os.fstat(descriptor).st_size
    position = 0
    while position < end:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError:
            return
        position = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, position


def unfold(image: Path, raw: Path) -> DiskImage:
    """Convert a qcow2 image to a sparse raw file at ``raw`` and open it."""
    to_raw(image, raw)
    return DiskImage(raw)


def to_raw(image: Path, raw: Path) -> None:
    """Convert a qcow2 image to a sparse raw file at ``raw``."""
    run.run(["qemu-img", "convert", "-O", "raw", "-S", "4k", image, raw], timeout=UNFOLD_SECONDS, contained=True)
