"""Fixtures of the image tests: the clones, the spec and the pristine disk image, all from one context file.

Goldsmith writes the context and starts the clones; `pytest tests/image --context FILE` runs the tests against the
machines that the file names.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from testinfra.host import Host

from build.machines.disk_image import DiskImage
from build.machines.nocloud import LOOPBACK
from build.spec import expected_yaml, layer_tests

from .remote import POLL_SECONDS, Remote, seconds

OVERLAYS = Path(__file__).parents[2] / "overlays"
# Workers take files in this order. The first file is a short one: it goes to the worker that starts last, because the
# inventory of its clone is read before. The longest follow, so that no worker gets one of them when the other has finished.
# At the end are files that need both clones, and those that wait for the AIDE database, which is created when the clone is
# idle; then short ones; the last one stops every service and unmounts the file systems of a data disk.
FIRST = ("test_sealed",)
LAST = ("test_identity", "test_audit", "test_partitions", "test_ssh", "test_data")
# Modules marked `story` that also run over SSH on an emulated clone, in every build, although a container runs them: one
# module of each kind, the cheapest. A session over SSH has another umask, environment, and audit identity.
# Load on a clone is tested by test_request_path, which rotates a log; test_firewall has separate neighbours, and changes
# settings. (Of test_web_admin the tests that change settings are marked `minutes`; those of test_site took 256 s.)
EVERYWHERE = {
    "test_alerts": "services that the test starts, which read files that it made",
    "test_web_admin": "bytes on the wire that no HTTP library would send",
}


@dataclass(frozen=True)
class Machine:
    """One clone: how to reach it from the test host, and the options that it was created with."""

    name: str
    host: Host
    firmware: str
    ports: dict[str, int]
    disk_mib: int
    console: str
    address: str


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--context", type=Path, help="the machines to test: a file that Goldsmith writes")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Before pytest deselects tests by their marks.
    if config.getoption("--context") is None and items:
        raise pytest.UsageError("tests/image tests a running image: run `nox -s build`, or `nox -s container`")
    _leave_out_other_layers(config, items)
    order = {name: number for number, name in enumerate((*FIRST, "", *LAST))}
    for item in items:
        everywhere = item.path.stem in EVERYWHERE and item.get_closest_marker("story")
        if everywhere and not item.get_closest_marker("minutes"):
            item.add_marker("everywhere")
    items.sort(key=lambda item: order.get(item.path.stem, order[""]))


def _leave_out_other_layers(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests of layers that the image does not have."""
    layers = _layers(config)
    if layers is None:
        return
    known, owners = layer_tests.words(OVERLAYS, layers), layer_tests.owners(OVERLAYS)
    out = []
    for item in items:
        file = (layer_tests.TESTS / item.path.name).as_posix()
        marked = {name for marker in item.iter_markers(layer_tests.MARK) for name in marker.args}
        if layer_tests.lacking(owners.get(file, []), known) or marked - known:
            out.append(item)
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]


def _layers(config: pytest.Config) -> list[str] | None:
    """Return the layers of the image; None without a context, or with one that does not name them."""
    context = config.getoption("--context")
    found: list[str] | None = (
        json.loads(context.read_text())["spec"].get("layers") if context and context.is_file() else None
    )
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Create a test marked ``expected`` for each entry of the expectations of the image's layers."""
    for marker in metafunc.definition.iter_markers("expected"):
        argument, key = marker.args
        metafunc.parametrize(argument, _expected(metafunc.config)[key], ids=_name_of)


def _name_of(entry: object) -> str:
    return "-".join(map(str, entry.values())) if isinstance(entry, dict) else str(entry)


def _expected(config: pytest.Config) -> dict[str, Any]:
    return expected_yaml.merged(layer_tests.directories(OVERLAYS, _layers(config) or []))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """Start when the worker's own clone is ready; the other worker may have started before, and takes more of the files."""
    config = session.config
    distributes = bool(getattr(config.option, "numprocesses", None)) and not hasattr(config, "workerinput")
    if config.getoption("--context") is not None and not distributes and not config.option.collectonly:
        content = json.loads(config.getoption("--context").read_text())
        clone = content["clones"][own_number(len(content["clones"]))]
        own = connect(clone)
        own.backend.await_ready()
        # Only an application has a page of its health.
        if "https" in clone["ports"] and "application" in layer_tests.words(OVERLAYS, _layers(config) or ()):
            await_health(
                own, content["spec"]["application"]["server_name"], clone.get("address", LOOPBACK), clone["ports"]["https"]
            )
        own.backend.close()
    return (yield)


