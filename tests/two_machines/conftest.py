"""The two machines of the site, as root."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from build.machines import nspawn
from tests.image.conftest import _tell_report, connect, context, spec, target

__all__ = ["_tell_report", "context", "spec", "target"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--context", type=Path, help="the machines: a file that `nox -s two-machines` writes")


def pytest_configure(config: pytest.Config) -> None:
    # The tests are steps: after a failed one, the results of the next ones have no meaning.
    config.option.maxfail = 1


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--context") is None and items:
        raise pytest.UsageError("tests/two_machines needs two running machines: run `nox -s two-machines`")


def entered(name: str, leader: int) -> Host:
    """Return a container as a host, as root."""
    return connect({"name": name, "enter": nspawn.enter(leader)})


@pytest.fixture(scope="session")
def machine(context: dict[str, Any]) -> Any:
    """The machine under test, for the report."""
    return None


@pytest.fixture(scope="session")
def leaders(context: dict[str, Any]) -> dict[str, int]:
    """The host's PID of process 1 of each machine."""
    found: dict[str, int] = context["leaders"]
    return found


@pytest.fixture(scope="session")
def app(leaders: dict[str, int]) -> Iterator[Host]:
    """The application's machine."""
    found = entered("app", leaders["app"])
    yield found
    found.backend.close()


@pytest.fixture(scope="session")
def database(leaders: dict[str, int]) -> Iterator[Host]:
    """The database's machine."""
    found = entered("database", leaders["database"])
    yield found
    found.backend.close()
