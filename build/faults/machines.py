"""Machines that tests may break: started, reset to their first state, cut off from power, started again.

A clone in QEMU keeps a live snapshot from the moment it was ready, so that a reset takes seconds under emulation too. A
container's changes lie in memory, over a read-only tree: a reset removes them and boots again. Mounts are
made in the caller's mount namespace, which has to be a separate one (``unshare --mount``).
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from build.core import run
from build.core.errors import StepFailed
from build.machines import acceleration, nocloud, nspawn, vm

SNAPSHOT = "ready"
SNAPSHOT_SECONDS = 120.0
MOUNT_SECONDS = 120.0
GONE_SECONDS = 20.0
# What a container may change, and the sizes of file systems that a test fills: as on a clone, they are their own.
CHANGES_MIB = 768
OWN_MIB: Mapping[str, int] = {"/var": 512, "/var/log": 64, "/var/www": 32}
# Not started in a container: AIDE's test makes its own database.
NOT_THERE = ("golden-aide-first.service",)
POLL_SECONDS = 0.5


class Target(StrEnum):
    """What the faults are tried on: clones of the pristine disk, or its root file system in a container."""

    VM = "vm"
    CONTAINER = "container"


@dataclass(frozen=True)
class Endpoint:
    """How the test host reaches a machine's services: what to put before a command, the address, and the ports."""

    prefix: tuple[str, ...]
    address: str
    ports: Mapping[str, int]


class Machine(ABC):
    """One machine; everything it leaves on the test host is in ``directory``."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory

    @abstractmethod
    def start(self, *, wait: bool = True) -> None:
        """Start the machine for the first time; with ``wait``, return when it is ready."""

    @abstractmethod
    def start_again(self, *, wait: bool = True) -> None:
        """Start a machine that was cut off, with what it has on its disk."""

    @abstractmethod
    def await_ready(self) -> None:
        """Return when the machine has booted and can be reached, by evidence."""

    @abstractmethod
    def cut_power(self) -> None:
        """End the machine at once, without a shutdown."""

    @abstractmethod
    def reset(self) -> None:
        """Bring the machine back to the state in which it was ready for the first time."""

    @abstractmethod
    def stop(self) -> None:
        """Take the machine away."""

    @abstractmethod
    def entry(self) -> dict[str, Any]:
        """Return the entry of a machine in the tests' context."""

    @abstractmethod
    def endpoint(self) -> Endpoint:
        """Return how its services are reached."""

    @abstractmethod
    def ssh(self, command: str) -> list[str]:
        """Return the argv of a login as the administrator that runs ``command``."""


