"""The root file system boots as a container: the report of a failed boot, and the place of its console log."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from build.core import files
from build.core.errors import StepFailed
from build.machines import nspawn
from tests.fakes import Fakes
from tests.patience import PATIENCE_SECONDS


def boot_and_await(directory: Path) -> int:
    console = directory / "console.log"
    with nspawn.boot(directory / "root", console) as process:
        return nspawn.await_running(process, console)


def test_a_container_that_ends_by_itself_is_reported_at_once(fakes: Fakes, tmp_path: Path) -> None:
    fakes.command("systemd-nspawn", stdout="Failed to create /init.scope\n", status=3)
    begun = time.monotonic()
    with files.scratch(tmp_path) as scratch, pytest.raises(StepFailed) as raised:
        boot_and_await(scratch)
    assert time.monotonic() - begun < nspawn.BOOT_SECONDS / 10
    assert "ended with status 3" in raised.value.brief
    assert "within" not in raised.value.brief
    assert "Failed to create /init.scope" in raised.value.details
    kept = tmp_path / nspawn.KEPT_CONSOLE
    assert str(kept) in raised.value.hint
    assert "Failed to create /init.scope" in kept.read_text()


def test_a_container_that_does_not_come_up_is_reported_with_its_console(
    fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes.command("systemd-nspawn", sleep=300)
    monkeypatch.setattr(nspawn, "BOOT_SECONDS", 0.5)
    monkeypatch.setattr(nspawn, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(nspawn, "find_leader", lambda _spawned: None)
    with pytest.raises(StepFailed, match=r"did not come up within 0\.5 s") as raised:
        boot_and_await(tmp_path)
    assert str(tmp_path / nspawn.KEPT_CONSOLE) in raised.value.hint
    assert (tmp_path / nspawn.KEPT_CONSOLE).exists()


@pytest.mark.parametrize(("state", "returned"), [("running", True), ("degraded", False)])
def test_a_container_is_up_when_systemd_reports_it(
    fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, *, returned: bool
) -> None:
    fakes.command("systemd-nspawn", sleep=300)
    fakes.command("nsenter", stdout=f"{state}\n")
    monkeypatch.setattr(nspawn, "find_leader", lambda _spawned: 4711)
    if returned:
        assert boot_and_await(tmp_path) == 4711
    else:
        with pytest.raises(StepFailed, match="the container booted, but systemd reports degraded"):
            boot_and_await(tmp_path)


def test_no_boot_waits_for_a_network_card(fakes: Fakes, tmp_path: Path) -> None:
    fake = fakes.command("systemd-nspawn")
    with nspawn.boot(tmp_path / "root", tmp_path / "console.log", masked=["x.service"]) as process:
        process.wait(PATIENCE_SECONDS)
    (call,) = fake.calls()
    dropin = "[Unit]\\nConditionVirtualization=!container\\n"
    assert f"--set-credential=systemd.unit-dropin.systemd-networkd-wait-online.service:{dropin}" in call.argv
    assert call.argv[-2:] == ["systemd.mask=console-getty.service", "systemd.mask=x.service"]


def test_what_is_kept_lies_outside_every_scratch_directory(tmp_path: Path) -> None:
    with files.scratch(tmp_path) as outer, files.scratch(outer / "faults") as inner:
        assert files.outside_scratch(inner / "patient" / "console.log") == tmp_path
    assert files.outside_scratch(tmp_path / "console.log") == tmp_path
