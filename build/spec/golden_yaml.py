"""The spec: ``golden.yaml`` read into one frozen, validated value.

All problems of a file are reported at once, each with its key, its value and a remedy. Nothing here touches the
network or any file but the spec itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from build.core.yaml_table import HOST, LABEL, PACKAGE, Table, network_problem, raise_problems
from build.spec import cluster, image_names, profiles, release_policy

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
    """The administrator of a clone, and the networks that may reach SSH unless the clone's settings name others."""

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
    # The directories of layers that are not in overlays/, by their names.
    outside: Mapping[str, Path] = field(default_factory=dict)
    # The file it was read from, for errors.
    file: str = "golden.yaml"

    def with_layers(self, names: tuple[str, ...]) -> Spec:
        """Return the spec with further layers, each in its place."""
        return replace(self, layers=tuple(sorted({*self.layers, *names})))

    def as_inputs(self) -> dict[str, Any]:
        """Return what shapes the image as plain data, for cache keys, manifests, tests; not where it is released."""
        return {key: value for key, value in asdict(self).items() if key not in NOT_OF_THE_IMAGE}


NOT_OF_THE_IMAGE = ("proxmox", "releases", "outside", "file")
WSGI = r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*"
# Behind a host name of Linux (64 characters) and a dot.
DOMAIN = rf"(?=.{{1,188}}$){HOST}"
LAYER = r"([^\n]*/)?[0-9]{2}-[a-z0-9-]+"
LABEL_REMEDY = "write a DNS label: lower case letters, digits and hyphens"


def load(path: Path) -> Spec:
    """Read and validate the spec, with what it inherits from the file that it extends.

    Raises SpecError that lists every problem: file, key, value, remedy.
    """
    problems: list[str] = []
    merged = profiles.merged(path)
    spec = read(Table(merged.content, where="", problems=problems))
    raise_problems(path, problems, *merged.files[1:])
    if not merged.own_ledger:
        ledger = spec.releases.ledger
        own = ledger.with_name(f"{ledger.stem}-{spec.name}{ledger.suffix}")
        spec = replace(spec, releases=replace(spec.releases, ledger=own))
    return replace(spec, outside=merged.outside, file=path.name)


def read(table: Table) -> Spec:
    """Read every key of golden.yaml; problems go onto the table's list."""
    # profiles.py has read it.
    table.text(
        profiles.EXTENDS, r"[^\n]+\.yaml", "write the path of a spec file, such as ../golden.yaml", default="",
        about="the spec file, relative to this one, whose keys this one inherits; tables are merged, lists are replaced",
    )  # fmt: skip
    spec = Spec(
        name=table.text("name", LABEL, LABEL_REMEDY, about="the name of the image, the template and the artifact directory"),
        version=table.text(
            "version", r"[0-9]+\.[0-9]+\.[0-9]+(-[a-z0-9]+)?", "write a version such as 1.4.0 or 1.4.0-rc1",
            about="the version of the image; raise it for every release",
        ),
        release=table.text(
            "release", r"trixie", "write trixie: the one Debian release that is supported", about="the Debian release"
        ),
        hostname=table.text("hostname", LABEL, LABEL_REMEDY, about="the host name of a clone that is given no other name"),
        domain=table.text(
            "domain", DOMAIN, "write a DNS domain such as example.org, of at most 188 characters",
            about="the DNS domain of a clone",
        ),
        locale=_known(
            table, "locale", "write C.UTF-8 or one such as en_GB.UTF-8", image_names.locale_problem,
            about="the system's locale",
        ),
        timezone=_known(
            table, "timezone", "write a zone such as UTC or Europe/Vienna", image_names.time_zone_problem,
            about="the system's time zone",
        ),
        kernel=_kernel(table),
        disk=_disk(table),
        layers=table.strings(
            "layers", LAYER, "write the name of a directory in overlays/, NN-noun, or the path of one elsewhere",
            about="directories of overlays/, or paths relative to this file, in ascending order of their names, which is "
            "the order of their installation",
        ),
        packages=table.strings(
            "packages", PACKAGE, "write the name of a Debian package", about="Debian packages beyond those of the layers"
        ),
        admin=_admin(table),
        application=_application(table),
        proxmox=cluster.read(section) if (section := table.section("proxmox", about=cluster.ABOUT)) else None,
        releases=release_policy.read(table.inner("releases", about=release_policy.ABOUT)),
    )  # fmt: skip
    if list(spec.layers) != sorted(spec.layers):
        order = ", ".join(sorted(spec.layers))
        remedy = f"write the layers in ascending order, in which they are installed: [{order}]"
        table.problem("layers", list(spec.layers), remedy)
    table.finish()
    return spec


