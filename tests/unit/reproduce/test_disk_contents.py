"""Two disks compared from outside, with real partition tables, ext4 and FAT: what may differ, and what must not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from build.core import run
from build.core.errors import StepFailed
from build.core.files import sha256_file
from build.machines.disk_image import GPT_BIOS_GRUB
from build.reproduce import disk_contents, disk_difference
from build.reproduce.disk_contents import HIDDEN, Contents
from build.reproduce.disk_difference import Difference, Verdict
from tests.unit import helpers
from tests.unit.helpers import UUIDS, make_disk_image

MIB = 1 << 20
OTHER = {mount: uuid.replace("00000000-", "11111111-") for mount, uuid in UUIDS.items()}


def trees(home: Path, **more: str) -> dict[str, Path]:
    """Return the trees of a small system; ``more`` are files of / by name, written below /etc."""
    made = {mount: home / name for mount, name in (("/", "root"), ("/var", "var"), ("/var/log", "log"))}
    for path, content in {
        "root/etc/hostname": "golden\n", "root/etc/name with blanks": "x", "root/boot/efi/hidden": "",
        "root/var/shadowed": "hidden", "root/usr/bin/su": "x" * 5000, "var/lib/x": "y", "var/log/y": "",
        "log/z": "", **{f"root/etc/{name}": text for name, text in more.items()},
    }.items():  # fmt: skip
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).write_text(content)
    (home / "root/etc/link").symlink_to("hostname")
    (home / "root/etc/far").symlink_to("long/" * 20 + "x")
    (home / "root/usr/bin/su").chmod(0o4755)
    return made


def disk(home: Path, **more: str) -> Path:
    home.mkdir()
    return make_disk_image(home, trees(home, **more))


def write(raw: Path, start: int, *requests: str) -> None:
    for request in requests:
        run.run(["debugfs", "-w", "-R", request, f"{raw}?offset={start}"], timeout=60)


def read(raw: Path) -> Contents:
    scratch = raw.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    return disk_contents.read(raw, scratch)


def compare(one: Path, other: Path) -> Verdict:
    return disk_difference.compare(read(one), read(other), same_bits=disk_difference.identical(one, other))


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = disk(tmp_path_factory.mktemp("disks") / "one")
    write(made, 3 * MIB, "ea_set /usr/bin/su security.capability 0x0100")
    run.run(["mcopy", "-i", f"{made}@@{2 * MIB}", made.parent / "root/etc/hostname", "::EFI/loader.efi"], timeout=60)
    return made


# --- reading ----------------------------------------------------------------------------------------------------------


def test_every_path_is_read_with_content_and_attributes(raw: Path) -> None:
    found = read(raw)
    assert {
        "/", "/etc", "/etc/hostname", "/etc/name with blanks", "/usr/bin/su", "/var", "/var/lib/x", "/var/log", "/var/log/z",
        "/boot/efi/EFI", "/boot/efi/EFI/loader.efi", f"/boot/efi/hidden{HIDDEN}", f"/var/shadowed{HIDDEN}",
    } <= set(found.paths)  # fmt: skip
    assert "/var/log/y" not in found.paths
    su = found.paths["/usr/bin/su"]
    assert (su.kind, su.mode, su.size, su.content) == ("file", 0o4755, 5000, sha256_file(raw.parent / "root/usr/bin/su"))
    assert "security.capability" in su.xattrs
    assert su.blocks
    assert found.paths["/etc/link"].content == "hostname"
    assert found.paths["/etc/far"].content == "long/" * 20 + "x"
    assert found.paths["/boot/efi/EFI/loader.efi"].content == found.paths["/etc/hostname"].content
    assert found.paths["/var"].inode == disk_contents.ROOT_INODE, "a mount point is what is mounted there"


def test_file_systems_the_table_and_the_loader_are_read(raw: Path) -> None:
    found = read(raw)
    supers = {mount: found.file_systems[mount]["Filesystem UUID"] for mount in UUIDS}
    assert (supers, len(found.file_systems)) == (UUIDS, len(UUIDS) + 1)
    assert found.file_systems["/boot/efi"] == {"serial": "ABCD-1234"}
    assert found.table["label"] == "gpt"
    assert found.table["partition 2 start"] == "4096"
    assert set(found.loader) == {"boot code", "bios_grub partition"}


def test_a_disk_without_an_efi_partition_is_refused(tmp_path: Path, raw: Path) -> None:
    copy = tmp_path / "copy.raw"
    run.run(["cp", "--sparse=always", raw, copy], timeout=60)
    run.run(["sfdisk", "--quiet", "--part-type", copy, "2", GPT_BIOS_GRUB], timeout=60)
    with pytest.raises(StepFailed, match="has 0 partitions of type"):
        read(copy)


# --- comparing --------------------------------------------------------------------------------------------------------


def test_a_disk_is_the_same_as_itself(raw: Path) -> None:
    verdict = compare(raw, raw)
    assert (verdict.differences, verdict.identical, set(verdict.laid.values())) == ((), True, {()})


def test_a_disk_of_other_identities_is_another_disk(tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same trees; its file systems have other UUIDs, which its fstab names, and its table other GUIDs."""
    monkeypatch.setattr(helpers, "UUIDS", OTHER)
    verdict = compare(raw, disk(tmp_path / "renamed"))
    assert not verdict.identical
    told = {(one.where, one.what) for one in verdict.forbidden}
    assert told > {("/etc/fstab", "content"), ("file system /", "Filesystem UUID"), ("partition table", "partition 3 uuid")}


