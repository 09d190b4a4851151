"""What is on a pristine disk, down to what two installations of the same inputs may differ in; read from outside.

Paths with content and attributes, each file system's superblock, the partition table, the boot loader's own sectors.
Directories and inodes are asked of debugfs in batches: a process for each of 25,000 paths would take far longer.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from build.core import files, json_text, run
from build.core.errors import StepFailed
from build.machines import disk_image
from build.machines.disk_image import GPT_BIOS_GRUB, GPT_ESP, DiskImage, Slot

READ_SECONDS = 900
ESP = "/boot/efi"
ROOT_INODE = 2
# What is written after a path that another file system is mounted over: it is on the disk and not visible.
HIDDEN = " (below a mount)"
_KINDS = {0o040000: "directory", 0o100000: "file", 0o120000: "link"}
# A prompt and its command, which debugfs repeats before each answer of a batch.
_PROMPT = re.compile(r"^debugfs: +", re.MULTILINE)
_STAT = {
    "links": re.compile(r"^Links: (\d+)", re.MULTILINE),
    "mtime": re.compile(r"^ *mtime: 0x([0-9a-f]+)", re.MULTILINE),
    "target": re.compile(r'^Fast link dest: "(.*)"$', re.MULTILINE),
    "xattrs": re.compile(r"^Extended attributes:\n((?:  .*\n)+)", re.MULTILINE),
    "blocks": re.compile(r"^(?:EXTENTS|BLOCKS):\n(.*)$", re.MULTILINE),
}


@dataclass(frozen=True)
class Entry:
    """One path. ``content``: SHA-256, or a link's target.

    ``mtime``, ``inode`` and ``blocks`` are when and where it was written: bits of the disk, and no content.
    """

    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    content: str = ""
    xattrs: str = ""
    mtime: str = ""
    inode: int = 0
    blocks: str = ""


@dataclass(frozen=True)
class Contents:
    """A disk. ``file_systems``: mount -> superblock field -> value; ``table``: the partitions'; ``loader``: hashes."""

    paths: Mapping[str, Entry]
    file_systems: Mapping[str, Mapping[str, str]]
    table: Mapping[str, str]
    loader: Mapping[str, str]


@dataclass
class _Reader:
    """One disk while it is read."""

    disk: DiskImage
    scratch: Path
    paths: dict[str, Entry] = field(default_factory=dict)


def read(image: Path, scratch: Path) -> Contents:
    """Read a qcow2 image; ``scratch`` takes as much as is installed, twice. Raises StepFailed when it cannot be read."""
    disk = disk_image.unfold(image, scratch / "disk.raw")
    reader = _Reader(disk, scratch)
    table, esp, boot = _table(disk.raw), _slot(disk, GPT_ESP), _slot(disk, GPT_BIOS_GRUB)
    serial = _serial(disk.raw, esp)
    for mount, slot in sorted(disk.mounts.items()):
        _read_ext4(reader, mount, slot)
    _read_vfat(reader, ESP, esp)
    supers = {mount: _superblock(disk.raw, slot) for mount, slot in disk.mounts.items()}
    loader = {"boot code": _hash_of(disk.raw, 0, 440), "bios_grub partition": _hash_of(disk.raw, boot.start, boot.size)}
    disk.raw.unlink()
    return Contents(reader.paths, {**supers, ESP: {"serial": serial}}, table, loader)


def _slot(disk: DiskImage, kind: str) -> Slot:
    slots = [slot for slot in disk.slots if slot.type == kind]
    if len(slots) != 1:
        raise StepFailed(f"the disk has {len(slots)} partitions of type {kind}, not one")
    return slots[0]


def _table(raw: Path) -> dict[str, str]:
    partition_table = json_text.parse(run.run(["sfdisk", "--json", raw], timeout=READ_SECONDS).stdout)["partitiontable"]
    flat = {name: str(value) for name, value in partition_table.items() if name not in ("partitions", "device")}
    for number, partition in enumerate(partition_table["partitions"], 1):
        flat |= {f"partition {number} {name}": str(value) for name, value in partition.items() if name != "node"}
    return flat


def _hash_of(raw: Path, start: int, size: int) -> str:
    with raw.open("rb") as stream:
        stream.seek(start)
        return hashlib.sha256(stream.read(size)).hexdigest()


# --- ext4 -------------------------------------------------------------------------------------------------------------


def _superblock(raw: Path, slot: Slot) -> dict[str, str]:
    output = run.run(["debugfs", "-R", "show_super_stats -h", f"{raw}?offset={slot.start}"], timeout=READ_SECONDS).stdout
    pairs = (line.split(":", 1) for line in output.splitlines() if re.match(r"[A-Z][^:]*: ", line))
    return {name: value.strip() for name, value in pairs}


