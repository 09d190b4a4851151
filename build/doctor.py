"""``doctor``: what this host has, what a build needs, and what to do about the difference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from build import accel, files, host, packer, run
from build.apt import Mirrors
from build.errors import GoldsmithError
from build.project import Project

if TYPE_CHECKING:
    # It needs packages that a build does not.
    from build.preflight import Finding

GOOD, BAD, NOTE = "ok", "MISSING", "note"
STEADY_QEMU = (10, 0)


def report(*, project: Project, cache: Path, packer_choice: str, mirrors: Callable[[], Mirrors]) -> int:
    """Print one line for each thing a build needs; return 0, or 2 when something is missing."""
    rows = [
        *_tools(), _packer(project, cache, packer_choice), _accelerator(cache), _space("cache", cache),
        _space("artifacts", project.artifacts), _memory(), _mirror(mirrors),
    ]  # fmt: skip
    width = max(len(name) for _, name, _ in rows)
    for state, name, text in rows:
        print(f"{state:<8} {name:<{width}}  {text}")
    missing = host.missing_packages(host.needed())
    if missing:
        print(f"\nInstall what is missing, as root:\n    {host.install_command(missing)}")
    return 2 if any(state == BAD for state, _, _ in rows) else 0


def report_cluster(findings: Sequence[Finding]) -> int:
    """Print one line for each thing that was looked at on the cluster, each miss with its remedy; return 0 or 2."""
    width = max(len(one.what) for one in findings)
    for one in findings:
        print(f"{GOOD if one.good else BAD:<8} {one.what:<{width}}  {one.text}")
        if not one.good:
            print(f"{'':<8} {'':<{width}}  -> {one.remedy}")
    return 0 if all(one.good for one in findings) else 2


def _tools() -> list[tuple[str, str, str]]:
    rows = []
    for tool in host.needed():
        found = host.find(tool)
        name = tool.probe.rsplit("/", 1)[-1]
        about = (host.version(tool) if found else "") or tool.package
        rows.append((GOOD if found else BAD, name, f"{about}: to {tool.reason}"))
    if not run.is_root():
        rows.append((NOTE, "privilege", "not root: mmdebstrap uses a user name space; the container needs root"))
    return rows


def _packer(project: Project, cache: Path, chosen: str) -> tuple[str, str, str]:
    tools = project.packer / "tools"
    try:
        found = packer.find(tools=tools, cache=cache / "packer", chosen=chosen)
    except GoldsmithError as error:
        return BAD, "packer", f"{error.brief}; {error.hint}"
    if found:
        return GOOD, "packer", f"{found.name}: to run the Debian installer"
    if host.has_package("packer"):
        return NOTE, "packer", "not here; a build installs Debian's package of it: to run the Debian installer"
    if packer.has_go():
        return NOTE, "packer", "not here; a build compiles it from packer/tools with Go: to run the Debian installer"
    return BAD, "packer", packer.GET_PACKER


def _accelerator(cache: Path) -> tuple[str, str, str]:
    try:
        with files.scratch(cache / "probe") as scratch:
            found = accel.probe(workdir=scratch)
    except GoldsmithError as error:
        return BAD, "accelerator", f"{error.brief}; {error.hint}"
    text = f"{found.kind}, {found.cpus} CPUs, -cpu {found.cpu}: {found.reason}"
    if found.kind is accel.Kind.TCG and found.qemu < STEADY_QEMU:
        text += (
            f"; QEMU {found.qemu[0]}.{found.qemu[1]} emulates Linux 6.12 safely with one CPU only: QEMU 10 is faster "
            "(Debian 12: apt-get install --yes --target-release bookworm-backports qemu-system-x86 qemu-utils)"
        )
    return GOOD if found.kind is accel.Kind.KVM else NOTE, "accelerator", text


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
        found = mirrors()
    except GoldsmithError as error:
        return BAD, "mirror", f"{error.brief}; {error.hint}"
    snapshot = f", snapshot {found.snapshot}" if found.snapshot else ", no snapshot archive set"
    return GOOD, "mirror", f"{found.debian}, {found.security}{snapshot}"
