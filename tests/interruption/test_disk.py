"""Faults while the installer runs: each ends soon, prints the reason and the fix, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from build.core import run
from build.core.errors import GoldsmithError, StepFailed
from build.disk import installation, packer
from build.machines import acceleration
from build.machines.acceleration import Accelerator
from build.machines.disk_image import IMAGE
from tests.fakes import Fake, Fakes, guest
from tests.packers import TEMPLATES
from tests.patience import PATIENCE_SECONDS
from tests.unit.helpers import ROOT, gone, make_spec, wait_for

TCG = acceleration.tcg((7, 2), reason="a test")
KVM = acceleration.kvm((7, 2))
DATA = ROOT / "tests" / "data" / "console"

STEPS = "".join(
    f"Nov 22 05:00:0{number} main-menu[215]: INFO: Menu item '{item}' selected\n"
    for number, item in enumerate(("cdrom-detect", "partman-base", "live-installer", "finish-install"))
)
POWERED_OFF = "[  200.000000] reboot: Power down\r\n"
PANIC = "[   12.345678] Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b\r\n"
FAILED_STEP = (
    "Nov 22 05:00:01 main-menu[215]: INFO: Menu item 'partman-base' selected\n"
    "Nov 22 05:00:02 partman: mke2fs: No space left on device while writing out and closing file system\n"
    "Nov 22 05:00:03 main-menu[215]: WARNING **: Configuring 'partman-base' failed with error code 1\n"
)
QUESTION = "\r\n  1: Continue\r\n  2: Go back\r\n\r\nPrompt: '?' for help>"


def install(
    directory: Path,
    fake: Fake | packer.Packer,
    *,
    accelerator: Accelerator = KVM,
    medium: Path | None = None,
    check: Callable[[], None] = lambda: None,
) -> installation.DiskFacts:
    """Run the disk stage in ``directory``/out, as a build does."""
    iso = medium or directory / "installer.iso"
    if medium is None:
        iso.write_bytes(b"a medium that a fake Packer does not read")
    (directory / "logs").mkdir(exist_ok=True)
    return installation.make_disk(
        iso=iso,
        spec=make_spec(directory),
        packer=fake if isinstance(fake, packer.Packer) else packer.Packer(fake.path, (1, 6, 6)),
        templates=TEMPLATES,
        accelerator=accelerator,
        out=directory / "out",
        logs=directory / "logs",
        expected=0.0,
        check=check,
    )


def failure(directory: Path, fake: Fake | packer.Packer, **options: Any) -> GoldsmithError:
    """Run the disk stage to its failure and return that, after a look for what must not be there."""
    with pytest.raises(GoldsmithError) as caught:
        install(directory, fake, **options)
    assert_nothing_is_left(directory, fake)
    assert not (directory / "out" / IMAGE).exists()
    assert caught.value.brief
    return caught.value


def assert_nothing_is_left(directory: Path, fake: Fake | packer.Packer) -> None:
    assert list((directory / "out").glob(".scratch-*")) == []
    if isinstance(fake, Fake):
        # The real one may be in use by another process.
        assert gone(str(fake.path)), "Packer is still running"
    assert nothing_runs_below(directory), "something still works in the scratch directory"


def nothing_runs_below(directory: Path) -> bool:
    """Return True when no process is left whose working directory is, or was, below ``directory``."""
    return wait_for(lambda: not running_below(directory))


def running_below(directory: Path) -> list[int]:
    """Return the processes whose working directory is, or was, below ``directory``."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str((entry / "cwd").readlink()).startswith(f"{directory}/"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


# --- the way it should go ---------------------------------------------------------------------------------------------


def test_a_finished_installation_leaves_the_image_and_its_logs(fakes: Fakes, tmp_path: Path) -> None:
    fake = fakes.packer(syslog=STEPS, console=[[1.5, "installing\r\n"], [0, POWERED_OFF]])
    facts = install(tmp_path, fake)
    image = tmp_path / "out" / IMAGE
    assert image.read_bytes()[:4] == b"QFI\xfb"
    assert facts.retries == 0
    assert facts.image_bytes == image.stat().st_size
    assert "partitioning" in facts.steps
    assert (tmp_path / "logs" / "console.log").read_text().endswith("reboot: Power down\n")
    assert (tmp_path / "logs" / "syslog.log").read_text() == STEPS
    assert_nothing_is_left(tmp_path, fake)


