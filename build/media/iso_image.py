"""The installer ISO: a complete, unattended installer, which powers the VM off at the end.

It contains the kernel, an initial RAM file system with all installer components and the preseed file, and the root file
system: it needs no network and no second ISO, and is fully unattended. It boots under BIOS (GRUB of the host) and under
UEFI, also with Secure Boot (the signed shim and GRUB from the root file system). It is bit-for-bit reproducible, and no
step needs root.
"""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from build.core.errors import StepFailed
from build.core.files import scratch, sha256_file
from build.core.records import Record
from build.core.run import run, which
from build.media import cpio, disk_ids, initrd, preseed
from build.spec.golden_yaml import Spec

HOME = Path(__file__).parents[2] / "preseed"
GRUB_CONFIG = HOME / "grub.cfg"
NETBOOT = "debian-installer-"
COMPRESSION_LEVEL = 6
BIOS_MODULES = ("biosdisk", "iso9660", "linux", "normal")
BIOS_MODULE_DIRECTORY = Path("/usr/lib/grub/i386-pc")
# Names on the ISO and in the root file system. The CD flavour of GRUB finds the ISO by /.disk/info.
EFI_FILES = {
    "BOOTX64.EFI": "usr/lib/shim/shimx64.efi.signed",
    "grubx64.efi": "usr/lib/grub/x86_64-efi-signed/gcdx64.efi.signed",
}
EFI_SPARE_KIB = 256
TOOL_SECONDS = 120
ISO_SECONDS = 600


@dataclass(frozen=True)
class MediaFacts(Record):
    """What the stage notes: SHA-256 of the initial RAM file system, bytes and SHA-256 of the medium."""

    initrd_sha256: str
    iso_bytes: int
    iso_sha256: str


def make_media(spec: Spec, *, squashfs: Path, installer: Mapping[str, Path], out: Path, epoch: int, log: Path) -> MediaFacts:
    """Write the installer ISO to ``out``; return its size and hashes.

    ``installer`` maps the names of the archive's files (as in installer.lock) to verified local files; ``epoch`` is the
    time, in seconds since 1970, of every file on the ISO. The output of the tools is written to ``log``. Raises
    StepFailed if a part is missing or a tool fails, HostError if a tool is not installed.
    """
    answers = preseed.render(spec)
    preseed.check(answers)
    netboot = _netboot(installer)
    udebs = [path for name, path in installer.items() if name.endswith(".udeb")]
    plan = initrd.load_plan()
    with scratch(out.parent) as home:
        seed = disk_ids.seed_of(answers.encode(), bytes.fromhex(sha256_file(squashfs)))
        kernel, tree = initrd.build(
            plan, netboot=netboot, udebs=udebs, preseed=answers, identities=disk_ids.table(seed, epoch=epoch), workdir=home
        )
        (home / "linux").write_bytes(kernel)
        _write_initrd(tree, home / "initrd", epoch=epoch)
        _write_marks(home, spec)
        _make_bios_image(home, log=log)
        _make_efi_image(home, squashfs, epoch=epoch, log=log)
        _make_iso(home, squashfs, name=spec.name, epoch=epoch, log=log)
        (home / "medium.iso").rename(out)
        return MediaFacts(sha256_file(home / "initrd"), out.stat().st_size, sha256_file(out))


def _netboot(installer: Mapping[str, Path]) -> Path:
    packages = [path for name, path in installer.items() if name.startswith(NETBOOT) and name.endswith(".deb")]
    if len(packages) != 1:
        raise StepFailed(
            f"the installer set contains {len(packages)} netboot packages, not one", hint="update the lock: nox -s lock"
        )
    return packages[0]


def _write_initrd(tree: cpio.Tree, path: Path, *, epoch: int) -> None:
    # No name and no time in the header: both would differ from build to build.
    with path.open("wb") as raw, gzip.GzipFile("", "wb", COMPRESSION_LEVEL, raw, mtime=0) as stream:
        cpio.write(tree, stream, epoch=epoch)


