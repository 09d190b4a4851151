"""The installed disk: Packer runs the installer on an empty disk; this stage monitors it and compacts the disk.

Packer reports success whenever QEMU ends. The result of the installation is read from the VM's two serial ports: a panic,
a failed step or a question ends the installation at once, with the lines that show the reason. The resulting disk was
never booted.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from build.core import files, log, run
from build.core.errors import StepFailed
from build.core.records import Record
from build.disk.console import FIRST_STEP, LAST_STEP, Event, Watch
from build.disk.console import Kind as Seen
from build.disk.packer import Job, Packer, Workspace, complaints, prepare, validate
from build.machines.acceleration import Accelerator, AcceleratorRecord, Kind
from build.machines.disk_image import IMAGE
from build.media import disk_ids
from build.spec.golden_yaml import Spec

LOGS = ("console.log", "syslog.log", "packer.log")
# The installer needs 300 MiB; the rest caches the installer ISO while it is copied.
MEMORY_MIB = 2048
# With KVM an installation takes about a minute. Both are multiplied by the accelerator's timeout scale.
INSTALL_SECONDS = 360.0
# The longest silence of a good installation is the copying of the root file system.
SILENCE_SECONDS = 90.0
COMPACT_SECONDS = 900.0
POLL_SECONDS = 0.25
# The installer writes the reason of a failure to its system log, which arrives on another port than the console.
REASON_SECONDS = 2.0
REASON_LINES, LAST_LINES = 30, 10
# QEMU under TCG sometimes panics Linux 6.12, or fails a program of the guest (docs/decisions); on real CPUs that is a bug.
TCG_ATTEMPTS = 2
# The logs of an attempt after which there was another one.
FIRST_ATTEMPT = "first-attempt"
# QEMU reports a full disk of the host to the guest as a write error, which the installer shows as a failed step.
FULL_BYTES = 256 << 20
CONVERT_THREADS = "4"
ANSWERS = "preseed/preseed.cfg.j2"


Check = Callable[[], None]


def _check_nothing() -> None:
    """Do nothing: no other task runs in parallel."""


class InstallerFailed(StepFailed):
    """A step of the installer failed: under TCG there is a second attempt."""


class InstallerPanic(InstallerFailed):
    """The installer's kernel panicked."""


@dataclass
class Timings:
    """The current step of the installation, and the seconds of each step."""

    step_started: float = field(default_factory=time.monotonic)
    current: str = FIRST_STEP
    seconds: dict[str, float] = field(default_factory=dict)

    def enter(self, step: str) -> None:
        """End the current step and start ``step``; an empty name only ends it."""
        now = time.monotonic()
        self.seconds[self.current] = round(self.seconds.get(self.current, 0.0) + now - self.step_started, 1)
        self.step_started, self.current = now, step


@dataclass(frozen=True)
class DiskFacts(Record):
    """What the stage notes: failures and the retries after them, seconds of each step of the installer, bytes of the image.

    ``panics`` has the failures of both kinds, panics and failed steps.
    """

    retries: int
    panics: tuple[str, ...]
    steps: Mapping[str, float]
    image_bytes: int
    packer: str
    accelerator: AcceleratorRecord


def make_disk(
    *, iso: Path, spec: Spec, packer: Packer, templates: Path, accelerator: Accelerator, out: Path, logs: Path,
    expected: float = 0.0, network: bool = False, strict: bool = True, check: Check = _check_nothing,
) -> DiskFacts:  # fmt: skip
    """Install from ``iso`` to an empty disk and write ``image.qcow2`` to the directory ``out``.

    ``templates`` is the directory of Packer's templates; ``logs`` takes the logs, of a failed installation too;
    ``expected`` is the probable duration in seconds (0: unknown); ``network`` lets the installer reach it; ``strict``:
    no script of the installer may fail, also where the installer would go on; ``check`` is called again and again, and
    ends the installation by what it raises. Raises StepFailed with the last lines that matter; after a failed step or a
    panic InstallerFailed.
    """
    job = Job(
        medium=iso, medium_sha256=files.sha256_file(iso), accelerator=accelerator, disk_mib=spec.disk.size_mib,
        memory_mib=MEMORY_MIB, timeout=INSTALL_SECONDS * accelerator.timeout_scale, compact=False, compress=False,
        network=network,
    )  # fmt: skip
    attempts = TCG_ATTEMPTS if accelerator.kind is Kind.TCG else 1
    failures: list[str] = []
    out.mkdir(parents=True, exist_ok=True)
    while True:
        with files.scratch(out) as directory, _kept_logs(directory, logs):
            workspace = prepare(directory, packer=packer, templates=templates, job=job)
            try:
                timings = _install(workspace, job=job, expected=expected, strict=strict, check=check)
            except InstallerFailed as error:
                failures.append(error.brief)
                free = shutil.disk_usage(out).free
                if free < FULL_BYTES:
                    error.hint = f"{out} has {free >> 20} MiB left for the disk: free some space, and run again"
                if len(failures) >= attempts or free < FULL_BYTES:
                    raise
                log.warn(f"{error.brief}: trying again (this can happen without KVM); the logs: {logs / FIRST_ATTEMPT}")
                _keep_logs(directory, logs / FIRST_ATTEMPT)
                continue
            compact(workspace.disk, out / IMAGE, seed=job.medium_sha256, log_file=directory / "convert.log")
            timings.enter("")
            break
    return DiskFacts(
        len(failures), tuple(failures), timings.seconds, (out / IMAGE).stat().st_size, packer.name, accelerator.record()
    )


