"""The lab's running machines: a QEMU each, its sockets, and its end. None outlives the lab, whatever ends that."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from build.core import run
from build.core.errors import StepFailed
from build.machines import vm
from build.machines.acceleration import Accelerator
from tests.lab import cloudinit, qemu, values
from tests.lab.agent import Agent
from tests.lab.network import Wires

QEMU_UP_SECONDS = 30.0


@dataclass
class Running:
    """A machine that runs: its process, its agent, and what ends with it."""

    vmid: int
    directory: Path
    console: Path
    log: Path
    process: run.Process
    agent: Agent
    stack: ExitStack
    lock: threading.Lock = field(default_factory=threading.Lock)

    def monitor(self, line: str) -> str:
        """Run a command of QEMU's human monitor."""
        with self.lock:
            said = vm.monitor_command(self.directory / qemu.MONITOR, line)
        if said.startswith("Error"):
            raise StepFailed(f"QEMU refused {line}: {said.strip()}")
        return said

    def console_text(self) -> str:
        """Return what the machine has written to its serial port."""
        return self.console.read_text(errors="replace") if self.console.exists() else ""


class Machines:
    """The machines of a lab, by VM id. ``logs`` keeps consoles and QEMU's own words after they are gone."""

    def __init__(self, root: Path, logs: Path, accelerator: Accelerator, wires: Wires | None, dns: cloudinit.Dns) -> None:
        self.root, self.logs, self.accelerator, self.wires, self.dns = root, logs, accelerator, wires, dns
        self.running: dict[int, Running] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def prepare(self, vmid: int, config: dict[str, object], files: dict[str, Path]) -> tuple[qemu.Place, list[str]]:
        """Write what a machine needs beside its disks; return where it is, and the command that is the machine.

        Raises Unknown for a configuration that the lab cannot be.
        """
        directory = self.root / str(vmid)
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        files = dict(files)
        for drive in values.drives(config):
            if drive.cloud_init:
                files[drive.key] = directory / "cloudinit.iso"
                cloudinit.write(files[drive.key], cloudinit.documents(config, vmid, self.dns))
        place = qemu.Place(directory, self.logs / f"{vmid}-{config.get('name', 'unnamed')}.console.log", files)
        for port in qemu.PORTS:
            place.log_of(port).unlink(missing_ok=True)
        return place, qemu.arguments(config, vmid, place, self.accelerator)

    def start(self, vmid: int, config: dict[str, object], place: qemu.Place, argv: Sequence[str]) -> Running:
        """Start a machine; :func:`await_up` waits until it is there.

        The thread that calls this must live as long as the machine: the kernel ends a child with the thread that made it.
        """
        log = place.console.with_suffix(".qemu.log")
        log.unlink(missing_ok=True)
        with ExitStack() as stack:
            for card in values.cards(config):
                if self.wires is None:
                    raise values.Unknown(f"net{card.number}: this lab has no network")
                name = qemu.tap(vmid, card.number)
                stack.callback(self.wires.unplug, name)
                self.wires.plug(name, card.bridge)
            process = stack.enter_context(run.spawn(argv, log=log, cwd=place.directory))
            agent = Agent(place.directory / qemu.AGENT, patience=self.accelerator.timeout_scale)
            made = Running(vmid, place.directory, place.console, log, process, agent, stack.pop_all())
        self.running[vmid] = made
        return made

    def alive(self, vmid: int) -> bool:
        """Return True if a machine runs; one that has powered itself off is cleared away."""
        found = self.running.get(vmid)
        if found is None:
            return False
        if found.process.poll() is None:
            return True
        self.end(vmid)
        return False

    def end(self, vmid: int) -> None:
        """End a machine as by a power cut; nothing is done if it does not run."""
        found = self.running.pop(vmid, None)
        if found is not None:
            found.stack.close()
            shutil.rmtree(found.directory, ignore_errors=True)

    def shut_down(self, vmid: int, *, agent: bool, timeout: float) -> bool:
        """Ask a machine to power off, and wait; return True if it did. Proxmox asks the agent when it is enabled."""
        found = self.running.get(vmid)
        if found is None:
            return True
        try:
            if not (agent and found.agent.shut_down()):
                found.monitor("system_powerdown")
        except (StepFailed, OSError):
            # It ended while it was asked.
            return found.process.wait(timeout) is not None
        return found.process.wait(timeout) is not None

    def close(self) -> None:
        """End every machine."""
        for vmid in list(self.running):
            self.end(vmid)


def await_up(made: Running) -> None:
    """Wait until a machine's monitor answers. Raises StepFailed with QEMU's own words when QEMU ends before."""
    deadline = time.monotonic() + QEMU_UP_SECONDS
    while made.process.poll() is None and time.monotonic() < deadline:
        try:
            made.monitor("info status")
        except (FileNotFoundError, ConnectionRefusedError):
            # The socket exists a moment before QEMU listens on it.
            time.sleep(0.05)
        else:
            return
    status = made.process.poll()
    how = f"its monitor did not answer within {QEMU_UP_SECONDS:.0f} s" if status is None else run.ending("it", status)
    raise StepFailed(f"QEMU did not start: {how}", details=run.tail(made.log.read_text(errors="replace")))
