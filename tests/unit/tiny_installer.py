"""A Debian installer of a few kilobytes: real packages with a real initial RAM file system, made with the real tools."""

from __future__ import annotations

import gzip
import io
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from build.core import run
from build.media import cpio

VERSION = "6.12.94+deb13-amd64"
MODULES = f"usr/lib/modules/{VERSION}"
STATUS = """\
Package: main-menu
Status: install ok unpacked
Installer-Menu-Item: 1

Package: netcfg
Status: install ok unpacked
Installer-Menu-Item: 1800
"""
PLAN = """\
kernel: boot/linux
initrd: boot/initrd.gz
packages_dropped: [netcfg]
files_dropped: [usr/bin/netcfg, usr/lib/post-base-installer.d*]
modules: [ext4, virtio-blk]
"""


def base_tree() -> dict[str, cpio.Entry]:
    """Return the tree of the netboot package's initial RAM file system."""
    return {
        "bin": cpio.link("usr/bin"),
        "lib": cpio.link("usr/lib"),
        "dev": cpio.directory(),
        "dev/console": cpio.Entry(stat.S_IFCHR | 0o644, device=(5, 1)),
        "etc": cpio.directory(),
        "etc/inittab": cpio.file(b"::sysinit:/sbin/init\n"),
        "init": cpio.file(b"#!/bin/sh\n", 0o755),
        "usr": cpio.directory(),
        "usr/bin": cpio.directory(),
        "usr/bin/main-menu": cpio.file(b"\x7fELF", 0o755),
        "usr/bin/netcfg": cpio.file(b"\x7fELF", 0o755),
        "usr/lib": cpio.directory(),
        "usr/lib/modules": cpio.directory(),
        MODULES: cpio.directory(),
        f"{MODULES}/kernel": cpio.directory(),
        f"{MODULES}/kernel/net": cpio.directory(),
        f"{MODULES}/kernel/net/wifi.ko": cpio.file(b"no module"),
        f"{MODULES}/modules.builtin": cpio.file(b"kernel/drivers/tty/serial/8250/8250.ko\n"),
        f"{MODULES}/modules.order": cpio.file(b"kernel/net/wifi.ko\n"),
        "var/lib/dpkg/info/main-menu.postinst": cpio.file(b"#!/bin/sh\n", 0o755),
        "var/lib/dpkg/info/netcfg.postinst": cpio.file(b"#!/bin/sh\n", 0o755),
        "var/lib/dpkg/info/netcfg.templates": cpio.file(b"Template: netcfg/enable\n"),
        "var/lib/dpkg/status": cpio.file(STATUS.encode()),
    }


def write_package(directory: Path, name: str, files: Mapping[str, bytes], control: Mapping[str, bytes]) -> Path:
    """Make a package with the real dpkg-deb; files that begin with ``#!`` are programs."""
    tree, path = directory / f"tree-{name}", directory / name
    package = name.partition("_")[0]
    fields = f"Package: {package}\nVersion: 1\nArchitecture: all\nMaintainer: Test <test@example.org>\nDescription: x\n"
    (tree / "DEBIAN").mkdir(parents=True)
    for where, content in {**{f"DEBIAN/{key}": text for key, text in control.items()}, **files}.items():
        target = tree / where
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        target.chmod(0o755 if content.startswith(b"#!") else 0o644)
    (tree / "DEBIAN" / "control").write_text(fields)
    run.run(["dpkg-deb", "--root-owner-group", "--build", tree, path], timeout=60)
    return path


@dataclass(frozen=True)
class TinyInstaller:
    """The files of the archive, by name."""

    files: Mapping[str, Path]

    @property
    def netboot(self) -> Path:
        return self.files["debian-installer-13-netboot-amd64_1_all.deb"]

    @property
    def udebs(self) -> list[Path]:
        return [path for name, path in self.files.items() if name.endswith(".udeb")]


def make_installer(directory: Path) -> TinyInstaller:
    """Make the netboot package, one udeb with kernel modules, and one with a menu item, hooks and translations."""
    archive = io.BytesIO()
    cpio.write(base_tree(), archive, epoch=1)
    modules = f"lib/modules/{VERSION}/kernel"
    made = [
        write_package(
            directory, "debian-installer-13-netboot-amd64_1_all.deb",
            {"boot/linux": b"a kernel", "boot/initrd.gz": gzip.compress(archive.getvalue())}, {},
        ),
        write_package(
            directory, "ext4-modules-di_1_amd64.udeb",
            {f"{modules}/fs/ext4.ko": b"no module", f"{modules}/drivers/virtio_blk.ko": b"no module"}, {},
        ),
        write_package(
            directory, "partman_1_amd64.udeb",
            {
                "bin/partman": b"#!/bin/sh\n",
                "usr/lib/post-base-installer.d/10x": b"#!/bin/sh\n",
                "usr/lib/finish-install.d/95umount": b"#!/bin/sh\n",
            },
            {
                "postinst": b"#!/bin/sh\nexit 0\n",
                "templates": b"Template: partman/x\nType: select\nChoices-C: a\nDescription: Go on?\n More of it.\n"
                b"Description-de.UTF-8: Weiter?\n Mehr dazu.\nDescription-sr@latin.UTF-8: Dalje?\n\n"
                b"Template: partman/y\nType: text\nDescription: Last\n",
            },
        ),
    ]  # fmt: skip
    return TinyInstaller({path.name: path for path in made})
