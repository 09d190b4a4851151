"""Machines for fault injection: what a reset does, that a power cut leaves no process, and where an endpoint leads."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from build.core import run
from build.core.errors import StepFailed
from build.faults.machines import OWN_MIB, Clone, Container, Target, Ward
from build.machines import acceleration, nspawn, vm
from tests.fakes import Fake, Fakes
from tests.unit.helpers import gone, kill_alone, running, running_python, wait_for
from tests.unit.machines.test_vm import KEYS, QEMU_PROGRAM, fake_ssh, sealed_image

TCG = acceleration.tcg((7, 2), reason="a test")
HOLD_CONTAINER = """
import sys
from pathlib import Path
from build.machines import nspawn as container
with container.boot(Path(sys.argv[1]), Path(sys.argv[2])) as process:
    process.wait(60)
"""


@pytest.fixture
def qemu(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Clones that are ready at once and accept the administrator's login."""
    monkeypatch.setattr(vm, "POLL_SECONDS", 0.02)
    fake_ssh(fakes, {"when": ["systemctl is-system-running --wait"], "stdout": "running\n"})
    return fakes.install(vm.QEMU, QEMU_PROGRAM, {"guests": {"patient": [{"console": [[0, KEYS]]}]}})


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The commands sent to QEMU's monitor, except the query for its ports."""
    heard: list[str] = []
    real = vm.monitor_command

    def command(monitor: Path, line: str, *, timeout: float = 30) -> str:
        if line == "info usernet":
            return real(monitor, line)
        heard.append(line)
        return "Error: no medium" if "refused" in line else ""

    monkeypatch.setattr(vm, "monitor_command", command)
    return heard


@pytest.fixture
def patient(qemu: Fake, said: list[str], tmp_path: Path) -> Iterator[Clone]:
    ward = Ward(Target.VM, sealed_image(tmp_path), tmp_path / "ward", "admin", TCG)
    made = ward.make("patient")
    assert isinstance(made, Clone)
    made.start()
    yield made
    made.stop()


def starts(qemu: Fake) -> int:
    return len([call for call in qemu.calls() if "patient" in call.argv])


def test_a_reset_goes_back_to_the_snapshot(patient: Clone, qemu: Fake, said: list[str]) -> None:
    patient.save()
    patient.reset()
    assert said == ["savevm ready", "loadvm ready"]
    assert starts(qemu) == 1


def test_a_reset_without_a_snapshot_starts_anew(patient: Clone, qemu: Fake, said: list[str]) -> None:
    (patient.made.monitor).unlink()
    patient.reset()
    assert said == ["savevm ready"]
    assert starts(qemu) == 2


def test_the_monitor_s_complaint_is_an_error(patient: Clone) -> None:
    with pytest.raises(StepFailed, match="QEMU's monitor refused 'refused': Error: no medium"):
        patient.monitor("refused")


def test_a_power_cut_leaves_nobody_and_the_disk(patient: Clone, qemu: Fake) -> None:
    disk = patient.directory / "disk.qcow2"
    before = disk.stat().st_ino
    patient.cut_power()
    assert gone(str(disk))
    patient.made.monitor.unlink()
    patient.extra = ("-S",)
    patient.start_again()
    assert disk.stat().st_ino == before
    assert qemu.calls()[-1].argv[-1] == "-S"


def test_a_starved_clone_stops_and_runs(patient: Clone) -> None:
    group = patient.made.process.pid
    seen: list[str] = []

    def state() -> str:
        return Path(f"/proc/{group}/stat").read_text().rpartition(")")[2].split()[0]

    watcher = threading.Timer(0.2, lambda: seen.append(state()))
    watcher.start()
    assert patient.starve(stopped=0.6, running=0.1, most=1, enough=lambda: False) == 1
    watcher.join()
    assert seen == ["T"]
    assert state() != "T"
    assert patient.starve(stopped=0.01, running=5, most=3, enough=lambda: True) == 1


def test_the_tests_are_told_how_to_reach_a_clone(patient: Clone) -> None:
    entry = patient.entry()
    assert (entry["name"], entry["alias"]) == ("patient", "goldsmith-patient")
    assert patient.endpoint().prefix == ()
    assert patient.endpoint().ports["https"] == 40443
    assert patient.ssh("true")[-3:] == ["none", "goldsmith-patient", "true"]


def test_a_clone_that_stays_away_is_told(patient: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vm, "BOOT_SECONDS", 0.01)
    with pytest.raises(StepFailed, match="patient did not come back"):
        patient.await_reboot("a boot id")


