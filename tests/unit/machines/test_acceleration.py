"""The accelerator is detected by running a guest, and the reason is reported if KVM is refused."""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from build.core.errors import HostError
from build.machines import acceleration
from build.machines.acceleration import Kind
from tests.fakes import Fake, Fakes
from tests.patience import PATIENCE_SECONDS

VERSION = "QEMU emulator version {} (Debian 1:{}+dfsg-1)\nCopyright (c) Fabrice Bellard\n"
RAN = {"status": acceleration.PROBE_STATUS}
KVM_RUN, TCG_RUN = {"when": ["type=pc,accel=kvm"]}, {"when": ["type=pc,accel=tcg"]}


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """A device that can be opened."""
    path = tmp_path / "kvm"
    path.touch()
    return path


def fake_qemu(fakes: Fakes, *, kvm: Mapping[str, object], tcg: Mapping[str, object] = RAN, version: str = "7.2.22") -> Fake:
    said = {"when": ["--version"], "stdout": VERSION.format(version, version)}
    return fakes.command(acceleration.QEMU, said, {**KVM_RUN, **kvm}, {**TCG_RUN, **tcg})


def test_kvm_that_runs_the_guest_is_used(fakes: Fakes, device: Path, tmp_path: Path) -> None:
    qemu = fake_qemu(fakes, kvm=RAN)
    found = acceleration.probe(workdir=tmp_path, device=device)
    assert (found.kind, found.cpu, found.timeout_scale, found.qemu) == (Kind.KVM, "host", 1.0, (7, 2))
    assert 1 <= found.cpus <= acceleration.MOST_KVM_CPUS
    assert "isa-debug-exit,iobase=0xf4,iosize=1" in qemu.calls()[-1].argv


def test_kvm_that_hangs_is_refused_in_time_and_leaves_nobody(
    fakes: Fakes, device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceleration, "KVM_DEADLINE_SECONDS", 0.5)
    fake_qemu(fakes, kvm={"sleep": 600})
    begun = time.monotonic()
    found = acceleration.probe(workdir=tmp_path, device=device)
    assert time.monotonic() - begun < PATIENCE_SECONDS
    assert found.kind is Kind.TCG
    assert found.reason == ("KVM cannot be used: a guest of 512 bytes did not finish its 0.1 s of work within 0 s")
    assert not list(tmp_path.glob(".scratch-*"))


def test_kvm_that_aborts_qemu_is_refused_with_its_last_words(fakes: Fakes, device: Path, tmp_path: Path) -> None:
    words = "warning: first\nerror: failed to set MSR 0x10a to 0x69\n"
    fake_qemu(fakes, kvm={"status": 134, "stderr": words})
    found = acceleration.probe(workdir=tmp_path, device=device)
    assert found.kind is Kind.TCG
    assert found.reason.endswith("error: failed to set MSR 0x10a to 0x69")


def test_a_guest_that_ends_without_its_signal_counts_as_failed(fakes: Fakes, device: Path, tmp_path: Path) -> None:
    fake_qemu(fakes, kvm={"status": 0})
    found = acceleration.probe(workdir=tmp_path, device=device)
    assert found.kind is Kind.TCG
    assert "status 0, without output" in found.reason


def test_kvm_slower_than_tcg_is_refused(fakes: Fakes, device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceleration, "KVM_SURELY_SOUND_SECONDS", 0.0)
    fake_qemu(fakes, kvm={**RAN, "sleep": 1.5})
    found = acceleration.probe(workdir=tmp_path, device=device)
    assert found.kind is Kind.TCG
    assert found.reason.startswith("KVM took ")


def test_slow_kvm_on_a_slow_host_is_used(
    fakes: Fakes, device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceleration, "KVM_SURELY_SOUND_SECONDS", 0.0)
    fake_qemu(fakes, kvm=RAN, tcg={**RAN, "sleep": 1.5})
    assert acceleration.probe(workdir=tmp_path, device=device).kind is Kind.KVM


def test_no_device_is_refused_without_a_guest(fakes: Fakes, tmp_path: Path) -> None:
    qemu = fake_qemu(fakes, kvm=RAN)
    found = acceleration.probe(workdir=tmp_path, device=tmp_path / "absent")
    assert found.reason == f"KVM cannot be used: there is no {tmp_path / 'absent'}"
    assert [call.argv[0] for call in qemu.calls()] == ["--version", "-nodefaults"]


def test_a_device_that_cannot_be_opened_is_refused(fakes: Fakes, tmp_path: Path) -> None:
    fake_qemu(fakes, kvm=RAN)
    found = acceleration.probe(workdir=tmp_path, device=tmp_path)
    assert found.kind is Kind.TCG
    assert "cannot be opened" in found.reason
    assert "group kvm" in found.reason


def test_wanted_kvm_that_is_refused_is_an_error(fakes: Fakes, tmp_path: Path) -> None:
    fake_qemu(fakes, kvm=RAN)
    with pytest.raises(HostError) as caught:
        acceleration.probe(workdir=tmp_path, wanted=Kind.KVM, device=tmp_path / "absent")
    assert caught.value.brief.startswith("KVM was requested and cannot be used: there is no ")
    assert caught.value.hint


