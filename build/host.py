"""The host: which tools a build needs and why, what is missing, and how it is brought.

Missing Debian packages are installed when that is possible without a question (root, or sudo without a password), said
in one line first; otherwise they are named with the exact command.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from build import log, run
from build.errors import CommandFailed, HostError

INSTALL_SECONDS = 1200
FREE_BYTES_NEEDED = 12 << 30
MEMORY_MIB_NEEDED = 6 << 10


@dataclass(frozen=True)
class Tool:
    """A program or file that a build needs: the Debian package that has it, and why it is needed."""

    probe: str
    package: str
    reason: str
    version: tuple[str, ...] = ()


TOOLS = (
    Tool("mmdebstrap", "mmdebstrap", "install the packages into a root file system", ("mmdebstrap", "--version")),
    Tool("mksquashfs", "squashfs-tools", "pack the root file system for the installer", ("mksquashfs", "-version")),
    Tool("unsquashfs", "squashfs-tools", "take the signed boot loaders out of it", ("unsquashfs", "-version")),
    Tool("xorriso", "xorriso", "make the installation medium and the clones' seed", ("xorriso", "--version")),
    Tool("grub-mkimage", "grub-common", "make the medium bootable", ("grub-mkimage", "--version")),
    Tool("mformat", "mtools", "make the medium bootable under UEFI", ("mformat", "--version")),
    Tool("/usr/lib/grub/i386-pc/boot.img", "grub-pc-bin", "boot the medium under BIOS"),
    Tool("depmod", "kmod", "index the installer's kernel modules", ("depmod", "--version")),
    Tool("qemu-system-x86_64", "qemu-system-x86", "install and boot the image", ("qemu-system-x86_64", "--version")),
    Tool("qemu-img", "qemu-utils", "make the clones' disks and the compact image", ("qemu-img", "--version")),
    Tool("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd", "ovmf", "boot a clone under UEFI with Secure Boot"),
    Tool("/usr/share/seabios/bios-256k.bin", "seabios", "boot a clone under BIOS"),
    Tool("ssh", "openssh-client", "test the clones", ("ssh", "-V")),
    Tool("sfdisk", "fdisk", "seal and read the partition table of the image", ("sfdisk", "--version")),
    Tool("debugfs", "e2fsprogs", "read the sealed image from outside", ("debugfs", "-V")),
    Tool("curl", "curl", "ask the clones over HTTPS", ("curl", "--version")),
    Tool("setpriv", "util-linux", "let no program outlive the build", ("setpriv", "--version")),
    Tool("apt-get", "apt", "resolve and fetch packages", ("apt-get", "--version")),
    Tool("/usr/share/keyrings/debian-archive-trixie-stable.gpg", "debian-archive-keyring", "check Debian 13's signatures"),
    Tool("debconf-set-selections", "debconf", "check the answers to the installer", ()),
)  # fmt: skip
UNPRIVILEGED_TOOLS = (Tool("newuidmap", "uidmap", "make the root file system without being root"),)
CONTAINER_TOOLS = (
    Tool("systemd-nspawn", "systemd-container", "boot the root file system as a container", ("systemd-nspawn", "--version")),
)
BROWSER = Tool("chromium", "chromium", "look at our pages as a reader does, in the tests", ("chromium", "--version"))


def needed(*, container: bool = False) -> tuple[Tool, ...]:
    """Return the tools for a build by this user."""
    return TOOLS + (() if run.is_root() else UNPRIVILEGED_TOOLS) + (CONTAINER_TOOLS if container else ())


def find(tool: Tool) -> str:
    """Return the path of the tool, or an empty string."""
    if tool.probe.startswith("/"):
        return tool.probe if Path(tool.probe).exists() else ""
    return shutil.which(tool.probe, path=run.search_path()) or ""


def version(tool: Tool) -> str:
    """Return the first line with a digit of what the tool says about itself, or an empty string."""
    if not tool.version:
        return ""
    done = run.run(tool.version, timeout=20, check=False)
    for line in (done.stdout + done.stderr).splitlines():
        if any(character.isdigit() for character in line):
            return line.strip()[:70]
    return ""


def missing_packages(tools: Sequence[Tool]) -> tuple[str, ...]:
    """Return the Debian packages of the tools that are not here."""
    return tuple(sorted({tool.package for tool in tools if not find(tool)}))


def has_package(package: str) -> bool:
    """Say whether the host's apt knows a Debian package."""
    done = run.run(["apt-cache", "policy", package], timeout=60, check=False)
    return "Candidate:" in done.stdout and "Candidate: (none)" not in done.stdout


