"""Disposable test VMs: QEMU VMs on a pristine disk image that is never written, with SSH host keys known in advance.

A VM has a qcow2 overlay and a NoCloud seed ISO. Its SSH host key is read from the serial console, which only the VM
writes, so the first connection is verified like every other. A VM is ready when a login succeeds, /run/nologin does not
exist, and the state of systemd is ``running``.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol, TextIO

from build.core import json_text, run
from build.core.errors import StepFailed
from build.machines import nocloud
from build.machines.acceleration import Accelerator

QEMU = "qemu-system-x86_64"
MEMORY_MIB = 2048
# Times with KVM, in seconds; each is scaled by the accelerator.
BOOT_SECONDS = 90
COMMAND_SECONDS = 60
MONITOR_SECONDS = 30
POLL_SECONDS = 1.0
LOOPBACK = "127.0.0.1"
MONITOR = "qmp.sock"
# QEMU's user network: connections from this host have a source address in it.
USER_NETWORK = "10.0.2.0/24"
OVMF_CODE = Path("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd")
OVMF_VARS = Path("/usr/share/OVMF/OVMF_VARS_4M.ms.fd")
# The messages of systemd's emergency mode. The name may have a colour.
EMERGENCY = re.compile(r"(?:Started|Reached target) \S*emergency\.(?:service|target)|You are in emergency mode")
PANIC = re.compile(r"Kernel panic - not syncing.*")
HOST_KEYS = re.compile(r"-----BEGIN SSH HOST KEY KEYS-----(.*?)-----END SSH HOST KEY KEYS-----", re.DOTALL)
HOST_KEY = re.compile(r"\b((?:ssh-ed25519|ecdsa-sha2-nistp256|ssh-rsa) [A-Za-z0-9+/=]+)")
# A line of the monitor's "info usernet": protocol and state, descriptor, host address and port, guest address and port.
FORWARD = re.compile(r"TCP\[HOST_FORWARD\].*?127\.0\.0\.1\s+(\d+)\s+\S+\s+(\d+)")
GUEST_PORTS = {"ssh": 22, "http": 80, "https": 443}

Tell = Callable[[str], None]


def _say_nothing(_what: str) -> None:
    """Ignore the state, for callers that do not show it."""


class Firmware(StrEnum):
    """The firmware: SeaBIOS, or OVMF with Microsoft's keys enrolled and Secure Boot enforced."""

    BIOS = "bios"
    UEFI = "uefi"


class Panic(StepFailed):
    """The guest's kernel panicked: under emulation this may be a bug of the emulator, so a retry is allowed."""


@dataclass(frozen=True)
class CloneConfig:
    """Configuration of a test VM: name, firmware, and by how many GiB its disk is larger than the image."""

    name: str
    firmware: Firmware
    grow_gib: int = 0
    memory_mib: int = MEMORY_MIB


@dataclass
class Clone:
    """A running test VM: its ports on the loopback interface, its files, and its SSH connection."""

    config: CloneConfig
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
        return f"goldsmith-{self.config.name}"

    def console_text(self) -> str:
        """Return the output on the serial console so far."""
        return self.console.read_text(errors="replace") if self.console.exists() else ""

    def ssh_argv(self, command: str) -> list[str]:
        """Return the argv that runs ``command`` on the clone."""
        return ["ssh", "-F", str(self.ssh_config), self.alias, command]

    def execute(self, command: str, *, check: bool = True) -> run.Done:
        """Run a shell command on the clone over SSH.

        Raises CommandFailed with ``check``; without it the status is -1 after a timeout.
        """
        argv, seconds = self.ssh_argv(command), COMMAND_SECONDS * self.accelerator.timeout_scale
        return run.run(argv, timeout=seconds) if check else run.attempt(argv, timeout=seconds)

    def check_running(self, doing: str) -> None:
        """Raise Panic after a kernel panic, StepFailed in emergency mode.

        Also raises StepFailed with QEMU's exit status if QEMU has ended.
        """
        status = self.process.poll()
        text = self.console_text()
        panic = PANIC.search(text)
        if panic:
            raise Panic(
                f"clone {self.config.name}: {panic[0].strip()}", details=run.tail(text),
                hint="use a newer QEMU, which is more reliable under emulation: nox -s doctor shows how to install it",
            )  # fmt: skip
        if EMERGENCY.search(text):
            failures = [line for line in text.splitlines() if "Timed out waiting" in line or "FAILED" in line]
            raise StepFailed(
                f"clone {self.config.name} went into emergency mode while {doing}",
                details=run.tail("\n".join(failures) or text),
                hint="reduce the load of this host, because devices have a time limit at boot; the whole console "
                f"is in {self.console}",
            )
        if status is not None:
            raise StepFailed(
                f"clone {self.config.name}: {run.ending('QEMU', status)} while {doing}",
                details=run.tail((self.directory / "qemu.log").read_text(errors="replace") + text),
                hint=f"the whole console is in {self.console}",
            )


