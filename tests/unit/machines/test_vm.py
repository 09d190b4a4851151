"""Clones: QEMU's arguments, how its ports are found, and how readiness, or the lack of it, is detected and reported."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from build.core import run
from build.core.errors import StepFailed, TimedOut
from build.machines import acceleration, boots, nocloud, vm
from build.machines.vm import Clone, CloneConfig, Firmware, Panic
from tests.fakes import Fake, Fakes
from tests.patience import PATIENCE_SECONDS
from tests.unit.helpers import gone, wait_for

QEMU_PROGRAM = str(Path(__file__).parents[2] / "interruption" / "bin" / "qemu.py")
KEYS = (
    "cloud-init: done\r\n-----BEGIN SSH HOST KEY KEYS-----\r\n"
    "ecdsa-sha2-nistp256 AAAAE2Vj root@bios\r\nssh-ed25519 AAAAC3Nz root@bios\r\n"
    "[   12.3] audit: noise in between\r\nssh-ed25519 AAAAC3Nz root@bios\r\n"
    "-----END SSH HOST KEY KEYS-----\r\n"
)
USERNET = "".join(
    f"  TCP[HOST_FORWARD]  12       127.0.0.1 {host}       10.0.2.15    {guest}     0     0\r\n"
    for host, guest in ((1, 22), (2, 80), (3, 443))
)
TCG = acceleration.tcg((7, 2), reason="a test")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vm, "POLL_SECONDS", 0.02)


@pytest.fixture
def identity(tmp_path: Path) -> nocloud.Identity:
    return nocloud.make_identity(tmp_path / "identity", "admin")


def fake_qemu(fakes: Fakes, **guests: list[dict[str, Any]]) -> Fake:
    return fakes.install(vm.QEMU, QEMU_PROGRAM, {"guests": guests})


def fake_ssh(fakes: Fakes, *rules: dict[str, Any], **rule: Any) -> Fake:
    master = {"when": ["-M"], "sleep": 300}
    return fakes.command("ssh", master, *rules, **rule)


def sealed_image(tmp_path: Path, mib: int = 64) -> Path:
    image = tmp_path / "image.qcow2"
    run.run(["qemu-img", "create", "-q", "-f", "qcow2", image, f"{mib}M"], timeout=60)
    return image


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Clone]:
    """A clone whose machine is a process that only sleeps."""
    with run.spawn(["sleep", "300"], log=tmp_path / "qemu.log", contained=False) as process:
        config, ports = CloneConfig("bios", Firmware.BIOS), {"ssh": 1, "http": 2, "https": 3}
        yield Clone(config, tmp_path, process, TCG, "admin", ports, 64)


# --- QEMU's arguments -------------------------------------------------------------------------------------------------


def start(
    fakes: Fakes, tmp_path: Path, identity: nocloud.Identity, config: CloneConfig, ports: dict[str, int] | None = None
) -> tuple[Clone, list[str]]:
    """Start a clone and end it again; return it and QEMU's arguments."""
    qemu = fake_qemu(fakes)
    with vm.clone(
        sealed_image(tmp_path), config, directory=tmp_path / config.name, accelerator=TCG, identity=identity, ports=ports
    ) as clone:
        assert clone.process.poll() is None
    assert clone.process.poll() is not None
    return clone, qemu.calls()[-1].argv


def test_a_clone_is_an_overlay_and_the_image_never_changes(fakes: Fakes, tmp_path: Path, identity: nocloud.Identity) -> None:
    image = sealed_image(tmp_path)
    before = hashlib.sha256(image.read_bytes()).hexdigest()
    clone, argv = start(fakes, tmp_path, identity, CloneConfig("bios", Firmware.BIOS, grow_gib=2))
    disk = clone.directory / "disk.qcow2"
    facts = json.loads(run.run(["qemu-img", "info", "--output=json", disk], timeout=60).stdout)
    assert facts["virtual-size"] == (64 << 20) + (2 << 30)
    assert (facts["full-backing-filename"], facts["backing-filename-format"]) == (str(image), "qcow2")
    assert clone.disk_mib == 64 + 2048
    assert not any(str(image) in word for word in argv)
    assert hashlib.sha256(image.read_bytes()).hexdigest() == before


