"""Boots disposable clones of the pristine disk and runs the image tests against them.

Where clones are emulated, tests marked ``story`` (long dialogues with the services, such as backup and restore, and settings
at rest) are run in a container of the same root file system instead (build/verify/long_tests.py); the report lists where
each test ran.

Two clones run side by side, with disks larger than the image's: one under BIOS, one under UEFI with Secure Boot. Each is
tested by a separate worker, over SSH, as soon as it is ready: a worker whose clone is first takes more of the tests. The
inventory of one clone is read before any test has touched it (build/verify/stocktaking.py).
Both are compared with each other, and the pristine disk is read from outside.
"""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from build.core import files, log, run
from build.core.errors import GoldsmithError
from build.core.records import Record
from build.machines import boots, disk_image, nocloud, vm
from build.machines.acceleration import Accelerator, AcceleratorRecord
from build.spec.golden_yaml import Spec
from build.verify import image_tests, stocktaking
from build.verify.image_tests import JUNIT, NO_STORIES
from build.verify.long_tests import Stories

WISHES = (vm.CloneConfig("bios", vm.Firmware.BIOS, grow_gib=4), vm.CloneConfig("uefi", vm.Firmware.UEFI, grow_gib=2))
INVENTORIED = WISHES[0]
# With KVM; scaled by the accelerator. The long service tests take about five minutes of one processor.
TEST_SECONDS, LONG_TEST_SECONDS = 180, 900
CONTEXT = "context.json"
# In a clone's directory: it may be tested.
READY = "ready"
POLL_SECONDS = 0.5
KEPT = ("console.log", "qemu.log")


@dataclass(frozen=True)
class VerifyFacts(Record):
    """What the stage notes: counts of the tests, the clones, and seconds of their boot by what was reached.

    ``panics`` counts panics under emulation, after which the clones were booted again; ``seconds`` is the attempt that
    counted.
    """

    passed: int
    failed: int
    skipped: int
    clones: tuple[str, ...]
    boot: Mapping[str, Mapping[str, float]]
    panics: int
    seconds: float
    accelerator: AcceleratorRecord


def verify(
    image: Path, *, spec: Spec, tests: Path, out: Path, scratch: Path, accelerator: Accelerator, expected_seconds: float,
    stories: Stories | None = None, select: str = "",
) -> VerifyFacts:  # fmt: skip
    """Boot two clones of ``image``, run the tests, and leave JUnit, inventory, plot of the boot and consoles in ``out``.

    ``stories`` are the long service tests that a container plays meanwhile; without them the clones play all of them.
    ``select`` names marks of the tests to run instead. A kernel panic under emulation is tried once more and counted.
    Raises VerificationFailed naming each failed test, StepFailed when a clone or the tests do not come to an end.
    """
    panics = 0
    while True:
        attempt = _Attempt(image, spec=spec, tests=tests, out=out, scratch=scratch / f"attempt{panics}",
                           accelerator=accelerator, stories=stories)  # fmt: skip
        try:
            return attempt.carry_out(select or (NO_STORIES if stories else ""), expected_seconds, panics)
        except vm.Panic as panic:
            if panics or accelerator.kind != "tcg":
                raise
            panics += 1
            log.warn(f"{panic.brief}: known under emulation; the clones are booted once more")


