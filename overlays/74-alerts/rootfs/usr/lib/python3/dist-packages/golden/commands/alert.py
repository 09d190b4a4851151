"""Alerts about failed units: lists them, tries the way to the operator.

systemd starts `golden-alert raise UNIT` for every service that fails, and `golden-alert send` for what waits.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from golden import alert as alerts
from golden import core

SENDER = "golden-alert-send.service"


def main() -> None:
    """Parse the command line and do what it asks for."""
    parser = argparse.ArgumentParser(prog="golden-alert", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="show the alerts that wait and the last that are done (default)")
    what.add_argument("--test", action="store_true", help="raise an alert and send it; exit code 3: it did not get through")
    parser.add_argument("verb", nargs="?", choices=("raise", "send"), help="what the units do")
    parser.add_argument("unit", nargs="?", help="for raise: the unit that failed")
    core.run_command(parser, act, show)


def act(arguments: argparse.Namespace) -> Mapping[str, Any]:
    """Return what the command found out or did."""
    if arguments.verb == "raise" and arguments.unit:
        return raise_alert(arguments.unit)
    if arguments.verb == "send":
        return send()
    if arguments.verb or arguments.unit:
        raise core.Problem("raise needs a unit", code=core.USAGE)
    core.need_root()
    return test() if arguments.test else alerts.listed()


def raise_alert(unit: str) -> dict[str, Any]:
    """Say that a unit failed, first in the journal, and put the message to the operator into the queue."""
    now = time.time()
    try:
        alert, due = alerts.new(unit, now=now)
    except OSError as error:
        # A full disk is one of the things that alerts are about.
        print(f"<1>ALERT: {unit} failed; the alert cannot be kept ({error}); look at: journalctl -u {unit}", flush=True)
        raise core.Problem(f"{alerts.SPOOL}: {error}") from None
    print(f"<1>{alerts.sentence(alert)}", flush=True)
    if due:
        alerts.keep(alert)
    return {"lines": [] if due else [f"{unit}: an alert was sent a short while ago, not sent again"]}


def send() -> dict[str, Any]:
    """Send what waits. What cannot be sent now is no failure of the unit: the timer tries again."""
    settings = json.loads((Path(os.environ["CREDENTIALS_DIRECTORY"]) / "site.json").read_text(encoding="utf-8"))
    sent, failed = alerts.send_all(settings)
    lines = [f"sent by {one}" for one in sent]
    return {"lines": lines + [f"<4>not sent, will be tried again: {one}" for one in failed]}


def test() -> dict[str, Any]:
    """Raise an alert about nothing, and look at how far it gets."""
    started = time.time()
    ways = [name for name in alerts.WAYS if core.site()["alerts"][name]]
    core.run(["systemctl", "start", "golden-alert@test.service"])
    core.run(["systemctl", "start", SENDER])
    found = alerts.listed()
    mine = [one for place in found.values() for one in place if one["unit"] == "test" and one["time"] >= started]
    delivered = mine[-1]["delivered"] if mine else []
    lines = ["the journal and the console have it"] if mine else ["nothing was raised: systemctl status golden-alert@test"]
    lines += [f"{way}: sent" if way in delivered else f"{way}: NOT sent: journalctl -u {SENDER}" for way in ways]
    lines += [] if ways else ["no mail and no web hook: set alerts in /etc/golden/site.yaml, then golden-site apply"]
    return {"ok": bool(mine) and set(ways) <= set(delivered), "ways": ways, "delivered": delivered, "lines": lines}


def show(result: Mapping[str, Any]) -> str:
    """Return a result as text."""
    if "lines" in result:
        return "\n".join(result["lines"])
    lines = []
    for place, word in (("history", "done"), ("outgoing", "waits")):
        for alert in result[place]:
            when = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(alert["time"]))
            lines.append(f"{when} {word} [{', '.join(alert['delivered']) or 'journal'}] {alerts.sentence(alert)}")
    return "\n".join(lines) or "no alerts"
