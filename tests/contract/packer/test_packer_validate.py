"""The template is accepted by every Packer on this host, and each takes a guest from power-on to a compact disk.

The Packers: $PACKER, the one in PATH, and the one that Goldsmith compiled into its cache. Debian's is 1.6.6 with its
builders inside, the compiled one a current Packer with its plugin. A host without any fails these tests with the
command that installs one: an unchecked template is not a pass. ``--without packer`` skips them, visibly.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from build.core import files, run
from build.core.errors import StepFailed
from build.disk import packer
from build.machines import acceleration
from tests.fakes import guest
from tests.packers import TEMPLATES

BUILD_SECONDS = 120
CONSOLE, SYSLOG = "the console speaks\r\n", "the system log speaks\r\n"


def prepare(
    directory: Path, real_packer: packer.Packer, medium: Path, *, sha256: str = "", machine: str = "pc"
) -> packer.Workspace:
    directory.mkdir(parents=True)
    job = packer.Job(
        medium=medium, medium_sha256=sha256 or files.sha256_file(medium), machine_type=machine,
        accelerator=acceleration.tcg(acceleration.qemu_version(), reason="the smallest guest needs no other"),
        disk_mib=64, memory_mib=128, timeout=BUILD_SECONDS,
    )  # fmt: skip
    return packer.prepare(directory, packer=real_packer, templates=TEMPLATES, job=job)


def power_on(workspace: packer.Workspace) -> tuple[int | None, str]:
    output = workspace.directory / "output.txt"
    with run.spawn(workspace.argv(), cwd=workspace.directory, env=workspace.environment(), log=output) as process:
        status = process.wait(BUILD_SECONDS)
    return status, output.read_text(encoding="utf-8")


def test_template_is_accepted(real_packer: packer.Packer, tmp_path: Path) -> None:
    medium = tmp_path / "medium.iso"
    medium.write_bytes(b"not read by validate")
    packer.validate(prepare(tmp_path / "work", real_packer, medium))


def test_template_with_an_unknown_attribute_is_rejected(real_packer: packer.Packer, tmp_path: Path) -> None:
    medium = tmp_path / "medium.iso"
    medium.write_bytes(b"not read by validate")
    workspace = prepare(tmp_path / "work", real_packer, medium)
    template = workspace.directory / "qemu.pkr.hcl"
    template.write_text(template.read_text().replace("  communicator ", '  no_such_thing = "x"\n  communicator '))
    with pytest.raises(StepFailed) as caught:
        packer.validate(workspace)
    assert "no_such_thing" in caught.value.details


@pytest.mark.vm
@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_a_guest_that_powers_off_leaves_a_compact_disk_and_both_logs(
    real_packer: packer.Packer, tmp_path: Path, machine: str
) -> None:
    # A deep directory with a space: sockets, -drive and -serial have to accept it.
    place = tmp_path / "a deep directory" / ("d" * 100)
    workspace = prepare(place, real_packer, guest.medium(tmp_path, console=CONSOLE, syslog=SYSLOG), machine=machine)
    status, output = power_on(workspace)
    assert status == 0, output + packer.complaints(workspace)
    assert workspace.console.read_bytes() == CONSOLE.encode()
    assert workspace.syslog.read_bytes() == SYSLOG.encode()
    information = run.run(["qemu-img", "info", "--output=json", workspace.disk], timeout=60).stdout
    assert '"format": "qcow2"' in information
    assert '"virtual-size": 67108864' in information
    details = workspace.log.read_text(encoding="utf-8")
    for argument in ('"-vnc", "none"', "restrict=on", '"-cpu", "max', f"type={machine},accel=tcg", "werror=report"):
        assert argument in details
    assert list((workspace.directory / "tmp").iterdir()) == []


@pytest.mark.vm
def test_two_builds_at_once_do_not_collide(real_packer: packer.Packer, tmp_path: Path) -> None:
    places = [
        prepare(tmp_path / name, real_packer, guest.medium(tmp_path / f"iso-{name}", console=f"{name}\n")) for name in "ab"
    ]
    begun = time.monotonic()
    with (
        run.spawn(places[0].argv(), cwd=places[0].directory, env=places[0].environment(), log=tmp_path / "a.txt") as one,
        run.spawn(places[1].argv(), cwd=places[1].directory, env=places[1].environment(), log=tmp_path / "b.txt") as two,
    ):
        assert (one.wait(BUILD_SECONDS), two.wait(BUILD_SECONDS)) == (0, 0)
    assert time.monotonic() - begun < BUILD_SECONDS
    assert [place.console.read_text() for place in places] == ["a\n", "b\n"]


@pytest.mark.vm
def test_ended_early_packer_takes_its_guest_and_its_disk_with_it(real_packer: packer.Packer, tmp_path: Path) -> None:
    workspace = prepare(tmp_path / "work", real_packer, guest.medium(tmp_path, console=CONSOLE, power_off=False))
    log = tmp_path / "output.txt"
    with run.spawn(workspace.argv(), cwd=workspace.directory, env=workspace.environment(), log=log) as process:
        deadline = time.monotonic() + BUILD_SECONDS
        while not (workspace.console.exists() and workspace.console.read_bytes()) and time.monotonic() < deadline:
            assert process.wait(0.2) is None, log.read_text()
        begun = time.monotonic()
    assert time.monotonic() - begun < BUILD_SECONDS
    assert workspace.console.read_bytes() == CONSOLE.encode()
    assert not workspace.disk.exists()
    assert processes_in(workspace.directory) == []


def processes_in(directory: Path) -> list[str]:
    """Return the processes whose working directory is ``directory``."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").readlink() == directory:
                found.append((entry / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


@pytest.mark.vm
def test_a_medium_that_differs_from_its_checksum_is_not_booted(real_packer: packer.Packer, tmp_path: Path) -> None:
    workspace = prepare(tmp_path / "work", real_packer, guest.medium(tmp_path, console=CONSOLE), sha256="0" * 64)
    status, output = power_on(workspace)
    assert status == 1
    assert "checksum" in (output + packer.complaints(workspace)).lower()
    assert not workspace.console.exists()
