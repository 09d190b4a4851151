"""Long service tests, run in a container while other stages run.

An emulated clone would need an hour for them. A separate process runs them, so that the build can end it at any time;
installing the disk keeps one processor busy, and the container has the others.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from build.core import log, run
from build.core.errors import StepFailed
from build.verify import image_tests
from build.verify.image_tests import JUNIT

LOG = "stories.log"
# The container itself gives up earlier.
SECONDS = 1800.0


class Stories:
    """Stories that are being played; what they wrote is in ``out``."""

    def __init__(self, process: run.Process, out: Path) -> None:
        self._process = process
        self._deadline = time.monotonic() + SECONDS
        self.out = out

    def check(self) -> None:
        """Raise VerificationFailed naming the stories that failed, StepFailed when they could not be played."""
        status = self._process.poll()
        if not status:
            return
        junit = self.out / JUNIT
        if junit.is_file():
            image_tests.judge(junit, status=status)
        text = (self.out / LOG).read_text(encoding="utf-8", errors="replace")
        raise StepFailed(
            f"the container of the long service tests could not be used: {run.ending('it', status)}",
            details=run.tail(text), hint=f"see {self.out / LOG}",
        )  # fmt: skip

    def finish(self) -> Path:
        """Wait for the end, and return the JUnit file; raise as :meth:`check` does, and StepFailed after a time."""
        with log.step("Waiting for the end of the stories"):
            status = self._process.wait(max(0.0, self._deadline - time.monotonic()))
        if status is None:
            raise StepFailed(f"the stories did not end within {SECONDS:.0f} s", hint=f"see {self.out / LOG}")
        self.check()
        return self.out / JUNIT


@contextmanager
def playing(squashfs: Path, *, project: Path, spec: Path, cache: Path, out: Path) -> Iterator[Stories]:
    """Play the stories of the checkout ``project`` in a container of ``squashfs``, the root file system of ``spec``.

    On leaving the block they are ended.
    """
    argv: list[str | Path] = [
        sys.executable, "-m", "build", "container", "--no-install", "--project", project, "--spec", spec,
        "--cache", cache, "--squashfs", squashfs, "--stories", out,
    ]  # fmt: skip
    log.info(f"A container plays the stories meanwhile; its log: {out / LOG}")
    with run.spawn(argv, log=out / LOG, cwd=project) as process:
        yield Stories(process, out)
