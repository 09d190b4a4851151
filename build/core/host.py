"""The host: which tools a build needs and why, which are missing, and how to install them.

Missing Debian packages are installed if that needs no password (as root, or by sudo), after one line in the log.
Otherwise the error lists them with the exact command.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from build.core import log, run
from build.core.errors import CommandFailed, HostError

INSTALL_SECONDS = 1200
FREE_BYTES_NEEDED = 12 << 30
MEMORY_MIB_NEEDED = 6 << 10


@dataclass(frozen=True)
class Tool:
    """A program or file that stages of a build need: the Debian package that contains it, and why it is needed.

    ``probe`` is the program's name, or the absolute path of a file. ``stages`` are the stages that use it, ``programs``
    further programs of the same package that these stages start.
    """

    probe: str
    package: str
    reason: str
    version: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()


# Resolving the locks and fetching the locked files, before the first stage that uses them.
LOCKS = "locks"
# The check for pending updates, before the first stage that runs.
UPDATES = "updates"
# The long service tests in a container, in parallel with the stages after rootfs.
CONTAINER = "container"
STAGES = (LOCKS, UPDATES, "base", "rootfs", "media", "disk", CONTAINER, "verify", "artifact")
# The stages that start a VM.
GUESTS = ("disk", "verify")

TOOLS = (
    Tool("apt-get", "apt", "resolve and fetch packages", ("apt-get", "--version"), (LOCKS, UPDATES),
         ("apt-cache", "apt-helper")),
    Tool("/usr/share/keyrings/debian-archive-trixie-stable.gpg", "debian-archive-keyring", "check Debian 13's signatures",
         (), (LOCKS, UPDATES, "base")),
    Tool("mmdebstrap", "mmdebstrap", "install the packages into a root file system", ("mmdebstrap", "--version"),
         ("base", "rootfs")),
    Tool("mksquashfs", "squashfs-tools", "pack the root file system for the installer", ("mksquashfs", "-version"),
         ("rootfs", "media", "artifact", CONTAINER), ("unsquashfs", "sqfstar")),
    Tool("unsquashfs", "squashfs-tools", "extract the signed boot loaders from the root file system",
         ("unsquashfs", "-version"), ("media", "artifact", CONTAINER)),
    Tool("xorriso", "xorriso", "create the installer ISO and the seed ISO of the test VMs", ("xorriso", "--version"),
         ("media", "verify")),
    Tool("grub-mkimage", "grub-common", "make the installer ISO bootable", ("grub-mkimage", "--version"), ("media",)),
    Tool("mformat", "mtools", "make the installer ISO bootable under UEFI", ("mformat", "--version"), ("media",),
         ("mmd", "mcopy")),
    Tool("/usr/lib/grub/i386-pc/boot.img", "grub-pc-bin", "boot the installer ISO under BIOS", (), ("media",)),
    Tool("depmod", "kmod", "index the installer's kernel modules", ("depmod", "--version"), ("media",)),
    Tool("debconf-set-selections", "debconf", "check the preseed file", (), ("media",)),
    Tool("qemu-system-x86_64", "qemu-system-x86", "install and boot the image", ("qemu-system-x86_64", "--version"), GUESTS),
    Tool("qemu-img", "qemu-utils", "create the disks of the test VMs and the compact image",
         ("qemu-img", "--version"), GUESTS),
    Tool("/usr/share/seabios/bios-256k.bin", "seabios", "boot the installer and a test VM under BIOS", (), GUESTS),
    Tool("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd", "ovmf", "boot a test VM under UEFI with Secure Boot", (), ("verify",)),
    Tool("sfdisk", "fdisk", "set and read the partition table of the image", ("sfdisk", "--version"), GUESTS),
    Tool("ssh", "openssh-client", "test the VMs", ("ssh", "-V"), ("verify", CONTAINER), ("ssh-keygen",)),
    Tool("debugfs", "e2fsprogs", "read files in the disk image without booting it", ("debugfs", "-V"), ("disk", "verify")),
    Tool("curl", "curl", "send HTTPS requests to the test VMs", ("curl", "--version"), ("verify",)),
    Tool("setpriv", "util-linux", "end every program with the build", ("setpriv", "--version"), STAGES,
         ("unshare", "nsenter")),
)  # fmt: skip
UNPRIVILEGED_TOOLS = (
    Tool("newuidmap", "uidmap", "create the root file system without being root", (), ("base", "rootfs"), ("newgidmap",)),
)
CONTAINER_TOOLS = (
    Tool("systemd-nspawn", "systemd-container", "boot the root file system as a container", ("systemd-nspawn", "--version"),
         (CONTAINER,)),
)  # fmt: skip
BROWSER = Tool("chromium", "chromium", "open the HTML pages in a browser, in the tests", ("chromium", "--version"))
TEST_TOOLS = (
    BROWSER,
    # A build installs it only where it needs it; the tests boot a container everywhere.
    *CONTAINER_TOOLS,
    Tool("git", "git", "create repositories, in the tests", ("git", "--version")),
    Tool("openssl", "openssl", "create certificates, in the tests", ("openssl", "version")),
    Tool("jq", "jq", "verify an artifact by hand as docs/how-to/proof.md describes, in the tests", ("jq", "--version")),
    Tool("shellcheck", "shellcheck", "check the shell scripts, in the tests", ("shellcheck", "--version")),
    Tool("nft", "nftables", "check the rules of the packet filter, in the tests", ("nft", "--version")),
    Tool("ip", "iproute2", "create a network namespace with a bridge, in the tests", ("ip", "-V")),
)
# From Debian's essential packages, or part of the environment that Goldsmith itself runs in.
EVERYWHERE = frozenset({"cat", "dpkg-deb", "env", "git", "rm", "truncate", "python", "python3", Path(sys.executable).name})


def needed(stages: Sequence[str] = STAGES, *, container: bool = False) -> tuple[Tool, ...]:
    """Return the tools that this user needs for the stages; the container's only with ``container``."""
    known = TOOLS + (() if run.is_root() else UNPRIVILEGED_TOOLS) + (CONTAINER_TOOLS if container else ())
    selected = {*stages} - (set() if container else {CONTAINER})
    return tuple(tool for tool in known if selected & {*tool.stages})


