"""Certificates: checked before they are used, replaced without a lost request, renewed by themselves, and watched."""

from __future__ import annotations

import json

import pytest
from testinfra.host import Host

from .facts import Fact, gather


@pytest.fixture(scope="module")
def facts(host: Host) -> dict[str, Fact]:
    """What the command and its units say on a clone that nobody has given a certificate."""
    return gather(
        host,
        {
            "show": "golden-certificate show --json",
            "check": "golden-certificate check --json",
            "scan": "golden-certificate scan --json",
            "stored": "cat /var/lib/golden-certificates/scan.json",
            "help": "golden-certificate --help",
            "usage": "golden-certificate no-such-verb",
            "early": "golden-certificate check --days 4000 --json",
            "exposure": "for unit in acme certificate-boot certificate-expiry certificate-renew certificate-scan proxy; do "
            "systemd-analyze security --no-pager golden-$unit.service | tail -1; done",
            "users": "systemctl show -p User --value golden-acme.service; getent passwd golden-acme",
            "timers": "systemctl list-timers --no-legend --no-pager 'golden-certificate-*'",
        },
    )


@pytest.mark.req("R76", "R77")
def test_command(facts: dict[str, Fact]) -> None:
    """The command explains itself, speaks JSON, and tells by its exit code how it went"""
    assert facts["help"].status == 0
    assert {"show", "check", "install", "renew", "scan"} <= set(facts["help"].text.replace(",", " ").split())
    assert facts["usage"].status == 2
    shown = json.loads(facts["show"].text)["certificate"]
    assert shown["key"] == "EC prime256v1"
    assert facts["early"].status == 3
    assert json.loads(facts["early"].text)["ok"] is False


@pytest.mark.req("R61", "R60", "R51", "R52", "R53", "R77")
def test_scan(facts: dict[str, Fact]) -> None:
    """The scan finds nothing: TLS 1.2 and 1.3, forward secrecy, a post-quantum group, no tickets; and keeps its result"""
    assert facts["scan"].status == 0, facts["scan"].text
    found = json.loads(facts["scan"].text)
    assert len(found["verdicts"]) >= 20
    assert [one["rule"] for one in found["verdicts"] if not one["ok"]] == []
    assert json.loads(facts["stored"].text) == found
