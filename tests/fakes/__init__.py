"""Fakes: real executables and real guests, so that the code under test meets what it meets on a host."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BIN = Path(__file__).parent / "bin"


@dataclass(frozen=True)
class Call:
    """One start of a fake program."""

    argv: list[str]
    cwd: str
    env: dict[str, str]
    pid: int


@dataclass(frozen=True)
class Fake:
    """A fake program: its path, and how it was called."""

    path: Path

    def calls(self) -> list[Call]:
        """Return the calls so far, oldest first."""
        notes = self.path.with_name(f"{self.path.name}.calls")
        lines = notes.read_text(encoding="utf-8").splitlines() if notes.exists() else []
        return [Call(**json.loads(line)) for line in lines]


@dataclass(frozen=True)
class Fakes:
    """A directory of fake programs, which the ``fakes`` fixture puts first in PATH."""

    directory: Path

    def command(self, name: str, *rules: dict[str, Any], **rule: Any) -> Fake:
        """Make a program that follows rules (see bin/command.py), or one rule given by keywords."""
        return self.install(name, "command.py", {"rules": [*rules, rule]})

    def packer(self, **plan: Any) -> Fake:
        """Make a Packer that acts out a plan (see bin/packer.py)."""
        return self.install("packer", "packer.py", plan)

    def install(self, name: str, program: str, plan: dict[str, Any]) -> Fake:
        """Put a program of tests/fakes/bin under ``name``, with its plan beside it."""
        path = self.directory / name
        source = (BIN / program).read_text(encoding="utf-8").split("\n", 1)[1]
        path.write_text(f"#!{sys.executable}\n{source}", encoding="utf-8")
        path.chmod(0o755)
        path.with_name(f"{name}.json").write_text(json.dumps(plan), encoding="utf-8")
        return Fake(path)

    def real(self, *names: str) -> None:
        """Let the host's own programs through, for a test that sees nothing else in PATH."""
        for name in names:
            found = shutil.which(name)
            assert found, f"the host lacks {name}"
            (self.directory / name).symlink_to(found)
