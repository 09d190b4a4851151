"""What all tests share: fake programs in PATH, and how to say that the host lacks something on purpose."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.fakes import Fakes


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--without", action="append", default=[], choices=["packer", "qemu"],
        help="skip the tests that need this tool, instead of failing with the command that installs it",
    )  # fmt: skip


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    """A directory for fake programs that comes first in PATH."""
    directory = tmp_path / "fake-bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}{os.pathsep}{os.environ['PATH']}")
    return Fakes(directory)


@pytest.fixture
def only_fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    """A directory for fake programs that is all there is, but for the tools that hold a child process."""
    directory = tmp_path / "only-fake-bin"
    directory.mkdir()
    monkeypatch.setattr("build.run.search_path", lambda: os.fspath(directory))
    fakes = Fakes(directory)
    fakes.real("setpriv", "unshare")
    return fakes