class Clone(Machine):
    """A clone of the pristine disk in QEMU."""

    def __init__(
        self, name: str, directory: Path, *, image: Path, accelerator: acceleration.Accelerator, identity: nocloud.Identity
    ) -> None:
        super().__init__(name, directory)
        self.image, self.accelerator, self.identity = image, accelerator, identity
        self.extra: Sequence[str] = ()
        self._life, self._login = ExitStack(), ExitStack()
        self._made: vm.Clone | None = None
        self._saved = False

    @property
    def made(self) -> vm.Clone:
        """The running clone."""
        assert self._made is not None, f"{self.name} was not started"
        return self._made

    def start(self, *, wait: bool = True) -> None:
        self._begin(again=False, wait=wait)

    def start_again(self, *, wait: bool = True) -> None:
        self._begin(again=True, wait=wait)

    def _begin(self, *, again: bool, wait: bool) -> None:
        config = vm.CloneConfig(self.name, vm.Firmware.BIOS)
        self._made = self._life.enter_context(
            vm.clone(self.image, config, directory=self.directory, accelerator=self.accelerator, identity=self.identity,
                     again=again, extra=self.extra)
        )  # fmt: skip
        if wait:
            self.await_ready()

    def await_ready(self) -> None:
        vm.wait_ready(self.made, self.identity)
        self.log_in()

    def log_in(self) -> None:
        """Keep a connection open that every command goes through."""
        self._login.close()
        self._login.enter_context(vm.shared_connection(self.made))
        deadline = time.monotonic() + vm.COMMAND_SECONDS * self.accelerator.timeout_scale
        while self.made.execute("true", check=False).returncode != 0:
            if time.monotonic() > deadline:
                raise StepFailed(f"{self.name} cannot be logged in to", hint=f"its console is in {self.made.console}")
            time.sleep(POLL_SECONDS)

    def save(self) -> None:
        """Take the snapshot that a reset goes back to."""
        self.monitor(f"savevm {SNAPSHOT}")
        self._saved = True

    def monitor(self, line: str) -> str:
        """Run a command of QEMU's monitor; its complaints are an error."""
        answer = vm.monitor_command(self.made.monitor, line, timeout=SNAPSHOT_SECONDS).strip()
        if answer.startswith("Error"):
            raise StepFailed(f"QEMU's monitor refused {line!r}: {answer}")
        return answer

    def starve(self, *, stopped: float, running: float, most: int, enough: Callable[[], bool]) -> int:
        """Give the clone a part of its processors only, in ``most`` rounds or until ``enough``; return the rounds.

        In each round QEMU is stopped for ``stopped`` seconds, which the guest's clocks do not leave out, and then runs for
        ``running`` seconds. Signals need no cgroup that may be delegated, and slow a disk's answers as they slow all else.
        """
        group = self.made.process.pid
        for rounds in range(1, most + 1):
            os.killpg(group, signal.SIGSTOP)
            try:
                time.sleep(stopped)
            finally:
                os.killpg(group, signal.SIGCONT)
            ends = time.monotonic() + running
            while time.monotonic() < ends:
                if enough():
                    return rounds
                time.sleep(min(POLL_SECONDS, running))
        return most

    def cut_power(self) -> None:
        self._login.close()
        group, deadline = self.made.process.pid, time.monotonic() + GONE_SECONDS
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        self._life.close()
        # QEMU is a child of what leads its group, and may end a moment after it: until then its disk is locked and its
        # monitor answers.
        with suppress(ProcessLookupError):
            while time.monotonic() < deadline:
                os.killpg(group, 0)
                time.sleep(POLL_SECONDS)

    def reset(self) -> None:
        self._login.close()
        if self._saved and self.made.process.poll() is None:
            self.monitor(f"loadvm {SNAPSHOT}")
            self.log_in()
        else:
            self.stop()
            self.start()
            self.save()

    def await_reboot(self, before: str) -> None:
        """Return when the clone that had the boot id ``before`` is ready with another one."""
        self._login.close()
        deadline = time.monotonic() + vm.BOOT_SECONDS * self.accelerator.timeout_scale
        command = "cat /proc/sys/kernel/random/boot_id; test ! -e /run/nologin && systemctl is-system-running --wait"
        state: list[str] = []
        while len(state) != 2 or state[0] == before:
            status = self.made.process.poll()
            if status is not None or time.monotonic() > deadline:
                how = "in time" if status is None else f"again: {run.ending('QEMU', status)}"
                raise StepFailed(
                    f"{self.name} did not come back {how}", details=run.tail(self.made.console_text()), hint=" ".join(state)
                )
            time.sleep(POLL_SECONDS)
            state = self.made.execute(command, check=False).stdout.split()
        self.log_in()
        if state[1] != "running":
            raise StepFailed(f"{self.name} came back, but systemctl reports {state[1]}")

    def stop(self) -> None:
        self._saved = False
        self._login.close()
        self._life.close()

    def entry(self) -> dict[str, Any]:
        clone = self.made
        return {
            "name": self.name, "firmware": clone.config.firmware, "alias": clone.alias, "ssh_config": str(clone.ssh_config),
            "ports": clone.ports, "disk_mib": clone.disk_mib, "console": str(clone.console),
        }  # fmt: skip

    def endpoint(self) -> Endpoint:
        return Endpoint((), vm.LOOPBACK, self.made.ports)

    def ssh(self, command: str) -> list[str]:
        # A separate connection, to test a login and not a connection that is already open.
        return ["ssh", "-F", str(self.made.ssh_config), "-S", "none", self.made.alias, command]


