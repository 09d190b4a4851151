"""What a clone of the image is, as data: ``inventory.json`` and ``boot.svg`` of an artifact, from a clone's output.

Everything but ``boot`` is the same for two clones of the same bytes on the same kind of machine: what a clone alone has
(addresses, keys, counters, process numbers, sizes that follow from its memory) is left out or made alike.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from build.core import json_text, records
from build.core.errors import StepFailed
from build.core.records import Record
from build.verify import boot_plot

SCHEMA = 1
FILE = "inventory.json"
PLOT = "boot.svg"
PARTS = ("units", "listening", "privileged", "sysctl", "users", "groups", "modules", "mounts", "boot")
# Made while the machine runs, for one moment or one login; no part of the image.
PASSING = re.compile(
    r"(session-.*\.scope|run-.*|user@\d+\.service|user-\d+\.slice|user-runtime-dir@\d+\.service|.*@\d+-.*\.service)"
)
UUID = re.compile(r"[0-9a-f]{8}(?:-|\\x2d)(?:[0-9a-f]{4}(?:-|\\x2d)){3}[0-9a-f]{12}", re.IGNORECASE)
# Counters, secrets, names of the clone, and what the kernel computes from the memory that is free at boot.
VOLATILE = re.compile(
    r"kernel\.(random\..*|ns_last_pid|hostname|domainname|pty\.nr|threads-max|version|osrelease|sched_domain.*|perf_event_"
    r"max_sample_rate|hung_task_detect_count|tainted|spl.*|keys\..*|bpf_stats.*)"
    r"|fs\.(dentry-state|inode-nr|inode-state|file-nr|file-max|aio-nr|quota\..*|epoll\.max_user_watches|binfmt_misc.*"
    r"|inotify\.max_user_(instances|watches)|fanotify\.max_user_.*|mqueue\..*count)"
    r"|user\.max_.*|vm\.(min_free_kbytes|user_reserve_kbytes|admin_reserve_kbytes|lowmem_reserve_ratio|stat_refresh)"
    r"|net\.ipv4\.(tcp_mem|udp_mem|tcp_rmem|tcp_wmem|tcp_max_.*|tcp_fastopen_key|fib_sync_mem|inet_peer_threshold"
    r"|tcp_(available|allowed)_.*|route\..*|[a-z]+_(child_)?e?hash_entries|ipfrag_.*thresh)"
    r"|net\.ipv6\.(ip6frag_.*thresh|xfrm6_gc_thresh|route\..*)|net\.ipv4\.xfrm4_gc_thresh|.*\.stable_secret"
    r"|net\.netfilter\.nf_conntrack_(count|buckets|expect_max)|net\.core\.(optmem_max|netdev_rss_key)|sunrpc\..*"
)
# Options that follow from the clone's memory or from when a mount was made.
PASSING_OPTIONS = re.compile(r"(size|nr_inodes|nr_blocks|fd|pgrp|pipe_ino|timeout|minproto|maxproto|direct|lowerdir)(=.*)?")
# Mounts of the moment: a login's, a service's credentials, a container's own.
PASSING_MOUNTS = re.compile(r"/run/(user|credentials|systemd/(incoming|inaccessible|nspawn)|host)(/.*)?|/proc/.*")
# linux/capability.h, in the order of the numbers.
CAPABILITIES = (
    "chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap", "linux_immutable",
    "net_bind_service", "net_broadcast", "net_admin", "net_raw", "ipc_lock", "ipc_owner", "sys_module", "sys_rawio",
    "sys_chroot", "sys_ptrace", "sys_pacct", "sys_admin", "sys_boot", "sys_nice", "sys_resource", "sys_time",
    "sys_tty_config", "mknod", "lease", "audit_write", "audit_control", "setfcap", "mac_override", "mac_admin", "syslog",
    "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf", "checkpoint_restore",
)  # fmt: skip
SYSTEMD = "systemd (root)"
SECONDS_PER = {"min": 60.0, "s": 1.0, "ms": 0.001, "us": 0.000_001}


@dataclass(frozen=True)
class Unit(Record):
    """A unit file: state and preset by systemd; how exposed it is, from 0 to 10 (services that are not masked)."""

    state: str
    preset: str
    exposure: float | None = None


@dataclass(frozen=True)
class User(Record):
    """An account; ``password`` is ``empty``, ``locked`` or ``set``."""

    uid: int
    gid: int
    home: str
    shell: str
    password: str


@dataclass(frozen=True)
class Group(Record):
    """A group, and who is a member beside those whose own group it is."""

    gid: int
    members: tuple[str, ...]


@dataclass(frozen=True)
class Modules(Record):
    """Kernel modules: those that modprobe.d keeps away, and those that are loaded."""

    denied: tuple[str, ...]
    loaded: tuple[str, ...]


@dataclass(frozen=True)
class UnitStart(Record):
    """When a unit began to start, and how long that took, in seconds."""

    name: str
    start: float
    seconds: float


@dataclass(frozen=True)
class Boot(Record):
    """The boot: seconds of each part (``kernel``, ``userspace``, ``total`` and so on), and of each unit, in order."""

    startup: Mapping[str, float]
    units: tuple[UnitStart, ...]


@dataclass(frozen=True)
class Inventory(Record):
    """The content of ``inventory.json``.

    By name: ``listening`` has who listens at ``tcp 0.0.0.0:22``, ``privileged`` rights and owner of a file such as
    ``4755 root:root``, ``mounts`` type and options.
    """

    schema: int
    clone: str
    target: str
    units: Mapping[str, Unit]
    listening: Mapping[str, str]
    privileged: Mapping[str, str]
    sysctl: Mapping[str, str]
    users: Mapping[str, User]
    groups: Mapping[str, Group]
    modules: Modules
    mounts: Mapping[str, str]
    boot: Boot


def normalise(raw: Mapping[str, Any], *, clone: str, target: str) -> Inventory:
    """Return the inventory of what ``tests/image/inventory_on_clone.py`` printed.

    Raises StepFailed when a part is missing or not as expected.
    """
    try:
        return records.read(Inventory, {
            "schema": SCHEMA, "clone": clone, "target": target,
            "units": _units(raw["unit_files"], raw["exposure"]),
            "listening": _listening(raw["sockets"], raw["holders"]),
            "privileged": {path: _rights(*facts) for path, *facts in sorted(raw["privileged"])},
            "sysctl": _sysctl(raw["sysctl"], raw["interfaces"]),
            "users": raw["users"], "groups": raw["groups"], "modules": raw["modules"],
            "mounts": _mounts(raw["mounts"]),
            "boot": {"startup": startup(raw["startup"]), "units": _timeline(raw["svg"])},
        })  # fmt: skip
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise StepFailed(
            f"the inventory of {clone} is not as expected: {type(error).__name__}: {error}",
            hint="has a program of the image changed what it prints? see tests/image/inventory_on_clone.py",
        ) from error


def parse(text: str) -> Inventory:
    """Read ``inventory.json``; raise StepFailed when it is none of a known schema, or has a key of a wrong type."""
    try:
        content = json_text.parse(text)
    except ValueError as error:
        raise StepFailed(f"{FILE} is no JSON: {error}", hint="compare the artifact with its sums: nox -s check") from error
    missing = [part for part in PARTS if not isinstance(content, dict) or part not in content]
    if missing or content.get("schema") != SCHEMA:
        raise _no_inventory(f"missing: {', '.join(missing)}" if missing else "")
    try:
        return records.read(Inventory, content)
    except records.Unreadable as error:
        raise _no_inventory("\n".join(error.problems)) from error


def _no_inventory(details: str) -> StepFailed:
    return StepFailed(
        f"{FILE} is no inventory of schema {SCHEMA}", details=details,
        hint="it was written by another version of Goldsmith",
    )  # fmt: skip


def _units(unit_files: Sequence[Mapping[str, Any]], exposure: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    units: dict[str, dict[str, Any]] = {}
    for row in unit_files:
        name = _alike(row["unit_file"])
        if name and row["state"] != "transient":
            units[name] = {"state": row["state"], "preset": row["preset"] or ""}
    for row in exposure:
        units[_alike(row["unit"])]["exposure"] = float(row["exposure"])
    return dict(sorted(units.items()))


def _alike(name: str) -> str:
    """Return a unit's name without what is a clone's own; empty for units of the moment."""
    return "" if PASSING.fullmatch(name) else UUID.sub("UUID", name)


def _listening(sockets: Sequence[Sequence[str]], holders: Mapping[str, Sequence[Sequence[str]]]) -> dict[str, str]:
    owners: dict[str, set[str]] = {}
    for protocol, address, inode in sockets:
        where = address if protocol == "unix" else _address(address)
        # Abstract names and those below /run/user are a session's; a clone has them while a user is logged in.
        if protocol == "unix" and (not where.startswith("/") or where.startswith("/run/user/")):
            continue
        who = owners.setdefault(f"{protocol} {where}", set())
        named = {f"{name} ({user})" for name, user in holders.get(inode, ())}
        # Whether the service behind a socket of systemd runs is of interest on the network only.
        who |= named & {SYSTEMD} if protocol == "unix" and SYSTEMD in named else named
    return {name: ", ".join(sorted(who)) or "kernel" for name, who in sorted(owners.items())}


def _address(text: str) -> str:
    """Return ``address:port`` for what /proc/net writes: words of 32 bits in the machine's order, and the port."""
    number, _, port = text.partition(":")
    packed = b"".join(bytes.fromhex(number[begin : begin + 8])[::-1] for begin in range(0, len(number), 8))
    address = ipaddress.ip_address(packed)
    if address.is_link_local or (address.is_private and not (address.is_loopback or address.is_unspecified)):
        shown = "own address"
    else:
        shown = f"[{address}]" if address.version == 6 else str(address)
    return f"{shown}:{int(port, 16)}"


