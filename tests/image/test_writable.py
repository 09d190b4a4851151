"""World-writable directories: an allowlist, and none of them on a file system without noexec."""

from __future__ import annotations

import pytest
from testinfra.host import Host

from .facts import Fact, gather

pytestmark = pytest.mark.story

# On a clone each of them is a file system mounted with noexec; a container has one file system for all.
OPEN = {"/tmp", "/var/tmp", "/run/lock", "/dev/shm", "/dev/mqueue", "/run/cloud-init/tmp"}
# The private /tmp of a unit is below a directory that only root can enter.
FIND = r"""
awk '$3 !~ /^(proc|sysfs|cgroup2|devpts|bpf|securityfs|debugfs|tracefs|configfs|fusectl|efivarfs|pstore|binfmt_misc)$/ \
    && $4 !~ /(^|,)noexec(,|$)/ {print $2}' /proc/mounts | sort -u | while read -r place; do
    find "$place" -xdev -name 'systemd-private-*' -prune -o -type d -perm -0002 -print
done | while read -r directory; do
    # find also prints a mount point, although it does not enter the file system mounted there.
    findmnt --noheadings --output OPTIONS --target "$directory" | grep -qE '(^|,)noexec(,|$)' || echo "$directory"
done
"""


@pytest.fixture(scope="module")
def places(host: Host) -> Fact:
    """Every world-writable directory on a file system without noexec."""
    return gather(host, {"open": FIND})["open"]


@pytest.fixture(scope="module")
def facts(host: Host) -> dict[str, Fact]:
    """The directories of locks, and the effect of a lock file of another user."""
    return gather(host, {
        "locks": "stat -c '%a %U:%G %F' /run/golden-lock /usr/lib/cloud-init/clouddir",
        "stranger": "rm -f /run/lock/golden-site.lock && runuser -u nobody -- touch /run/lock/golden-site.lock; "
        "golden-site apply >/dev/null 2>/run/golden-test-lock; cat /run/golden-test-lock; "
        "rm -f /run/lock/golden-site.lock /run/golden-test-lock",
    })  # fmt: skip


@pytest.mark.req("R3")
def test_writable_directories_are_known(places: Fact) -> None:
    """Only the known directories are world-writable"""
    assert set(places.lines) <= OPEN


@pytest.mark.vm
@pytest.mark.req("R3")
def test_nothing_can_be_started_where_every_user_writes(places: Fact) -> None:
    """No world-writable directory is on a file system from which programs can be started"""
    assert places.lines == []


@pytest.mark.req("R3", "F30")
def test_locks_are_roots(facts: dict[str, Fact]) -> None:
    """Locks are in a directory that only root can enter; another user's file in /run/lock does not block a command"""
    assert facts["locks"].lines == ["700 root:root directory"] * 2
    assert "Traceback" not in facts["stranger"].text
    assert "lock" not in facts["stranger"].text
