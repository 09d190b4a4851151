"""The installed disk: Packer runs the installer on an empty disk, and this stage watches, judges and compacts.

Packer reports success whenever QEMU ends. Whether the system was installed is read from the machine's two serial ports,
live: a panic, a failed step or a question ends the installation at once, with the lines that tell why. The disk that is
left behind was never booted.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from build import files, identities, log, run
from build.accel import Accelerator, Kind
from build.artifact import IMAGE
from build.console import FIRST_STEP, LAST_STEP, Event, Watch
from build.console import Kind as Seen
from build.errors import StepFailed
from build.packer import Job, Packer, Workspace, complaints, prepare, validate
from build.spec import Spec

LOGS = ("console.log", "syslog.log", "packer.log")
# The installer needs 300 MiB; the rest caches the medium while it is copied.
MEMORY_MIB = 2048
# With KVM an installation takes about a minute. Both are multiplied by the accelerator's time-out scale.
INSTALL_SECONDS = 360.0
# The longest silence of a good installation is the copying of the root file system.
SILENCE_SECONDS = 90.0
COMPACT_SECONDS = 900.0
POLL_SECONDS = 0.25
# QEMU 7.2 under TCG panics Linux 6.12 now and then (docs/decisions); a panic on real processors is a finding.
TCG_ATTEMPTS = 2
CONVERT_THREADS = "4"
ANSWERS = "preseed/preseed.cfg.j2"


class InstallerPanic(StepFailed):
    """The installer's kernel panicked: under TCG that is worth a second attempt."""


@dataclass
class Timings:
    """Which step the installation is at, and how many seconds each took."""

    begun: float = field(default_factory=time.monotonic)
    current: str = FIRST_STEP
    seconds: dict[str, float] = field(default_factory=dict)

    def enter(self, step: str) -> None:
        """Close the current step and begin ``step``; an empty name only closes."""
        now = time.monotonic()
        self.seconds[self.current] = round(self.seconds.get(self.current, 0.0) + now - self.begun, 1)
        self.begun, self.current = now, step


def make_disk(
    *, iso: Path, spec: Spec, packer: Packer, templates: Path, accelerator: Accelerator, out: Path, logs: Path,
    expected: float = 0.0, network: bool = False, strict: bool = True,
) -> Mapping[str, Any]:  # fmt: skip
    """Install from ``iso`` onto an empty disk and leave ``image.qcow2`` in the directory ``out``.

    ``templates`` is the directory of Packer's templates; ``logs`` takes the logs, of a failed installation too;
    ``expected`` is the probable duration in seconds (0: unknown); ``network`` lets the installer reach it;
    ``strict``: no script of the installer may fail, also where the installer would go on. Returns facts
    for the manifest: retries, seconds per step of the installer, bytes of the image. Raises StepFailed with the last
    lines that matter, and after a panic InstallerPanic.
    """
    job = Job(
        medium=iso, medium_sha256=files.sha256_file(iso), accelerator=accelerator, disk_mib=spec.disk.size_mib,
        memory_mib=MEMORY_MIB, timeout=INSTALL_SECONDS * accelerator.timeout_scale, compact=False, compress=False,
        network=network,
    )  # fmt: skip
    attempts = TCG_ATTEMPTS if accelerator.kind is Kind.TCG else 1
    panics: list[str] = []
    out.mkdir(parents=True, exist_ok=True)
    while True:
        with files.scratch(out) as directory, _kept_logs(directory, logs):
            workspace = prepare(directory, packer=packer, templates=templates, job=job)
            try:
                timings = _install(workspace, job=job, expected=expected, strict=strict)
            except InstallerPanic as error:
                panics.append(error.brief)
                if len(panics) >= attempts:
                    raise
                log.warn(f"{error.brief}: trying once more (without KVM this happens)")
                continue
            compact(workspace.disk, out / IMAGE, seed=job.medium_sha256, log_file=directory / "convert.log")
            timings.enter("")
            break
    return {
        "retries": len(panics), "panics": panics, "steps": timings.seconds, "image_bytes": (out / IMAGE).stat().st_size,
    }  # fmt: skip


@contextmanager
def _kept_logs(directory: Path, logs: Path) -> Iterator[None]:
    """Keep the logs of an attempt, however it ends, and say where they are when it fails."""
    try:
        yield
    except StepFailed as error:
        where = f"console, syslog and Packer's log are in {logs}"
        error.hint = f"{error.hint}; {where}" if error.hint else where
        raise
    finally:
        logs.mkdir(parents=True, exist_ok=True)
        for path in (directory / name for name in LOGS):
            if path.is_file():
                shutil.copyfile(path, logs / path.name)


