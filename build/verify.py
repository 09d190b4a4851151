"""Boots throw-away clones of the sealed disk and lets the image tests judge them: the only way to a Verdict.

Where clones are emulated, tests marked ``story`` (long dialogues with the services, such as backup and restore) are played
in a container of the same root file system instead (build/stories.py); the report says where each test ran.

The first clone's inventory is read before any test has touched it (build/stocktaking.py).

Two clones run side by side, with disks larger than the image's: one under BIOS, one under UEFI with Secure Boot. Each is
tested by a worker of its own, over SSH; both are compared with each other, and the sealed disk is read from outside.
"""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from build import files, image_tests, log, sealed, seed, stocktaking, vm
from build.accel import Accelerator
from build.errors import GoldsmithError
from build.image_tests import JUNIT, NO_STORIES, Verdict
from build.spec import Spec
from build.stories import Stories

WISHES = (vm.Wish("bios", vm.Firmware.BIOS, grow_gib=4), vm.Wish("uefi", vm.Firmware.UEFI, grow_gib=2))
TEST_SECONDS = 180
CONTEXT = "context.json"
KEPT = ("console.log", "qemu.log")


def verify(
    image: Path, *, spec: Spec, tests: Path, out: Path, scratch: Path, accelerator: Accelerator, expected_seconds: float,
    stories: Stories | None = None,
) -> Verdict:  # fmt: skip
    """Boot two clones of ``image``, run the tests, and leave JUnit, inventory, plot of the boot and consoles in ``out``.

    ``stories`` are those that a container plays meanwhile; without them the clones play theirs.
    A kernel panic under emulation is tried once more and counted. Raises VerificationFailed naming each failed test.
    """
    panics = 0
    while True:
        try:
            return _attempt(
                image, spec=spec, tests=tests, out=out, scratch=scratch / f"attempt{panics}", accelerator=accelerator,
                expected_seconds=expected_seconds, panics=panics, stories=stories,
            )  # fmt: skip
        except vm.Panic as panic:
            if panics or accelerator.kind != "tcg":
                raise
            panics += 1
            log.warn(f"{panic.brief}: known under emulation; the clones are booted once more")


def _attempt(
    image: Path, *, spec: Spec, tests: Path, out: Path, scratch: Path, accelerator: Accelerator,
    expected_seconds: float, panics: int, stories: Stories | None,
) -> Verdict:  # fmt: skip
    identity = seed.make_identity(scratch / "identity", spec.admin.user)
    begun = time.monotonic()
    with ExitStack() as stack:
        stack.enter_context(_kept_logs(scratch, out))
        with log.step(f"Reading the sealed disk and booting {len(WISHES)} clones", done="clones are ready"):
            raw = scratch / "sealed.raw"
            sealed.unfold(image, raw)
            ready = stack.enter_context(
                vm.clones(image, WISHES, directory=scratch, accelerator=accelerator, identity=identity,
                          expected_seconds=expected_seconds)
            )  # fmt: skip
        timings = {one.wish.name: one.timings for one in ready}
        context = write_context(scratch, spec=spec, clones=ready, raw=raw, target="vm")
        if stories:
            stories.check()
        with log.step(f"Taking the inventory of clone {ready[0].wish.name}"):
            stocktaking.take(
                ready[0].ssh_argv(shlex.join(["sudo", "--non-interactive", *stocktaking.PYTHON])), tests=tests, out=out,
                clone=ready[0].wish.name, target="vm", timeout=stocktaking.SECONDS * accelerator.timeout_scale,
            )  # fmt: skip
        with log.step("Testing the clones"):
            status = image_tests.run_tests(
                tests, context, out=out, timeout=TEST_SECONDS * accelerator.timeout_scale,
                select=NO_STORIES if stories else "", workers=len(ready),
            )  # fmt: skip
    if stories and status == 0:
        image_tests.join(out / JUNIT, stories.finish())
    took = round(time.monotonic() - begun, 1)
    facts = {"boot": timings, "clones": [wish.name for wish in WISHES], "panics": panics, "seconds": took}
    return image_tests.judge(out / JUNIT, status=status, facts=facts)


def write_context(
    directory: Path, *, spec: Spec, clones: tuple[vm.Clone, ...], raw: Path | None, target: str
) -> Path:
    """Write what the tests need to know as JSON: the spec, how to reach each clone, and the sealed disk."""
    path = directory / CONTEXT
    machines = [
        {
            "name": one.wish.name, "firmware": one.wish.firmware, "alias": one.alias, "ssh_config": str(one.ssh_config),
            "ports": one.ports, "disk_mib": one.disk_mib, "console": str(one.console),
        }
        for one in clones
    ]  # fmt: skip
    content = {"target": target, "spec": spec.as_inputs(), "clones": machines, "sealed": str(raw) if raw else ""}
    files.write_json(path, content)
    return path


@contextmanager
def _kept_logs(scratch: Path, out: Path) -> Iterator[None]:
    """Copy the clones' logs to ``out`` when they end, and let an error name the copies."""
    copies = {
        scratch / wish.name / name: out / "logs" / f"{wish.name}-{name}" for wish in WISHES for name in KEPT
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
