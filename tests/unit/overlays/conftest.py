"""Runs the commands of the image on the host; the programs that they start are recorded, and the test sets their output."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.golden_modules import golden_module


class Programs:
    """Replaces subprocess in golden.core: a program without an answer of the test succeeds and prints nothing."""

    def __init__(self) -> None:
        self.started: list[list[str]] = []
        self.inputs: list[bytes] = []
        self._answers: list[tuple[tuple[str, ...], int, str, str]] = []

    def answer(self, *words: str, out: str = "", err: str = "", status: int = 0) -> None:
        """Answer programs whose argv has all the words; a later answer goes before an earlier one."""
        self._answers.insert(0, (words, status, out, err))

    def run(self, argv: Sequence[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        self.started.append(list(argv))
        self.inputs.append(options.get("input") or b"")
        fitting = (answer[1:] for answer in self._answers if {*answer[0]} <= {*argv})
        status, out, err = next(fitting, (0, "", ""))
        return subprocess.CompletedProcess(argv, status, out.encode(), err.encode())

    def named(self, name: str) -> list[list[str]]:
        """Return the arguments of each start of a program."""
        return [argv[1:] for argv in self.started if Path(argv[0]).name == name]


@dataclass(frozen=True)
class Result:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Programs:
    fake = Programs()
    stand_in = SimpleNamespace(run=fake.run, DEVNULL=subprocess.DEVNULL, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr(golden_module("golden.core"), "subprocess", stand_in)
    return fake


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Call a command of golden.commands with words as root would, with locks in a directory of the test."""
    core = golden_module("golden.core")
    monkeypatch.setattr(core, "LOCKS", tmp_path / "locks")
    monkeypatch.setattr(core, "need_root", lambda: None)

    def call(name: str, *words: str | Path) -> Result:
        module = golden_module(f"golden.commands.{name}")
        monkeypatch.setattr(module, "need_root", lambda: None, raising=False)
        monkeypatch.setattr(sys, "argv", [f"golden-{name}", *map(str, words)])
        capsys.readouterr()
        code = 0
        try:
            module.main()
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else 1
            if isinstance(exit_.code, str):
                print(exit_.code, file=sys.stderr)
        printed = capsys.readouterr()
        return Result(code, printed.out, printed.err)

    return call
