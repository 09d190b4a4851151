"""What every image test gets: the clones, the spec, the sealed disk, all from one context file.

Goldsmith writes the context and starts the clones; `pytest tests/image --context FILE` alone runs against whatever
machines the file names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import testinfra
from testinfra.backend import base as testinfra_base
from testinfra.host import Host

from build.sealed import SealedImage
from build.seed import LOOPBACK

# Workers take files in this order: the longest first, so that none is left with it when the other is done; late what waits
# for the data base of AIDE, which is made when nothing else is done; then short ones that fill what is left.
FIRST, LAST = ("test_verify",), ("test_audit", "test_packages", "test_users", "test_partitions", "test_ssh")


@dataclass(frozen=True)
class Machine:
    """One clone: how to reach it from the test host, and what was asked for when it was made."""

    name: str
    host: Host
    firmware: str
    ports: dict[str, int]
    disk_mib: int
    console: str
    address: str


class _Entered(testinfra_base.BaseBackend):  # type: ignore[misc]
    """Runs commands inside a container by entering its name spaces."""

    NAME = "enter"

    def __init__(self, enter: Sequence[str], **options: Any) -> None:
        self.enter = " ".join(enter)
        super().__init__("container", **options)

    def run(self, command: str, *args: str, **_kwargs: Any) -> testinfra_base.CommandResult:
        return self.run_local(f"{self.enter} /bin/sh -c %s", self.get_command(command, *args))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--context", type=Path, help="what to test: a file that Goldsmith writes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--context") is None and items:
        raise pytest.UsageError("tests/image tests a running image: run `nox -s build`, or `nox -s container`")
    order = {name: number for number, name in enumerate((*FIRST, "", *LAST))}
    items.sort(key=lambda item: order.get(item.path.stem, order[""]))


@pytest.fixture(scope="session")
def context(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The content of the context file."""
    content: dict[str, Any] = json.loads(request.config.getoption("--context").read_text())
    return content


@pytest.fixture(scope="session")
def target(context: dict[str, Any]) -> str:
    """What is tested: ``vm``, ``container``, or ``proxmox``: clones on a node."""
    return str(context["target"])


@pytest.fixture(scope="session")
def spec(context: dict[str, Any]) -> SimpleNamespace:
    """The spec that the image was built from, its parts as attributes."""
    found: SimpleNamespace = json.loads(json.dumps(context["spec"]), object_hook=lambda part: SimpleNamespace(**part))
    return found


@pytest.fixture(scope="session")
def machines(context: dict[str, Any]) -> list[Machine]:
    """Every clone with what it was made from."""
    return [
        Machine(
            one["name"], connect(one), one["firmware"], one["ports"], one["disk_mib"], one["console"],
            one.get("address", LOOPBACK),
        )
        for one in context["clones"]
    ]


def connect(one: dict[str, Any]) -> Host:
    """Return root's view of a clone; the connection is one that Goldsmith keeps open."""
    if "enter" in one:
        return Host(_Entered(one["enter"]))
    return testinfra.get_host(
        f"ssh://{one['alias']}", ssh_config=one["ssh_config"], sudo=True, controlpersist=0, timeout=60
    )


@pytest.fixture(scope="session")
def clones(machines: list[Machine]) -> list[Host]:
    """The clones as testinfra hosts, as root."""
    return [machine.host for machine in machines]


@pytest.fixture(scope="session")
def machine(machines: list[Machine]) -> Machine:
    """The clone that is tested: each worker of pytest-xdist (gw0, gw1 ...) has one of its own."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0")
    return machines[int(worker.removeprefix("gw")) % len(machines)]


@pytest.fixture(scope="session")
def host(machine: Machine) -> Host:
    """The clone that is tested, as root."""
    return machine.host


@pytest.fixture(scope="session")
def disk_size_mib(machine: Machine) -> int:
    """The size of its disk in MiB, larger than the image's."""
    return machine.disk_mib


@pytest.fixture(scope="session")
def sealed(context: dict[str, Any]) -> SealedImage:
    """The sealed disk, read from outside."""
    if not context["sealed"]:
        pytest.skip("the sealed disk was judged when the artifact was made, and a node has the same bytes")
    return SealedImage(Path(context["sealed"]))


@pytest.fixture(autouse=True)
def _tell_report(
    request: pytest.FixtureRequest, record_property: Any, target: str, machine: Machine
) -> None:
    """Put the test's title, requirement ids and place into the JUnit file, where the report finds them."""
    document = (getattr(request.function, "__doc__", None) or request.node.name).strip()
    record_property("place", machine.name if target == "vm" else target)
    record_property("title", document.splitlines()[0])
    ids = [name for marker in request.node.iter_markers("req") for name in marker.args]
    record_property("requirements", " ".join(ids))
