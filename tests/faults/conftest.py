"""Fixtures of the fault injection tests: the machine, its journal, load on its web server, and a report of metrics.

Each module begins with a machine as it was when it was ready for the first time, and so does each test after one that
failed or left the machine unwell. A test mends what it broke.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from testinfra.host import Host

from build.faults.machines import Clone, Machine, Ward
from build.faults.report import LACKS
from tests.image.conftest import _tell_report, connect, context, expected, spec, target
from tests.image.remote import pace, seconds, until

from .journal import AccessLog, Journal
from .traffic import Load, Traffic
from .visitor import Visitor

__all__ = ["_tell_report", "context", "expected", "spec", "target"]

# At full speed, as every limit of these tests; times the pace of the machine.
WELL_SECONDS = 20
TIERS = "nginx gunicorn postgresql@17-main rsyslog"
# Where no client waits for the fault: reset units that failed and were repaired.
MEND = "systemctl reset-failed; if command -v fail2ban-client >/dev/null; then fail2ban-client unban --all; fi"

# The machine queries itself, by its first name: a request without a name is not answered.
ASK_HEALTH = """
import os, socket, ssl
name = open("/run/golden/names").read().split()[0]
raw = socket.create_connection(("127.0.0.1", 443), timeout=20 * int(os.environ["PACE"]))
served = ssl._create_unverified_context().wrap_socket(raw, server_hostname=name)
served.sendall(f"GET /health HTTP/1.1\\r\\nHost: {name}\\r\\nConnection: close\\r\\n\\r\\n".encode())
raise SystemExit(not served.recv(4096).startswith(b"HTTP/1.1 200 "))
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--context", type=Path, help="what to break: a file that Goldsmith writes")
    parser.addoption("--faults", default="", help="only the tests of these faults, such as F04,F16")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--context") is None and items:
        raise pytest.UsageError("tests/faults breaks a running image: run `nox -s faults`")
    chosen = {name for name in config.getoption("--faults").split(",") if name}
    if chosen:
        kept = [item for item in items if chosen & set(faults_of(item))]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


def faults_of(item: pytest.Item) -> list[str]:
    """Return the faults that a test injects."""
    return [name for marker in item.iter_markers("req") for name in marker.args if name.startswith("F")]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Print why a test failed, and mark the shared machine as unwell: it is not used again."""
    report = yield
    if getattr(report, "failed", False):
        if hasattr(item.session, "stall"):
            item.session.stall.unwell = True
        # At once: a run takes long, and an interrupted one has printed the results so far.
        terminal: Any = item.config.pluginmanager.get_plugin("terminalreporter")
        terminal.write_line(f"\n{report.longreprtext}")
    return report


class Stall:
    """Holds the one machine that most tests share, and resets it between modules and after a test that spoilt it."""

    def __init__(self, ward: Ward) -> None:
        self.ward = ward
        self.machine: Machine | None = None
        self.module = ""
        self.unwell = False

    def take(self, module: str) -> Machine:
        """Return the machine, fit for a test of ``module``."""
        if self.machine is None:
            self.machine = self.ward.make("patient")
            self.machine.start()
            if isinstance(self.machine, Clone):
                settle(connect(self.machine.entry(), lasting=False))
                self.machine.save()
        elif self.unwell or module != self.module:
            self.machine.reset()
        self.module, self.unwell = module, False
        return self.machine

    def close(self) -> None:
        if self.machine is not None:
            self.machine.stop()


@pytest.fixture(scope="session")
def ward(context: dict[str, Any]) -> Ward:
    """Makes machines of the image."""
    return Ward.from_context(context)


@pytest.fixture(scope="session")
def stall(request: pytest.FixtureRequest, ward: Ward) -> Iterator[Stall]:
    """The shared machine's place."""
    made = Stall(ward)
    request.session.stall = made  # type: ignore[attr-defined]
    yield made
    made.close()


