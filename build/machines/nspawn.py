"""Boots the root file system of the image as a container under systemd-nspawn. Needs root."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from build.core import files, log, run
from build.core.errors import StepFailed
from build.machines import nocloud
from build.spec.golden_yaml import Spec

BOOT_SECONDS = 240
UNPACK_SECONDS = 300
POLL_SECONDS = 1.0
# Like a clone's name: different from the image's.
NAME = "clone"
# Addresses for documentation: a test connects as administrator from there.
ADMIN_NETWORK = "203.0.113.0/24"
# The container has no network card, only the loopback interface: systemd-networkd-wait-online would wait 30 s without
# success at each boot. A drop-in by credential (systemd.system-credentials(7)) skips the unit and leaves it enabled.
WAIT_ONLINE = "systemd-networkd-wait-online.service"
NO_CARD = f"systemd.unit-dropin.{WAIT_ONLINE}:[Unit]\\nConditionVirtualization=!container\\n"
# The copy of the console of a container that did not start, beside the scratch directory.
KEPT_CONSOLE = "container-console.log"
# The host may have no systemd that reports the cgroup layout; the image itself mounts /tmp.
ENVIRONMENT = {"UNIFIED_CGROUP_HIERARCHY": "1", "SYSTEMD_NSPAWN_TMPFS_TMP": "0"}


@contextmanager
def booted(squashfs: Path, *, spec: Spec, scratch: Path) -> Iterator[int]:
    """Boot the root file system; yield the host's PID of its process 1 when all services are up. Raises StepFailed."""
    root, console = scratch / "root", scratch / "console.log"
    with log.step("Unpacking the root file system"):
        run.run(["unsquashfs", "-quiet", "-no-progress", "-dest", root, squashfs], timeout=UNPACK_SECONDS)
    plant_seed(root, nocloud.make_identity(scratch / "identity", spec.admin.user))
    with boot(root, console) as process:
        with log.step("Booting the container"):
            leader = await_running(process, console)
        yield leader


def boot(root: Path, console: Path, *, masked: Sequence[str] = ()) -> AbstractContextManager[run.Process]:
    """Start systemd in the tree ``root`` without some units; it is ended at the end of the block, or with Goldsmith."""
    argv = [
        "systemd-nspawn", "--quiet", "--boot", f"--directory={root}", "--register=no", "--keep-unit",
        "--private-network", "--timezone=off", "--resolv-conf=off", f"--machine={NAME}", "--console=pipe",
        f"--set-credential={NO_CARD}",
        # Systemd reads them like kernel arguments: a pipe is not a terminal for a login.
        *(f"systemd.mask={unit}" for unit in ("console-getty.service", *masked)),
    ]  # fmt: skip
    # Contained: systemd would keep running if only systemd-nspawn were killed.
    return run.spawn(argv, log=console, env=ENVIRONMENT)


def plant_seed(root: Path, identity: nocloud.Identity) -> None:
    """Write the NoCloud seed of a VM to the directory where cloud-init looks for it without a seed ISO."""
    home = root / "var" / "lib" / "cloud" / "seed" / "nocloud"
    home.mkdir(parents=True)
    for name, content in nocloud.documents(NAME, identity, admin_cidrs=[ADMIN_NETWORK]).items():
        (home / name).write_text(content)


def enter(leader: int, *arguments: str) -> list[str]:
    """Return the argv that runs a command inside the container whose process 1 is ``leader`` on the host."""
    return ["nsenter", "--target", str(leader), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--", *arguments]


def enter_network(leader: int) -> tuple[str, ...]:
    """Return the argv prefix that runs a program of the host in the container's network."""
    return ("nsenter", "--target", str(leader), "--net", "--")


def find_leader(spawned: int) -> int | None:
    """Return the host's PID of the container's process 1: a child of systemd-nspawn, whose parent was ``spawned``."""
    pid = spawned
    for _generation in range(2):
        try:
            numbers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:
            return None
        if not numbers:
            return None
        pid = int(numbers[-1])
    return pid


def await_running(process: run.Process, console: Path) -> int:
    """Wait until every service is up; return the host's PID of the container's process 1.

    Raises StepFailed with the last lines of ``console`` as soon as systemd-nspawn ends or systemd reports a failed
    unit, and after BOOT_SECONDS. The whole console is then kept beside the scratch directory that it is in.
    """
    started = time.monotonic()
    state = ""
    while (status := process.poll()) is None and time.monotonic() - started < BOOT_SECONDS:
        leader = find_leader(process.pid)
        if leader:
            state = _systemctl(leader, "is-system-running").strip()
            if state == "running":
                return leader
            if state not in ("", "offline", "initializing", "starting"):
                failed = _systemctl(leader, "--failed", "--plain")
                raise _not_up(f"the container booted, but systemd reports {state}", console, details=failed)
        time.sleep(POLL_SECONDS)
    if status is not None:
        raise _not_up(
            f"{process.name} ended with status {status} after {time.monotonic() - started:.0f} s, before the "
            "container was up",
            console, hint="check that this host allows namespaces and a writable cgroup tree",
        )  # fmt: skip
    raise _not_up(f"the container did not come up within {BOOT_SECONDS} s (systemd reports {state or 'no state'})", console)


def _systemctl(leader: int, *arguments: str) -> str:
    return run.run(enter(leader, "systemctl", *arguments), timeout=run.LOCAL_SECONDS, check=False).stdout


def _not_up(brief: str, console: Path, *, details: str = "", hint: str = "") -> StepFailed:
    """Keep the console of a container that did not start; return an error with its last lines and the path of the file."""
    kept = files.outside_scratch(console) / KEPT_CONSOLE
    shutil.copyfile(console, kept)
    text = details or run.tail(console.read_text(errors="replace"))
    return StepFailed(brief, details=text, hint="; ".join([*([hint] if hint else []), f"the whole console is in {kept}"]))