def _batch(raw: Path, slot: Slot, commands: Iterable[str], scratch: Path) -> Iterator[str]:
    """Yield the answer to each command, in order; one process for all of them."""
    asked = list(commands)
    script = scratch / "commands"
    script.write_text("".join(f"{command_line}\n" for command_line in asked))
    where = f"{raw}?offset={slot.start}"
    done = run.run(["debugfs", "-f", script, where], timeout=READ_SECONDS)
    answers = _PROMPT.split(done.stdout)[1:]
    # It ends with 0 whatever it could not read; only its own name is no complaint.
    complaints = [line for line in done.stderr.splitlines() if not line.startswith("debugfs 1.")]
    if complaints:
        raise StepFailed(f"debugfs cannot read partition {slot.number}", details="\n".join(complaints[:20]))
    if len(answers) != len(asked):
        raise StepFailed(f"debugfs answered {len(answers)} of {len(asked)} questions about partition {slot.number}")
    for command, answer in zip(asked, answers, strict=True):
        yield answer.removeprefix(command).removeprefix("\n")


def _read_ext4(reader: _Reader, mount: str, slot: Slot) -> None:
    """Read one file system: its directories level by level, then all inodes, then the content."""
    raw, scratch = reader.disk.raw, reader.scratch
    found: dict[str, tuple[int, int, int, int, int]] = {}
    level = [("", ROOT_INODE)]
    while level:
        answers = _batch(raw, slot, (f"ls -p <{inode}>" for _, inode in level), scratch)
        listings = list(zip(level, answers, strict=True))
        level = [child for (parent, _), answer in listings for child in _listed(parent, answer, found)]
    inodes = sorted({row[0] for row in found.values()})
    stats = dict(zip(inodes, _batch(raw, slot, (f"stat <{inode}>" for inode in inodes), scratch), strict=True))
    dump = scratch / "dump"
    dump.mkdir()
    try:
        # Without root it cannot set the owners of the files; owners come from the inodes.
        run.run(["debugfs", "-R", f"rdump / {dump}", f"{raw}?offset={slot.start}"], timeout=READ_SECONDS)
        # A mount point is what is mounted there: it is read from its own file system.
        inside = mount.rstrip("/") + "/"
        below = {place for place in reader.disk.mounts if place != mount and place.startswith(inside)} | {ESP}
        for name, row in found.items():
            path = (mount.rstrip("/") + name) or "/"
            if path not in below:
                hidden = any(path.startswith(f"{place}/") for place in below)
                reader.paths[path + HIDDEN * hidden] = _entry(row, stats[row[0]], dump / name.lstrip("/"))
    finally:
        files.remove_tree(dump)


def _listed(parent: str, listing: str, found: dict[str, tuple[int, int, int, int, int]]) -> Iterator[tuple[str, int]]:
    """Note the entries of one directory; yield those that are directories, by path and inode."""
    for line in listing.splitlines():
        fields = line.split("/")
        if len(fields) < 8 or fields[1] == "0" or (fields[5] == ".." or (fields[5] == "." and parent)):
            continue
        inode, mode = int(fields[1]), int(fields[2], 8)
        path = "" if fields[5] == "." else f"{parent}/{fields[5]}"
        found[path] = (inode, mode, int(fields[3]), int(fields[4]), int(fields[6] or 0))
        if path and mode & 0o170000 == 0o040000:
            yield path, inode


def _entry(row: tuple[int, int, int, int, int], stat: str, dumped: Path) -> Entry:
    inode, mode, uid, gid, size = row
    fields = {name: match[1] for name, pattern in _STAT.items() if (match := pattern.search(stat))}
    kind = _KINDS.get(mode & 0o170000, "other")
    content = ""
    if kind == "file":
        if not dumped.is_file() or dumped.stat().st_size != size:
            raise StepFailed(f"debugfs did not bring {dumped.name} whole: {size} bytes")
        content = files.sha256_file(dumped)
    elif kind == "link":
        content = fields.get("target") or str(dumped.readlink())
    return Entry(
        kind, mode & 0o7777, uid, gid, size if kind == "file" else 0, content, fields.get("xattrs", ""),
        fields.get("mtime", ""),
        inode, fields.get("blocks", ""),
    )  # fmt: skip


# --- the EFI system partition -----------------------------------------------------------------------------------------


def _serial(raw: Path, slot: Slot) -> str:
    """Return a FAT volume's serial number as Linux writes it (``ABCD-1234``); FAT32 has it 67 bytes in, FAT16 39."""
    with raw.open("rb") as stream:
        stream.seek(slot.start)
        sector = stream.read(512)
    at = 67 if sector[82:87] == b"FAT32" else 39
    text = sector[at : at + 4][::-1].hex().upper()
    return f"{text[:4]}-{text[4:]}"


def _read_vfat(reader: _Reader, mount: str, slot: Slot) -> None:
    dump = reader.scratch / "dump"
    dump.mkdir()
    try:
        run.run(["mcopy", "-s", "-n", "-m", "-i", f"{reader.disk.raw}@@{slot.start}", "::", dump], timeout=READ_SECONDS)
        for path in sorted(dump.rglob("*")):
            kind, size, content = "directory", 0, ""
            if path.is_file():
                kind, size, content = "file", path.stat().st_size, files.sha256_file(path)
            mtime = f"{int(path.stat().st_mtime):x}"
            reader.paths[f"{mount}/{path.relative_to(dump)}"] = Entry(kind, 0, 0, 0, size, content, mtime=mtime)
    finally:
        files.remove_tree(dump)
