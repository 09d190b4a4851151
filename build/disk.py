"""The installed disk: Packer runs the installer on an empty disk, and this stage watches, judges and compacts.

Packer reports success whenever QEMU ends. Whether the system was installed is read from the machine's two serial ports,
live: a panic, a failed step or a question ends the installation at once, with the lines that tell why. The disk that is
left behind was never booted.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from build import files, log, run
from build.accel import Accelerator, Kind
from build.artifact import IMAGE
from build.console import FIRST_STEP, STEPS, Event, Watch
from build.console import Kind as Seen
from build.errors import StepFailed
from build.packer import Job, Packer, Workspace, complaints, prepare, validate
from build.spec import Spec

LOGS = ("console.log", "syslog.log", "packer.log")
# The installer needs 300 MiB; the rest caches the medium while it is copied.
MEMORY_MIB = 2048
# With KVM an installation takes about a minute. Multiplied by the accelerator's time-out scale.
INSTALL_SECONDS = 360.0
COMPACT_SECONDS = 900.0
POLL_SECONDS = 0.5
# QEMU 7.2 under TCG panics Linux 6.12 now and then (docs/decisions); a panic on real processors is a finding.
TCG_ATTEMPTS = 2
CONVERT_THREADS = "4"


class Panicked(StepFailed):
    """The installer's kernel panicked: under TCG that is worth a second attempt."""


@dataclass
class Timings:
    """Which step the installation is at, and how many seconds each took."""

    begun: float = field(default_factory=time.monotonic)
    current: str = FIRST_STEP
    seconds: dict[str, float] = field(default_factory=dict)

    def enter(self, step: str) -> None:
        """Close the current step and begin ``step``; an empty name closes the last."""
        now = time.monotonic()
        self.seconds[self.current] = round(now - self.begun, 1)
        self.begun, self.current = now, step


def make_disk(
    *, iso: Path, spec: Spec, packer: Packer, templates: Path, accelerator: Accelerator, out: Path, expected: float = 0.0,
    logs: Path | None = None,
) -> Mapping[str, Any]:  # fmt: skip
    """Install from ``iso`` onto an empty disk; leave ``image.qcow2`` and the logs in the directory ``out``.

    ``templates`` is the directory of Packer's templates, ``expected`` the probable duration in seconds (0: unknown).
    ``logs`` is a directory that keeps the logs of a failed installation. Returns facts for the manifest: retries,
    seconds per step of the installer, seconds and bytes of the image. Raises StepFailed with the last lines that matter.
    """
    job = Job(
        medium=iso, medium_sha256=files.sha256_file(iso), accelerator=accelerator, disk_mib=spec.disk.size_mib,
        memory_mib=MEMORY_MIB, timeout=INSTALL_SECONDS * accelerator.timeout_scale, compact=False, compress=False,
    )  # fmt: skip
    attempts = TCG_ATTEMPTS if accelerator.kind is Kind.TCG else 1
    panics: list[str] = []
    while True:
        with _workspace(out, logs) as directory:
            workspace = prepare(directory, packer=packer, templates=templates, job=job)
            try:
                timings = _install(workspace, timeout=job.timeout, expected=expected)
            except Panicked as error:
                panics.append(error.brief)
                if len(panics) >= attempts:
                    raise
                log.warn(f"{error.brief}: trying once more (this happens without KVM)")
                continue
            begun = time.monotonic()
            compact(workspace.disk, out / IMAGE, log_file=directory / "convert.log")
            for name in LOGS:
                if (directory / name).is_file():
                    (directory / name).rename(out / name)
            break
    return {
        "retries": len(panics), "panics": panics, "steps": timings.seconds,
        "compaction_seconds": round(time.monotonic() - begun, 1), "image_bytes": (out / IMAGE).stat().st_size,
    }  # fmt: skip