@contextmanager
def _kept_logs(directory: Path, logs: Path) -> Iterator[None]:
    """Keep the logs of an attempt, and name their directory in the error if it fails."""
    try:
        yield
    except StepFailed as error:
        where = f"console, syslog and Packer's log are in {logs}"
        error.hint = f"{error.hint}; {where}" if error.hint else where
        raise
    finally:
        _keep_logs(directory, logs)


def _keep_logs(directory: Path, logs: Path) -> None:
    logs.mkdir(parents=True, exist_ok=True)
    for path in (directory / name for name in LOGS):
        if path.is_file():
            shutil.copyfile(path, logs / path.name)


def _install(workspace: Workspace, *, job: Job, expected: float, strict: bool, check: Check) -> Timings:
    """Run and monitor Packer; return the timings of a complete installation, or raise StepFailed."""
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
                # The status first: all output before the end is then read.
                status = process.wait(POLL_SECONDS)
                for event in watch.poll():
                    with _reason_of_failure(workspace.syslog):
                        powered_off |= _judge(event, timings)
                progress.update(timings.current)
                check()
                if status is None and (reason := patience.exhausted()):
                    raise StepFailed(f"{reason} while {timings.current}", details=_last_lines(workspace))
    finally:
        progress.finish()
    _judge_end(workspace, status=status, powered_off=powered_off, timings=timings, output=output)
    timings.enter("compacting")
    return timings


@contextmanager
def _reason_of_failure(syslog: Path) -> Iterator[None]:
    """Add the last lines of the installer's system log to a failure: the console shows only that a step failed."""
    try:
        yield
    except StepFailed as error:
        time.sleep(REASON_SECONDS)
        error.details = "\n".join([error.details, *_tails(syslog, lines=REASON_LINES)])
        raise


class _Patience:
    """Timeouts in seconds: for the whole installation and for silence on the console."""

    def __init__(self, watch: Watch, *, total: float, silence: float) -> None:
        self._watch, self._total, self._silence = watch, total, silence
        self._begun = self._heard_at = time.monotonic()
        self._heard = 0

    def exhausted(self) -> str:
        """Return which timeout expired, or an empty string."""
        now = time.monotonic()
        if self._watch.heard != self._heard:
            self._heard, self._heard_at = self._watch.heard, now
        if now - self._begun > self._total:
            return f"the installation took more than {log.seconds(self._total)}"
        if now - self._heard_at > self._silence:
            return f"the installer had no output for {log.seconds(self._silence)}"
        return ""


def _judge(event: Event, timings: Timings) -> bool:
    """Record the steps; raise at the first event after which the installation cannot succeed. Return True at power-off."""
    match event.kind:
        case Seen.STEP:
            timings.enter(event.text)
        case Seen.POWER_OFF:
            return True
        case Seen.PANIC:
            raise InstallerPanic(
                f"the installer's kernel panicked while {timings.current}: {event.text}",
                details=event.details,
                hint="check whether this QEMU version is known to panic: nox -s doctor",
            )
        case Seen.QUESTION:
            raise StepFailed(
                f"the installer asked a question while {timings.current}",
                details=event.details,
                hint=f"answer it in {ANSWERS}",
            )
        case Seen.FAILED:
            raise InstallerFailed(f"the installer failed while {timings.current}: {event.text}", details=event.details)
    return False


def _judge_end(workspace: Workspace, *, status: int, powered_off: bool, timings: Timings, output: Path) -> None:
    """Raise StepFailed unless both Packer and the installer completed the installation."""
    if status != 0:
        raise StepFailed(
            f"{run.ending('Packer', status)} while {timings.current}",
            details="\n".join(
                part for part in (
                    complaints(workspace) or run.tail(output.read_text(errors="replace")), _last_lines(workspace)
                ) if part
            ),
        )  # fmt: skip
    if not powered_off or timings.current != LAST_STEP:
        # Packer reports success for any end of QEMU.
        raise StepFailed(
            f"QEMU ended before the installer was done while {timings.current}",
            details="\n".join(part for part in (complaints(workspace), _last_lines(workspace)) if part),
        )
    if not workspace.disk.is_file():
        raise StepFailed("Packer reported success, but there is no disk", details=complaints(workspace))


def _last_lines(workspace: Workspace) -> str:
    return "\n".join(_tails(workspace.syslog, workspace.console, lines=LAST_LINES))


def _tails(*paths: Path, lines: int) -> list[str]:
    """Return the last ``lines`` of each log that is there, below its name."""
    return [f"{path.name}:\n{run.tail(path.read_text(errors='replace'), lines)}" for path in paths if path.is_file()]


def compact(source: Path, target: Path, *, seed: str, log_file: Path) -> None:
    """Rewrite a disk without unused clusters, compressed with zstd; derive its partition table from ``seed``.

    Measured on a 16 GiB disk with 410 MB in use, two CPUs: Packer's compaction (zlib) 12.3 s and 174 MB, this one 2.8 s
    and 171 MB. QEMU reads it since 5.1 (docs/interop/qcow2.txt, compression type). The intermediate file is a sparse
    raw file, because sfdisk supports no other format.
    """
    raw = source.with_suffix(".raw")
    with log.step("Compacting the disk", done="compacted"):
        _convert(["-O", "raw"], source, raw, log_file=log_file)
        disk_ids.seal_table(raw, seed, log=log_file)
        _convert(["-f", "raw", "-c", "-O", "qcow2", "-o", "compression_type=zstd"], raw, target, log_file=log_file)
        raw.unlink()


def _convert(arguments: list[str], source: Path, target: Path, *, log_file: Path) -> None:
    tool = run.which("qemu-img", reason="compact the installed disk")
    run.run(
        [tool, "convert", "-W", "-m", CONVERT_THREADS, *arguments, source, target],
        timeout=COMPACT_SECONDS, log=log_file, contained=True,
    )  # fmt: skip