class _Attempt:
    """Two clones, tested once."""

    def __init__(
        self, image: Path, *, spec: Spec, tests: Path, out: Path, scratch: Path, accelerator: Accelerator,
        stories: Stories | None,
    ) -> None:  # fmt: skip
        self.image, self.spec, self.tests, self.out, self.scratch = image, spec, tests, out, scratch
        self.accelerator, self.stories, self.record = accelerator.shared(len(WISHES)), stories, accelerator.record()

    def carry_out(self, select: str, expected_seconds: float, panics: int) -> VerifyFacts:
        """Boot the clones and run the tests of the marks ``select``; return what the stage notes, or raise."""
        started = time.monotonic()
        identity = nocloud.make_identity(self.scratch / "identity", self.spec.admin.user)
        with (
            _kept_logs(self.scratch, self.out),
            log.step(f"Booting {len(WISHES)} clones and testing each when it is ready"),
            boots.booting(self.image, WISHES, directory=self.scratch, accelerator=self.accelerator, identity=identity,
                       on_ready=self._release) as booting,
        ):  # fmt: skip
            raw = self.scratch / "pristine.raw"
            disk_image.unfold(self.image, raw)
            context = write_context(self.scratch, spec=self.spec, clones=booting.clones, raw=raw, target="vm")
            with image_tests.running(self.tests, context, out=self.out, select=select, workers=len(WISHES)) as process:
                status = self._follow(booting, process, expected_seconds, long=not self.stories)
        if self.stories and status == 0:
            image_tests.join(self.out / JUNIT, self.stories.finish())
        seconds = round(time.monotonic() - started, 1)
        verdict = image_tests.judge(self.out / JUNIT, status=status)
        return VerifyFacts(
            verdict.passed, verdict.failed, verdict.skipped, clones=tuple(config.name for config in WISHES),
            boot={clone.config.name: clone.timings for clone in booting.clones}, panics=panics, seconds=seconds,
            accelerator=self.record,
        )  # fmt: skip

    def _release(self, clone: vm.Clone, tell: vm.Tell) -> None:
        """Take the inventory of the clone that has one, and let the tests begin on the clone."""
        started = time.monotonic()
        if clone.config == INVENTORIED:
            tell("taking its inventory")
            stocktaking.take(
                clone.ssh_argv(shlex.join(["sudo", "--non-interactive", *stocktaking.PYTHON])), tests=self.tests,
                out=self.out, clone=clone.config.name, target="vm",
                timeout=stocktaking.SECONDS * self.accelerator.timeout_scale,
            )  # fmt: skip
            log.info(f"the inventory of clone {clone.config.name} took {log.seconds(time.monotonic() - started)}")
        (clone.directory / READY).touch()

    def _follow(self, booting: boots.Boots, process: run.Process, expected_seconds: float, *, long: bool) -> int:
        """Wait until the tests have ended, and return their status; raise at once when anything else fails or ends."""
        patience = (LONG_TEST_SECONDS if long else TEST_SECONDS) * self.accelerator.timeout_scale
        progress = log.Progress("verifying", expected_seconds)
        deadline = 0.0
        try:
            while (status := process.wait(POLL_SECONDS)) is None:
                # Tests that have not begun wait for their clone: their time begins when the last one is ready.
                if booting.all_ready(0.0):
                    deadline = deadline or time.monotonic() + patience
                    image_tests.check_time(deadline, patience, self.out)
                for clone in booting.clones:
                    clone.check_running("it was tested" if deadline else "it was booting or tested")
                if self.stories:
                    self.stories.check()
                progress.update(booting.state)
        finally:
            progress.finish()
        return image_tests.ended(status, self.out)


def write_context(directory: Path, *, spec: Spec, clones: tuple[vm.Clone, ...], raw: Path | None, target: str) -> Path:
    """Write what the tests need to know as JSON: the spec, how to reach each clone, and the pristine disk."""
    path = directory / CONTEXT
    machines = [
        {
            "name": clone.config.name, "firmware": clone.config.firmware, "alias": clone.alias,
            "ssh_config": str(clone.ssh_config), "ports": clone.ports, "disk_mib": clone.disk_mib,
            "console": str(clone.console), "ready": str(clone.directory / READY),
        }
        for clone in clones
    ]  # fmt: skip
    content = {"target": target, "spec": spec.as_inputs(), "clones": machines, "sealed": str(raw) if raw else ""}
    files.write_json(path, content)
    return path


@contextmanager
def _kept_logs(scratch: Path, out: Path) -> Iterator[None]:
    """Copy the clones' logs to ``out`` when they end, and let an error name the copies."""
    copies = {
        scratch / config.name / name: out / "logs" / f"{config.name}-{name}" for config in WISHES for name in KEPT
    }  # fmt: skip
    try:
        yield
    except GoldsmithError as error:
        for source, target in copies.items():
            error.hint = error.hint.replace(str(source), str(target))
        raise
    finally:
        for source, target in copies.items():
            if source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
