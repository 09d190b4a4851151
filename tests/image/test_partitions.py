"""File systems: each of the spec is there, as large as it should be, mounted with its options, and they work."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from testinfra.host import Host

from .facts import Fact, gather

MIB = 1 << 20
# What is not a file system of the spec: the gap before the first partition, bios_grub, EFI system partition, both GPTs.
OVERHEAD_MIB = 200
# A partition may be larger than asked for by its alignment, and by an installer that counts in millions of bytes.
SIZE_TOLERANCE = 0.06
# Files in memory may take this part of it; the kernel does not show a limit that is its own default, one half.
MOST_OF_MEMORY = 0.51
NOEXEC_TMPFS = ("/tmp", "/dev/shm")


def _try_to_run(directory: str) -> str:
    """Return shell code that copies a program into a directory and runs it there; status 126: not allowed."""
    program = f"{directory}/.verify-$$"
    return f"cp /bin/true {program}; chmod 755 {program}; {program}; status=$?; rm -f {program}; exit $status"


@pytest.fixture(scope="module")
def facts(host: Host, spec: SimpleNamespace) -> dict[str, Fact]:
    """Mounts, block devices, and whether programs run from each file system."""
    mounts = [partition.mount for partition in spec.disk.partitions]
    commands = {
        "mounts": "findmnt --json --bytes --list --output TARGET,SOURCE,FSTYPE,OPTIONS,SIZE",
        "devices": "lsblk --json --bytes --list --output PATH,SIZE,TYPE",
        "swap": "cat /proc/swaps; grep -c swap /etc/fstab",
        "fstab": "cat /etc/fstab",
        "memory": "sed -n 's/^MemTotal: *\\([0-9]*\\) kB$/\\1/p' /proc/meminfo",
        "temporary": "stat -c '%a %U:%G %n' /tmp /var/tmp /dev/shm",
    }
    runs = {f"run {where}": _try_to_run(where) for where in (*mounts, *NOEXEC_TMPFS)}
    return gather(host, commands | runs)


@pytest.fixture(scope="module")
def mounts(facts: dict[str, Fact]) -> dict[str, dict[str, Any]]:
    """What is mounted, by mount point."""
    found: list[dict[str, Any]] = json.loads(facts["mounts"].text)["filesystems"]
    return {entry["target"]: entry for entry in found}


@pytest.fixture(scope="module")
def devices(facts: dict[str, Fact]) -> dict[str, int]:
    """The size of each block device in bytes, by path."""
    found: list[dict[str, Any]] = json.loads(facts["devices"].text)["blockdevices"]
    return {entry["path"]: int(entry["size"]) for entry in found}


@pytest.mark.vm
@pytest.mark.req("R5", "R32")
def test_file_systems_are_those_of_the_spec(mounts: dict[str, dict[str, Any]], spec: SimpleNamespace) -> None:
    """Every file system of the spec is mounted, of its type, from a partition of its own, and no other disk is"""
    wanted = {partition.mount: partition.filesystem for partition in spec.disk.partitions}
    on_disk = {where: entry for where, entry in mounts.items() if entry["source"].startswith("/dev/")}
    on_disk.pop("/boot/efi", None)
    assert {where: entry["fstype"] for where, entry in on_disk.items()} == wanted
    sources = [entry["source"] for entry in on_disk.values()]
    assert len(set(sources)) == len(sources)


@pytest.mark.vm
@pytest.mark.req("R6", "R32")
def test_mount_options(mounts: dict[str, dict[str, Any]], spec: SimpleNamespace) -> None:
    """Every file system is mounted with the options of the spec, and none is forbidden more than the spec says"""
    for partition in spec.disk.partitions:
        active = set(mounts[partition.mount]["options"].split(","))
        assert set(partition.options) - {"defaults"} <= active, partition.mount
        assert "rw" in active
    assert "noexec" not in mounts["/var"]["options"].split(",")


@pytest.mark.vm
@pytest.mark.req("R5")
def test_partition_sizes(mounts: dict[str, dict[str, Any]], devices: dict[str, int], spec: SimpleNamespace) -> None:
    """Every partition is as large as the spec says"""
    for partition in spec.disk.partitions:
        size = devices[mounts[partition.mount]["source"]] / MIB
        if partition.mount == "/":
            assert size >= partition.size_mib * (1 - SIZE_TOLERANCE)
        else:
            assert size == pytest.approx(partition.size_mib, rel=SIZE_TOLERANCE), partition.mount


@pytest.mark.vm
@pytest.mark.req("R5")
def test_root_grew(
    mounts: dict[str, dict[str, Any]], devices: dict[str, int], spec: SimpleNamespace, disk_size_mib: int
) -> None:
    """On a larger disk the root partition and its file system took all that was free"""
    assert disk_size_mib > spec.disk.size_mib
    others = sum(devices[mounts[partition.mount]["source"]] for partition in spec.disk.partitions if partition.mount != "/")
    partition = devices[mounts["/"]["source"]]
    assert partition / MIB >= disk_size_mib - others / MIB - OVERHEAD_MIB
    # ext4 keeps some blocks for itself: inodes, journal.
    assert int(mounts["/"]["size"]) >= 0.93 * partition


@pytest.mark.vm
@pytest.mark.req("R6")
def test_noexec_works(facts: dict[str, Fact], spec: SimpleNamespace) -> None:
    """Programs do not run from a file system mounted noexec, and do from the others"""
    for partition in spec.disk.partitions:
        wanted = 126 if "noexec" in partition.options else 0
        assert facts[f"run {partition.mount}"].status == wanted, partition.mount


@pytest.mark.req("R6")
# The options of /dev/shm stand in fstab, which a container has not.
@pytest.mark.parametrize("where", ["/tmp", pytest.param("/dev/shm", marks=pytest.mark.vm)])
def test_noexec_in_memory(facts: dict[str, Fact], mounts: dict[str, dict[str, Any]], where: str) -> None:
    """Temporary files in memory: no programs, no devices, no set-uid, and a limit in size"""
    options = mounts[where]["options"].split(",")
    assert mounts[where]["fstype"] == "tmpfs"
    assert {"nodev", "nosuid", "noexec"} <= set(options)
    assert int(mounts[where]["size"]) <= MOST_OF_MEMORY * int(facts["memory"].text) * 1024
    assert facts[f"run {where}"].status == 126


@pytest.mark.req("R6")
def test_temporary_directories_are_sticky(facts: dict[str, Fact]) -> None:
    """In directories that all may write, only its owner removes a file"""
    assert facts["temporary"].lines == ["1777 root:root /tmp", "1777 root:root /var/tmp", "1777 root:root /dev/shm"]


@pytest.mark.vm
@pytest.mark.req("R5")
def test_no_swap(facts: dict[str, Fact]) -> None:
    """There is no swap: what is in memory does not reach the disk in clear"""
    header, count = facts["swap"].lines
    assert header.startswith("Filename")
    assert count == "0"
