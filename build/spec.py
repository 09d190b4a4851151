"""The spec: ``golden.yaml`` read into one frozen, validated value.

All problems of a file are found and told at once, each with its key, its value and a remedy. Nothing here touches the
network or any file but the spec itself.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from build import cluster, release_policy
from build.tables import PACKAGE, Table, load_yaml, raise_problems

# GPT headers, bios_grub and the EFI system partition, and the alignment between partitions.
BOOT_MIB = 160
ALIGNMENT_MIB = 2
EXT4_MIN_MIB = 128

# CIS Debian 13 section 1.1 and requirement R6: what a mount point must carry at least, and /var must not.
REQUIRED_OPTIONS: Mapping[str, frozenset[str]] = {
    "/": frozenset(),
    "/var": frozenset({"nodev", "nosuid"}),
    "/var/log": frozenset({"nodev", "nosuid", "noexec"}),
    "/var/log/audit": frozenset({"nodev", "nosuid", "noexec"}),
    "/var/tmp": frozenset({"nodev", "nosuid", "noexec"}),
    "/home": frozenset({"nodev", "nosuid"}),
    "/var/www": frozenset({"nodev", "nosuid", "noexec"}),
    "/var/cache/nginx": frozenset({"nodev", "nosuid", "noexec"}),
}
# dpkg runs maintainer scripts from /var/lib/dpkg/info.
FORBIDDEN_OPTIONS: Mapping[str, frozenset[str]] = {
    "/": frozenset({"noexec", "nosuid", "nodev", "ro"}),
    "/var": frozenset({"noexec", "ro"}),
}
KNOWN_OPTIONS = frozenset(
    {"defaults", "noatime", "relatime", "nodiratime", "nodev", "nosuid", "noexec", "lazytime", "discard"}
)


class Kernel(StrEnum):
    """The kernel flavour: Debian's small one for virtual machines, or the general one."""

    CLOUD = "cloud"
    GENERIC = "generic"

    @property
    def package(self) -> str:
        return {"cloud": "linux-image-cloud-amd64", "generic": "linux-image-amd64"}[self.value]


@dataclass(frozen=True)
class Partition:
    """One file system of the image; ``size_mib`` in MiB, for ``/`` the least size."""

    mount: str
    size_mib: int
    filesystem: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class Disk:
    """The virtual disk: its size in MiB and its file systems in the order of the spec."""

    size_mib: int
    partitions: tuple[Partition, ...]


@dataclass(frozen=True)
class Admin:
    """The administrator of a clone, and from where SSH is answered when the clone is not told otherwise."""

    user: str
    cidrs: tuple[str, ...]


@dataclass(frozen=True)
class Application:
    """The Django application: its name, host name, WSGI callable and number of worker processes."""

    name: str
    server_name: str
    wsgi: str
    workers: int


@dataclass(frozen=True)
class Spec:
    """What the image shall be."""

    name: str
    version: str
    release: str
    hostname: str
    domain: str
    locale: str
    timezone: str
    kernel: Kernel
    disk: Disk
    layers: tuple[str, ...]
    packages: tuple[str, ...]
    admin: Admin
    application: Application
    proxmox: cluster.Settings | None = None
    releases: release_policy.Policy = field(default_factory=release_policy.Policy)

    def with_layers(self, names: tuple[str, ...]) -> Spec:
        """Return the spec with further layers, each in its place."""
        return replace(self, layers=tuple(sorted({*self.layers, *names})))

    def as_inputs(self) -> dict[str, Any]:
        """Return what shapes the image as plain data, for cache keys, manifests, tests; not where it is released."""
        return {key: value for key, value in asdict(self).items() if key not in ("proxmox", "releases")}


LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"


def load(path: Path) -> Spec:
    """Read and validate the spec.

    Raises SpecError that lists every problem: file, key, value, remedy.
    """
    problems: list[str] = []
    table = Table(load_yaml(path), where="", problems=problems)
    spec = Spec(
        name=table.text("name", LABEL, "write a DNS label: lower case letters, digits and hyphens"),
        version=table.text(
            "version", r"[0-9]+\.[0-9]+\.[0-9]+(-[a-z0-9]+)?", "write a version such as 1.4.0 or 1.4.0-rc1"
        ),
        release=table.text("release", r"trixie", "write trixie: the one Debian release that is supported"),
        hostname=table.text("hostname", LABEL, "write a DNS label: lower case letters, digits and hyphens"),
        domain=table.text("domain", rf"{LABEL}(\.{LABEL})*", "write a DNS domain such as example.org"),
        locale=table.text("locale", r"C\.UTF-8|[a-z]{2,3}_[A-Z]{2}\.UTF-8", "write C.UTF-8 or one such as en_GB.UTF-8"),
        timezone=table.text("timezone", r"[A-Za-z_+-]+(/[A-Za-z0-9_+-]+)*", "write a zone such as UTC or Europe/Vienna"),
        kernel=_kernel(table),
        disk=_disk(table),
        layers=table.strings("layers", r"[0-9]{2}-[a-z0-9-]+", "write the name of a directory in overlays/, NN-noun"),
        packages=table.strings("packages", PACKAGE, "write the name of a Debian package"),
        admin=_admin(table),
        application=_application(table),
        proxmox=cluster.read(table.take("proxmox", {}), problems=problems) if "proxmox" in table.value else None,
        releases=release_policy.read(table.take("releases", {}), problems=problems),
    )
    table.known.add("proxmox")
    if list(spec.layers) != sorted(spec.layers):
        table.problem("layers", list(spec.layers), "write the layers in ascending order: it is the order they are laid in")
    table.finish()
    raise_problems(path, problems)
    return spec


