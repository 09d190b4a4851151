"""Boots throw-away clones of the sealed disk and lets the image tests judge them: the only way to a Verdict.

Where clones are emulated, tests marked ``story`` (long dialogues with the services, such as backup and restore) are played
in a container of the same root file system instead, at the speed of the host; the report says where each test ran.

Two clones run side by side: one under BIOS with a larger disk, one under UEFI with Secure Boot. The tests reach them
over SSH, compare them with each other, and read the sealed disk from outside.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from build import container, files, log, run, sealed, seed, vm
from build.accel import Accelerator
from build.errors import GoldsmithError, VerificationFailed
from build.spec import Spec

WISHES = (vm.Wish("bios", vm.Firmware.BIOS, grow_gib=4), vm.Wish("uefi", vm.Firmware.UEFI))
TEST_SECONDS = 180
STORY_SECONDS = 1200.0
STORIES = "stories"
CONTEXT = "context.json"
JUNIT = "junit.xml"
KEPT = ("console.log", "qemu.log")
SHOWN_FAILURES = 12


@dataclass(frozen=True)
class Verdict:
    """What the tests said: counts, and the files that tell the rest."""

    passed: int
    failed: int
    skipped: int
    junit: Path
    facts: Mapping[str, Any]


def verify(
    image: Path, *, spec: Spec, tests: Path, out: Path, scratch: Path, accelerator: Accelerator, expected_seconds: float,
    rootfs: Path | None = None,
) -> Verdict:  # fmt: skip
    """Boot two clones of ``image``, run the tests, and leave JUnit and consoles in ``out``.

    ``rootfs`` is the squashfs for the container in which stories are played; without it the clones play them.
    A kernel panic under emulation is tried once more and counted. Raises VerificationFailed naming each failed test.
    """
    if rootfs:
        _play_stories(rootfs, spec=spec, tests=tests, out=out, scratch=scratch)
    panics = 0
    while True:
        try:
            return _attempt(
                image, spec=spec, tests=tests, out=out, scratch=scratch / f"attempt{panics}", accelerator=accelerator,
                expected_seconds=expected_seconds, panics=panics, played=rootfs is not None,
            )  # fmt: skip
        except vm.Panic as panic:
            if panics or accelerator.kind != "tcg":
                raise
            panics += 1
            log.warn(f"{panic.brief}: known under emulation; the clones are booted once more")


def _attempt(
    image: Path, *, spec: Spec, tests: Path, out: Path, scratch: Path, accelerator: Accelerator,
    expected_seconds: float, panics: int, played: bool,
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
        with log.step("Testing the clones"):
            select = "vm or not story" if played else ""
            status = run_tests(tests, context, out=out, timeout=TEST_SECONDS * accelerator.timeout_scale, select=select)
    if played:
        _join(out / JUNIT, out / STORIES / JUNIT)
    took = round(time.monotonic() - begun, 1)
    facts = {"boot": timings, "clones": [wish.name for wish in WISHES], "panics": panics, "seconds": took}
    return judge(out / JUNIT, status=status, facts=facts)


def _play_stories(rootfs: Path, *, spec: Spec, tests: Path, out: Path, scratch: Path) -> None:
    """Run the stories in a container, JUnit and log in ``out/stories``; raise VerificationFailed when one fails."""
    (out / STORIES).mkdir(parents=True, exist_ok=True)
    with files.scratch(scratch) as place, container.booted(rootfs, spec=spec, scratch=place) as leader:
        context = container.write_context(place, leader, spec)
        with log.step("Playing the stories in the container"):
            status = run_tests(tests, context, out=out / STORIES, timeout=STORY_SECONDS, select="story and not vm")
    judge(out / STORIES / JUNIT, status=status, facts={})


def _join(junit: Path, more: Path) -> None:
    """Put the tests of a second JUnit file into the first."""
    tree = ElementTree.parse(junit)
    tree.getroot().extend(ElementTree.parse(more).getroot())
    tree.write(junit, encoding="utf-8", xml_declaration=True)


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


def run_tests(tests: Path, context: Path, *, out: Path, timeout: float, select: str = "") -> int:
    """Run the image tests (of the marks ``select``); return pytest's exit status. Its output goes to ``out/pytest.log``."""
    done = run.run(
        [sys.executable, "-m", "pytest", tests, "-p", "no:cacheprovider", "--context", context, "-ra", "--tb=short",
         f"--junitxml={out / JUNIT}", "--durations=10", "-o", "junit_family=xunit1",
         *(["-m", select] if select else [])],
        timeout=timeout, cwd=tests.parent.parent, log=out / "pytest.log", check=False,
        env={"PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    if not (out / JUNIT).is_file():
        raise VerificationFailed(
            "the image tests could not be run", details=run.tail(done.stdout + done.stderr), hint=f"see {out / 'pytest.log'}"
        )
    return done.returncode


def judge(junit: Path, *, status: int, facts: Mapping[str, Any]) -> Verdict:
    """Read the JUnit file into a Verdict; raise VerificationFailed when anything but success stands there."""
    cases = list(ElementTree.parse(junit).getroot().iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    passed = len(cases) - len(failed) - len(skipped)
    if failed or status != 0 or not passed:
        names = [f"{case.get('classname')}::{case.get('name')}: {_message(case)}" for case in failed[:SHOWN_FAILURES]]
        raise VerificationFailed(
            f"the image failed {len(failed)} of {len(cases)} tests" if failed else f"pytest ended with status {status}",
            details="\n".join(names),
            hint=f"see {junit.with_name('pytest.log')}; a clone to look at: nox -s boot -- --unverified",
        )  # fmt: skip
    return Verdict(passed, len(failed), len(skipped), junit, facts)


def _message(case: ElementTree.Element) -> str:
    problem = case.find("failure")
    if problem is None:
        problem = case.find("error")
    return (problem.get("message") or "").splitlines()[0][:160] if problem is not None and problem.get("message") else ""


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