def virtual_size_mib(image: Path) -> int:
    """Return the virtual size of a disk image in MiB."""
    done = run.run(["qemu-img", "info", "--output=json", image], timeout=run.LOCAL_SECONDS)
    return int(json_text.parse(done.stdout)["virtual-size"]) >> 20


@contextmanager
def clone(
    image: Path, config: CloneConfig, *, directory: Path, accelerator: Accelerator, identity: nocloud.Identity,
    ports: dict[str, int] | None = None, again: bool = False, extra: Sequence[str] = (),
) -> Iterator[Clone]:  # fmt: skip
    """Start a test VM from ``image``; it is ended at the end of the block, its files stay in ``directory``.

    ``ports`` sets ports on the loopback interface by service; without it QEMU chooses free ones. ``again`` restarts the
    VM whose files are in ``directory``, instead of creating a new one. ``extra`` are more arguments of QEMU.
    """
    directory.mkdir(parents=True, exist_ok=True)
    disk_mib = virtual_size_mib(image) + config.grow_gib * 1024
    disk, seed_iso, monitor = directory / "disk.qcow2", directory / "seed.iso", directory / MONITOR
    if not again:
        _new_disk(disk, image, disk_mib)
        nocloud.write(directory, config.name, identity, admin_cidrs=[USER_NETWORK])
    arguments = [
        QEMU, *_machine(config, accelerator, directory),
        "-name", config.name, "-m", str(config.memory_mib), "-display", "none", "-no-user-config", "-nodefaults",
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
        running = Clone(config, directory, process, accelerator, identity.user, {}, disk_mib)
        running.ports = _find_ports(monitor, process, directory / "qemu.log")
        yield running


def _new_disk(disk: Path, image: Path, mib: int) -> None:
    """Create an overlay disk on the image."""
    run.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", image.resolve(), "-F", "qcow2", disk, f"{mib}M"],
        timeout=run.LOCAL_SECONDS,
    )


def _machine(config: CloneConfig, accelerator: Accelerator, directory: Path) -> list[str]:
    if config.firmware is Firmware.BIOS:
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
    """Query the ports of the running QEMU."""
    deadline = time.monotonic() + MONITOR_SECONDS
    text = ""
    while not text:
        try:
            text = monitor_command(monitor, "info usernet")
        except (FileNotFoundError, ConnectionRefusedError):
            # The socket exists shortly before QEMU listens on it.
            status = process.poll()
            if status is not None or time.monotonic() > deadline:
                silent = f"its monitor did not answer within {MONITOR_SECONDS:.0f} s"
                how = silent if status is None else run.ending("it", status)
                raise StepFailed(
                    f"QEMU did not start: {how}", details=run.tail(qemu_log.read_text(errors="replace"))
                ) from None
            time.sleep(0.05)
    by_guest = {int(guest): int(host) for host, guest in FORWARD.findall(text)}
    missing = sorted(name for name, guest in GUEST_PORTS.items() if guest not in by_guest)
    if missing:
        raise StepFailed(f"QEMU forwards no port to {', '.join(missing)}", details=text)
    return {name: by_guest[guest] for name, guest in GUEST_PORTS.items()}


def monitor_command(monitor: Path, line: str, *, timeout: float = MONITOR_SECONDS) -> str:
    """Run one human monitor command over QMP and return its output. The protocol is one JSON object a line."""
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
    """Send a request and return the response; events in between are skipped."""
    stream.write(json.dumps(request) + "\n")
    stream.flush()
    answer: dict[str, Any] = {"event": ""}
    while "event" in answer:
        line = stream.readline()
        if not line:
            raise StepFailed("QEMU's monitor closed the connection: QEMU has ended")
        answer = json_text.parse(line)
    if "error" in answer:
        raise StepFailed(f"QEMU's monitor rejected {json.dumps(request)}: {answer['error']['desc']}")
    return answer["return"]


