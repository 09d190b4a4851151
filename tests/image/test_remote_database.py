"""The connection to the application's database on another machine: its process, and what that may do.

That it connects is shown with a second machine: `nox -s two-machines`.
"""

from __future__ import annotations

import json
import re

import pytest
from testinfra.host import Host

from .facts import Fact, gather, properties

pytestmark = pytest.mark.story

UNIT = "pgbouncer.service"
USER = "golden-remote-database"


@pytest.fixture(scope="module")
def facts(host: Host) -> dict[str, Fact]:
    """The unit and its files."""
    return gather(
        host,
        {
            "unit": f"systemctl show -p User -p Restart -p UnitFileState -p IPAddressDeny -p RestrictAddressFamilies {UNIT}",
            "exposure": f"systemd-analyze security --no-pager {UNIT} | tail -1",
            "access": "stat -c '%a %U:%G %n' /etc/pgbouncer /etc/pgbouncer/*",
            "settings": "cat /run/golden/site.json",
            "state": f"systemctl is-active {UNIT}",
            "secrets": "stat -c '%a %U:%G %n' /run/golden/database-*",
            "writer": "systemctl show -p UnitFileState golden-remote-database.service",
        },
    )


@pytest.mark.req("R8", "R9")
def test_unit(facts: dict[str, Fact]) -> None:
    """The process that connects has a separate user, restarts after a failure, and sends packets to no other address"""
    unit = properties(facts["unit"])
    assert (unit["User"], unit["Restart"], unit["UnitFileState"]) == (USER, "on-failure", "enabled")
    # Its address comes with the settings.
    assert set(unit["IPAddressDeny"].split()) == {"::/0", "0.0.0.0/0"}
    assert properties(facts["writer"])["UnitFileState"] == "enabled"


@pytest.mark.req("R8")
def test_exposure(facts: dict[str, Fact]) -> None:
    """systemd rates its sandbox 1.5 or better"""
    found = re.search(r"level for \S+: ([0-9.]+)", facts["exposure"].text)
    assert found, facts["exposure"].text
    assert float(found.group(1)) <= 1.5


@pytest.mark.req("R35")
def test_access(facts: dict[str, Fact]) -> None:
    """It can read its configuration, its key and certificates, and change none of them; no other user can read them"""
    directory, *files = [line.split() for line in facts["access"].lines]
    assert directory[:2] == ["750", f"root:{USER}"]
    assert {file[2].rpartition("/")[2] for file in files} >= {"pgbouncer.ini", "hba.conf", "ident.conf", "userlist.txt"}
    secrets = [line.split() for line in facts["secrets"].lines] if facts["secrets"].status == 0 else []
    assert {tuple(file[:2]) for file in [*files, *secrets]} == {("640", f"root:{USER}")}


@pytest.mark.req("R3", "R35")
def test_nothing_runs_without_a_database(facts: dict[str, Fact]) -> None:
    """The process runs exactly when the site settings name a database"""
    named = json.loads(facts["settings"].text)["database"] is not None
    assert facts["state"].text == ("active" if named else "inactive")
    assert (facts["secrets"].status == 0) is named
