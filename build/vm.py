"""Throw-away clones: QEMU machines over a sealed disk that never changes, reached over SSH with keys known in advance.

A clone is a qcow2 overlay with a NoCloud seed on an ISO. Its SSH host key is learned from the serial console, which only
the machine itself writes, so the first connection is verified like every other. "Ready" is evidence: a login, no
/run/nologin, systemd says ``running``.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol, TextIO

from build import log, run, seed
from build.accel import Accelerator
from build.errors import StepFailed

QEMU = "qemu-system-x86_64"
MEMORY_MIB = 2048
# Times on a machine with KVM, in seconds; each is scaled by the accelerator.
BOOT_SECONDS = 90
COMMAND_SECONDS = 60
MONITOR_SECONDS = 30
POLL_SECONDS = 1.0
LOOPBACK = "127.0.0.1"
MONITOR = "qmp.sock"
# QEMU's user network: every connection from this machine reaches the guest from an address in it.
USER_NETWORK = "10.0.2.0/24"
OVMF_CODE = Path("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd")
OVMF_VARS = Path("/usr/share/OVMF/OVMF_VARS_4M.ms.fd")
PANIC = re.compile(r"Kernel panic - not syncing.*")
HOST_KEYS = re.compile(r"-----BEGIN SSH HOST KEY KEYS-----(.*?)-----END SSH HOST KEY KEYS-----", re.DOTALL)
HOST_KEY = re.compile(r"\b((?:ssh-ed25519|ecdsa-sha2-nistp256|ssh-rsa) [A-Za-z0-9+/=]+)")
# A line of the monitor's "info usernet": protocol and state, descriptor, host address and port, guest address and port.
FORWARD = re.compile(r"TCP\[HOST_FORWARD\].*?127\.0\.0\.1\s+(\d+)\s+\S+\s+(\d+)")
GUEST_PORTS = {"ssh": 22, "http": 80, "https": 443}

Tell = Callable[[str], None]


def _say_nothing(_what: str) -> None:
    """Take what a clone is doing, for callers that do not show it."""


class Firmware(StrEnum):
    """What starts the clone's disk: SeaBIOS, or OVMF with Microsoft's keys enrolled and Secure Boot enforced."""

    BIOS = "bios"
    UEFI = "uefi"


class Panic(StepFailed):
    """The guest's kernel stopped: under emulation this may be the emulator's fault, so it may be tried once more."""


@dataclass(frozen=True)
class Wish:
    """What clone to make: name, firmware, and how much larger its disk is than the image (GiB)."""

    name: str
    firmware: Firmware
    grow_gib: int = 0
    memory_mib: int = MEMORY_MIB


@dataclass
class Clone:
    """A running clone: its ports on the loopback interface, its files, and the way to reach it."""

    wish: Wish
    directory: Path
    process: run.Process
    accelerator: Accelerator
    user: str
    ports: dict[str, int]
    disk_mib: int
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def console(self) -> Path:
        return self.directory / "console.log"

    @property
    def ssh_config(self) -> Path:
        return self.directory / "ssh_config"

    @property
    def monitor(self) -> Path:
        return self.directory / MONITOR

    @property
    def alias(self) -> str:
        return f"goldsmith-{self.wish.name}"

    def console_text(self) -> str:
        """Return what the clone has written to its serial console so far."""
        return self.console.read_text(errors="replace") if self.console.exists() else ""

    def ssh_argv(self, command: str) -> list[str]:
        """Return the argv that runs ``command`` on the clone."""
        return ["ssh", "-F", str(self.ssh_config), self.alias, command]

    def execute(self, command: str, *, check: bool = True) -> run.Done:
        """Run a shell command on the clone over SSH."""
        return run.run(self.ssh_argv(command), timeout=COMMAND_SECONDS * self.accelerator.timeout_scale, check=check)


def sealed_disk_size_mib(image: Path) -> int:
    """Return the virtual size of a disk image in MiB."""
    done = run.run(["qemu-img", "info", "--output=json", image], timeout=60)
    return int(json.loads(done.stdout)["virtual-size"]) >> 20


@contextmanager
def clone(
    image: Path, wish: Wish, *, directory: Path, accelerator: Accelerator, identity: seed.Identity,
    ports: dict[str, int] | None = None, again: bool = False, extra: Sequence[str] = (),
) -> Iterator[Clone]:  # fmt: skip
    """Start a clone of ``image``; on leaving the block it is gone, its files stay in ``directory``.

    ``ports`` asks for ports on the loopback interface by service; without it QEMU takes free ones. ``again`` starts the
    machine whose files ``directory`` holds, instead of a new one. ``extra`` are more arguments of QEMU.
    """
    directory.mkdir(parents=True, exist_ok=True)
    disk_mib = sealed_disk_size_mib(image) + wish.grow_gib * 1024
    disk, seed_iso, monitor = directory / "disk.qcow2", directory / "seed.iso", directory / MONITOR
    if not again:
        _new_disk(disk, image, disk_mib)
        seed.write(directory, wish.name, identity, admin_cidrs=[USER_NETWORK])
    arguments = [
        QEMU, *_machine(wish, accelerator, directory),
        "-name", wish.name, "-m", str(wish.memory_mib), "-display", "none", "-no-user-config", "-nodefaults",
        "-device", "virtio-rng-pci", "-device", "virtio-scsi-pci,id=scsi0",
        "-drive", f"if=none,id=disk,file={disk},format=qcow2,cache=unsafe,discard=unmap",
        "-device", "scsi-hd,drive=disk,bus=scsi0.0,bootindex=1",
        "-drive", f"if=none,id=seed,file={seed_iso},format=raw,readonly=on",
        "-device", "scsi-cd,drive=seed,bus=scsi0.0",
        "-netdev", f"user,id=net,net={USER_NETWORK},{_forwards(ports or {})}",
        "-device", "virtio-net-pci,netdev=net,romfile=",
        "-serial", f"file:{directory / 'console.log'}", "-vga", "none",
        # Relative to its directory: the path of a socket may have no more than 107 characters.
        "-qmp", f"unix:{monitor.name},server=on,wait=off", *extra,
    ]  # fmt: skip
    with run.spawn(arguments, log=directory / "qemu.log", cwd=directory) as process:
        made = Clone(wish, directory, process, accelerator, identity.user, {}, disk_mib)
        made.ports = _find_ports(monitor, process, directory / "qemu.log")
        yield made


def _new_disk(disk: Path, image: Path, mib: int) -> None:
    """Make a disk that holds what differs from the image."""
    run.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", image.resolve(), "-F", "qcow2", disk, f"{mib}M"], timeout=60)


def _machine(wish: Wish, accelerator: Accelerator, directory: Path) -> list[str]:
    if wish.firmware is Firmware.BIOS:
        return accelerator.arguments("pc")
    variables = directory / "efivars.fd"
    variables.write_bytes(OVMF_VARS.read_bytes())
    return [
        *accelerator.arguments("q35", "smm=on"),
        "-global", "driver=cfi.pflash01,property=secure,value=on", "-global", "ICH9-LPC.disable_s3=1",
        "-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={OVMF_CODE}",
        "-drive", f"if=pflash,unit=1,format=raw,file={variables}",
    ]  # fmt: skip


def _forwards(ports: dict[str, int]) -> str:
    """Return hostfwd rules on the loopback interface; port 0 lets the system choose a free one, without a race."""
    rules = [f"hostfwd=tcp:{LOOPBACK}:{ports.get(name, 0)}-:{guest}" for name, guest in GUEST_PORTS.items()]
    return ",".join(rules)


def _find_ports(monitor: Path, process: run.Process, qemu_log: Path) -> dict[str, int]:
    """Ask the running QEMU which ports it took."""
    deadline = time.monotonic() + MONITOR_SECONDS
    text = ""
    while not text:
        try:
            text = monitor_command(monitor, "info usernet")
        except (FileNotFoundError, ConnectionRefusedError):
            # The socket has its name a moment before somebody listens to it.
            if process.poll() is not None or time.monotonic() > deadline:
                raise StepFailed("QEMU did not start", details=run.tail(qemu_log.read_text(errors="replace"))) from None
            time.sleep(0.05)
    by_guest = {int(guest): int(host) for host, guest in FORWARD.findall(text)}
    missing = sorted(name for name, guest in GUEST_PORTS.items() if guest not in by_guest)
    if missing:
        raise StepFailed(f"QEMU forwards no port to {', '.join(missing)}", details=text)
    return {name: by_guest[guest] for name, guest in GUEST_PORTS.items()}


def monitor_command(monitor: Path, line: str, *, timeout: float = MONITOR_SECONDS) -> str:
    """Run one human monitor command over QMP and return what it says. The protocol is one JSON object a line."""
    with _directory(monitor.parent) as short, socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout)
        connection.connect(f"{short}/{monitor.name}")
        stream = connection.makefile("rw")
        stream.readline()
        _ask(stream, {"execute": "qmp_capabilities"})
        return str(_ask(stream, {"execute": "human-monitor-command", "arguments": {"command-line": line}}))


@contextmanager
def _directory(path: Path) -> Iterator[str]:
    """Yield another, short path of a directory."""
    descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _ask(stream: TextIO, request: dict[str, Any]) -> Any:
    """Send a request and return the answer to it; what QEMU tells unasked in between is passed over."""
    stream.write(json.dumps(request) + "\n")
    stream.flush()
    answer: dict[str, Any] = {"event": ""}
    while "event" in answer:
        line = stream.readline()
        if not line:
            raise StepFailed("QEMU's monitor closed the connection: QEMU has ended")
        answer = json.loads(line)
    if "error" in answer:
        raise StepFailed(f"QEMU's monitor refused {json.dumps(request)}: {answer['error']['desc']}")
    return answer["return"]


def wait_ready(made: Clone, identity: seed.Identity, *, tell: Tell = _say_nothing) -> None:
    """Wait until the clone has booted, by evidence; raise StepFailed with the console's last lines when it does not.

    Steps: host keys on the console, a verified SSH login, no /run/nologin, ``systemctl is-system-running --wait``.
    """
    begun = time.monotonic()
    deadline = begun + BOOT_SECONDS * made.accelerator.timeout_scale
    keys = _await_host_keys(made, deadline, tell)
    made.timings["host keys"] = round(time.monotonic() - begun, 1)
    seed.write_ssh_config(made.directory, alias=made.alias, port=made.ports["ssh"], host_keys=keys, identity=identity)
    _await(made, deadline, "login", "test ! -e /run/nologin", tell)
    made.timings["login"] = round(time.monotonic() - begun, 1)
    state = _await_running(made, deadline, tell)
    made.timings["ready"] = round(time.monotonic() - begun, 1)
    if state != "running":
        failed = made.execute("systemctl --failed --no-legend --plain; systemctl list-jobs", check=False).stdout
        raise StepFailed(
            f"clone {made.wish.name} booted, but systemd says {state}", details=run.tail(failed),
            hint=f"look at {made.console}, or at the clone itself: nox -s boot",
        )  # fmt: skip


def _await_host_keys(made: Clone, deadline: float, tell: Tell) -> list[str]:
    while True:
        match = HOST_KEYS.search(made.console_text())
        keys = sorted(set(HOST_KEY.findall(match[1]))) if match else []
        if keys:
            return keys
        _check_alive(made, deadline, "its SSH host keys did not appear on the console", tell, "booting")


def _await(made: Clone, deadline: float, what: str, command: str, tell: Tell) -> None:
    while made.execute(command, check=False).returncode != 0:
        _check_alive(made, deadline, f"{what} did not work", tell, f"waiting for {what}")


def _await_running(made: Clone, deadline: float, tell: Tell) -> str:
    """Return systemd's state when the boot is over. One login waits for it: each costs an emulated guest seconds."""
    states = ("running", "degraded", "maintenance", "stopping", "offline", "unknown")
    answer = made.directory / "state.log"
    while True:
        answer.unlink(missing_ok=True)
        with run.spawn(made.ssh_argv("systemctl is-system-running --wait"), log=answer, contained=False) as waiting:
            while waiting.poll() is None:
                _check_alive(made, deadline, "systemd is still starting services", tell, "services are starting")
        said = answer.read_text(errors="replace").split()
        if said and said[-1] in states:
            return said[-1]
        # The connection was lost, or systemd does not know yet.
        _check_alive(made, deadline, f"systemd says {' '.join(said) or 'nothing'}", tell, "services are starting")