def _write_marks(home: Path, spec: Spec) -> None:
    """Write the files by which the installer identifies its ISO (cdrom-detect, base-installer)."""
    (home / "info").write_text(f"{spec.name} {spec.version}, Debian {spec.release}\n")
    (home / "base_installable").write_text("")
    (home / "Release").write_text(
        f"Origin: Debian\nSuite: stable\nCodename: {spec.release}\nArchitectures: amd64\nComponents: main\n"
    )


def _make_bios_image(home: Path, *, log: Path) -> None:
    tool = which("grub-mkimage", reason="make the installer ISO bootable")
    if not BIOS_MODULE_DIRECTORY.is_dir():
        which("grub-pc-bin", reason="make the installer ISO bootable")
    run(
        [
            tool, "-O", "i386-pc-eltorito", "-d", BIOS_MODULE_DIRECTORY, "-p", "/boot/grub", "-o", home / "bios.img",
            *BIOS_MODULES,
        ],
        timeout=TOOL_SECONDS, log=log,
    )  # fmt: skip


def _make_efi_image(home: Path, squashfs: Path, *, epoch: int, log: Path) -> None:
    """Create the EFI system partition of the ISO: signed shim and GRUB from the root file system."""
    unsquashfs = which("unsquashfs", reason="extract shim and GRUB from the root file system")
    root = home / "efi-root"
    run(
        [unsquashfs, "-no-progress", "-no-xattrs", "-d", root, squashfs, *EFI_FILES.values()],
        timeout=TOOL_SECONDS, log=log,
    )  # fmt: skip
    parts = {name: root / path for name, path in EFI_FILES.items()}
    missing = [path for name, path in EFI_FILES.items() if not parts[name].is_file()]
    if missing:
        raise StepFailed(
            f"the root file system lacks {', '.join(missing)}",
            hint="check that the layer 20-boot installs shim-signed: see its layer.yaml",
        )
    image = home / "efi.img"
    kib = sum(path.stat().st_size for path in parts.values()) // 1024 + EFI_SPARE_KIB
    run(["truncate", "-s", f"{kib}K", image], timeout=TOOL_SECONDS)
    which("mformat", reason="make the installer ISO bootable under UEFI")
    times = {"SOURCE_DATE_EPOCH": str(epoch), "TZ": "UTC0"}
    run(
        ["mformat", "-i", image, "-N", "00000000", "-T", str(kib * 2), "-h", "64", "-s", "32", "::"],
        timeout=TOOL_SECONDS, log=log, env=times,
    )  # fmt: skip
    run(["mmd", "-i", image, "::EFI", "::EFI/BOOT"], timeout=TOOL_SECONDS, log=log, env=times)
    for name, path in parts.items():
        run(["mcopy", "-i", image, path, f"::EFI/BOOT/{name}"], timeout=TOOL_SECONDS, log=log, env=times)
    shutil.rmtree(root)


def _make_iso(home: Path, squashfs: Path, *, name: str, epoch: int, log: Path) -> None:
    xorriso = which("xorriso", reason="write the installer ISO")
    grafts = {
        ".disk/base_installable": home / "base_installable",
        ".disk/info": home / "info",
        "boot/bios.img": home / "bios.img",
        "boot/efi.img": home / "efi.img",
        "boot/grub/grub.cfg": GRUB_CONFIG,
        "boot/initrd": home / "initrd",
        "boot/linux": home / "linux",
        "dists/trixie/Release": home / "Release",
        "live/filesystem.squashfs": squashfs,
    }
    run(
        [
            xorriso, "-as", "mkisofs", "-quiet", "-o", home / "medium.iso", "-V", name.upper()[:32], "-r",
            "--set_all_file_dates", f"={epoch}",
            "-b", "boot/bios.img", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table", "--grub2-boot-info",
            "-eltorito-alt-boot", "-e", "boot/efi.img", "-no-emul-boot",
            "-graft-points", *(f"{where}={path}" for where, path in grafts.items()),
        ],
        timeout=ISO_SECONDS, log=log, env={"SOURCE_DATE_EPOCH": str(epoch)},
    )  # fmt: skip
