"""doctor: one line for each requirement of a build, and the exact command that installs a missing one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from build.cli import doctor
from build.core import host
from build.core.errors import HostError
from build.core.project import Project
from build.machines import acceleration
from build.packages.apt import Mirrors
from tests.fakes import Fakes
from tests.unit.helpers import ROOT

MIRRORS = Mirrors("http://one.example/debian", "http://one.example/debian-security")
QEMU_SAYS = "QEMU emulator version {}\n"


@pytest.fixture(autouse=True)
def _big_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "UNPRIVILEGED_TOOLS", ())
    monkeypatch.setattr(host, "CONTAINER_TOOLS", ())
    monkeypatch.setattr(host, "free_bytes", lambda _path: 100 << 30)
    monkeypatch.setattr(host, "memory_mib", lambda: 16000)


def fake_qemu(fakes: Fakes, version: str = "7.2.22", *, kvm: int = 1) -> None:
    fakes.command(
        acceleration.QEMU, {"when": ["--version"], "stdout": QEMU_SAYS.format(version)},
        {"when": ["type=pc,accel=kvm"], "status": kvm}, status=acceleration.PROBE_STATUS,
    )  # fmt: skip


def good_host(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a fake of every tool that is searched in PATH, and require none that has a fixed path."""
    tools = tuple(tool for tool in host.TOOLS if not tool.probe.startswith("/"))
    monkeypatch.setattr(host, "TOOLS", tools)
    for tool in tools:
        if not (fakes.directory / tool.probe).exists():
            program = fakes.directory / tool.probe
            program.write_text(f"#!/bin/sh\necho {tool.probe} 1.0\n")
            program.chmod(0o755)
    fakes.packer(version="1.6.6")
    fake_qemu(fakes)


def report(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    mirrors: Callable[[], Mirrors] = lambda: MIRRORS,
    packer: str = "",
) -> tuple[int, dict[str, str], str]:
    """Return the exit code, the lines by name, and the whole text."""
    text, good = doctor.report(project=Project(ROOT), cache=tmp_path / "cache", packer_choice=packer, mirrors=mirrors)
    code = 0 if good else 2
    assert capsys.readouterr().out == "", "the command prints the report"
    rows = text.split("\n\n")[0].splitlines()
    names = {line[9:].split("  ")[0].strip(): f"{line[:8].strip()} {line[9:].split('  ', 1)[1].strip()}" for line in rows}
    return code, names, f"{text}\n"


def test_a_good_host_is_good(
    only_fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good_host(only_fakes, monkeypatch)
    code, rows, text = report(tmp_path, capsys)
    assert code == 0
    assert rows["mmdebstrap"] == "ok mmdebstrap 1.0: to install the packages into a root file system"
    assert rows["packer"] == "ok Packer 1.6.6: to run the Debian installer"
    assert rows["space: cache"] == f"ok 100 GiB free, a build needs 12 ({tmp_path}/cache)"
    assert rows["memory"] == "ok 16000 MiB available, two clones and a build need 6144"
    assert rows["mirror"] == f"ok {MIRRORS.debian}, {MIRRORS.security}, no snapshot archive set"
    assert "Missing on this host" not in text


def test_missing_tools_are_named_with_the_exact_command(
    only_fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good_host(only_fakes, monkeypatch)
    apt = only_fakes.command("apt-get", stdout="apt 2.6\n")
    for name in ("xorriso", "mformat"):
        (only_fakes.directory / name).unlink()
    code, rows, text = report(tmp_path, capsys)
    assert code == 2
    assert rows["xorriso"] == "MISSING xorriso: to create the installer ISO and the seed ISO of the test VMs"
    assert rows["mformat"] == "MISSING mtools: to make the installer ISO bootable under UEFI"
    assert text.endswith(
        "\n\nMissing on this host:\n"
        "xorriso: to create the installer ISO and the seed ISO of the test VMs\n"
        "mtools: to make the installer ISO bootable under UEFI\n"
        "Install them, as root:\n"
        "    apt-get update && apt-get install --yes --no-install-recommends mtools xorriso\n"
    )
    assert all("install" not in call.argv for call in apt.calls()), "doctor looks and never touches"


def test_an_empty_host_names_everything_and_does_not_stop(
    only_fakes: Fakes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def none() -> Mirrors:
        raise HostError("apt-get is not installed", hint="get one")

    for name in ("setpriv", "unshare"):
        (only_fakes.directory / name).unlink()
    only_fakes.command("apt-cache")
    code, rows, text = report(tmp_path, capsys, none)
    assert code == 2
    for tool in host.TOOLS:
        assert tool.probe.startswith("/") or rows[tool.probe].startswith(f"MISSING {tool.package}: to "), tool
    assert rows["accelerator"].startswith("MISSING qemu-system-x86_64 is not installed")
    assert rows["mirror"] == "MISSING apt-get is not installed; get one"
    assert "mmdebstrap mtools" in text.splitlines()[-1]


def test_emulation_is_a_note_and_an_old_qemu_is_told(
    only_fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good_host(only_fakes, monkeypatch)
    code, rows, _ = report(tmp_path, capsys)
    assert code == 0
    assert rows["accelerator"].startswith("note tcg, 1 CPUs, -cpu max,erms=off,fsrm=off,cx16=off: KVM cannot be used: ")
    assert "QEMU 7.2 emulates Linux 6.12 safely with one CPU only: QEMU 10 is faster" in rows["accelerator"]
    fake_qemu(only_fakes, "10.0.2")
    _, rows, _ = report(tmp_path, capsys)
    assert "QEMU 10 is faster" not in rows["accelerator"]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("Candidate: 1.6.6\n", "MISSING packer: to run the Debian installer"),
        ("", "MISSING golang-go: to compile Packer, which is not packaged in this Debian release"),
    ],
)
def test_a_missing_packer_tells_how_a_build_gets_one(
    only_fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    policy: str, expected: str,
) -> None:  # fmt: skip
    good_host(only_fakes, monkeypatch)
    (only_fakes.directory / "packer").unlink()
    only_fakes.command("apt-cache", stdout=policy)
    _, rows, _ = report(tmp_path, capsys)
    assert rows["packer"].startswith(expected)


def test_a_packer_that_cannot_be_used_is_told(
    only_fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good_host(only_fakes, monkeypatch)
    code, rows, _ = report(tmp_path, capsys, packer="/nowhere/packer")
    assert code == 2
    assert rows["packer"].startswith("MISSING $PACKER names /nowhere/packer, which is not an executable file; ")


def test_a_small_machine_is_told(
    only_fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good_host(only_fakes, monkeypatch)
    monkeypatch.setattr(host, "free_bytes", lambda _path: 3 << 30)
    monkeypatch.setattr(host, "memory_mib", lambda: 2000)
    code, rows, _ = report(tmp_path, capsys)
    assert code == 2
    assert rows["space: artifacts"] == f"MISSING 3 GiB free, a build needs 12 ({ROOT}/artifacts)"
    assert rows["memory"].startswith("MISSING 2000 MiB available")