def _check_alive(made: Clone, deadline: float, what: str, tell: Tell, doing: str) -> None:
    """Wait a moment; raise when the clone died, panicked, or the time is up."""
    tell(doing)
    text = made.console_text()
    panic = PANIC.search(text)
    if panic:
        raise Panic(
            f"clone {made.wish.name}: {panic[0].strip()}", details=run.tail(text),
            hint="under emulation a newer QEMU is steadier: nox -s doctor tells how to get one",
        )  # fmt: skip
    if made.process.poll() is not None:
        raise StepFailed(
            f"clone {made.wish.name}: QEMU ended while {doing}",
            details=run.tail((made.directory / "qemu.log").read_text(errors="replace") + text),
            hint=f"the whole console is in {made.console}",
        )
    if time.monotonic() > deadline:
        raise StepFailed(
            f"clone {made.wish.name} did not become ready in time: {what}", details=run.tail(text),
            hint=f"the whole console is in {made.console}",
        )  # fmt: skip
    time.sleep(POLL_SECONDS)


@contextmanager
def clones(
    image: Path, wishes: Sequence[Wish], *, directory: Path, accelerator: Accelerator, identity: seed.Identity,
    expected_seconds: float = 0.0,
) -> Iterator[tuple[Clone, ...]]:  # fmt: skip
    """Start clones side by side and yield them when all are ready."""
    with ExitStack() as stack:
        started = [
            stack.enter_context(
                clone(image, wish, directory=directory / wish.name, accelerator=accelerator, identity=identity)
            )
            for wish in wishes
        ]
        progress = log.Progress("booting clones", expected_seconds)
        doing = {wish.name: "starting" for wish in wishes}
        problems: list[BaseException] = []
        threads = [threading.Thread(target=_wait_in_thread, args=(one, identity, doing, problems)) for one in started]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(0.5)
                progress.update(", ".join(f"{name}: {what}" for name, what in doing.items()))
                if problems:
                    break
        progress.finish()
        if problems:
            # Ending the machines makes the other waiters notice at once.
            for one in started:
                one.process.terminate()
            for thread in threads:
                thread.join()
            raise problems[0]
        for one in started:
            stack.enter_context(shared_connection(one))
        yield tuple(started)


