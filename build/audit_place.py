"""Where an audit takes place: a machine that a root shell reaches, and whose services the host's programs reach.

A clone is reached over SSH and QEMU's forwarded ports; a container by entering its name spaces.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from build import log, run, vm
from build.errors import SpecError, StepFailed

LOOPBACK = vm.LOOPBACK
SEND_SECONDS = 300
POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Place:
    """A running machine: the words before a root shell's command, before a host's program, and the services' ports."""

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
        """Run a shell command as root; ``timeout`` is in seconds on a machine with KVM, ``output`` takes what it says."""
        return run.run(self.argv(command), timeout=timeout * self.scale, check=check, log=output)

    def watch(self, command: str, *, title: str, tell: Callable[[str], str], timeout: float, output: Path) -> int:
        """Run a shell command as root that takes minutes, and show how far it is; return its exit status.

        ``tell`` makes a few words of what it has written so far, all of which is kept in ``output``; ``timeout`` is in
        seconds on a machine with KVM. Raises StepFailed when the time is up.
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
                            hint="an emulated machine needs a host that does little else",
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

    def program(self, *words: str | Path) -> list[str]:
        """Return the argv of a program on the host that reaches the machine's services on the loopback interface."""
        return [*self.outside, *map(str, words)]


def of_clone(made: vm.Clone) -> Place:
    """Return a clone that is ready."""
    ssh = ("ssh", "-F", str(made.ssh_config), made.alias)
    return Place("clone", ssh, (), made.ports, made.accelerator.timeout_scale, over_ssh=True)


def of_container(leader: int) -> Place:
    """Return a container whose process 1 has this number on the host."""
    words = ["nsenter", "--target", str(leader), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--"]
    outside = ("nsenter", "--target", str(leader), "--net", "--")
    return Place("container", tuple(words), outside, dict(vm.GUEST_PORTS), 4.0, over_ssh=False)


def of_context(path: Path) -> Place:
    """Return the first machine of a context file, as the image tests take it."""
    try:
        one = json.loads(path.read_text())["clones"][0]
    except (OSError, ValueError, LookupError) as error:
        raise SpecError(f"{path} is no context file: {error}") from error
    if "enter" in one:
        return of_container(int(one["enter"][one["enter"].index("--target") + 1]))
    return Place("clone", ("ssh", "-F", one["ssh_config"], one["alias"]), (), one["ports"], 10.0, over_ssh=True)