@pytest.mark.parametrize(
    ("start", "request_", "where", "what"),
    [
        (3, "set_inode_field /usr/bin/su mode 0100755", "/usr/bin/su", "mode"),
        (3, "set_inode_field /etc/hostname uid 33", "/etc/hostname", "uid"),
        (3, "ea_rm /usr/bin/su security.capability", "/usr/bin/su", "xattrs"),
        (3, "rm /var/shadowed", f"/var/shadowed{HIDDEN}", "kind"),
        (19, "rm /lib/x", "/var/lib/x", "kind"),
        (35, "symlink /new hostname", "/var/log/new", "kind"),
        (3, "set_super_value r_blocks_count 7", "file system /", "Reserved block count"),
        (3, "set_super_value hash_seed 11111111-0000-4000-8000-000000000001", "file system /", "Directory Hash Seed"),
        (3, "set_super_value mkfs_time 20200101", "file system /", "Filesystem created"),
    ],
)
def test_every_other_difference_is_named(
    tmp_path: Path, raw: Path, start: int, request_: str, where: str, what: str
) -> None:
    copy = tmp_path / "copy.raw"
    run.run(["cp", "--sparse=always", raw, copy], timeout=60)
    write(copy, start * MIB, request_)
    assert (where, what) in [(one.where, one.what) for one in compare(raw, copy).forbidden]


def test_a_touched_boot_sector_is_named(tmp_path: Path, raw: Path) -> None:
    copy = tmp_path / "copy.raw"
    run.run(["cp", "--sparse=always", raw, copy], timeout=60)
    with copy.open("r+b") as stream:
        stream.write(b"\xeb\x63")
    (found,) = compare(raw, copy).forbidden
    assert (found.where, found.what) == ("boot loader", "boot code")


def test_when_and_where_a_path_was_laid_is_counted_and_no_difference(raw: Path) -> None:
    found = read(raw)
    moved = replace(found.paths["/etc/hostname"], mtime="1", inode=99, blocks="(0):9")
    other = replace(found, paths={**found.paths, "/etc/hostname": moved})
    verdict = disk_difference.compare(found, other, same_bits=False)
    assert verdict.differences == ()
    assert verdict.laid == dict.fromkeys(("mtime", "inode", "blocks"), ("/etc/hostname",))


def test_when_it_was_mounted_may_differ_and_says_why(tmp_path: Path, raw: Path) -> None:
    copy = tmp_path / "copy.raw"
    run.run(["cp", "--sparse=always", raw, copy], timeout=60)
    write(copy, 3 * MIB, "set_super_value mtime 20200101")
    verdict = compare(raw, copy)
    assert verdict.forbidden == ()
    assert disk_difference.SUPERBLOCK["Last mount time"] in {
        one.allowed for one in verdict.differences if one.what == "Last mount time"
    }
    assert all(reason.strip() for reason in disk_difference.SUPERBLOCK.values())
    assert Difference("a", "b", "c", "d").allowed == ""