def test_ports_are_learned_from_the_running_machine(fakes: Fakes, tmp_path: Path, identity: nocloud.Identity) -> None:
    clone, argv = start(fakes, tmp_path, identity, CloneConfig("bios", Firmware.BIOS))
    assert clone.ports == {"ssh": 40022, "http": 40080, "https": 40443}
    forwards = argv[argv.index("-netdev") + 1]
    assert forwards.split(",")[2:] == [
        f"net={vm.USER_NETWORK}",
        "hostfwd=tcp:127.0.0.1:0-:22",
        "hostfwd=tcp:127.0.0.1:0-:80",
        "hostfwd=tcp:127.0.0.1:0-:443",
    ], "free ports on the loopback interface only"


def test_a_long_path_is_no_hindrance(fakes: Fakes, tmp_path: Path, identity: nocloud.Identity) -> None:
    """The path of a socket is limited to 107 characters; that of a cache is not."""
    home = tmp_path / ("long" * 25)
    home.mkdir()
    clone, _ = start(fakes, home, identity, CloneConfig("bios", Firmware.BIOS))
    assert clone.ports["ssh"] == 40022


def test_ports_can_be_chosen(fakes: Fakes, tmp_path: Path, identity: nocloud.Identity) -> None:
    _, argv = start(fakes, tmp_path, identity, CloneConfig("bios", Firmware.BIOS), ports={"ssh": 2222, "http": 0})
    assert "hostfwd=tcp:127.0.0.1:2222-:22," in argv[argv.index("-netdev") + 1]


def test_bios_and_uefi_are_told_apart(
    fakes: Fakes, tmp_path: Path, identity: nocloud.Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = tmp_path / "OVMF_VARS.fd"
    variables.write_bytes(b"keys enrolled")
    monkeypatch.setattr(vm, "OVMF_VARS", variables)
    _, bios = start(fakes, tmp_path, identity, CloneConfig("bios", Firmware.BIOS))
    clone, uefi = start(fakes, tmp_path, identity, CloneConfig("uefi", Firmware.UEFI))
    assert "type=pc,accel=tcg" in bios
    assert not any("pflash" in word for word in bios)
    assert "type=q35,accel=tcg,smm=on" in uefi
    assert "driver=cfi.pflash01,property=secure,value=on" in uefi
    own = clone.directory / "efivars.fd"
    assert f"if=pflash,unit=1,format=raw,file={own}" in uefi
    assert own.read_bytes() == b"keys enrolled", "each clone has separate EFI variables"
    assert "max,erms=off,fsrm=off,cx16=off" in bios


def test_a_machine_that_does_not_start_tells_qemus_words(fakes: Fakes, tmp_path: Path, identity: nocloud.Identity) -> None:
    fake_qemu(fakes, bios=[{"monitor": "deaf", "ending": 1, "complaint": "qemu: could not open disk: locked"}])
    with pytest.raises(StepFailed) as caught:
        start_again(tmp_path, identity)
    assert caught.value.brief == "QEMU did not start: it ended with status 1"
    assert caught.value.details == "qemu: could not open disk: locked"


def start_again(tmp_path: Path, identity: nocloud.Identity) -> None:
    config = CloneConfig("bios", Firmware.BIOS)
    with vm.clone(
        sealed_image(tmp_path), config, directory=tmp_path / "bios", accelerator=TCG, identity=identity
    ):  # fmt: skip
        pass


# --- the monitor ------------------------------------------------------------------------------------------------------


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[tuple[Path, list[bytes]]]:
    """A QMP socket that sends the given lines, one after each request, and closes when there are no more."""
    path, lines = tmp_path / "qmp.sock", [b'{"QMP": {}}\n']
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()

    def serve() -> None:
        connection, _ = server.accept()
        with connection, connection.makefile("rwb") as stream:
            for line in lines:
                stream.write(line)
                stream.flush()
                stream.readline()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield path, lines
    thread.join(PATIENCE_SECONDS)
    server.close()


def test_events_between_the_answers_are_passed_over(monitor: tuple[Path, list[bytes]]) -> None:
    path, lines = monitor
    lines += [b'{"event": "RESUME"}\n{"return": {}}\n', b'{"event": "A"}\n{"event": "B"}\n{"return": "text"}\n']
    assert vm.monitor_command(path, "info usernet") == "text"


def test_a_refusal_is_told(monitor: tuple[Path, list[bytes]]) -> None:
    path, lines = monitor
    lines += [b'{"return": {}}\n', b'{"error": {"class": "GenericError", "desc": "no such command"}}\n']
    with pytest.raises(StepFailed, match=r"rejected .*info nonsense.*: no such command"):
        vm.monitor_command(path, "info nonsense")


def test_a_monitor_that_goes_away_is_told(monitor: tuple[Path, list[bytes]]) -> None:
    path, lines = monitor
    lines += [b'{"return": {}}\n']
    with pytest.raises(StepFailed, match="QEMU's monitor closed the connection: QEMU has ended"):
        vm.monitor_command(path, "info usernet")


def test_a_monitor_that_does_not_listen_yet_is_waited_for(made: Clone, tmp_path: Path) -> None:
    path = tmp_path / "qmp.sock"
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))

    def serve() -> None:
        time.sleep(0.2)
        server.listen()
        connection, _ = server.accept()
        with connection, connection.makefile("rwb") as stream:
            for line in (b'{"QMP": {}}\n', b'{"return": {}}\n', json.dumps({"return": USERNET}).encode() + b"\n"):
                stream.write(line)
                stream.flush()
                stream.readline()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    with server:
        assert vm._find_ports(path, made.process, made.directory / "qemu.log") == {"ssh": 1, "http": 2, "https": 3}
        thread.join(PATIENCE_SECONDS)