def _rights(mode: str, user: str, group: str, mark: str) -> str:
    return f"{mode} {user}:{group}" + (f" {capabilities(mark)}" if mark else "")


def capabilities(mark: str) -> str:
    """Return the attribute ``security.capability`` (hexadecimal) for people, such as ``cap_net_raw=ep``.

    Format: struct vfs_cap_data of linux/capability.h: flags, then permitted and inheritable sets in two halves.
    """
    data = bytes.fromhex(mark)
    words = [int.from_bytes(data[begin : begin + 4], "little") for begin in range(0, len(data), 4)]
    permitted, inheritable = words[1] | words[3] << 32, words[2] | words[4] << 32
    effective = "e" if words[0] & 1 else ""
    sets = []
    for number in range(64):
        kinds = (effective + "p" if permitted >> number & 1 else "") + ("i" if inheritable >> number & 1 else "")
        if kinds:
            name = f"cap_{CAPABILITIES[number]}" if number < len(CAPABILITIES) else f"cap_{number}"
            sets.append(f"{name}={kinds}")
    return ",".join(sets)


def _sysctl(settings: Mapping[str, str], interfaces: Sequence[str]) -> dict[str, str]:
    """Return the settings; the clone's network cards, whatever their names, are one card called CARD."""
    cards = "|".join(re.escape(name.replace(".", "/")) for name in interfaces if name != "lo")
    card = re.compile(rf"(net\.ipv[46]\.(?:conf|neigh)\.)(?:{cards})\." if cards else r"(?!)")
    values_of: dict[str, set[str]] = {}
    for name, value in settings.items():
        if not VOLATILE.fullmatch(name):
            values_of.setdefault(card.sub(lambda match: f"{match[1]}CARD.", name), set()).add(" ".join(value.split()))
    return {name: " or ".join(sorted(values)) for name, values in sorted(values_of.items())}


