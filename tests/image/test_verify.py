"""golden-verify: the clone checks itself, reports and stores the result, and detects a fault."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from testinfra.host import Host

from .facts import Fact, gather, properties

# Makes the application's secret readable for all users for a moment; the trap restores its mode in any case.
BREAK = "trap 'chmod 0600 /etc/credstore/app.secret-key' EXIT; chmod 0644 /etc/credstore/app.secret-key; "


@pytest.fixture(scope="module")
def facts(host: Host) -> dict[str, Fact]:
    """The results of the command in its unit."""
    return gather(
        host,
        {
            "listed": "golden-verify --list --json",
            "unit": "systemctl start golden-verify.service; systemctl show golden-verify.service -p Result -p OnFailure",
            "kept": "golden-verify --last --json; stat -c '%U:%G %a' /var/lib/golden-verify/last.json",
            "timer": "systemctl show golden-verify.timer -p ActiveState -p TimersCalendar",
        },
    )


@pytest.fixture(scope="module")
def by_hand(host: Host) -> dict[str, Fact]:
    """The results when an administrator runs the command, outside the unit's sandbox; also with a fault, and wrongly."""
    return gather(
        host,
        {
            "whole": "golden-verify --json",
            "broken": BREAK + "golden-verify R37",
            "mended": "golden-verify R37",
            "without root": "runuser -u nobody -- golden-verify",
            "wrong": "golden-verify R999",
        },
    )


def checks(fact: Fact) -> dict[str, dict[str, Any]]:
    """Return the checks of a JSON result by title."""
    result = json.loads(fact.text[: fact.text.rindex("}") + 1])
    return {check["title"]: check for check in result["checks"]}


@pytest.mark.req("R76", "R101")
def test_every_check_passes(facts: dict[str, Fact]) -> None:
    """golden-verify reports no problem on a clone"""
    wrong = {title: check["problems"] for title, check in checks(facts["kept"]).items() if check["result"] == "FAIL"}
    assert not wrong
    assert checks(facts["kept"]).keys() == checks(facts["listed"]).keys()
    assert len(checks(facts["kept"])) >= 10


@pytest.mark.vm
@pytest.mark.req("R76")
def test_nothing_is_skipped_on_a_clone(facts: dict[str, Fact]) -> None:
    """On a clone golden-verify skips no check"""
    assert not [title for title, check in checks(facts["kept"]).items() if check["result"] == "SKIP"]


@pytest.mark.story
@pytest.mark.req("R76")
def test_an_administrator_sees_what_the_unit_sees(facts: dict[str, Fact], by_hand: dict[str, Fact]) -> None:
    """Run manually, without the unit's sandbox, the command has the same results and exit status 0"""
    assert by_hand["whole"].status == 0
    assert {title: check["result"] for title, check in checks(by_hand["whole"]).items()} == {
        title: check["result"] for title, check in checks(facts["kept"]).items()
    }


@pytest.mark.story
@pytest.mark.layers("40-app")
@pytest.mark.req("R76", "R77")
def test_a_broken_machine_fails(by_hand: dict[str, Fact]) -> None:
    """With a world-readable secret the command fails and names the file, until its mode is restored"""
    assert by_hand["broken"].status == 3
    assert re.search(r"^FAIL R37 .*\n +- .*app\.secret-key is root:root 644$", by_hand["broken"].text, re.MULTILINE)
    assert by_hand["mended"].status == 0


@pytest.mark.req("R77")
def test_the_unit_keeps_its_result(facts: dict[str, Fact]) -> None:
    """The weekly unit succeeds in its sandbox, raises an alert on failure, and only root can read its result"""
    unit = properties(facts["unit"])
    assert unit["Result"] == "success", {t: c["problems"] for t, c in checks(facts["kept"]).items() if c["result"] == "FAIL"}
    assert "golden-alert@golden-verify.service.service" in unit["OnFailure"].split()
    assert facts["kept"].lines[-1] == "root:root 600"


@pytest.mark.req("R77")
def test_the_timer_is_weekly(facts: dict[str, Fact]) -> None:
    """The timer runs once a week"""
    timer = properties(facts["timer"])
    assert timer["ActiveState"] == "active"
    assert "OnCalendar=Sun *-*-* 03:00:00" in timer["TimersCalendar"]


@pytest.mark.story
@pytest.mark.req("R76")
def test_wrong_use_is_told(by_hand: dict[str, Fact]) -> None:
    """The command requires root, and refuses a requirement without checks"""
    assert by_hand["without root"].status == 2
    assert "needs root" in by_hand["without root"].text
    assert by_hand["wrong"].status == 2
    assert "no check is for R999" in by_hand["wrong"].text