@pytest.mark.parametrize("bound", [True, False])
def test_a_monitor_that_never_listens_is_given_up(
    made: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, bound: bool
) -> None:
    monkeypatch.setattr(vm, "MONITOR_SECONDS", 0.1)
    (made.directory / "qemu.log").write_text("qemu: stuck\n")
    with socket.socket(socket.AF_UNIX) as server:
        if bound:
            server.bind(str(tmp_path / "qmp.sock"))
        with pytest.raises(StepFailed) as caught:
            vm._find_ports(tmp_path / "qmp.sock", made.process, made.directory / "qemu.log")
    assert caught.value.render() == "QEMU did not start: its monitor did not answer within 0 s\n    qemu: stuck"


def test_a_port_that_is_not_forwarded_is_told(made: Clone, monitor: tuple[Path, list[bytes]]) -> None:
    path, lines = monitor
    only_ssh = USERNET.splitlines()[0]
    lines += [b'{"return": {}}\n', json.dumps({"return": only_ssh}).encode() + b"\n"]
    with pytest.raises(StepFailed, match="QEMU forwards no port to http, https"):
        vm._find_ports(path, made.process, made.directory / "qemu.log")


# --- readiness --------------------------------------------------------------------------------------------------------


def test_host_keys_are_read_from_the_console(made: Clone) -> None:
    made.console.write_text(KEYS)
    deadline = time.monotonic() + 5
    assert vm._await_host_keys(made, deadline, lambda _what: None) == [
        "ecdsa-sha2-nistp256 AAAAE2Vj",
        "ssh-ed25519 AAAAC3Nz",
    ]


@pytest.mark.parametrize("output", ["", KEYS.partition("-----END")[0], "-----BEGIN SSH HOST KEY KEYS-----\n"])
def test_half_told_keys_are_waited_for(made: Clone, output: str) -> None:
    made.console.write_text(output)
    told: list[str] = []
    with pytest.raises(StepFailed) as caught:
        vm._await_host_keys(made, time.monotonic() + 0.1, told.append)
    assert caught.value.brief == ("clone bios did not become ready in time: its SSH host keys did not appear on the console")
    assert set(told) == {"booting"}


def test_a_panic_is_seen_at_once(made: Clone) -> None:
    made.console.write_text("\n".join(f"line {number}" for number in range(40)))
    with made.console.open("a") as stream:
        stream.write("\n[   3.14] Kernel panic - not syncing: Fatal exception in interrupt\r\n---[ end ]---\r\n")
    with pytest.raises(Panic) as caught:
        vm._await_host_keys(made, time.monotonic() + 60, lambda _what: None)
    error = caught.value
    assert error.brief == "clone bios: Kernel panic - not syncing: Fatal exception in interrupt"
    assert len(error.details.splitlines()) == 25
    assert error.details.splitlines()[-1] == "---[ end ]---"
    assert error.hint == "use a newer QEMU, which is more reliable under emulation: nox -s doctor shows how to install it"