def test_two_installations_of_one_medium_have_one_table(fakes: Fakes, tmp_path: Path) -> None:
    """libparted draws GUIDs at random; they are given again, from the medium's hash."""
    fake = fakes.packer(syslog=STEPS, console=[[0, POWERED_OFF]])
    tables = []
    for name, content in (("one", b"a medium"), ("two", b"a medium"), ("three", b"another medium")):
        (tmp_path / name).mkdir()
        medium = tmp_path / name / "installer.iso"
        medium.write_bytes(content)
        install(tmp_path / name, fake, medium=medium)
        raw = tmp_path / name / "disk.raw"
        run.run(["qemu-img", "convert", "-O", "raw", tmp_path / name / "out" / IMAGE, raw], timeout=60)
        tables.append(json.loads(run.run(["sfdisk", "--json", raw], timeout=60).stdout)["partitiontable"])
        raw.unlink()
    guids = [[table["id"], *(one["uuid"] for one in table["partitions"])] for table in tables]
    assert guids[0] == guids[1]
    assert set(guids[0]).isdisjoint(guids[2])
    assert [len(set(one)) for one in guids] == [3, 3, 3]


def test_a_disk_without_a_partition_table(fakes: Fakes, tmp_path: Path) -> None:
    error = failure(tmp_path, fakes.packer(syslog=STEPS, console=[[0, POWERED_OFF]], disk="empty"))
    assert "has no GUID partition table" in error.brief
    assert "does not contain a recognized partition table" in error.details


# --- Packer -----------------------------------------------------------------------------------------------------------


def test_packer_that_fails_is_quoted(fakes: Fakes, tmp_path: Path) -> None:
    fake = fakes.packer(ending="fail", complaint="Error launching VM: Qemu failed to start.")
    error = failure(tmp_path, fake)
    assert isinstance(error, StepFailed)
    assert error.exit_code == 1
    assert error.brief == "Packer ended with status 1 while starting the installer"
    assert "Qemu failed to start" in error.details
    assert error.hint


def test_what_goes_wrong_beside_the_installation_ends_it_at_once(fakes: Fakes, tmp_path: Path) -> None:
    """Long service tests run in a container meanwhile: their failure is not kept until the disk is done"""
    asked: list[int] = []

    def check() -> None:
        asked.append(1)
        if len(asked) > 2:
            raise StepFailed("the container did not start")

    begun = time.monotonic()
    error = failure(tmp_path, fakes.packer(ending="hang"), check=check)
    assert error.brief == "the container did not start"
    assert time.monotonic() - begun < PATIENCE_SECONDS


def test_packer_that_rejects_the_template_never_builds(fakes: Fakes, tmp_path: Path) -> None:
    fake = fakes.packer(validate="Error: Unsupported argument")
    error = failure(tmp_path, fake)
    assert "Unsupported argument" in error.details
    assert [call.argv[0] for call in fake.calls()] == ["validate"]


def test_success_without_the_installers_word_is_a_failure(fakes: Fakes, tmp_path: Path) -> None:
    """Packer ends with 0 whenever QEMU ends, killed or not."""
    error = failure(tmp_path, fakes.packer(syslog=STEPS, console=[[0, "copying\r\n"]]))
    assert error.brief == "QEMU ended before the installer was done while finishing"
    assert "copying" in error.details


def test_success_without_a_disk_is_a_failure(fakes: Fakes, tmp_path: Path) -> None:
    failure(tmp_path, fakes.packer(syslog=STEPS, console=[[0, POWERED_OFF]], disk="none"))


@pytest.mark.parametrize("deaf", [False, True], ids=["listens to TERM", "ignores TERM"])
def test_packer_that_hangs_in_silence_is_ended(
    fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, deaf: bool
) -> None:
    # On a loaded host the fake needs seconds until its first line.
    monkeypatch.setattr(installation, "SILENCE_SECONDS", 15.0)
    monkeypatch.setattr("build.core.run.TERMINATE_GRACE_SECONDS", 1.0)
    begun = time.monotonic()
    error = failure(tmp_path, fakes.packer(syslog=STEPS, console=[[0, "hello\r\n"]], ending="hang", deaf=deaf))
    assert time.monotonic() - begun < PATIENCE_SECONDS
    assert error.brief == "the installer had no output for 15.0 s while finishing"
    assert "hello" in error.details


def test_an_installer_that_talks_for_ever_is_ended(fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "INSTALL_SECONDS", 2.0)
    begun = time.monotonic()
    error = failure(tmp_path, fakes.packer(console=[[0.1, "still copying\r\n"]] * 600))
    assert time.monotonic() - begun < PATIENCE_SECONDS
    assert error.brief.startswith("the installation took more than 2.0 s")


