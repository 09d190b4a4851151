"""The quick inner loop: the root file system booted under systemd-nspawn, and the image tests that hold there.

Real systemd, sandboxes and services within a minute; no AppArmor, audit, kernel settings, boot loader or partitions.
Needs root.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from build import files, image_tests, log, run, seed, stocktaking
from build.errors import HostError, StepFailed
from build.spec import Spec

BOOT_SECONDS = 240
UNPACK_SECONDS = 300
TEST_SECONDS = 1200
POLL_SECONDS = 1.0
# As a clone's: not the image's own.
NAME = "clone"
# Addresses for documentation: a test plays an administrator from there.
ADMIN_NETWORK = "203.0.113.0/24"
# The host has no systemd to ask for the cgroup layout; and /tmp is the image's business.
ENVIRONMENT = {"UNIFIED_CGROUP_HIERARCHY": "1", "SYSTEMD_NSPAWN_TMPFS_TMP": "0"}


def run_container(
    squashfs: Path, *, spec: Spec, tests: Path, workdir: Path, select: str, shell: bool = False,
    inventory: Path | None = None,
) -> int:  # fmt: skip
    """Boot the root file system; run tests of the marks ``select``, or hand the terminal to a shell in it.

    With ``inventory`` its inventory is written into that directory instead.

    Returns the exit status; log and JUnit stay in ``workdir``. Raises HostError without root, StepFailed when it does not
    come up, VerificationFailed when a test fails.
    """
    if not run.is_root():
        raise HostError("a container that boots systemd needs root", hint="run it as root, or test on clones: nox -s build")
    with files.scratch(workdir) as scratch, booted(squashfs, spec=spec, scratch=scratch) as leader:
        if shell:
            return run.attach(enter(leader, "/bin/bash", "--login"))
        if inventory:
            with log.step("Taking the inventory of the container"):
                stocktaking.take(enter(leader, *stocktaking.PYTHON), tests=tests, out=inventory, clone=NAME,
                                 target="container", timeout=stocktaking.SECONDS)  # fmt: skip
            return 0
        context = write_context(scratch, leader, spec)
        with log.step("Testing the container"):
            status = image_tests.run_tests(tests, context, out=workdir, timeout=TEST_SECONDS, select=select)
        verdict = image_tests.judge(workdir / image_tests.JUNIT, status=status, facts={})
        log.info(f"{verdict.passed} tests passed, {verdict.skipped} skipped; see {workdir / image_tests.OUTPUT}")
        return 0


@contextmanager
def booted(squashfs: Path, *, spec: Spec, scratch: Path) -> Iterator[int]:
    """Boot the root file system; yield the host's number of its process 1 when all services are up. Raises StepFailed."""
    root, console = scratch / "root", scratch / "console.log"
    with log.step("Unpacking the root file system"):
        run.run(["unsquashfs", "-quiet", "-no-progress", "-dest", root, squashfs], timeout=UNPACK_SECONDS)
    plant_seed(root, seed.make_identity(scratch / "identity", spec.admin.user))
    with boot(root, console) as process:
        with log.step("Booting the container"):
            leader = await_running(process, console)
        yield leader


def boot(root: Path, console: Path, *, masked: Sequence[str] = ()) -> AbstractContextManager[run.Process]:
    """Start systemd in the tree ``root`` without some units; on leaving the block, or with Goldsmith, it is gone."""
    argv = [
        "systemd-nspawn", "--quiet", "--boot", f"--directory={root}", "--register=no", "--keep-unit",
        "--private-network", "--timezone=off", "--resolv-conf=off", f"--machine={NAME}", "--console=pipe",
        # Read by systemd as a kernel's would be: a pipe is no terminal to log in at.
        *(f"systemd.mask={unit}" for unit in ("console-getty.service", *masked)),
    ]  # fmt: skip
    # Contained: a systemd whose systemd-nspawn was killed would live on.
    return run.spawn(argv, log=console, env=ENVIRONMENT)


def plant_seed(root: Path, identity: seed.Identity) -> None:
    """Give the container what a clone gets on its seed medium, where cloud-init looks for it without one."""
    home = root / "var" / "lib" / "cloud" / "seed" / "nocloud"
    home.mkdir(parents=True)
    for name, content in seed.documents(NAME, identity, admin_cidrs=[ADMIN_NETWORK]).items():
        (home / name).write_text(content)


def enter(leader: int, *words: str) -> list[str]:
    """Return the argv that runs a command inside the container whose process 1 is ``leader`` on the host."""
    return ["nsenter", "--target", str(leader), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--", *words]


def find_leader(spawned: int) -> int | None:
    """Return the host's number of the container's process 1: a child of systemd-nspawn, whose parent was ``spawned``."""
    found = spawned
    for _generation in range(2):
        try:
            numbers = Path(f"/proc/{found}/task/{found}/children").read_text().split()
        except OSError:
            return None
        if not numbers:
            return None
        found = int(numbers[-1])
    return found


def await_running(process: run.Process, console: Path) -> int:
    """Wait until every service is up; return the host's number of the container's process 1."""
    deadline = time.monotonic() + BOOT_SECONDS
    state = ""
    while time.monotonic() < deadline and process.poll() is None:
        leader = find_leader(process.pid)
        if leader:
            state = run.run(enter(leader, "systemctl", "is-system-running"), timeout=60, check=False).stdout.strip()
            if state == "running":
                return leader
            if state not in ("", "offline", "initializing", "starting"):
                failed = run.run(enter(leader, "systemctl", "--failed", "--plain"), timeout=60, check=False).stdout
                raise StepFailed(f"the container booted, but systemd says {state}", details=failed)
        time.sleep(POLL_SECONDS)
    raise StepFailed(
        f"the container did not come up within {BOOT_SECONDS} s (systemd says {state or 'nothing'})",
        details=run.tail(console.read_text(errors="replace")),
        hint="does this host allow name spaces and a writable cgroup tree?",
    )


def write_context(directory: Path, leader: int, spec: Spec) -> Path:
    """Write what the image tests need to know about a container that runs."""
    context = directory / "context.json"
    machine = {"name": NAME, "enter": enter(leader), "firmware": "", "ports": {}, "disk_mib": 0, "console": ""}
    files.write_json(
        context, {"target": "container", "spec": spec.as_inputs(), "clones": [machine], "sealed": ""}
    )
    return context