def _known(table: Table, key: str, remedy: str, problem: Callable[[str], str], *, about: str) -> str:
    """Return a name that the image has; one that it has not is a problem, with what to write instead."""
    value = table.text(key, r"[A-Za-z0-9_.@/+-]{1,64}", remedy, about=about)
    if value and (better := problem(value)):
        table.problem(key, value, better)
    return value


def _kernel(table: Table) -> Kernel:
    value = table.text(
        "kernel", "|".join(Kernel), f"write one of: {', '.join(Kernel)}", default=Kernel.CLOUD.value,
        about="the kernel; cloud: Debian's small one for virtual machines; generic: the one with every driver",
    )  # fmt: skip
    return Kernel(value or Kernel.CLOUD)


def _disk(table: Table) -> Disk:
    inner = table.inner("disk", about="the virtual disk and its file systems")
    size = inner.size("size", about="the size of the disk; the disk of a clone may be larger")
    rows = inner.rows(
        "partitions", "write a list of partitions", needed=True,
        about=f"one entry for each of {', '.join(REQUIRED_OPTIONS)}; / is the last partition and takes the rest of the disk",
    )  # fmt: skip
    partitions = tuple(_partition(row) for row in rows)
    inner.finish()
    _check_partitions(inner, partitions, size)
    return Disk(size, partitions)


def _partition(table: Table) -> Partition:
    mount = table.text(
        "mount", r"/([a-z0-9.-]+(/[a-z0-9.-]+)*)?", "write an absolute path such as /var/log", about="the mount point"
    )
    size = table.size("size", about=f"the size of the file system, at least {EXT4_MIN_MIB}M; of /, the smallest size")
    filesystem = table.text(
        "filesystem", "ext4", "write ext4: the one file system that is supported", default="ext4", about="the file system"
    )
    options = table.strings(
        "options", "|".join(sorted(KNOWN_OPTIONS)), f"unknown mount option; known are {', '.join(sorted(KNOWN_OPTIONS))}",
        about="mount options",
    )  # fmt: skip
    table.finish()
    if mount and (problem := image_names.mount_problem(mount)):
        table.problem("mount", mount, problem)
    if image_names.is_executed(mount) and mount not in FORBIDDEN_OPTIONS and "noexec" in options:
        table.problem("options", "noexec", f"programs run from {mount}: remove it")
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
    inner = table.inner("admin", about="the administrator of a clone")
    user = inner.text(
        "user", r"[a-z_][a-z0-9_-]{0,30}", "write a user name: lower case letters, digits, hyphens",
        about="the account, created by cloud-init on the clone with the SSH key that it is given; it has no password",
    )  # fmt: skip
    if user == "root":
        inner.problem("user", user, "root is never the administrator: write another name")
    elif user and (problem := image_names.account_problem(user)):
        inner.problem("user", user, problem)
    cidrs = inner.strings(
        "cidrs", r"[0-9a-fA-F.:/]+", "write a network such as 192.0.2.0/24 or 2001:db8::/32",
        about="networks that may reach SSH unless the site settings of a clone name others",
    )  # fmt: skip
    for cidr in cidrs:
        if problem := network_problem(cidr):
            inner.problem("cidrs", cidr, problem)
    inner.finish()
    return Admin(user, cidrs)


def _application(table: Table) -> Application:
    inner = table.inner("application", about="the Django application")
    application = Application(
        name=inner.text("name", LABEL, LABEL_REMEDY, about="its name"),
        server_name=inner.text("server_name", HOST, "write the DNS name that clients use, of at most 253 characters"),
        wsgi=inner.text(
            "wsgi",
            WSGI,
            "write module:callable as Python names them, such as MySite.wsgi:application",
            about="the WSGI callable of the project",
        ),
        workers=inner.number("workers", 1, 64, about="worker processes of gunicorn"),
    )
    inner.finish()
    return application
