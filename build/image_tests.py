"""The image tests as a program: run against the machines of a context file, and judged by the JUnit file they leave."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from build import run
from build.errors import VerificationFailed

JUNIT = "junit.xml"
OUTPUT = "pytest.log"
# Tests that hold on clones alone, and tests that a container plays for them where clones are emulated.
STORIES, NO_STORIES, NO_VM = "story and not vm", "vm or not story", "not vm"
SHOWN_FAILURES = 12


@dataclass(frozen=True)
class Verdict:
    """What the tests said: counts, and the files that tell the rest."""

    passed: int
    failed: int
    skipped: int
    junit: Path
    facts: Mapping[str, Any]


def run_tests(tests: Path, context: Path, *, out: Path, timeout: float, select: str = "", workers: int = 1) -> int:
    """Run the image tests (of the marks ``select``); return pytest's exit status. Its output goes to ``out/pytest.log``.

    Each of several ``workers`` tests a clone of its own, and takes the next file of tests when it has done one.
    Raises VerificationFailed when pytest ended before a test, CommandFailed after ``timeout`` seconds.
    """
    # What an earlier run left in a directory that stays would be taken for this one's.
    (out / JUNIT).unlink(missing_ok=True)
    done = run.run(
        [sys.executable, "-m", "pytest", tests, "-p", "no:cacheprovider", "--context", context, "-ra", "--tb=short",
         f"--junitxml={out / JUNIT}", "--durations=10", "-o", "junit_family=xunit1",
         *(["-m", select] if select else []),
         *(["--numprocesses", str(workers), "--dist", "loadfile", "--no-loadscope-reorder"]
           if workers > 1 else [])],
        timeout=timeout, cwd=tests.parent.parent, log=out / OUTPUT, check=False,
        env={"PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    if not (out / JUNIT).is_file():
        raise VerificationFailed(
            "the image tests could not be run", details=run.tail(done.stdout + done.stderr), hint=f"see {out / OUTPUT}"
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
            hint=f"see {junit.with_name(OUTPUT)}; a clone to look at: nox -s boot -- --unverified",
        )  # fmt: skip
    return Verdict(passed, len(failed), len(skipped), junit, facts)


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