# --- the installer ----------------------------------------------------------------------------------------------------


def test_a_panic_under_kvm_ends_the_build_at_once(fakes: Fakes, tmp_path: Path) -> None:
    fake = fakes.packer(syslog=STEPS, console=[[0.5, "booting\r\n"], [0, PANIC]], ending="hang")
    begun = time.monotonic()
    error = failure(tmp_path, fake)
    assert time.monotonic() - begun < PATIENCE_SECONDS
    assert isinstance(error, installation.InstallerPanic)
    assert "Kernel panic - not syncing: Attempted to kill init!" in error.brief
    assert "booting" in error.details
    assert [call.argv[0] for call in fake.calls()].count("build") == 1


def test_a_panic_under_emulation_is_tried_once_more_and_counted(fakes: Fakes, tmp_path: Path) -> None:
    fake = fakes.packer(
        attempts=[
            {"console": [[0, PANIC]], "ending": "hang"},
            {"syslog": STEPS, "console": [[1, "installing\r\n"], [0, POWERED_OFF]]},
        ]
    )
    assert install(tmp_path, fake, accelerator=TCG).retries == 1
    assert_nothing_is_left(tmp_path, fake)


def test_two_panics_under_emulation_end_the_build(fakes: Fakes, tmp_path: Path) -> None:
    fake = fakes.packer(console=[[0, PANIC]], ending="hang")
    error = failure(tmp_path, fake, accelerator=TCG)
    assert [call.argv[0] for call in fake.calls()].count("build") == 2
    assert "doctor" in error.hint


def test_a_step_that_fails_under_emulation_is_tried_again(
    fakes: Fakes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = fakes.packer(
        attempts=[
            {"syslog": FAILED_STEP, "console": [[0, "\r\n"]], "ending": "hang"},
            {"syslog": STEPS, "console": [[1, "installing\r\n"], [0, POWERED_OFF]]},
        ]
    )
    facts = install(tmp_path, fake, accelerator=TCG)
    assert facts.retries == 1
    assert "'partman-base' failed" in facts.panics[0]
    assert "trying again" in capsys.readouterr().err
    assert (tmp_path / "logs" / "first-attempt" / "syslog.log").read_text() == FAILED_STEP
    assert (tmp_path / "logs" / "syslog.log").read_text() == STEPS
    assert_nothing_is_left(tmp_path, fake)


def test_a_full_disk_of_the_host_is_named(fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(total=1 << 40, used=1 << 40, free=3 << 20))
    fake = fakes.packer(syslog=FAILED_STEP, console=[[0, "\r\n"]], ending="hang")
    error = failure(tmp_path, fake, accelerator=TCG)
    assert f"{tmp_path / 'out'} has 3 MiB left" in error.hint
    assert [call.argv[0] for call in fake.calls()].count("build") == 1


def test_other_failures_are_not_tried_again(fakes: Fakes, tmp_path: Path) -> None:
    fake = fakes.packer(ending="fail")
    failure(tmp_path, fake, accelerator=TCG)
    assert [call.argv[0] for call in fake.calls()].count("build") == 1


@pytest.mark.parametrize(
    "console",
    [
        pytest.param([[0.3, QUESTION]], id="whole"),
        pytest.param([[0.3, QUESTION[:-12]], [1.0, QUESTION[-12:]]], id="in two pieces"),
    ],
)
def test_a_question_ends_the_build_at_once(fakes: Fakes, tmp_path: Path, console: list[Any]) -> None:
    begun = time.monotonic()
    error = failure(tmp_path, fakes.packer(syslog=STEPS, console=console, ending="hang"))
    assert time.monotonic() - begun < PATIENCE_SECONDS
    assert error.brief == "the installer asked a question while finishing"
    assert "2: Go back" in error.details
    assert "preseed/preseed.cfg.j2" in error.hint
    assert (ROOT / "preseed" / "preseed.cfg.j2").exists()


def test_a_failed_step_ends_the_build_with_the_log_that_tells_why(fakes: Fakes, tmp_path: Path) -> None:
    begun = time.monotonic()
    error = failure(tmp_path, fakes.packer(syslog=FAILED_STEP, console=[[0, "\r\n"]], ending="hang"))
    assert time.monotonic() - begun < PATIENCE_SECONDS
    assert "partitioning" in error.brief
    assert "'partman-base' failed" in error.brief
    assert "No space left on device" in error.details


def test_a_failure_on_the_console_has_the_log_that_tells_why(fakes: Fakes, tmp_path: Path) -> None:
    reason = "Nov 22 05:00:05 live-installer: unsquashfs: write error: No space left on device\n"
    screen = (DATA / "failed-console.log").read_text()
    error = failure(tmp_path, fakes.packer(syslog=STEPS + reason, console=[[0.3, screen]], ending="hang"))
    assert error.brief == "the installer failed while finishing: Installation step failed"
    assert "unsquashfs: write error: No space left on device" in error.details


def test_the_logs_of_a_failed_installation_are_kept(fakes: Fakes, tmp_path: Path) -> None:
    error = failure(tmp_path, fakes.packer(syslog=FAILED_STEP, console=[[0, "the console\r\n"]], ending="hang"))
    assert error.hint == f"console, syslog and Packer's log are in {tmp_path / 'logs'}"
    assert (tmp_path / "logs" / "syslog.log").read_text() == FAILED_STEP
    assert (tmp_path / "logs" / "console.log").read_text() == "the console\n"


# --- the host ---------------------------------------------------------------------------------------------------------


def test_a_full_disk_while_compacting_is_told(fakes: Fakes, tmp_path: Path) -> None:
    fakes.command(
        "qemu-img",
        {"when": ["create"], "write": {"{5}": "disk"}},
        {"when": ["convert"], "status": 1, "stderr": "qemu-img: error while writing: No space left on device\n"},
    )
    error = failure(tmp_path, fakes.packer(syslog=STEPS, console=[[0, POWERED_OFF]], disk="empty"))
    assert "qemu-img failed with status 1" in error.brief
    assert "No space left on device" in error.details


DRIVER = """
import sys
from pathlib import Path
from tests.interruption.test_disk import install
from tests.fakes import Fake
install(Path(sys.argv[1]), Fake(Path(sys.argv[2])))
"""


@contextmanager
def started_build(directory: Path, fake: Fake) -> Iterator[subprocess.Popen[bytes]]:
    """Start the disk stage in a separate process and wait until its Packer has printed something."""
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, directory, fake.path],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    said = "out/.scratch-*/console.log"
    try:
        begun = wait_for(lambda: process.poll() is not None or any(path.stat().st_size for path in directory.glob(said)))
        assert begun, "the build prints nothing"
        assert process.poll() is None, process.communicate()[1].decode()
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9"])
def test_an_interrupted_build_takes_packer_with_it(fakes: Fakes, tmp_path: Path, number: signal.Signals) -> None:
    fake = fakes.packer(syslog=STEPS, console=[[0, "installing\r\n"]], ending="hang")
    with started_build(tmp_path, fake) as process:
        process.send_signal(number)
        _, said = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode != 0
    assert gone(str(fake.path))
    assert nothing_runs_below(tmp_path)
    if number == signal.SIGINT:
        assert b"KeyboardInterrupt" in said
        assert_nothing_is_left(tmp_path, fake)