def wait_ready(clone: Clone, identity: nocloud.Identity, *, tell: Tell = _say_nothing) -> None:
    """Wait until the VM is ready; raise StepFailed with the console's last lines if it does not boot.

    Steps: host keys on the console, a verified SSH login, no /run/nologin, ``systemctl is-system-running --wait``.
    """
    started = time.monotonic()
    deadline = started + BOOT_SECONDS * clone.accelerator.timeout_scale
    keys = _await_host_keys(clone, deadline, tell)
    clone.timings["host keys"] = round(time.monotonic() - started, 1)
    nocloud.write_ssh_config(clone.directory, alias=clone.alias, port=clone.ports["ssh"], host_keys=keys, identity=identity)
    _await(clone, deadline, "login", "test ! -e /run/nologin", tell)
    clone.timings["login"] = round(time.monotonic() - started, 1)
    state = _await_running(clone, deadline, tell)
    clone.timings["ready"] = round(time.monotonic() - started, 1)
    if state != "running":
        failed = clone.execute("systemctl --failed --no-legend --plain; systemctl list-jobs", check=False).stdout
        raise StepFailed(
            f"clone {clone.config.name} booted, but its systemd state is {state}", details=run.tail(failed),
            hint=f"check {clone.console}, or boot a VM to investigate: nox -s boot",
        )  # fmt: skip


def _await_host_keys(clone: Clone, deadline: float, tell: Tell) -> list[str]:
    while True:
        match = HOST_KEYS.search(clone.console_text())
        keys = sorted(set(HOST_KEY.findall(match[1]))) if match else []
        if keys:
            return keys
        _check_alive(clone, deadline, "its SSH host keys did not appear on the console", tell, "booting")
        time.sleep(POLL_SECONDS)


def _await(clone: Clone, deadline: float, what: str, command: str, tell: Tell) -> None:
    """Repeat the command until it succeeds. An attempt may hang during the boot: the VM is checked meanwhile."""
    output = clone.directory / "login.log"
    while True:
        with run.spawn(clone.ssh_argv(command), log=output, contained=False) as attempt:
            while (status := attempt.wait(POLL_SECONDS)) is None:
                _check_alive(clone, deadline, f"{what} did not work", tell, f"waiting for {what}")
        if status == 0:
            return
        _check_alive(clone, deadline, f"{what} did not work", tell, f"waiting for {what}")
        time.sleep(POLL_SECONDS)


def _await_running(clone: Clone, deadline: float, tell: Tell) -> str:
    """Return systemd's state when the boot is over.

    One login waits for it, because each login takes seconds under emulation.
    """
    states = ("running", "degraded", "maintenance", "stopping", "offline", "unknown")
    answer = clone.directory / "state.log"
    while True:
        answer.unlink(missing_ok=True)
        with run.spawn(clone.ssh_argv("systemctl is-system-running --wait"), log=answer, contained=False) as waiting:
            while waiting.wait(POLL_SECONDS) is None:
                _check_alive(clone, deadline, "systemd is still starting services", tell, "services are starting")
        words = answer.read_text(errors="replace").split()
        if words and words[-1] in states:
            return words[-1]
        # The connection was lost, or systemd has no state yet.
        _check_alive(clone, deadline, f"the systemd state is {' '.join(words) or 'unknown'}", tell, "services are starting")
        time.sleep(POLL_SECONDS)


def _check_alive(clone: Clone, deadline: float, what: str, tell: Tell, doing: str) -> None:
    """Raise StepFailed if the VM ended, panicked, or the time is up."""
    tell(doing)
    clone.check_running(doing)
    if time.monotonic() > deadline:
        raise StepFailed(
            f"clone {clone.config.name} did not become ready in time: {what}", details=run.tail(clone.console_text()),
            hint=f"the whole console is in {clone.console}",
        )  # fmt: skip


class SshEndpoint(Protocol):
    """A VM with its own SSH configuration."""

    @property
    def directory(self) -> Path: ...

    @property
    def ssh_config(self) -> Path: ...

    @property
    def alias(self) -> str: ...


@contextmanager
def shared_connection(endpoint: SshEndpoint) -> Iterator[None]:
    """Keep one SSH connection open for all later commands: a login takes a second under emulation.

    It is a child process instead of ssh's ControlPersist, which would leave a process behind.
    """
    argv = ["ssh", "-F", str(endpoint.ssh_config), "-M", "-N", endpoint.alias]
    with run.spawn(argv, log=endpoint.directory / "ssh.log", contained=False):
        yield


def describe(clone: Clone, server_name: str = "") -> str:
    """Return commands to connect to the VM: the web server answers only to its own names, so the address needs one.

    Without ``server_name`` the image has no application that could be asked.
    """
    ssh = shlex.join(["ssh", "-F", str(clone.ssh_config), clone.alias])
    if not server_name:
        return ssh
    port = clone.ports["https"]
    request = f"curl --insecure --resolve {server_name}:{port}:{LOOPBACK} https://{server_name}:{port}/health"
    return f"{ssh}\n{request}"