class Reachable(Protocol):
    """A machine with an SSH configuration of its own."""

    @property
    def directory(self) -> Path: ...

    @property
    def ssh_config(self) -> Path: ...

    @property
    def alias(self) -> str: ...


@contextmanager
def shared_connection(made: Reachable) -> Iterator[None]:
    """Keep one SSH connection open that every later command goes through: a login costs an emulated guest a second.

    A child of ours rather than ssh's own ControlPersist, which would leave a process behind.
    """
    argv = ["ssh", "-F", str(made.ssh_config), "-M", "-N", made.alias]
    with run.spawn(argv, log=made.directory / "ssh.log", contained=False):
        yield


def _wait_in_thread(made: Clone, identity: seed.Identity, doing: dict[str, str], problems: list[BaseException]) -> None:
    def tell(what: str) -> None:
        doing[made.wish.name] = what

    try:
        wait_ready(made, identity, tell=tell)
        tell("ready")
    except Exception as error:  # noqa: BLE001 (raised again by the thread that waits)
        problems.append(error)


def describe(made: Clone, server_name: str) -> str:
    """Return how a person reaches the clone: it answers to its own names only, so the address needs one."""
    ssh = shlex.join(["ssh", "-F", str(made.ssh_config), made.alias])
    port = made.ports["https"]
    ask = f"curl --insecure --resolve {server_name}:{port}:{LOOPBACK} https://{server_name}:{port}/health"
    return f"{ssh}\n{ask}"