def test_the_next_build_cleans_up_after_a_killed_one(fakes: Fakes, tmp_path: Path) -> None:
    fake = fakes.packer(
        attempts=[
            {"console": [[0, "installing\r\n"]], "ending": "hang"},
            {"syslog": STEPS, "console": [[1, POWERED_OFF]]},
        ]
    )
    with started_build(tmp_path, fake) as process:
        process.kill()
        process.communicate(timeout=PATIENCE_SECONDS)
    assert list((tmp_path / "out").glob(".scratch-*"))
    assert install(tmp_path, fake).retries == 0
    assert_nothing_is_left(tmp_path, fake)


# --- a real guest -----------------------------------------------------------------------------------------------------


@pytest.mark.vm
def test_a_real_guest_that_panics_is_recognised_on_its_serial_port(real_packer: packer.Packer, tmp_path: Path) -> None:
    medium = guest.medium(tmp_path, console="loading\r\n" + PANIC, power_off=False)
    begun = time.monotonic()
    error = failure(tmp_path, real_packer, accelerator=TCG, medium=medium)
    assert isinstance(error, installation.InstallerPanic)
    assert time.monotonic() - begun < PATIENCE_SECONDS
    assert re.search(r"Kernel panic - not syncing", error.brief)


@pytest.mark.vm
def test_a_real_guest_that_powers_off_with_its_word_said_has_its_disk_looked_at(
    real_packer: packer.Packer, tmp_path: Path
) -> None:
    """All the way through the real Packer and QEMU, up to the disk: on that, this guest has written nothing."""
    medium = guest.medium(tmp_path, console=POWERED_OFF, syslog=STEPS)
    error = failure(tmp_path, real_packer, accelerator=TCG, medium=medium)
    assert "the installed disk has no GUID partition table" in error.brief