def _install(workspace: Workspace, *, job: Job, expected: float, strict: bool) -> Timings:
    """Run Packer to its end under watch; return the timings of a complete installation, or raise StepFailed."""
    validate(workspace)
    timings = Timings()
    watch = Watch(console=workspace.console, syslog=workspace.syslog, strict=strict)
    patience = _Patience(watch, total=job.timeout, silence=SILENCE_SECONDS * job.accelerator.timeout_scale)
    progress = log.Progress("installing", expected)
    output = workspace.directory / "packer-output.log"
    powered_off = False
    status: int | None = None
    try:
        with run.spawn(workspace.argv(), log=output, cwd=workspace.directory, env=workspace.environment()) as process:
            while status is None:
                # The status first: what was written before the end is then certainly seen.
                status = process.wait(POLL_SECONDS)
                for event in watch.poll():
                    powered_off |= _judge(event, timings)
                progress.update(timings.current)
                if status is None and (reason := patience.exhausted()):
                    raise StepFailed(f"{reason} while {timings.current}", details=_last_lines(workspace))
    finally:
        progress.finish()
    _judge_end(workspace, status=status, powered_off=powered_off, timings=timings, output=output)
    timings.enter("compacting")
    return timings


class _Patience:
    """How long an installation may take, and how long it may say nothing, in seconds."""

    def __init__(self, watch: Watch, *, total: float, silence: float) -> None:
        self._watch, self._total, self._silence = watch, total, silence
        self._begun = self._heard_at = time.monotonic()
        self._heard = 0

    def exhausted(self) -> str:
        """Return why the patience is at its end, or an empty string."""
        now = time.monotonic()
        if self._watch.heard != self._heard:
            self._heard, self._heard_at = self._watch.heard, now
        if now - self._begun > self._total:
            return f"the installation took more than {log.seconds(self._total)}"
        if now - self._heard_at > self._silence:
            return f"the installer said nothing for {log.seconds(self._silence)}"
        return ""


def _judge(event: Event, timings: Timings) -> bool:
    """Follow the steps; raise at the first event after which the installation cannot succeed. True: powered off."""
    match event.kind:
        case Seen.STEP:
            timings.enter(event.text)
        case Seen.POWER_OFF:
            return True
        case Seen.PANIC:
            raise InstallerPanic(
                f"the installer's kernel panicked while {timings.current}: {event.text}",
                details=event.details,
                hint="is this host's QEMU one that panics? python -m build doctor",
            )
        case Seen.QUESTION:
            raise StepFailed(
                f"the installer asks a question while {timings.current}",
                details=event.details,
                hint=f"answer it in {ANSWERS}",
            )
        case Seen.FAILED:
            raise StepFailed(f"the installer failed while {timings.current}: {event.text}", details=event.details)
    return False


def _judge_end(workspace: Workspace, *, status: int, powered_off: bool, timings: Timings, output: Path) -> None:
    """Raise unless Packer and the installer agree that the installation is complete."""
    if status != 0:
        raise StepFailed(
            f"Packer ended with status {status} while {timings.current}",
            details=complaints(workspace) or run.tail(output.read_text(errors="replace")),
        )
    if not powered_off or timings.current != LAST_STEP:
        raise StepFailed(
            f"the machine ended before the installer was done while {timings.current}", details=_last_lines(workspace)
        )
    if not workspace.disk.is_file():
        raise StepFailed("Packer says that it succeeded, and left no disk behind", details=complaints(workspace))


def _last_lines(workspace: Workspace) -> str:
    parts = []
    for path in (workspace.syslog, workspace.console):
        if path.is_file():
            parts.append(f"{path.name}:\n{run.tail(path.read_text(errors='replace'), 10)}")
    return "\n".join(parts)


def compact(source: Path, target: Path, *, seed: str, log_file: Path) -> None:
    """Rewrite a disk without its unused clusters, compressed with zstd, and with a partition table derived from ``seed``.

    Measured on a 16 GiB disk with 410 MB in use, two processors: Packer's own way (zlib) 12.3 s and 174 MB, this way
    2.8 s and 171 MB. QEMU reads it since 5.1 (docs/interop/qcow2.txt, compression type). On its way it is a sparse raw
    file, because sfdisk knows no other.
    """
    raw = source.with_suffix(".raw")
    with log.step("Compacting the disk", done="compacted"):
        _convert(["-O", "raw"], source, raw, log_file=log_file)
        identities.seal_table(raw, seed, log=log_file)
        _convert(["-f", "raw", "-c", "-O", "qcow2", "-o", "compression_type=zstd"], raw, target, log_file=log_file)
        raw.unlink()


def _convert(words: list[str], source: Path, target: Path, *, log_file: Path) -> None:
    tool = run.which("qemu-img", reason="compact the installed disk")
    run.run(
        [tool, "convert", "-W", "-m", CONVERT_THREADS, *words, source, target],
        timeout=COMPACT_SECONDS, log=log_file, contained=True,
    )  # fmt: skip