@pytest.mark.parametrize(
    "line",
    ["[  OK  ] Reached target \x1b[0;1;39memergency.target\x1b[0m - Emergency Mode.\r\n",
     "[  361.2] systemd[1]: Started emergency.service - Emergency Shell.\r\n",
     'You are in emergency mode. After logging in, type "journalctl -xb" to view\r\n'],
)  # fmt: skip
def test_emergency_mode_is_seen_at_once(made: Clone, line: str) -> None:
    """A clone that waits for a person at its console is not waited for"""
    made.console.write_text(f"[ TIME ] Timed out waiting for device /dev/disk/by-uuid/1.\r\n{line}")
    with pytest.raises(StepFailed, match="clone bios went into emergency mode while booting") as caught:
        vm._await_host_keys(made, time.monotonic() + 60, lambda _what: None)
    assert "Timed out waiting for device /dev/disk/by-uuid/1" in caught.value.details


def test_a_machine_that_ends_is_seen_at_once(made: Clone) -> None:
    made.console.write_text("GRUB loading.\r\n")
    (made.directory / "qemu.log").write_text("qemu: terminated\n")
    made.process.terminate()
    with pytest.raises(StepFailed) as caught:
        vm._await_host_keys(made, time.monotonic() + 60, lambda _what: None)
    assert caught.value.render() == (
        "clone bios: QEMU was ended by SIGTERM while booting\n    qemu: terminated\n    GRUB loading.\n"
        f"  -> the whole console is in {made.console}"
    )


def test_a_clone_is_ready_by_evidence(made: Clone, fakes: Fakes, identity: nocloud.Identity) -> None:
    made.console.write_text(KEYS)
    ssh = fake_ssh(fakes, {"when": ["systemctl is-system-running --wait"], "stdout": "running\n"})
    told: list[str] = []
    vm.wait_ready(made, identity, tell=told.append)
    assert list(made.timings) == ["host keys", "login", "ready"]
    assert [call.argv for call in ssh.calls()] == [
        ["-F", str(made.ssh_config), "goldsmith-bios", "test ! -e /run/nologin"],
        ["-F", str(made.ssh_config), "goldsmith-bios", "systemctl is-system-running --wait"],
    ]
    assert "ssh-ed25519 AAAAC3Nz" in (made.directory / "known_hosts").read_text()


def test_a_clone_with_a_failed_unit_is_not_ready(made: Clone, fakes: Fakes, identity: nocloud.Identity) -> None:
    made.console.write_text(KEYS)
    failed = "systemctl --failed --no-legend --plain; systemctl list-jobs"
    fake_ssh(
        fakes, {"when": ["systemctl is-system-running --wait"], "stdout": "degraded\n", "status": 1},
        {"when": [failed], "stdout": "nginx.service loaded failed failed\nNo jobs running.\n"},
    )  # fmt: skip
    with pytest.raises(StepFailed) as caught:
        vm.wait_ready(made, identity)
    assert caught.value.brief == "clone bios booted, but its systemd state is degraded"
    assert caught.value.details == "nginx.service loaded failed failed\nNo jobs running."
    assert "nox -s boot" in caught.value.hint


def test_a_login_that_never_works_ends_in_time(
    made: Clone, fakes: Fakes, identity: nocloud.Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vm, "BOOT_SECONDS", 0.05)
    made.console.write_text(KEYS + "login refused\n")
    fake_ssh(fakes, status=255, stderr="Host key verification failed.\n")
    with pytest.raises(StepFailed) as caught:
        vm.wait_ready(made, identity)
    assert caught.value.brief == "clone bios did not become ready in time: login did not work"
    assert caught.value.details.endswith("login refused")
    assert caught.value.hint == f"the whole console is in {made.console}"