def declared(stage: str, *more: Tool) -> frozenset[str]:
    """Return the names of the programs that a stage may start; ``more`` are tools that only this host needs.

    The artifact stage queries the version of every tool of the build.
    """
    tools = (*TOOLS, *UNPRIVILEGED_TOOLS, *CONTAINER_TOOLS, *more)
    stage_tools = [tool for tool in tools if stage in tool.stages or stage == "artifact"]
    probes = {tool.probe for tool in stage_tools if not tool.probe.startswith("/")}
    return EVERYWHERE | probes | {program for tool in stage_tools for program in tool.programs}


def find(tool: Tool) -> str:
    """Return the path of the tool, or an empty string."""
    if tool.probe.startswith("/"):
        return tool.probe if Path(tool.probe).exists() else ""
    return shutil.which(tool.probe, path=run.search_path()) or ""


def version(tool: Tool) -> str:
    """Return the first line with a digit of the tool's version output, or an empty string."""
    if not tool.version or not find(tool):
        return ""
    done = run.run(tool.version, timeout=run.LOCAL_SECONDS, check=False)
    for line in (done.stdout + done.stderr).splitlines():
        if any(character.isdigit() for character in line):
            return line.strip()[:70]
    return ""


def missing_packages(tools: Sequence[Tool]) -> tuple[str, ...]:
    """Return the Debian packages of the missing tools."""
    return tuple(sorted({tool.package for tool in tools if not find(tool)}))


def has_package(package: str) -> bool:
    """Return True if the host's apt can install a Debian package."""
    done = run.run(["apt-cache", "policy", package], timeout=run.LOCAL_SECONDS, check=False)
    return "Candidate:" in done.stdout and "Candidate: (none)" not in done.stdout


def install_command(packages: Sequence[str]) -> str:
    """Return the exact command that installs the packages."""
    return f"apt-get update && apt-get install --yes --no-install-recommends {' '.join(packages)}"


def privilege() -> tuple[str, ...] | None:
    """Return the prefix that runs a command as root without a password, or None if there is none."""
    if run.is_root():
        return ()
    sudo = shutil.which("sudo", path=run.search_path())
    if sudo and run.run(["sudo", "--non-interactive", "true"], timeout=10, check=False).returncode == 0:
        return ("sudo", "--non-interactive")
    return None


def ensure(tools: Sequence[Tool], *, install: bool) -> None:
    """Install the packages of the missing tools, or raise HostError naming each with its reason and the exact command."""
    packages = missing_packages(tools)
    if not packages:
        return
    prefix = privilege()
    if prefix is None or not install:
        raise HostError(
            f"{len(packages)} Debian packages are missing on this host", details=reasons(tools),
            hint=f"as root: {install_command(packages)}",
        )  # fmt: skip
    log.info(f"Installing host tools by apt: {' '.join(packages)}   (--no-install switches this off)")
    _install(prefix, packages)
    still_missing = missing_packages(tools)
    if still_missing:
        raise HostError(
            f"still missing after the installation: {' '.join(still_missing)}",
            hint="run nox -s doctor, which shows the state of each tool",
        )


def reasons(tools: Sequence[Tool]) -> str:
    """Return one line for each missing package: its name, and the reasons why it is needed."""
    lines: dict[str, list[str]] = {}
    for tool in tools:
        if not find(tool):
            lines.setdefault(tool.package, []).append(tool.reason)
    return "\n".join(f"{package}: to {', and to '.join(purposes)}" for package, purposes in lines.items())


def update_lists() -> bool:
    """Run ``apt-get update`` on the host if that needs no password; return True if it was run."""
    prefix = privilege()
    if prefix is None:
        return False
    log.info("Updating the package lists of the host's apt   (--no-install switches this off)")
    run.run([*prefix, "apt-get", "update", "-qq"], timeout=INSTALL_SECONDS)
    return True


def _install(prefix: Sequence[str], packages: Sequence[str]) -> None:
    # Apt on the host must not stop at a debconf question; sudo drops the variable, so ``env`` sets it.
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
            "apt failed to install the host tools", details=error.details, hint=f"as root: {install_command(packages)}"
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
            hint=f"free disk space, or choose another directory: --cache DIRECTORY (now {path})",
        )


def require_memory(needed_mib: int = MEMORY_MIB_NEEDED) -> None:
    """Raise HostError if the available memory is too small for the two test VMs that run at the same time."""
    available = memory_mib()
    if available < needed_mib:
        raise HostError(
            f"{available} MiB of memory are available; two test VMs need {needed_mib} MiB",
            hint="end other programs, or build on a host with more memory",
        )
