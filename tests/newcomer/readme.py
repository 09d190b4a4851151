"""The commands that README.md promises to a new user: the lines of its first block of shell code."""

from __future__ import annotations

import re
from pathlib import Path

from build.core.errors import SpecError

BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
# As in the README: a comment is set off by two spaces.
COMMENT = re.compile(r"\s{2,}#.*")
# What installs packages, and what a user does then.
INSTALLS, AND_THEN = "apt-get", " && "


def commands(readme: Path) -> list[str]:
    """Return the commands of the first block of shell code, one a line, without comments. Raises SpecError without one."""
    block = BLOCK.search(readme.read_text(encoding="utf-8"))
    lines = [COMMENT.sub("", line).strip() for line in block[1].splitlines()] if block else []
    found = [line for line in lines if line]
    if not found:
        raise SpecError(f"{readme} has no block of shell commands", hint="its first ```sh block is what a new user runs")
    return found


def with_sudo(command: str) -> str:
    """Return the command for an ordinary user: ``sudo`` before each ``apt-get``, as in the README."""
    return re.sub(rf"\b{INSTALLS}\b", f"sudo {INSTALLS}", command)


def administrators_part(command: str) -> str:
    """Return those parts of the command that install packages, which need an administrator."""
    return AND_THEN.join(part for part in command.split(AND_THEN) if part.startswith(INSTALLS))