def await_health(host: Host, name: str, address: str, port: int) -> tuple[str, str]:
    """Request /health over HTTPS from outside until the status is 200; return the last status and text.

    The first request to a busy machine may take longer than the timeout of its web server, so it must not be a test's.
    """
    deadline, patience = time.monotonic() + seconds(host, 20), str(int(seconds(host, 20)))
    while True:
        done = host.backend.run_local(
            "curl --silent --show-error --max-time %s --insecure --resolve %s:%s:%s --write-out '\\n%%{http_code}' %s",
            patience, name, str(port), address, f"https://{name}:{port}/health",
        )  # fmt: skip
        body, _, code = done.stdout.strip().rpartition("\n")
        if code == "200" or time.monotonic() > deadline:
            return code, body + done.stderr
        time.sleep(POLL_SECONDS)


def own_number(clones: int) -> int:
    """Return the number of this worker's clone: each worker of pytest-xdist (gw0, gw1 ...) has a separate one."""
    return int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % clones


@pytest.fixture(scope="session")
def context(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The content of the context file."""
    content: dict[str, Any] = json.loads(request.config.getoption("--context").read_text())
    return content


@pytest.fixture(scope="session")
def target(context: dict[str, Any]) -> str:
    """The kind of machine under test: ``vm``, ``container``, or ``proxmox`` (clones on a node)."""
    return str(context["target"])


@pytest.fixture(scope="session")
def spec(context: dict[str, Any]) -> SimpleNamespace:
    """The spec that the image was built from, its parts as attributes."""
    found: SimpleNamespace = json.loads(json.dumps(context["spec"]), object_hook=lambda part: SimpleNamespace(**part))
    return found


@pytest.fixture(scope="session")
def expected(pytestconfig: pytest.Config) -> dict[str, Any]:
    """The expectations of the image's layers: the keys of their expected.yaml, merged."""
    return _expected(pytestconfig)


@pytest.fixture(scope="session")
def machines(context: dict[str, Any]) -> Iterator[list[Machine]]:
    """Every clone with the options that it was created with."""
    found = [
        Machine(
            one["name"],
            connect(one),
            one["firmware"],
            one["ports"],
            one["disk_mib"],
            one["console"],
            one.get("address", LOOPBACK),
        )
        for one in context["clones"]
    ]
    yield found
    for machine in found:
        machine.host.backend.close()


def connect(one: dict[str, Any], *, lasting: bool = True) -> Host:
    """Return root's view of a machine; over SSH by the connection that Goldsmith keeps open.

    ``lasting``: one session serves all commands; otherwise each command has one, for machines that a test disconnects.
    """
    ready = Path(one["ready"]) if one.get("ready") else None
    if "enter" in one:
        return Host(Remote(one["name"], one["enter"], shell=False, lasting=lasting, ready=ready))
    way = ["ssh", "-F", one["ssh_config"], one["alias"]]
    return Host(Remote(one["alias"], way, shell=True, lasting=lasting, ready=ready))


@pytest.fixture(scope="session")
def clones(machines: list[Machine]) -> list[Host]:
    """The clones as testinfra hosts, as root."""
    return [machine.host for machine in machines]


@pytest.fixture(scope="session")
def machine(machines: list[Machine]) -> Machine:
    """The clone under test."""
    return machines[own_number(len(machines))]


@pytest.fixture(scope="session")
def host(machine: Machine) -> Host:
    """The clone under test, as root."""
    return machine.host


@pytest.fixture(scope="session")
def disk_size_mib(machine: Machine) -> int:
    """The size of the clone's disk in MiB; it is larger than the image."""
    return machine.disk_mib


@pytest.fixture(scope="session")
def sealed(context: dict[str, Any]) -> DiskImage:
    """The pristine disk image, read without booting it."""
    if not context["sealed"]:
        pytest.skip("the pristine disk image was tested when the artifact was built; the node has the same bytes")
    return DiskImage(Path(context["sealed"]))


@pytest.fixture(autouse=True)
def _tell_report(request: pytest.FixtureRequest, record_property: Any, target: str, machine: Machine) -> None:
    """Write the test's title, requirement ids and place to the JUnit file, from which the report reads them."""
    document = (getattr(request.function, "__doc__", None) or request.node.name).strip()
    record_property("place", machine.name if target == "vm" else target)
    record_property("title", document.splitlines()[0])
    ids = [name for marker in request.node.iter_markers("req") for name in marker.args]
    record_property("requirements", " ".join(ids))