def test_wanted_tcg_does_not_try_kvm(fakes: Fakes, device: Path, tmp_path: Path) -> None:
    qemu = fake_qemu(fakes, kvm=RAN)
    assert acceleration.probe(workdir=tmp_path, wanted=Kind.TCG, device=device).reason == "TCG was requested"
    assert not [call for call in qemu.calls() if "type=pc,accel=kvm" in call.argv]


def test_qemu_that_runs_nothing_is_an_error_with_a_remedy(fakes: Fakes, tmp_path: Path) -> None:
    fake_qemu(fakes, kvm=RAN, tcg={"status": 1, "stderr": "could not load PC BIOS 'bios-256k.bin'\n"})
    with pytest.raises(HostError) as caught:
        acceleration.probe(workdir=tmp_path, device=tmp_path / "absent")
    assert "could not load PC BIOS" in caught.value.brief
    assert "apt-get install --reinstall" in caught.value.hint


def test_missing_qemu_names_the_package(only_fakes: Fakes, tmp_path: Path) -> None:
    with pytest.raises(HostError) as caught:
        acceleration.probe(workdir=tmp_path)
    assert "qemu-system-x86" in caught.value.hint


def test_qemu_without_a_version_is_an_error(fakes: Fakes, tmp_path: Path) -> None:
    fakes.command(acceleration.QEMU, stdout="hello\n")
    with pytest.raises(HostError, match="does not print its version: 'hello'"):
        acceleration.probe(workdir=tmp_path)


@pytest.mark.parametrize(
    ("version", "cpu", "most"),
    [
        ("7.2.22", "max,erms=off,fsrm=off,cx16=off", 1), ("9.2.4", "max,erms=off,fsrm=off,cx16=off", 1),
        ("10.0.3", "max,erms=off,fsrm=off", 2), ("11.1.0", "max,erms=off,fsrm=off", 2),
    ],
)  # fmt: skip
def test_tcg_flags_follow_the_version_of_qemu(
    fakes: Fakes, tmp_path: Path, version: str, cpu: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceleration, "usable_cpus", lambda: 8)
    fake_qemu(fakes, kvm=RAN, version=version)
    found = acceleration.probe(workdir=tmp_path, device=tmp_path / "absent")
    assert (found.cpu, found.cpus, found.timeout_scale) == (cpu, most, acceleration.TCG_TIMEOUT_SCALE)


def test_a_host_with_one_processor_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceleration, "usable_cpus", lambda: 1)
    assert acceleration.kvm((10, 0)).cpus == acceleration.tcg((10, 0), reason="").cpus == 1


def test_arguments_carry_the_machine_the_processor_and_options() -> None:
    found = acceleration.tcg((7, 2), reason="")
    assert found.arguments("q35", "smm=on") == [
        "-machine", "type=q35,accel=tcg,smm=on", "-cpu", "max,erms=off,fsrm=off,cx16=off", "-smp", "1",
    ]  # fmt: skip


def test_boot_sector_is_one_and_its_addresses_hit() -> None:
    sector = acceleration.boot_sector()
    assert len(sector) == 512
    assert sector[-2:] == b"\x55\xaa"
    (pointer,) = struct.unpack_from("<H", sector, sector.index(b"\x0f\x01\x16") + 3)
    limit, table = struct.unpack_from("<HI", sector, pointer - 0x7C00)
    assert limit == 15
    assert struct.unpack_from("<QQ", sector, table - 0x7C00) == (0, 0x00209A0000000000)
    entry, selector = struct.unpack_from("<HH", sector, sector.index(b"\xea") + 1)
    assert selector == 8
    assert sector[entry - 0x7C00] == 0xBE


@pytest.mark.vm
def test_the_real_guest_does_its_work(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if "qemu" in request.config.getoption("--without"):
        pytest.skip("--without qemu")
    trial = acceleration.try_guest(acceleration.tcg(acceleration.qemu_version(), reason=""), workdir=tmp_path, deadline=60)
    assert trial.failure == ""


@pytest.mark.vm
def test_the_real_host_gets_an_accelerator_that_works(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if "qemu" in request.config.getoption("--without"):
        pytest.skip("--without qemu")
    found = acceleration.probe(workdir=tmp_path)
    assert acceleration.try_guest(found, workdir=tmp_path, deadline=60).failure == ""


@pytest.mark.parametrize(("host", "guests", "cpus"), [(2, 1, 2), (2, 2, 1), (8, 2, 2), (1, 2, 1)])
def test_emulated_guests_share_the_processors_of_the_host(
    monkeypatch: pytest.MonkeyPatch, host: int, guests: int, cpus: int
) -> None:
    monkeypatch.setattr(acceleration, "usable_cpus", lambda: host)
    alone = acceleration.Accelerator(acceleration.Kind.TCG, "", 2, acceleration.TCG_CPU, (10, 0), 10.0)
    assert alone.shared(guests).cpus == cpus
    with_kvm = acceleration.Accelerator(acceleration.Kind.KVM, "", 4, "host", (10, 0), 1.0)
    assert with_kvm.shared(guests) == with_kvm
