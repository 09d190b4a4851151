"""The target of an audit: a VM or container with a root shell, and services that programs on the host can connect to.

A VM is accessed over SSH and QEMU's forwarded ports; a container through its namespaces.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from build.core import json_text, log, run
from build.core.errors import SpecError, StepFailed
from build.machines import nspawn, vm

LOOPBACK = vm.LOOPBACK
SEND_SECONDS = 300
POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Target:
    """A running VM or container: argv prefixes of a root shell and of a host's program, and the services' ports."""

    kind: str
    prefix: tuple[str, ...]
    outside: tuple[str, ...]
    ports: dict[str, int]
    scale: float
    over_ssh: bool

    def argv(self, command: str) -> list[str]:
        """Return the argv that runs a shell command as root."""
        if self.over_ssh:
            return [*self.prefix, shlex.join(["sudo", "-n", "/bin/sh", "-c", command])]
        return [*self.prefix, "/bin/sh", "-c", command]

    def shell(self, command: str, *, timeout: float = 60, check: bool = True, output: Path | None = None) -> run.Done:
        """Run a shell command as root; ``timeout`` is in seconds with KVM, ``output`` gets its output."""
        return run.run(self.argv(command), timeout=timeout * self.scale, check=check, log=output)

    def watch(self, command: str, *, title: str, tell: Callable[[str], str], timeout: float, output: Path) -> int:
        """Run a long shell command as root with a progress bar; return its exit status.

        ``tell`` returns a short progress text for the output so far, all of which is kept in ``output``; ``timeout`` is
        in seconds with KVM. Raises StepFailed when the time is up.
        """
        output.unlink(missing_ok=True)
        progress = log.Progress(title)
        deadline = time.monotonic() + timeout * self.scale
        try:
            with run.spawn(self.argv(command), log=output, contained=False) as process:
                while (status := process.wait(POLL_SECONDS)) is None:
                    progress.update(tell(output.read_text(encoding="utf-8", errors="replace")))
                    if time.monotonic() > deadline:
                        raise StepFailed(
                            f"{title} did not end within {log.seconds(timeout * self.scale)}",
                            details=run.tail(output.read_text(encoding="utf-8", errors="replace")),
                            hint="reduce the load of this host: an emulated VM needs most of its CPU time",
                        )
                return status
        finally:
            progress.finish()

    def read(self, path: str) -> str:
        """Return a file's text."""
        return self.shell(f"cat {shlex.quote(path)}").stdout

    def send(self, source: Path, names: Sequence[str], *, target: str, output: Path) -> None:
        """Copy files and directories below ``source`` to the directory ``target``, owned by root."""
        owner = ("--owner=0", "--group=0", "--numeric-owner")
        run.pipe(
            ["tar", "--create", "--gzip", *owner, "--directory", str(source), "--", *names],
            self.argv(f"mkdir -p {target} && tar --extract --gzip --no-same-owner --directory {target}"),
            timeout=SEND_SECONDS * self.scale, log=output,
        )  # fmt: skip

    def program(self, *arguments: str | Path) -> list[str]:
        """Return the argv of a program on the host that connects to the target's services on the loopback interface."""
        return [*self.outside, *map(str, arguments)]


def of_clone(clone: vm.Clone) -> Target:
    """Return the target of a VM that is ready."""
    ssh = ("ssh", "-F", str(clone.ssh_config), clone.alias)
    return Target("clone", ssh, (), clone.ports, clone.accelerator.timeout_scale, over_ssh=True)


def of_container(leader: int) -> Target:
    """Return the target of a container whose process 1 has this PID on the host."""
    inside, network = tuple(nspawn.enter(leader)), nspawn.enter_network(leader)
    return Target("container", inside, network, dict(vm.GUEST_PORTS), 4.0, over_ssh=False)


def of_context(path: Path) -> Target:
    """Return the first target of a context file of the image tests."""
    try:
        entry = json_text.parse(path.read_text())["clones"][0]
    except (OSError, ValueError, LookupError) as error:
        raise SpecError(f"{path} is not a context file: {error}") from error
    if "enter" in entry:
        return of_container(int(entry["enter"][entry["enter"].index("--target") + 1]))
    return Target("clone", ("ssh", "-F", entry["ssh_config"], entry["alias"]), (), entry["ports"], 10.0, over_ssh=True)
