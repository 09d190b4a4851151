"""A pristine disk is read without mounting it: a real partition table and real ext4 file systems."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from build.core import run
from build.core.errors import CommandFailed, StepFailed
from build.machines import disk_image
from build.machines.disk_image import GPT_BIOS_GRUB, GPT_ESP, GPT_LINUX, DiskImage, ImageEntry
from tests.unit.helpers import UUIDS, make_disk_image

BINARY = bytes(range(256)) * 3
SECRET = b"-----BEGIN VERY PRIVATE KEY-----"


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk with / and, nested in each other, /var and /var/log."""
    home = tmp_path_factory.mktemp("disk")
    trees = {mount: home / name for mount, name in (("/", "root"), ("/var", "var"), ("/var/log", "log"))}
    for path, content in {
        "root/etc/hostname": b"golden\n",
        "root/etc/name with blanks": b"x",
        "root/usr/bin/binary": BINARY,
        "root/usr/lib/secret": SECRET,
        "root/var/shadowed": b"hidden by the mount",
        "var/lib/dpkg/status": b"Package: x\n",
        "var/log/shadowed": b"hidden by the mount",
        "log/apt/history.log": b"",
    }.items():
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).write_bytes(content)
    (home / "root/etc/link").symlink_to("hostname")
    (home / "root/etc/os-release").symlink_to("../usr/lib/" + "long/" * 20 + "os-release")
    (home / "root/usr/bin/binary").chmod(0o4755)
    (home / "root/etc").chmod(0o751)
    (home / "var/log").chmod(0o700)
    made = make_disk_image(home, trees)
    run.run(["debugfs", "-w", "-R", "set_inode_field / mode 042770", f"{made}?offset={35 << 20}"], timeout=60)
    return made


@pytest.fixture
def image(raw: Path) -> DiskImage:
    return DiskImage(raw)


def test_partitions_are_found_by_the_table_and_mounts_by_the_fstab(image: DiskImage) -> None:
    assert [slot.type for slot in image.slots] == [GPT_BIOS_GRUB, GPT_ESP, GPT_LINUX, GPT_LINUX, GPT_LINUX]
    assert [slot.number for slot in image.slots] == [1, 2, 3, 4, 5]
    assert [(slot.start >> 20, slot.size >> 20) for slot in image.slots] == [(1, 1), (2, 1), (3, 16), (19, 16), (35, 16)]
    assert {mount: slot.uuid for mount, slot in image.mounts.items()} == UUIDS


def test_files_are_read_byte_by_byte(image: DiskImage) -> None:
    assert image.read("/etc/hostname") == b"golden\n"
    assert image.read("/usr/bin/binary") == BINARY
    assert image.read("/etc/name with blanks") == b"x"
    assert image.read("/var/log/apt/history.log") == b""


def test_paths_lead_across_nested_mounts(image: DiskImage) -> None:
    assert image.read("/var/lib/dpkg/status") == b"Package: x\n"
    assert image.find("/var/shadowed") is None
    assert image.find("/var/log/shadowed") is None
    assert [found.path for found in image.list("/var/log/apt")] == ["/var/log/apt/history.log"]


@pytest.mark.parametrize("path", ["/etc/absent", "/absent/dir/x", "/var/lib/absent", "/"])
def test_what_is_not_there_is_not_there(image: DiskImage, path: str) -> None:
    assert image.find(path) is None
    with pytest.raises(FileNotFoundError):
        image.read(path)


def test_an_absent_directory_has_no_entries(image: DiskImage) -> None:
    assert image.list("/absent") == []


def test_kinds_modes_and_sizes_are_told(image: DiskImage) -> None:
    uid, gid = os.getuid(), os.getgid()
    assert image.find("/usr/bin/binary") == ImageEntry("/usr/bin/binary", "file", 0o4755, uid, gid, len(BINARY))
    assert image.find("/etc/link") == ImageEntry("/etc/link", "link", 0o777, uid, gid, 8)
    directory = image.find("/etc")
    assert directory is not None
    assert (directory.kind, directory.mode) == ("directory", 0o751)
    assert image.find("/etc/os-release") is not None, "a long link does not lie in its inode"


def test_a_mount_point_is_the_root_of_what_is_mounted_there(image: DiskImage) -> None:
    found = image.find("/var/log")
    assert found is not None
    assert (found.path, found.kind, found.mode) == ("/var/log", "directory", 0o2770)


def test_walking_crosses_mounts_and_sees_every_path_once(image: DiskImage) -> None:
    paths = [found.path for found in image.walk("/")]
    assert len(paths) == len(set(paths))
    assert {"/etc/hostname", "/var/lib/dpkg/status", "/var/log/apt/history.log"} <= set(paths)
    assert not any("shadowed" in path or path.endswith(("/.", "/..")) for path in paths)
    assert [path for path in paths if path.startswith("/var/log/apt")] == ["/var/log/apt", "/var/log/apt/history.log"]


def test_every_allocated_byte_is_searched(image: DiskImage) -> None:
    assert list(image.matches(re.compile(rb"BEGIN VERY [A-Z]+"))) == [b"BEGIN VERY PRIVATE"]
    assert list(image.matches(re.compile(rb"no such thing at all"))) == []


def test_a_match_across_the_border_of_two_pieces_is_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_image, "CHUNK", 8192)
    places = (0, 8192 - 5, 3 * 8192 - 1, 3 * 8192 + 100, 700_000, (1 << 20) - 7)
    path = tmp_path / "x"
    with path.open("wb") as stream:
        stream.truncate(1 << 20)
        for number, offset in enumerate(places):
            stream.seek(offset)
            stream.write(b"needle%d" % number)
    searched = DiskImage.__new__(DiskImage)
    searched.raw = path
    assert list(searched.matches(re.compile(rb"needle\d"))) == [b"needle%d" % number for number in range(len(places))]


def test_a_compact_image_is_unfolded(raw: Path, tmp_path: Path) -> None:
    compact = tmp_path / "image.qcow2"
    run.run(["qemu-img", "convert", "-c", "-O", "qcow2", raw, compact], timeout=60)
    before = compact.read_bytes()
    image = disk_image.unfold(compact, tmp_path / "pristine.raw")
    assert image.read("/etc/hostname") == b"golden\n"
    assert compact.read_bytes() == before, "the image itself is only read"


def test_a_disk_without_an_fstab_is_refused(raw: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.raw"
    broken.write_bytes(raw.read_bytes())
    run.run(["debugfs", "-w", "-R", "rm /etc/fstab", f"{broken}?offset={3 << 20}"], timeout=60)
    with pytest.raises(StepFailed, match="no file system of the image contains /etc/fstab: the installation is incomplete"):
        DiskImage(broken)


def test_an_empty_disk_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.raw"
    empty.write_bytes(bytes(1 << 20))
    with pytest.raises(CommandFailed, match="sfdisk failed"):
        DiskImage(empty)