def test_a_ward_is_read_from_a_context(tmp_path: Path) -> None:
    context: dict[str, Any] = {
        "target": "vm", "image": "image.qcow2", "scratch": str(tmp_path), "spec": {"admin": {"user": "admin"}},
        "accelerator": {"kind": "tcg", "reason": "x", "cpus": 1, "cpu": "max", "qemu": [7, 2], "timeout_scale": 10.0},
    }  # fmt: skip
    ward = Ward.from_context(context)
    assert ward.accelerator is not None
    assert (ward.scale, ward.accelerator.kind, ward.accelerator.qemu) == (10.0, acceleration.Kind.TCG, (7, 2))
    assert Ward.from_context({**context, "target": "container", "accelerator": None}).scale == 1.0


# --- containers -------------------------------------------------------------------------------------------------------


@pytest.fixture
def mounts(fakes: Fakes) -> dict[str, Fake]:
    """Programs that only record what they are to mount."""
    return {name: fakes.command(name) for name in ("mount", "umount")}


@pytest.fixture
def box(fakes: Fakes, mounts: dict[str, Fake], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Container]:
    """A container whose systemd is a process that sleeps, on mounts that are only noted."""
    fakes.command("systemd-nspawn", sleep=300)
    tree = tmp_path / "tree"
    for name in ("var/log", "var/www"):
        (tree / name).mkdir(parents=True)
        (tmp_path / "ward" / "box" / "root" / name).mkdir(parents=True)
    monkeypatch.setattr(nspawn, "await_running", lambda process, _console: process.pid)
    made = Container("box", tmp_path / "ward" / "box", tree=tree, identity=None)  # type: ignore[arg-type]
    yield made
    made.stop()


def test_a_container_s_changes_are_mounted_and_taken_away(box: Container, mounts: dict[str, Fake]) -> None:
    box.start()
    made = [Path(call.argv[-1]) for call in mounts["mount"].calls()]
    own = [box.root / name.lstrip("/") for name in OWN_MIB]
    assert made == [box.directory / "changes", box.root, *own]
    assert not mounts["umount"].calls()
    process = box.leader
    assert Path(f"/proc/{process}").exists()
    box.stop()
    assert wait_for(lambda: not Path(f"/proc/{process}").exists())
    assert [Path(call.argv[-1]) for call in mounts["umount"].calls()] == made[::-1]


def test_a_container_is_reached_through_its_network(box: Container) -> None:
    box.leader = 4711
    assert box.endpoint().prefix == ("nsenter", "--target", "4711", "--net", "--")
    assert box.endpoint().ports == vm.GUEST_PORTS
    assert box.entry()["enter"][:3] == ["nsenter", "--target", "4711"]


def test_a_killed_container_is_gone(tmp_path: Path) -> None:
    box = Container("box", tmp_path, tree=tmp_path, identity=None)  # type: ignore[arg-type]
    with run.spawn(["sh", "-c", "setsid sleep 300 & wait"], log=tmp_path / "log") as process:
        box._process = process
        assert wait_for(lambda: nspawn.find_leader(process.pid))
        child = nspawn.find_leader(process.pid)
        box.cut_power()
        assert process.poll() == -signal.SIGKILL
        assert not Path(f"/proc/{child}").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="a container needs root")
def test_a_container_dies_when_goldsmith_is_killed(tmp_path: Path) -> None:
    token = f"token-{secrets.token_hex(8)}"
    root = tmp_path / "root"
    make_tiny_system(root, f"#!/bin/sh\nsh -c 'sleep 300; :' {token} &\nwait\n")
    with running_python(HOLD_CONTAINER, root, tmp_path / "console.log") as goldsmith:
        try:
            assert wait_for(lambda: running(token)), (tmp_path / "console.log").read_text()
            kill_alone(goldsmith, token)
        finally:
            for survivor in running(token):
                os.kill(survivor, signal.SIGKILL)


def make_tiny_system(root: Path, init: str) -> None:
    """Make a tree that systemd-nspawn boots: a shell and ``sleep`` with their libraries, and a first process."""
    for program in ("/bin/sh", "/bin/sleep"):
        libraries = re.findall(r"/\S+", run.run(["ldd", program], timeout=60).stdout)
        for path in (program, *libraries):
            target = root / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    for name, text, mode in (("usr/lib/os-release", "ID=tiny\n", 0o644), ("sbin/init", init, 0o755)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
        (root / name).chmod(mode)