class Container(Machine):
    """The root file system under systemd-nspawn: a tree that stays as it is, and changes in memory."""

    def __init__(self, name: str, directory: Path, *, tree: Path, identity: nocloud.Identity) -> None:
        super().__init__(name, directory)
        self.tree, self.identity = tree, identity
        self._mounts, self._life = ExitStack(), ExitStack()
        self._process: run.Process | None = None
        self.leader = 0

    @property
    def root(self) -> Path:
        return self.directory / "root"

    @property
    def console(self) -> Path:
        return self.directory / "console.log"

    def start(self, *, wait: bool = True) -> None:
        changes = self.directory / "changes"
        for path in (changes, self.root):
            path.mkdir(parents=True, exist_ok=True)
        self._mount("tmpfs", "tmpfs", changes, f"size={CHANGES_MIB}m,mode=755")
        for name in ("upper", "work"):
            (changes / name).mkdir()
        options = f"lowerdir={self.tree},upperdir={changes / 'upper'},workdir={changes / 'work'}"
        self._mount("overlay", "overlay", self.root, options)
        for own, mib in OWN_MIB.items():
            self._mount("tmpfs", "tmpfs", self.root / own[1:], f"size={mib}m,mode=755")
            run.run(["cp", "-aT", self.tree / own[1:], self.root / own[1:]], timeout=MOUNT_SECONDS)
        self.start_again(wait=wait)

    def _mount(self, kind: str, source: str, where: Path, options: str) -> None:
        run.run(["mount", "-t", kind, "-o", options, source, where], timeout=MOUNT_SECONDS)
        # Lazily: what still holds a file of it goes away with the process that has it.
        self._mounts.callback(run.run, ["umount", "--lazy", where], timeout=MOUNT_SECONDS)

    def start_again(self, *, wait: bool = True) -> None:
        self._process = self._life.enter_context(nspawn.boot(self.root, self.console, masked=NOT_THERE))
        if wait:
            self.await_ready()

    def await_ready(self) -> None:
        assert self._process is not None, f"{self.name} was not started"
        self.leader = nspawn.await_running(self._process, self.console)

    def cut_power(self) -> None:
        assert self._process is not None, f"{self.name} was not started"
        leader = nspawn.find_leader(self._process.pid)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._life.close()
        # Its namespace ends with its last process, which holds the tree.
        while leader and Path(f"/proc/{leader}").exists():
            time.sleep(POLL_SECONDS / 10)

    def reset(self) -> None:
        self.stop()
        self.start()

    def stop(self) -> None:
        if self._process is not None:
            self.cut_power()
        self._mounts.close()

    def entry(self) -> dict[str, Any]:
        enter = nspawn.enter(self.leader)
        return {"name": self.name, "enter": enter, "firmware": "", "ports": {}, "disk_mib": 0, "console": str(self.console)}

    def endpoint(self) -> Endpoint:
        return Endpoint(self._inside(), vm.LOOPBACK, vm.GUEST_PORTS)

    def _inside(self) -> tuple[str, ...]:
        return nspawn.enter_network(self.leader)

    def ssh(self, command: str) -> list[str]:
        keys = [key for path in sorted((self.root / "etc/ssh").glob("ssh_host_*_key.pub")) for key in [path.read_text()]]
        config = nocloud.write_ssh_config(
            self.directory, alias=self.name, port=22, host_keys=[" ".join(key.split()[:2]) for key in keys],
            identity=self.identity,
        )  # fmt: skip
        return [*self._inside(), "ssh", "-F", str(config), self.name, command]


@dataclass(frozen=True)
class Ward:
    """Makes machines of one image below one directory, all with the same administrator's key."""

    target: Target
    image: Path
    scratch: Path
    user: str
    accelerator: acceleration.Accelerator | None

    @classmethod
    def from_context(cls, context: Mapping[str, Any]) -> Ward:
        """Return the ward that a context file describes."""
        entry = context["accelerator"]
        accelerator = {**entry, "kind": acceleration.Kind(entry["kind"]), "qemu": tuple(entry["qemu"])} if entry else {}
        return cls(
            Target(context["target"]), Path(context["image"]), Path(context["scratch"]), context["spec"]["admin"]["user"],
            acceleration.Accelerator(**accelerator) if accelerator else None,
        )  # fmt: skip

    @property
    def scale(self) -> float:
        """How much more time than on real processors a machine may take."""
        return self.accelerator.timeout_scale if self.accelerator else 1.0

    def make(self, name: str) -> Machine:
        """Return a new machine that is not started yet."""
        directory = self.scratch / name
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        identity = nocloud.make_identity(self.scratch / "identity", self.user)
        if self.target is Target.CONTAINER:
            return Container(name, directory, tree=self.image, identity=identity)
        assert self.accelerator is not None
        return Clone(name, directory, image=self.image, accelerator=self.accelerator, identity=identity)
