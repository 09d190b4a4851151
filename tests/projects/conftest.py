"""What the life of a project needs: the container, its bundles, and a browser in it."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from tests.image.conftest import _tell_report, connect, context, spec, target
from tests.image.facts import Answer
from tests.projects import browser, making

__all__ = ["_tell_report", "context", "spec", "target"]

ROOT = Path(__file__).parents[2]
# In the container; the host sees it below the tree that was booted.
BUNDLES = "/var/lib/golden-projects"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--context", type=Path, help="the container: a file that `nox -s projects` writes")


def pytest_configure(config: pytest.Config) -> None:
    # The tests are steps: after a failed one, the results of the next ones have no meaning.
    config.option.maxfail = 1


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--context") is None and items:
        raise pytest.UsageError("tests/projects needs a running image: run `nox -s projects`")
    if items:
        # Tests of one project alone are in a module of its name; those of its whole life come first.
        name = json.loads(config.getoption("--context").read_text())["project"]
        own = [item for item in items if item.path.stem == f"test_{name}"]
        items[:] = [*(item for item in items if item.path.stem == "test_life"), *own]


@pytest.fixture(scope="session")
def machine(context: dict[str, Any]) -> Any:
    """The container, for the report."""
    return None


@pytest.fixture(scope="session")
def host(context: dict[str, Any]) -> Iterator[Host]:
    """The container, as root."""
    found = connect(context["clones"][0])
    yield found
    found.backend.close()


@pytest.fixture(scope="session")
def name(host: Host) -> str:
    """The container's name, as its web server has it."""
    return str(host.check_output("cat /run/golden/names").split()[0])


@pytest.fixture(scope="session")
def project(context: dict[str, Any]) -> making.Project:
    """The project that lives in the container."""
    return making.PROJECTS[context["project"]]


@dataclass(frozen=True)
class Bundle:
    """A bundle on the container, and what `nox -s bundle` wrote while it was made."""

    path: str
    sha256: str
    output: str

    def deploy(self, *words: str) -> str:
        """Return the command that deploys it."""
        return shlex.join(["golden-deploy", self.path, "--sha256", self.sha256, *words])


@pytest.fixture(scope="session")
def bundles(context: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Bundle]:
    """The three versions of the project, packed by the command that a developer runs."""
    work, place = tmp_path_factory.mktemp("project"), Path(context["root"] + BUNDLES)
    place.mkdir(mode=0o700, exist_ok=True)
    found = {}
    for version in (1, 2, 3):
        directory = work / f"v{version}" / context["project"]
        directory.mkdir(parents=True)
        making.make(context["project"], directory, version=version, cache=Path(context["cache"]))
        argv = [sys.executable, "-m", "build", "bundle", directory, "-o", place / f"{version}.bundle",
                "--cache", context["cache"]]  # fmt: skip
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found[version] = Bundle(f"{BUNDLES}/{version}.bundle", done.stdout.split()[-1], done.stderr)
    return found


class Browser:
    """A browser in the container: its cookies stay from one call to the next."""

    def __init__(self, host: Host, name: str) -> None:
        self._host, self._name = host, name
        self._cookies: dict[str, str] = {}

    def another(self) -> Browser:
        """Return a browser with the same cookies: it keeps those that the first one deletes."""
        other = Browser(self._host, self._name)
        other._cookies = dict(self._cookies)
        return other

    def get(self, path: str, **changes: object) -> Answer:
        """Return the answer for a page."""
        return self._send({"path": path, **changes})

    def form(self, path: str, fields: Mapping[str, str], files: Mapping[str, tuple[str, str]] | None = None) -> Answer:
        """Get a form, send it with these fields and files (each a name and its content in base64), return the answer."""
        return self._send({"path": path, "fields": dict(fields), "files": dict(files or {})})

    def _send(self, request: Mapping[str, object]) -> Answer:
        certificate = f"{BUNDLES}/admin.pem"
        own = {"name": self._name, "certificate": certificate, "cookies": self._cookies, "method": "", "headers": {}}
        given = {**own, **request}
        output = self._host.check_output("python3 -c %s %s", browser.PROGRAM, json.dumps(given))
        found = json.loads(output.splitlines()[-1])
        self._cookies = found["cookies"]
        return Answer("", found["status"], [(key, value) for key, value in found["headers"]], found["body"])


@pytest.fixture(scope="session")
def page(host: Host, name: str) -> Browser:
    """The browser of the administrator."""
    return Browser(host, name)
