"""Runs the image tests in a container of the root file system: minutes, on the processor of the host.

Real systemd, sandboxes and services; no AppArmor, audit, kernel settings, boot loader or partitions. Needs root.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from build.core import files, log, run
from build.core.errors import HostError
from build.machines import nspawn
from build.spec.golden_yaml import Spec
from build.verify import image_tests, stocktaking

TEST_SECONDS = 1200


def run_container(
    squashfs: Path, *, spec: Spec, tests: Path, workdir: Path, select: str, shell: bool = False,
    inventory: Path | None = None, only: Sequence[str] = (),
) -> int:  # fmt: skip
    """Boot the root file system; run tests of the marks ``select``, or hand the terminal to a shell in it.

    ``only`` names the files or tests that are run, as pytest does.

    With ``inventory`` its inventory is written into that directory instead.

    Returns the exit status; log and JUnit stay in ``workdir``. Raises HostError without root, StepFailed when it does not
    come up, VerificationFailed when a test fails.
    """
    if not run.is_root():
        raise HostError("a container that boots systemd needs root", hint="run it as root, or test on clones: nox -s build")
    with files.scratch(workdir) as scratch, nspawn.booted(squashfs, spec=spec, scratch=scratch) as leader:
        if shell:
            return run.attach(nspawn.enter(leader, "/bin/bash", "--login"))
        if inventory:
            with log.step("Taking the inventory of the container"):
                stocktaking.take(nspawn.enter(leader, *stocktaking.PYTHON), tests=tests, out=inventory, clone=nspawn.NAME,
                                 target="container", timeout=stocktaking.SECONDS)  # fmt: skip
            return 0
        context = write_context(scratch, leader, spec)
        with log.step("Testing the container"):
            status = image_tests.run_tests(tests, context, out=workdir, timeout=TEST_SECONDS, select=select, only=only)
        verdict = image_tests.judge(workdir / image_tests.JUNIT, status=status)
        log.info(f"{verdict.passed} tests passed, {verdict.skipped} skipped; see {workdir / image_tests.OUTPUT}")
        return 0


def write_context(directory: Path, leader: int, spec: Spec) -> Path:
    """Write what the image tests need to know about a container that runs."""
    context = directory / "context.json"
    machine = {"name": nspawn.NAME, "enter": nspawn.enter(leader), "firmware": "", "ports": {}, "disk_mib": 0, "console": ""}
    files.write_json(context, {"target": "container", "spec": spec.as_inputs(), "clones": [machine], "sealed": ""})
    return context
