"""What all tests share: fake programs in PATH, and how to say that the host lacks something on purpose."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from build import host, packer
from tests.fakes import Fakes
from tests.packers import packers


def pytest_configure() -> None:
    """Take signals as a terminal's programs do: a shell's background job, or nohup, would have them ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--without", action="append", default=[], choices=["packer", "qemu", "chromium"],
        help="skip the tests that need this tool, instead of failing with the command that installs it",
    )  # fmt: skip


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes ``real_packer`` once with each Packer of this host."""
    if "real_packer" in metafunc.fixturenames:
        found = packers()
        names = [one.name for one in found] or ["none"]
        metafunc.parametrize("real_packer", found or [None], indirect=True, ids=names)


@pytest.fixture
def real_packer(request: pytest.FixtureRequest) -> packer.Packer:
    """A real Packer; a host without one fails the test with the command that brings one."""
    if "packer" in request.config.getoption("--without"):
        pytest.skip("--without packer")
    if request.param is None:
        pytest.fail(f"there is no Packer on this host\n  -> {packer.GET_PACKER}\n  -> or skip: --without packer")
    assert isinstance(request.param, packer.Packer)
    return request.param


@pytest.fixture(scope="session")
def chromium(request: pytest.FixtureRequest) -> str:
    """A real browser; a host without one fails the test with the command that brings one."""
    if "chromium" in request.config.getoption("--without"):
        pytest.skip("--without chromium")
    found = host.find(host.BROWSER)
    if not found:
        command = host.install_command([host.BROWSER.package])
        pytest.fail(f"there is no Chromium on this host\n  -> {command}   (as root)\n  -> or skip: --without chromium")
    return found


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