@pytest.fixture
def machine(request: pytest.FixtureRequest, stall: Stall) -> Iterator[Machine]:
    """The shared machine; a test that leaves it unwell gives the next one a machine as new."""
    found = stall.take(request.module.__name__)
    yield found
    if not stall.unwell:
        stall.unwell = not is_well(connect(found.entry(), lasting=False))


def settle(host: Host) -> None:
    """Wait for what goes on in the background after a first boot: a snapshot would begin it again each time."""
    still = "systemctl --quiet is-active golden-aide-first"
    host.check_output(f"timeout $((90 * PACE)) sh -c 'while {still}; do sleep 2; done'")


def is_well(host: Host) -> bool:
    """Return True if nothing is failed and every tier serves, after a while at the latest."""
    well = f"systemctl is-system-running >/dev/null && systemctl --quiet is-active {TIERS}"
    serves = f"python3 -c {shlex.quote(ASK_HEALTH)} 2>/dev/null"
    script = f"{MEND} >/dev/null 2>&1; {until(f'{well} && {serves} && exit 0', WELL_SECONDS, pause=1)}; exit 1"
    return bool(host.run(f"timeout $(({2 * WELL_SECONDS} * PACE)) sh -c {shlex.quote(script)}").rc == 0)


@pytest.fixture
def host(machine: Machine) -> Host:
    """The machine, as root."""
    return connect(machine.entry(), lasting=False)


@pytest.fixture
def journal(host: Host, record_property: Callable[[str, object], None]) -> Journal:
    """The machine's journal from now on; a line that is found goes into the report."""
    return Journal(host, lambda line: record_property("evidence", line))


@pytest.fixture
def access_log(host: Host, record_property: Callable[[str, object], None]) -> AccessLog:
    """The web server's log from now on; a line that is found goes into the report."""
    return AccessLog(host, lambda line: record_property("evidence", line))


@pytest.fixture
def numbers(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Records metrics for the report, by name."""

    def note(**figures: object) -> None:
        record_property("numbers", json.dumps({name.replace("_", " "): value for name, value in figures.items()}))

    return note


@pytest.fixture
def traffic(machine: Machine, host: Host, spec: SimpleNamespace, tmp_path: Path) -> Traffic:
    """Sends requests to the machine from where its clients are."""
    return Traffic(machine.endpoint(), spec.application.server_name, tmp_path, scale=pace(host))


@pytest.fixture
def load(traffic: Traffic, numbers: Callable[..., None]) -> Callable[..., Any]:
    """Starts load on the machine: ``with load() as going``; its metrics go into the report."""

    def begin(*paths: str, **options: Any) -> Any:
        def note(done: Load) -> None:
            numbers(
                requests=done.count["sent"], lost=done.count["bad"], retried=done.count["retried"],
                longest_s=done.count["longest"], median_s=done.count["median"],
            )  # fmt: skip

        return traffic.load(paths or ("/", "/health"), note=note, **options)

    return begin


@pytest.fixture
def visitor(host: Host, traffic: Traffic) -> Visitor:
    """A user who can get an account."""
    return Visitor(host, traffic)


@pytest.fixture
def patience(host: Host) -> Callable[[float], float]:
    """Stretches a promised time for a machine that is slow, by its measured pace."""
    return lambda at_full_speed: seconds(host, at_full_speed)


@pytest.fixture
def needs(host: Host) -> Callable[..., None]:
    """Fails a test whose layer the image does not have: names commands or paths that have to be there."""

    def check(*wanted: str) -> None:
        missing = [name for name in wanted if host.run(f"command -v {name} || test -e {name}").rc != 0]
        if missing:
            pytest.fail(f"{LACKS} {', '.join(missing)}", pytrace=False)

    return check


def wait_until(condition: Callable[[], object], *, seconds: float, what: str, pause: float = 0.5) -> float:
    """Wait until ``condition`` holds and return the seconds it took; fail with ``what`` when the time is up."""
    begun = time.monotonic()
    while not condition():
        if time.monotonic() - begun > seconds:
            pytest.fail(f"{what} did not happen within {seconds:.0f} s")
        time.sleep(pause)
    return time.monotonic() - begun
