"""The database goes away while requests come in."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from testinfra.host import Host

from .journal import Journal
from .traffic import Traffic

# What would tell a visitor what the site is made of.
INSIDES = (b"traceback", b"psycopg", b"operationalerror", b"django", b"postgres", b"/opt/app")


@pytest.mark.req("F08", "R95", "R12")
def test_stop_database(
    host: Host, load: Callable[..., Any], traffic: Traffic, journal: Journal, numbers: Callable[..., None],
    patience: Callable[[float], float],
) -> None:  # fmt: skip
    """Without the database /health is 503 within 3 s and pages are a plain 503; both recover without a restart"""
    application = host.check_output("systemctl show --value --property MainPID gunicorn")
    host.check_output("systemctl stop postgresql@17-main")
    try:
        health, page = traffic.get("/health"), traffic.get("/")
        journal.expect("the database does not answer", unit="gunicorn")
    finally:
        host.check_output("systemctl start postgresql@17-main")
    numbers(health_503_after_s=round(health.seconds, 2))
    assert (health.statuses, page.statuses) == ([503], [503]), (health, page)
    assert health.seconds <= patience(3), health
    assert json.loads(health.body) == {"db": "down"}
    shown = [word for word in INSIDES if word in (health.data + page.data).lower()]
    assert not shown, shown
    with load() as going:
        going.more()
    going.lost()
    assert host.check_output("systemctl show --value --property MainPID gunicorn") == application
