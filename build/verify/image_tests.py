"""The image tests as a program: run against the machines of a context file, and evaluated by their JUnit file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from build.core import run
from build.core.errors import TimedOut, VerificationFailed

JUNIT = "junit.xml"
OUTPUT = "pytest.log"
# Marks: the long service tests; what clones are tested with where a container plays those; what holds in a container.
STORIES, NO_STORIES, NO_VM = "story and not vm", "vm or not story or everywhere", "not vm"
# Plugins of pytest that are installed beside it change no verification, and cost no time: those that are needed are named.
ENVIRONMENT = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
PARALLEL = ("-p", "xdist.plugin", "--dist", "loadfile", "--no-loadscope-reorder", "--numprocesses")
POLL_SECONDS = 0.5
SHOWN_FAILURES = 12


@dataclass(frozen=True)
class Verdict:
    """The result of the tests: counts, and the files with the rest."""

    passed: int
    failed: int
    skipped: int
    junit: Path


def run_tests(
    tests: Path, context: Path, *, out: Path, timeout: float, select: str = "", workers: int = 1, only: Sequence[str] = ()
) -> int:  # fmt: skip
    """Run the image tests (of the marks ``select``); return pytest's exit status. Its output goes to ``out/pytest.log``.

    ``only`` names files or tests of them as pytest does, relative to the checkout, instead of all in ``tests``.

    Raises VerificationFailed when pytest ended before a test, TimedOut after ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    with running(tests, context, out=out, select=select, workers=workers, only=only) as process:
        while (status := process.wait(POLL_SECONDS)) is None:
            check_time(deadline, timeout, out)
    return ended(status, out)


@contextmanager
def running(
    tests: Path, context: Path, *, out: Path, select: str = "", workers: int = 1, only: Sequence[str] = ()
) -> Iterator[run.Process]:  # fmt: skip
    """Start the image tests and yield their process; on leaving the block they are ended.

    Each of several ``workers`` tests one clone, and takes the next file of tests when it has done one. It begins
    when its clone may be touched.
    """
    # What an earlier run left in a directory that stays would be taken for this one's.
    for name in (JUNIT, OUTPUT):
        (out / name).unlink(missing_ok=True)
    chosen: Sequence[str | Path] = only or [tests]
    argv: list[str | Path] = [
        sys.executable, "-m", "pytest", *chosen, "-p", "no:cacheprovider", "--context", context,
        "-ra", "--tb=short", f"--junitxml={out / JUNIT}", "--durations=40", "-o", "junit_family=xunit1",
        *(["-m", select] if select else []),
        *([*PARALLEL, str(workers)] if workers > 1 else []),
    ]  # fmt: skip
    with run.spawn(argv, log=out / OUTPUT, cwd=tests.parent.parent, env=ENVIRONMENT, contained=False) as process:
        yield process


def check_time(deadline: float, seconds: float, out: Path) -> None:
    """Raise TimedOut with the tests' last lines when the time is up; ``deadline`` is one of ``time.monotonic``."""
    if time.monotonic() > deadline:
        text = (out / OUTPUT).read_text(encoding="utf-8", errors="replace")
        raise TimedOut(
            f"the image tests did not end within {seconds:.0f} s", returncode=-1, details=run.tail(text),
            hint=f"see {out / OUTPUT}",
        )  # fmt: skip


def ended(status: int, out: Path) -> int:
    """Return the exit status of tests that have ended; raise VerificationFailed when they ended before a test."""
    if not (out / JUNIT).is_file():
        text = (out / OUTPUT).read_text(encoding="utf-8", errors="replace")
        raise VerificationFailed(
            f"the image tests could not be run: {run.ending('pytest', status)}", details=run.tail(text),
            hint=f"see {out / OUTPUT}",
        )  # fmt: skip
    return status


def judge(junit: Path, *, status: int) -> Verdict:
    """Read the JUnit file and return its counts; raise VerificationFailed unless all of it succeeded."""
    cases = list(ElementTree.parse(junit).getroot().iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    passed = len(cases) - len(failed) - len(skipped)
    if failed or status != 0 or not passed:
        names = [f"{case.get('classname')}::{case.get('name')}: {_message(case)}" for case in failed[:SHOWN_FAILURES]]
        raise VerificationFailed(
            f"the image failed {len(failed)} of {len(cases)} tests" if failed else f"pytest ended with status {status}",
            details="\n".join(names),
            hint=f"see {junit.with_name(OUTPUT)}; a clone to look at: nox -s boot -- --unverified",
        )  # fmt: skip
    return Verdict(passed, len(failed), len(skipped), junit)


def _message(case: ElementTree.Element) -> str:
    problem = case.find("failure")
    if problem is None:
        problem = case.find("error")
    return (problem.get("message") or "").splitlines()[0][:160] if problem is not None and problem.get("message") else ""


def join(junit: Path, more: Path) -> None:
    """Put the tests of a second JUnit file into the first."""
    tree = ElementTree.parse(junit)
    tree.getroot().extend(ElementTree.parse(more).getroot())
    tree.write(junit, encoding="utf-8", xml_declaration=True)