def install_command(packages: Sequence[str]) -> str:
    """Return the exact command that installs the packages."""
    return f"apt-get update && apt-get install --yes --no-install-recommends {' '.join(packages)}"


def privilege() -> tuple[str, ...] | None:
    """Return what has to stand before a command to run it as root without a question, or None."""
    if run.is_root():
        return ()
    sudo = shutil.which("sudo", path=run.search_path())
    if sudo and run.run(["sudo", "--non-interactive", "true"], timeout=10, check=False).returncode == 0:
        return ("sudo", "--non-interactive")
    return None


def ensure(tools: Sequence[Tool], *, install: bool, extra_packages: Sequence[str] = ()) -> None:
    """Bring the missing tools, or raise HostError naming each with its reason and the exact command."""
    packages = tuple(sorted({*missing_packages(tools), *extra_packages}))
    if not packages:
        return
    prefix = privilege()
    if prefix is None or not install:
        why = "\n".join(f"{tool.package}: to {tool.reason}" for tool in tools if not find(tool))
        raise HostError(
            f"{len(packages)} Debian packages are missing on this host", details=why,
            hint=f"as root: {install_command(packages)}",
        )  # fmt: skip
    log.info(f"Installing host tools by apt: {' '.join(packages)}   (--no-install switches this off)")
    _install(prefix, packages)
    still = missing_packages(tools)
    if still:
        raise HostError(f"still missing after the installation: {' '.join(still)}", hint="nox -s doctor shows each tool")


def update_lists() -> bool:
    """Let the host's apt fetch its package lists, when that needs no question; say whether it did."""
    prefix = privilege()
    if prefix is None:
        return False
    log.info("Updating the package lists of the host's apt   (--no-install switches this off)")
    run.run([*prefix, "apt-get", "update", "-qq"], timeout=INSTALL_SECONDS)
    return True


def _install(prefix: Sequence[str], packages: Sequence[str]) -> None:
    # The name of the running process decides about questions: a host's apt must not stop at one.
    environment = ["env", "DEBIAN_FRONTEND=noninteractive"]
    try:
        with log.step("Installing host tools"):
            run.run([*prefix, *environment, "apt-get", "update", "-qq"], timeout=INSTALL_SECONDS)
            run.run(
                [*prefix, *environment, "apt-get", "install", "--yes", "-qq", "--no-install-recommends", *packages],
                timeout=INSTALL_SECONDS,
            )
    except CommandFailed as error:
        raise HostError(
            "apt cannot install the host tools", details=error.details, hint=f"as root: {install_command(packages)}"
        ) from error


def free_bytes(path: Path) -> int:
    """Return the free space in bytes of the file system that holds ``path`` or its nearest existing parent."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def memory_mib() -> int:
    """Return the host's available memory in MiB."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) // 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20


def require_space(path: Path, needed_bytes: int = FREE_BYTES_NEEDED) -> None:
    """Raise HostError when the file system of ``path`` has too little free space for a build."""
    free = free_bytes(path)
    if free < needed_bytes:
        raise HostError(
            f"{path} has {free / 2**30:.1f} GiB free; a build needs {needed_bytes / 2**30:.0f} GiB",
            hint=f"free some space, or choose another place: --cache DIRECTORY (now {path})",
        )


def require_memory(needed_mib: int = MEMORY_MIB_NEEDED) -> None:
    """Raise HostError when two clones would not fit into memory beside the rest."""
    available = memory_mib()
    if available < needed_mib:
        raise HostError(
            f"{available} MiB of memory are available; two clones need {needed_mib} MiB",
            hint="end other programs, or build on a larger machine",
        )
