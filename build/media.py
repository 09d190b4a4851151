"""The installation medium: one ISO with everything on it, which installs by itself and powers the machine off.

Kernel, initial RAM file system with all installer components and answers, and the root file system: no network, no
second medium, no keystroke. It starts under BIOS (GRUB of the host) and under UEFI, with Secure Boot too (the signed
shim and GRUB out of the root file system). The same inputs give the same bytes, and no step needs root.
"""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Mapping
from pathlib import Path

from build import cpio, identities, initrd, preseed
from build.errors import StepFailed
from build.files import scratch, sha256_file
from build.run import run, which
from build.spec import Spec

HOME = Path(__file__).parents[1] / "preseed"
GRUB_CONFIG = HOME / "grub.cfg"
NETBOOT = "debian-installer-"
COMPRESSION_LEVEL = 6
BIOS_MODULES = ("biosdisk", "iso9660", "linux", "normal")
BIOS_MODULE_DIRECTORY = Path("/usr/lib/grub/i386-pc")
# Names on the medium and in the root file system. The CD flavour of GRUB finds the medium by /.disk/info.
EFI_FILES = {
    "BOOTX64.EFI": "usr/lib/shim/shimx64.efi.signed",
    "grubx64.efi": "usr/lib/grub/x86_64-efi-signed/gcdx64.efi.signed",
}
EFI_SPARE_KIB = 256
TOOL_SECONDS = 120
ISO_SECONDS = 600


def make_media(
    spec: Spec, *, squashfs: Path, installer: Mapping[str, Path], out: Path, epoch: int, log: Path
) -> Mapping[str, str]:
    """Write the installation medium to ``out``; return the hash of its initial RAM file system.

    ``installer`` maps the names of the archive's files (as in installer.lock) to verified local files; ``epoch`` is the
    time, in seconds since 1970, that every file on the medium carries. What the tools say goes to ``log``. Raises
    StepFailed when a part is missing or a tool fails, HostError when a tool is not installed.
    """
    answers = preseed.render(spec)
    preseed.check(answers)
    netboot = _netboot(installer)
    udebs = [path for name, path in installer.items() if name.endswith(".udeb")]
    plan = initrd.load_plan()
    with scratch(out.parent) as home:
        seed = identities.seed_of(answers.encode(), bytes.fromhex(sha256_file(squashfs)))
        kernel, tree = initrd.build(
            plan, netboot=netboot, udebs=udebs, preseed=answers, identities=identities.table(seed, epoch=epoch), workdir=home
        )
        (home / "linux").write_bytes(kernel)
        _write_initrd(tree, home / "initrd", epoch=epoch)
        _write_marks(home, spec)
        _make_bios_image(home, log=log)
        _make_efi_image(home, squashfs, epoch=epoch, log=log)
        _make_iso(home, squashfs, name=spec.name, epoch=epoch, log=log)
        (home / "medium.iso").rename(out)
        return {"initrd_sha256": sha256_file(home / "initrd")}


def _netboot(installer: Mapping[str, Path]) -> Path:
    found = [path for name, path in installer.items() if name.startswith(NETBOOT) and name.endswith(".deb")]
    if len(found) != 1:
        raise StepFailed(f"the installer set holds {len(found)} netboot packages, not one", hint="nox -s lock")
    return found[0]


def _write_initrd(tree: cpio.Tree, path: Path, *, epoch: int) -> None:
    # No name and no time in the header: both would differ from build to build.
    with path.open("wb") as raw, gzip.GzipFile("", "wb", COMPRESSION_LEVEL, raw, mtime=0) as stream:
        cpio.write(tree, stream, epoch=epoch)


def _write_marks(home: Path, spec: Spec) -> None:
    """Write the files by which the installer knows its medium (cdrom-detect, base-installer)."""
    (home / "info").write_text(f"{spec.name} {spec.version}, Debian {spec.release}\n")
    (home / "base_installable").write_text("")
    (home / "Release").write_text(
        f"Origin: Debian\nSuite: stable\nCodename: {spec.release}\nArchitectures: amd64\nComponents: main\n"
    )


def _make_bios_image(home: Path, *, log: Path) -> None:
    tool = which("grub-mkimage", reason="make the medium start under BIOS")
    if not BIOS_MODULE_DIRECTORY.is_dir():
        which("grub-pc-bin", reason="make the medium start under BIOS")
    run(
        [
            tool, "-O", "i386-pc-eltorito", "-d", BIOS_MODULE_DIRECTORY, "-p", "/boot/grub", "-o", home / "bios.img",
            *BIOS_MODULES,
        ],
        timeout=TOOL_SECONDS, log=log,
    )  # fmt: skip


def _make_efi_image(home: Path, squashfs: Path, *, epoch: int, log: Path) -> None:
    """Make the EFI system partition of the medium: signed shim and GRUB, taken from the root file system."""
    unsquashfs = which("unsquashfs", reason="take shim and GRUB out of the root file system")
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
            hint="the layer 20-boot has to bring shim-signed: see its layer.yaml",
        )
    image = home / "efi.img"
    kib = sum(path.stat().st_size for path in parts.values()) // 1024 + EFI_SPARE_KIB
    run(["truncate", "-s", f"{kib}K", image], timeout=TOOL_SECONDS)
    which("mformat", reason="make the medium start under UEFI")
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
    xorriso = which("xorriso", reason="write the installation medium")
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