@contextmanager
def _workspace(out: Path, logs: Path | None) -> Iterator[Path]:
    """Yield a directory for one attempt; keep the logs of one that fails, and say where they are."""
    with tempfile.TemporaryDirectory(prefix="attempt-", dir=out) as name:
        directory = Path(name)
        try:
            yield directory
        except StepFailed as error:
            kept = [directory / name for name in LOGS if (directory / name).is_file()]
            if logs is not None and kept:
                logs.mkdir(parents=True, exist_ok=True)
                for path in kept:
                    shutil.copyfile(path, logs / path.name)
                error.hint = "; ".join(part for part in (error.hint, f"the whole logs are in {logs}") if part)
            raise


def _install(workspace: Workspace, *, timeout: float, expected: float) -> Timings:
    """Run Packer to its end under watch; return the timings of a complete installation, or raise StepFailed."""
    validate(workspace)
    timings = Timings()
    watch = Watch(console=workspace.console, syslog=workspace.syslog)
    progress = log.Progress("installing", expected)
    output = workspace.directory / "packer-output.log"
    powered_off = False
    deadline = time.monotonic() + timeout
    try:
        with run.spawn(workspace.argv(), log=output, cwd=workspace.directory, env=workspace.environment()) as process:
            while True:
                # The status first: what was written before the end is then certainly seen.
                status = process.wait(POLL_SECONDS)
                for event in watch.poll():
                    powered_off |= _judge(event, timings)
                progress.update(timings.current)
                if status is not None:
                    break
                if time.monotonic() > deadline:
                    raise StepFailed(
                        f"the installation did not finish within {log.seconds(timeout)}; it was at: {timings.current}",
                        details=_last_lines(workspace),
                    )
    finally:
        progress.finish()
    _judge_end(workspace, status=status, powered_off=powered_off, timings=timings, output=output)
    timings.enter("")
    return timings


def _judge(event: Event, timings: Timings) -> bool:
    """Follow the steps; raise at the first event after which the installation cannot succeed. True: powered off."""
    match event.kind:
        case Seen.STEP:
            timings.enter(event.text)
        case Seen.POWER_OFF:
            return True
        case Seen.PANIC:
            raise Panicked(f"the installer's kernel panicked at {timings.current}: {event.text}", details=event.details)
        case Seen.FAILED | Seen.QUESTION:
            raise StepFailed(event.text, details=event.details)
    return False


def _judge_end(workspace: Workspace, *, status: int, powered_off: bool, timings: Timings, output: Path) -> None:
    if status != 0:
        raise StepFailed(
            f"{workspace.packer.name} failed with status {status}; the installer was at: {timings.current}",
            details=complaints(workspace) or run.tail(output.read_text(errors="replace")),
        )
    last = list(STEPS.values())[-1]
    if not powered_off or timings.current != last:
        raise StepFailed(
            f"the machine ended before the installation did; it was at: {timings.current}", details=_last_lines(workspace)
        )
    if not workspace.disk.is_file():
        raise StepFailed(f"{workspace.packer.name} left no disk behind", details=complaints(workspace))


def _last_lines(workspace: Workspace) -> str:
    parts = []
    for path in (workspace.syslog, workspace.console):
        if path.is_file():
            parts.append(f"{path.name}:\n{run.tail(path.read_text(errors='replace'), 10)}")
    return "\n".join(parts)


def compact(source: Path, target: Path, *, log_file: Path) -> None:
    """Rewrite a disk without its unused clusters, compressed with zstd.

    Measured on a 16 GiB disk with 410 MB in use, two processors: Packer's own way (zlib) 12.3 s and 174 MB, this way
    2.8 s and 171 MB. QEMU reads it since 5.1 (docs/interop/qcow2.txt, compression type).
    """
    tool = run.which("qemu-img", reason="compact the installed disk")
    with log.step("Compacting the disk", done="compacted"):
        run.run(
            [
                tool, "convert", "-c", "-W", "-m", CONVERT_THREADS,
                "-O", "qcow2", "-o", "compression_type=zstd", source, target,
            ],
            timeout=COMPACT_SECONDS, log=log_file, contained=True,
        )  # fmt: skip
