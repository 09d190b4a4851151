"""Files between the test host and a machine, by its endpoint: the tree of a container, SSH to a clone."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

from build.faults.machines import Container, Machine

CARRY_SECONDS = 600


def give(machine: Machine, content: bytes, target: str) -> None:
    """Write a file on the machine, for root only."""
    if isinstance(machine, Container):
        path = machine.root / target.lstrip("/")
        path.touch(mode=0o600)
        path.write_bytes(content)
        return
    command = f"sudo sh -c {shlex.quote(f'umask 077; cat >{shlex.quote(target)}')}"
    subprocess.run(machine.ssh(command), input=content, check=True, timeout=CARRY_SECONDS)


def take(machine: Machine, source: str) -> bytes:
    """Read a file of the machine."""
    if isinstance(machine, Container):
        return Path(machine.root / source.lstrip("/")).read_bytes()
    command = f"sudo cat {shlex.quote(source)}"
    return subprocess.run(machine.ssh(command), capture_output=True, check=True, timeout=CARRY_SECONDS).stdout
