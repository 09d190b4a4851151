"""golden-verify: the clone checks itself, says so, keeps the result, and sees what is broken."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from testinfra.host import Host

from .facts import Fact, gather, properties

# Opens the application's secret to all for a moment, and gives it back whatever happens.
BREAK = "trap 'chmod 0600 /etc/credstore/app.secret-key' EXIT; chmod 0644 /etc/credstore/app.secret-key; "


@pytest.fixture(scope="module")
def facts(host: Host) -> dict[str, Fact]:
    """What the command says of the clone as it is, of one that is broken, and when its unit runs."""
    return gather(
        host,
        {
            "listed": "golden-verify --list --json",
            "broken": BREAK + "golden-verify R37",
            "mended": "golden-verify R37",
            "unit": "systemctl start golden-verify.service; systemctl show golden-verify.service -p Result -p OnFailure",
            "kept": "golden-verify --last --json; stat -c '%U:%G %a' /var/lib/golden-verify/last.json",
            "timer": "systemctl show golden-verify.timer -p ActiveState -p TimersCalendar",
            "nobody": "runuser -u nobody -- golden-verify",
            "wrong": "golden-verify R999",
        },
    )


@pytest.fixture(scope="module")
def by_hand(host: Host) -> Fact:
    """What the command says when an administrator runs it, outside the unit's sandbox."""
    return gather(host, {"whole": "golden-verify --json"})["whole"]


def checks(fact: Fact) -> dict[str, dict[str, Any]]:
    """Return the checks of a JSON result by title."""
    result = json.loads(fact.text[: fact.text.rindex("}") + 1])
    return {check["title"]: check for check in result["checks"]}


@pytest.mark.req("R76", "R101")
def test_every_check_passes(facts: dict[str, Fact]) -> None:
    """golden-verify finds nothing wrong with a clone"""
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
def test_an_administrator_sees_what_the_unit_sees(facts: dict[str, Fact], by_hand: Fact) -> None:
    """By hand, without the unit's sandbox, the command comes to the same results, and its exit status says so"""
    assert by_hand.status == 0
    assert {title: check["result"] for title, check in checks(by_hand).items()} == {
        title: check["result"] for title, check in checks(facts["kept"]).items()
    }


@pytest.mark.layers("40-app")
@pytest.mark.req("R76", "R77")
def test_a_broken_machine_fails(facts: dict[str, Fact]) -> None:
    """A secret that everybody can read makes the command fail by name, until it is mended"""
    assert facts["broken"].status == 3
    assert re.search(r"^FAIL R37 .*\n +- .*app\.secret-key is root:root 644$", facts["broken"].text, re.MULTILINE)
    assert facts["mended"].status == 0


@pytest.mark.req("R77")
def test_the_unit_keeps_its_result(facts: dict[str, Fact]) -> None:
    """The weekly unit passes in its sandbox, would raise an alert, and keeps what it found for root alone"""
    unit = properties(facts["unit"])
    assert unit["Result"] == "success", {t: c["problems"] for t, c in checks(facts["kept"]).items() if c["result"] == "FAIL"}
    assert "golden-alert@golden-verify.service.service" in unit["OnFailure"].split()
    assert facts["kept"].lines[-1] == "root:root 600"


@pytest.mark.req("R77")
def test_the_timer_is_weekly(facts: dict[str, Fact]) -> None:
    """The timer waits for a day of the week"""
    timer = properties(facts["timer"])
    assert timer["ActiveState"] == "active"
    assert "OnCalendar=Sun *-*-* 03:00:00" in timer["TimersCalendar"]


@pytest.mark.req("R76")
def test_wrong_use_is_told(facts: dict[str, Fact]) -> None:
    """The command needs root, and knows which requirements it has checks for"""
    assert facts["nobody"].status == 2
    assert "needs root" in facts["nobody"].text
    assert facts["wrong"].status == 2
    assert "no check is for R999" in facts["wrong"].text
