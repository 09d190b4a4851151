"""File systems: each of the spec exists, with its size, mounted with its options, and the options work."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from testinfra.host import Host

from .facts import Fact, gather

MIB = 1 << 20
# Space outside the file systems of the spec: before the first partition, bios_grub, EFI system partition, both GPTs.
OVERHEAD_MIB = 200
# A partition may differ from its size in the spec: by alignment, and by an installer that counts in millions of bytes.
SIZE_TOLERANCE = 0.06
# The part of the memory that a tmpfs may use; the kernel does not show the limit if it is the default, one half.
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
    """The mounted file systems, by mount point."""
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
    """Every file system of the spec is mounted with its type from a separate partition, and no other disk is mounted"""
    wanted = {partition.mount: partition.filesystem for partition in spec.disk.partitions}
    on_disk = {where: entry for where, entry in mounts.items() if entry["source"].startswith("/dev/")}
    on_disk.pop("/boot/efi", None)
    assert {where: entry["fstype"] for where, entry in on_disk.items()} == wanted
    sources = [entry["source"] for entry in on_disk.values()]
    assert len(set(sources)) == len(sources)


@pytest.mark.vm
@pytest.mark.req("R6", "R32")
def test_mount_options(mounts: dict[str, dict[str, Any]], spec: SimpleNamespace) -> None:
    """Every file system is mounted with the options of the spec, is writable, and /var is not noexec"""
    for partition in spec.disk.partitions:
        active = set(mounts[partition.mount]["options"].split(","))
        assert set(partition.options) - {"defaults"} <= active, partition.mount
        assert "rw" in active
    assert "noexec" not in mounts["/var"]["options"].split(",")


@pytest.mark.vm
@pytest.mark.req("R5")
def test_partition_sizes(mounts: dict[str, dict[str, Any]], devices: dict[str, int], spec: SimpleNamespace) -> None:
    """Every partition has the size in the spec"""
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
    """On a larger disk the root partition and its file system use all free space"""
    assert disk_size_mib > spec.disk.size_mib
    others = sum(devices[mounts[partition.mount]["source"]] for partition in spec.disk.partitions if partition.mount != "/")
    partition = devices[mounts["/"]["source"]]
    assert partition / MIB >= disk_size_mib - others / MIB - OVERHEAD_MIB
    # ext4 uses some blocks itself: inodes, journal.
    assert int(mounts["/"]["size"]) >= 0.93 * partition


@pytest.mark.vm
@pytest.mark.req("R6")
def test_noexec_works(facts: dict[str, Fact], spec: SimpleNamespace) -> None:
    """Programs cannot be run from a file system mounted noexec, and can from the others"""
    for partition in spec.disk.partitions:
        wanted = 126 if "noexec" in partition.options else 0
        assert facts[f"run {partition.mount}"].status == wanted, partition.mount


@pytest.mark.req("R6")
# The options of /dev/shm are in fstab, which a container does not have.
@pytest.mark.parametrize("where", ["/tmp", pytest.param("/dev/shm", marks=pytest.mark.vm)])
def test_noexec_in_memory(facts: dict[str, Fact], mounts: dict[str, dict[str, Any]], where: str) -> None:
    """The tmpfs for temporary files has noexec, nodev, nosuid and a size limit"""
    options = mounts[where]["options"].split(",")
    assert mounts[where]["fstype"] == "tmpfs"
    assert {"nodev", "nosuid", "noexec"} <= set(options)
    assert int(mounts[where]["size"]) <= MOST_OF_MEMORY * int(facts["memory"].text) * 1024
    assert facts[f"run {where}"].status == 126


@pytest.mark.req("R6")
def test_temporary_directories_are_sticky(facts: dict[str, Fact]) -> None:
    """In world-writable directories only the owner of a file can remove it"""
    assert facts["temporary"].lines == ["1777 root:root /tmp", "1777 root:root /var/tmp", "1777 root:root /dev/shm"]


@pytest.mark.vm
@pytest.mark.req("R5")
def test_no_swap(facts: dict[str, Fact]) -> None:
    """There is no swap: the content of the memory is not written to the disk in plain text"""
    header, count = facts["swap"].lines
    assert header.startswith("Filename")
    assert count == "0"
