"""The command ``doctor``: what a build needs from this host, what is missing, and how to install it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from build.cli import loading
from build.cli import options as common
from build.core import files, host
from build.core import run as programs
from build.core.errors import GoldsmithError, HostError
from build.core.project import Project
from build.disk import packer
from build.machines import acceleration
from build.packages.apt import Mirrors
from build.pipeline import host_tools

GOOD, BAD, NOTE = "ok", "MISSING", "note"
STEADY_QEMU = (10, 0)


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``doctor``."""
    common.add_downloads(parser)
    common.add_packer(parser)
    parser.add_argument("--proxmox", action="store_true", help="check the cluster in golden.yaml instead")
    parser.add_argument(
        "--roles", action="store_true", help="print the pveum commands that create the required pool, roles and tokens"
    )
    parser.add_argument(
        "--pve", type=int, choices=[8, 9], metavar="8|9", help="with --roles: the version (default: that of the cluster)"
    )
    common.add_secrets(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print what was checked on this host, or on the cluster; return 0, or 2 when something is missing."""
    if arguments.proxmox or arguments.roles:
        # A separate module: it needs the packages of the commands for Proxmox VE.
        return loading.load("doctor-cluster").run(arguments)
    text, good = report(
        project=common.project_of(arguments), cache=common.cache_of(arguments).root,
        packer_choice=common.packer_of(arguments), mirrors=lambda: common.mirrors_of(arguments),
    )  # fmt: skip
    print(text)
    return 0 if good else HostError.exit_code


def report(*, project: Project, cache: Path, packer_choice: str, mirrors: Callable[[], Mirrors]) -> tuple[str, bool]:
    """Return one line for each thing a build needs, and whether all of it is here."""
    rows = [
        *_tools(), _packer(project, cache, packer_choice), _accelerator(cache), _space("cache", cache),
        _space("artifacts", project.artifacts), _memory(), _mirror(mirrors),
    ]  # fmt: skip
    width = max(len(name) for _, name, _ in rows)
    lines = [f"{state:<8} {name:<{width}}  {text}" for state, name, text in rows]
    missing = host_tools.missing_lines((*_needed(), *_missing_packer(project, cache, packer_choice)))
    if missing:
        lines += ["", missing]
    return "\n".join(lines), all(state != BAD for state, _, _ in rows)


def _needed() -> tuple[host.Tool, ...]:
    """Return the tools of a whole build; as root a container plays the long service tests where there is no KVM."""
    return host.needed(container=programs.is_root())


def _tools() -> list[tuple[str, str, str]]:
    rows = []
    for tool in _needed():
        present = host.find(tool)
        name = tool.probe.rsplit("/", 1)[-1]
        about = (host.version(tool) if present else "") or tool.package
        rows.append((GOOD if present else BAD, name, f"{about}: to {tool.reason}"))
    if not programs.is_root():
        rows.append((NOTE, "privilege", "not root: mmdebstrap uses a user namespace; the container needs root"))
    return rows


def _missing_packer(project: Project, cache: Path, chosen: str) -> tuple[host.Tool, ...]:
    """Return the tool that brings Packer here, if one is missing; none for a chosen Packer that cannot be used."""
    try:
        missing = packer.missing_tool(tools=project.packer / "tools", cache=cache / "packer", chosen=chosen)
    except GoldsmithError:
        return ()
    return (missing,) if missing else ()


def _packer(project: Project, cache: Path, chosen: str) -> tuple[str, str, str]:
    try:
        present = packer.find(tools=project.packer / "tools", cache=cache / "packer", chosen=chosen)
    except GoldsmithError as error:
        return BAD, "packer", f"{error.brief}; {error.hint}"
    if present:
        return GOOD, "packer", f"{present.name}: to run the Debian installer"
    for missing in _missing_packer(project, cache, chosen):
        return BAD, "packer", f"{missing.package}: to {missing.reason}"
    return NOTE, "packer", "not here; a build compiles it from packer/tools with Go: to run the Debian installer"


def _accelerator(cache: Path) -> tuple[str, str, str]:
    try:
        with files.scratch(cache / "probe") as scratch:
            probed = acceleration.probe(workdir=scratch)
    except GoldsmithError as error:
        return BAD, "accelerator", f"{error.brief}; {error.hint}"
    text = f"{probed.kind}, {probed.cpus} CPUs, -cpu {probed.cpu}: {probed.reason}"
    if probed.kind is acceleration.Kind.TCG and probed.qemu < STEADY_QEMU:
        text += (
            f"; QEMU {probed.qemu[0]}.{probed.qemu[1]} emulates Linux 6.12 safely with one CPU only: QEMU 10 is faster "
            "(Debian 12: apt-get install --yes --target-release bookworm-backports qemu-system-x86 qemu-utils)"
        )
    return GOOD if probed.kind is acceleration.Kind.KVM else NOTE, "accelerator", text


def _space(name: str, path: Path) -> tuple[str, str, str]:
    free = host.free_bytes(path)
    needed = host.FREE_BYTES_NEEDED
    state = GOOD if free >= needed else BAD
    return state, f"space: {name}", f"{free / 2**30:.0f} GiB free, a build needs {needed / 2**30:.0f} ({path})"


def _memory() -> tuple[str, str, str]:
    available = host.memory_mib()
    state = GOOD if available >= host.MEMORY_MIB_NEEDED else BAD
    return state, "memory", f"{available} MiB available, two clones and a build need {host.MEMORY_MIB_NEEDED}"


def _mirror(mirrors: Callable[[], Mirrors]) -> tuple[str, str, str]:
    try:
        mirror = mirrors()
    except GoldsmithError as error:
        return BAD, "mirror", f"{error.brief}; {error.hint}"
    snapshot = f", snapshot {mirror.snapshot}" if mirror.snapshot else ", no snapshot archive set"
    return GOOD, "mirror", f"{mirror.debian}, {mirror.security}{snapshot}"