def test_a_login_that_hangs_is_tried_as_long_as_the_clone_may_boot(
    made: Clone, fakes: Fakes, identity: nocloud.Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that exceeds the timeout of a command does not end the wait: the boot has a separate timeout."""
    monkeypatch.setattr(vm, "COMMAND_SECONDS", 0.01)
    made.console.write_text(KEYS)
    fake_ssh(
        fakes, {"when": ["test ! -e /run/nologin"], "sleep": 1.0},
        {"when": ["systemctl is-system-running --wait"], "sleep": 0.5, "stdout": "running\n"},
    )  # fmt: skip
    vm.wait_ready(made, identity)
    assert list(made.timings) == ["host keys", "login", "ready"]


def test_a_machine_that_ends_during_a_login_is_seen_at_once(made: Clone, fakes: Fakes, identity: nocloud.Identity) -> None:
    made.console.write_text(KEYS)
    fake_ssh(fakes, {"when": ["test ! -e /run/nologin"], "sleep": 300})
    (made.directory / "qemu.log").write_text("qemu: killed\n")
    threading.Timer(0.5, made.process.terminate).start()
    begun = time.monotonic()
    with pytest.raises(StepFailed, match="clone bios: QEMU was ended by SIGTERM while waiting for login"):
        vm.wait_ready(made, identity)
    assert time.monotonic() - begun < 60


def test_a_command_without_an_answer_has_a_status_of_its_own(
    made: Clone, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vm, "COMMAND_SECONDS", 0.01)
    fake_ssh(fakes, {"when": ["true"], "sleep": 300})
    assert made.execute("true", check=False).returncode == -1
    with pytest.raises(TimedOut, match="ssh did not finish"):
        made.execute("true")


@pytest.mark.parametrize("output", ["", "initializing", "Connection lost"])
def test_services_that_never_start_end_in_time(made: Clone, fakes: Fakes, output: str) -> None:
    fake_ssh(fakes, {"when": ["systemctl is-system-running --wait"], "stdout": f"{output}\n", "status": 1})
    with pytest.raises(StepFailed, match=r"did not become ready in time: (the )?systemd"):
        vm._await_running(made, time.monotonic() + 0.5, lambda _what: None)


def test_services_that_are_still_starting_end_in_time(made: Clone, fakes: Fakes) -> None:
    ssh = fake_ssh(fakes, {"when": ["systemctl is-system-running --wait"], "sleep": 300})
    with pytest.raises(StepFailed, match="in time: systemd is still starting services"):
        vm._await_running(made, time.monotonic() + 1.0, lambda _what: None)
    # Each login costs an emulated guest seconds: there is one.
    assert len(ssh.calls()) == 1
    assert gone("is-system-running --wait")


# --- two clones -------------------------------------------------------------------------------------------------------

WISHES = (CloneConfig("one", Firmware.BIOS), CloneConfig("two", Firmware.BIOS))


def test_clones_run_side_by_side_and_end_together(fakes: Fakes, tmp_path: Path, identity: nocloud.Identity) -> None:
    guest = {"console": [[0, KEYS]]}
    fake_qemu(fakes, one=[guest], two=[guest])
    ssh = fake_ssh(fakes, {"when": ["systemctl is-system-running --wait"], "stdout": "running\n"})
    image = sealed_image(tmp_path)
    with boots.clones(image, WISHES, directory=tmp_path / "c", accelerator=TCG, identity=identity) as ready:
        assert [clone.config.name for clone in ready] == ["one", "two"]
        assert {clone.process.poll() for clone in ready} == {None}
        assert wait_for(lambda: len([call for call in ssh.calls() if "-M" in call.argv]) == 2)
        kept = [call.argv[2:] for call in ssh.calls() if "-M" in call.argv]
        assert sorted(kept) == [["-M", "-N", "goldsmith-one"], ["-M", "-N", "goldsmith-two"]]
    assert gone(str(tmp_path / "c" / "one" / "ssh_config"))
    assert gone(f"file:{tmp_path}/c/one/console.log")


def test_one_panic_ends_both_clones_and_is_what_is_told(fakes: Fakes, tmp_path: Path, identity: nocloud.Identity) -> None:
    panic = {"console": [[0.1, "Kernel panic - not syncing: double fault\n"]]}
    fake_qemu(fakes, one=[{"console": [[0, "booting\n"]]}], two=[panic])
    begun = time.monotonic()
    with (
        pytest.raises(Panic, match="clone two: Kernel panic - not syncing: double fault"),
        boots.clones(sealed_image(tmp_path), WISHES, directory=tmp_path / "c", accelerator=TCG, identity=identity),
    ):
        pass
    assert time.monotonic() - begun < 60
    assert gone(f"file:{tmp_path}/c/one/console.log")


def test_people_are_told_how_to_reach_a_clone(made: Clone) -> None:
    ssh, ask = vm.describe(made, "golden.example.org").splitlines()
    assert ssh == f"ssh -F {made.ssh_config} goldsmith-bios"
    assert ask == "curl --insecure --resolve golden.example.org:3:127.0.0.1 https://golden.example.org:3/health"
    assert vm.describe(made) == ssh