def _mounts(mounted: Sequence[Sequence[str]]) -> dict[str, str]:
    mounts = {}
    for target, kind, _source, own, shared in mounted:
        if not PASSING_MOUNTS.fullmatch(target):
            options = {word for word in f"{own},{shared}".split(",") if not PASSING_OPTIONS.fullmatch(word)}
            mounts[target] = f"{kind} {','.join(sorted(options))}"
    return dict(sorted(mounts.items()))


def startup(text: str) -> dict[str, float]:
    """Return the seconds of ``systemd-analyze time``: ``kernel``, ``initrd``, ``userspace``, ``total`` and others."""
    first = text.splitlines()[0]
    seconds = {}
    for duration, part in re.findall(r"((?:[\d.]+(?:min|ms|us|s) ?)+)\((\w+)\)", first):
        seconds[part] = _seconds(duration)
    whole = re.search(r"= ((?:[\d.]+(?:min|ms|us|s) ?)+)$", first.strip())
    seconds["total"] = _seconds(whole[1]) if whole else round(sum(seconds.values()), 3)
    return seconds


def _seconds(text: str) -> float:
    return round(sum(float(number) * SECONDS_PER[unit] for number, unit in re.findall(r"([\d.]+)(min|ms|us|s)", text)), 3)


def _timeline(svg: str) -> list[dict[str, Any]]:
    """Return when each unit began to start and how long that took, in seconds, in order."""
    units = [
        {"name": name, "start": start, "seconds": took}
        for unit, start, took in boot_plot.rows(svg) if (name := _alike(unit))
    ]  # fmt: skip
    return sorted(units, key=lambda unit: (unit["start"], unit["name"]))
