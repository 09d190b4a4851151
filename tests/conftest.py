"""What all tests share: fake programs in PATH, and how to say that the host lacks something on purpose."""

from __future__ import annotations

import functools
import gc
import os
import random
import re
import signal
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from build.core import host
from build.disk import packer
from tests.fakes import Fakes
from tests.packers import packers

WORKERS_PER_PROCESSOR, MOST_WORKERS = 2, 16
# The part of SHARED that this run takes, such as 1/2, so that several machines of one gate share these tests.
SHARE = "GOLDSMITH_TEST_SHARE"
# Their outcome depends on Goldsmith's own code: neither on programs of the host, nor on its users and kernel.
SHARED = (
    *(f"contract/{name}" for name in ("clone", "drift", "properties", "proxmox", "publish", "release", "replace")),
    *(
        f"unit/{name}"
        for name in ("audit", "bench", "cli", "docs", "overlays", "report", "spec", "suite", "vulnerabilities")
    ),
    "reproducible",
)
Item = TypeVar("Item")


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
    parser.addoption(
        "--shuffle", type=int, metavar="SEED",
        help="run the test files, and the tests of each file, in a random order; the same number is the same order",
    )  # fmt: skip


# Image tests in a container are one process, without pytest-xdist.
@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return the number of workers of ``-n auto``: many tests wait for a program, so there are two for each processor."""
    return min(WORKERS_PER_PROCESSOR * len(os.sched_getaffinity(0)), MOST_WORKERS)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the tests in the order that --shuffle asks for, and give each worker its share of the slow ones first."""
    if SHARE in os.environ:
        others = set(of_other_parts(items, *part_of(os.environ[SHARE])))
        config.hook.pytest_deselected(items=[*others])
        items[:] = [item for item in items if item not in others]
    seed = config.getoption("--shuffle")
    if seed is not None:
        items[:] = shuffled(items, seed)
    workers = int(getattr(config, "workerinput", {}).get("workercount", 1))
    slow = [item for item in items if item.get_closest_marker("slow")]
    if workers > 1 and slow:
        items[:] = shares(slow, [item for item in items if item not in set(slow)], workers)


def pytest_report_header() -> str | None:
    """Name the part of the shared tests that is run."""
    return f"tests of {', '.join(SHARED)}: part {os.environ[SHARE]} ({SHARE})" if SHARE in os.environ else None


def part_of(share: str) -> tuple[int, int]:
    """Return the number of a part, from 1 on, and the number of parts; raise UsageError for what is not N/M."""
    match = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", share)
    if match is None or int(match[1]) > int(match[2]):
        raise pytest.UsageError(f"{SHARE}: {share!r} is not a part: write 1/2 or 2/2, for example")
    return int(match[1]), int(match[2])


def of_other_parts(items: Sequence[pytest.Item], part: int, parts: int) -> list[pytest.Item]:
    """Return the shared tests that belong to other parts; by their names, so that every machine divides them alike."""
    places = [Path(__file__).parent / name for name in SHARED]
    return [
        item for item in items
        if any(place in item.path.parents for place in places) and zlib.crc32(item.nodeid.encode()) % parts != part - 1
    ]  # fmt: skip


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what stays until the end: thousands of tests, and every module."""
    gc.collect()
    gc.freeze()


def shuffled(items: Sequence[pytest.Item], seed: int) -> list[pytest.Item]:
    """Return the tests in a random order; those of a file stay together, since they share fixtures of their module."""
    source = random.Random(seed)
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    order = source.sample(sorted(files), len(files))
    return [item for path in order for item in source.sample(files[path], len(files[path]))]


def shares(slow: Sequence[Item], quick: Sequence[Item], workers: int) -> list[Item]:
    """Return all tests, with slow ones at the beginning of each of the equal parts that --dist worksteal cuts them into.

    A slow test that begins last would keep one worker busy while the others have nothing left.
    """
    order: list[Item] = []
    rest = list(quick)
    total = len(slow) + len(quick)
    for number in range(workers):
        mine = slow[number::workers]
        size = (total - len(order)) // (workers - number)
        count = max(size - len(mine), 0)
        order += [*mine, *rest[:count]]
        del rest[:count]
    return [*order, *rest]


@functools.cache
def packers_of_the_run() -> list[packer.Packer]:
    """Return every Packer of this host; each is started to tell its version, which is done once and not for each module."""
    return packers()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes ``real_packer`` once with each Packer of this host."""
    if "real_packer" in metafunc.fixturenames:
        found = packers_of_the_run()
        names = [one.name for one in found] or ["none"]
        metafunc.parametrize("real_packer", found or [None], indirect=True, ids=names)


@pytest.fixture
def real_packer(request: pytest.FixtureRequest) -> packer.Packer:
    """A real Packer; a host without one fails the test with the command that installs one."""
    if "packer" in request.config.getoption("--without"):
        pytest.skip("--without packer")
    if request.param is None:
        pytest.fail(f"there is no Packer on this host\n  -> {packer.GET_PACKER}\n  -> or skip: --without packer")
    assert isinstance(request.param, packer.Packer)
    return request.param


@pytest.fixture(scope="session")
def chromium(request: pytest.FixtureRequest) -> str:
    """A real browser; a host without one fails the test with the command that installs one."""
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
    monkeypatch.setattr("build.core.run.search_path", lambda: os.fspath(directory))
    fakes = Fakes(directory)
    fakes.real("setpriv", "unshare")
    return fakes