def _kernel(table: Table) -> Kernel:
    value = table.text("kernel", "|".join(Kernel), f"write one of: {', '.join(Kernel)}", default=Kernel.CLOUD)
    return Kernel(value or Kernel.CLOUD)


def _disk(table: Table) -> Disk:
    inner = Table(table.take("disk", {}), where="disk", problems=table.problems)
    size = inner.size("size")
    entries = inner.take("partitions", ())
    if not isinstance(entries, list):
        inner.problem("partitions", entries, "write a list of partitions")
        entries = []
    partitions = tuple(_partition(entry, index, table.problems) for index, entry in enumerate(entries))
    inner.finish()
    _check_partitions(inner, partitions, size)
    return Disk(size, partitions)


def _partition(entry: object, index: int, problems: list[str]) -> Partition:
    table = Table(entry, where=f"disk.partitions[{index}]", problems=problems)
    mount = table.text("mount", r"/([a-z0-9.-]+(/[a-z0-9.-]+)*)?", "write an absolute path such as /var/log")
    size = table.size("size")
    filesystem = table.text("filesystem", "ext4", "write ext4: the one file system that is supported", default="ext4")
    options = table.strings("options", r"[a-z0-9=]+", "write mount options as a list")
    table.finish()
    for option in options:
        if option not in KNOWN_OPTIONS:
            table.problem("options", option, f"unknown mount option; known are {', '.join(sorted(KNOWN_OPTIONS))}")
    for option in sorted(REQUIRED_OPTIONS.get(mount, frozenset()) - set(options)):
        table.problem("options", list(options), f"{mount} must be mounted {option} (requirement R6): add it")
    for option in sorted(FORBIDDEN_OPTIONS.get(mount, frozenset()) & set(options)):
        table.problem("options", option, f"the system cannot work with {mount} mounted {option}: remove it")
    if 0 < size < EXT4_MIN_MIB:
        table.problem("size", f"{size}M", f"too small for ext4 with a journal: write {EXT4_MIN_MIB}M or more")
    return Partition(mount, size, filesystem, options)


def _check_partitions(table: Table, partitions: tuple[Partition, ...], size: int) -> None:
    mounts = [partition.mount for partition in partitions]
    for mount in REQUIRED_OPTIONS:
        if mount not in mounts:
            table.problem("partitions", mounts, f"{mount} is missing (requirement R5): add it")
    for mount in sorted({mount for mount in mounts if mounts.count(mount) > 1}):
        table.problem("partitions", mount, "this mount point stands there twice: remove one")
    needed = BOOT_MIB + sum(partition.size_mib + ALIGNMENT_MIB for partition in partitions)
    if size and needed > size:
        table.problem("size", f"{size}M", f"the partitions need {needed}M: enlarge the disk or shrink a partition")


def _admin(table: Table) -> Admin:
    inner = Table(table.take("admin", {}), where="admin", problems=table.problems)
    user = inner.text("user", r"[a-z_][a-z0-9_-]{0,30}", "write a user name: lower case letters, digits, hyphens")
    if user == "root":
        inner.problem("user", user, "root is never the administrator: write another name")
    cidrs = inner.strings("cidrs", r"[0-9a-fA-F.:/]+", "write a network such as 192.0.2.0/24 or 2001:db8::/32")
    for cidr in cidrs:
        if not _accepts(ipaddress.ip_network, cidr):
            inner.problem("cidrs", cidr, "write a network such as 192.0.2.0/24 or 2001:db8::/32 (no host bits)")
    inner.finish()
    return Admin(user, cidrs)


def _accepts(parse: Callable[[str], object], value: str) -> bool:
    try:
        parse(value)
    except ValueError:
        return False
    return True


def _application(table: Table) -> Application:
    inner = Table(table.take("application", {}), where="application", problems=table.problems)
    application = Application(
        name=inner.text("name", LABEL, "write a DNS label: lower case letters, digits and hyphens"),
        server_name=inner.text("server_name", rf"{LABEL}(\.{LABEL})*", "write the DNS name that clients use"),
        wsgi=inner.text("wsgi", r"[a-z_][a-z0-9_.]*:[a-z_][a-z0-9_]*", "write module:callable"),
        workers=inner.number("workers", 1, 64),
    )
    inner.finish()
    return application
