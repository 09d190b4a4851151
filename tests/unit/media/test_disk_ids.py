"""Identifiers are equal for equal inputs and different otherwise; the installer's shell scripts use them."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from build.core import run
from build.media import disk_ids
from tests.unit.helpers import ROOT

SEED = disk_ids.seed_of(b"answers", b"root file system")
INITRD = ROOT / "preseed" / "initrd"


def test_a_seed_is_of_every_part_and_of_where_it_ends() -> None:
    seeds = {
        disk_ids.seed_of(*parts)
        for parts in ((b"answers", b"root file system"), (b"answersroot file system",), (b"answersroot", b" file system"))
    }
    assert SEED in seeds
    assert len(seeds) == 3


def test_every_partition_has_identities_of_its_own() -> None:
    first, *lines = disk_ids.table(SEED, epoch=1790000000).splitlines()
    assert first == "epoch 1790000000"
    assert [line.split()[0] for line in lines] == [str(number) for number in range(1, disk_ids.PARTITIONS + 1)]
    words = [word for line in lines for word in line.split()[1:]]
    assert len(set(words)) == 2 * disk_ids.PARTITIONS
    assert {uuid.UUID(word).version for word in words} == {5}
    # The FAT takes the first eight digits alone.
    assert len({word[:8] for word in words}) == len(words)


def test_another_seed_shares_nothing() -> None:
    others = disk_ids.table(disk_ids.seed_of(b"answers"), epoch=1).split()
    assert {word for word in disk_ids.table(SEED, epoch=2).split() if "-" in word}.isdisjoint(others)


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """The two programs of the initial RAM file system, with an mke2fs and a mkfs.fat that record their arguments."""
    (tmp_path / "identities").write_text(disk_ids.table(SEED, epoch=1790000000))
    snippet = (INITRD / "usr/lib/goldsmith/identity").read_text().replace("/etc/goldsmith", str(tmp_path))
    (tmp_path / "identity").write_text(snippet)
    for name in ("mkfs.ext4", "mkfs.fat"):
        text = (INITRD / f"usr/sbin/{name}.divert").read_text()
        (tmp_path / name).write_text(text.replace("/usr/lib/goldsmith", str(tmp_path)))
    for name in ("mke2fs", "mkfs.fat.distrib"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} $SOURCE_DATE_EPOCH "$@"\n')
        (tmp_path / name).chmod(0o755)
    return tmp_path


def called(tools: Path, *words: str, check: bool = True) -> run.Done:
    env = {"PATH": f"{tools}:/usr/bin:/bin"}
    return run.run(["sh", tools / words[0], *words[1:]], timeout=60, env=env, check=check)


def lines() -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in disk_ids.table(SEED, epoch=1).splitlines()}


@pytest.mark.parametrize("device", ["/dev/vda3", "/dev/sda3", "/dev/nvme0n1p3"])
def test_ext4_gets_the_identity_of_its_partition(tools: Path, device: str) -> None:
    name, seed = lines()["3"]
    told = called(tools, "mkfs.ext4", "-F", device, "-T", "news").stdout
    assert told == f"mke2fs 1790000000 -t ext4 -U {name} -E hash_seed={seed} -F {device} -T news\n"


def test_a_fat_gets_what_it_has_room_for(tools: Path) -> None:
    told = called(tools, "mkfs.fat", "-F", "32", "-S", "512", "/dev/vda12").stdout
    assert told == f"mkfs.fat.distrib 1790000000 -i {lines()['12'][0][:8]} -F 32 -S 512 /dev/vda12\n"


@pytest.mark.parametrize("device", ["/dev/vda", "/dev/vda129", "image"])
def test_what_is_no_partition_is_refused(tools: Path, device: str) -> None:
    done = called(tools, "mkfs.ext4", "-F", device, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"no identity for the partition in: -F {device}" in done.stderr


def test_the_real_mke2fs_takes_them(tmp_path: Path, tools: Path) -> None:
    (tools / "mke2fs").unlink()
    # The one word that looks like a device; the number is read from its end.
    image = tmp_path / "dev" / "vda3"
    image.parent.mkdir()
    with image.open("wb") as stream:
        stream.truncate(1 << 24)
    script = (tools / "identity").read_text().replace("/dev/*)", "*/dev/*)")
    (tools / "identity").write_text(script)
    path = f"{tools}:/usr/sbin:/usr/bin:/sbin:/bin"
    run.run(["sh", tools / "mkfs.ext4", "-q", "-F", image], timeout=60, env={"PATH": path})
    told = run.run(["debugfs", "-R", "show_super_stats -h", image], timeout=60).stdout
    name, seed = lines()["3"]
    assert f"Filesystem UUID:          {name}\n" in told
    assert f"Directory Hash Seed:      {seed}\n" in told
