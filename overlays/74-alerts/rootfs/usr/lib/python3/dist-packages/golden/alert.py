"""Alerts: kept in a spool, sent by mail and to a web hook when the site names them, tried again until they are gone.

An alert is a JSON file in ``outgoing``; it names the ways it already went, so that none is used twice, and moves to
``history`` when all are done. What is sent about one unit is limited; the journal has every alert.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import smtplib
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from email.message import EmailMessage
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from golden import core

SPOOL = Path("/var/lib/golden-alert")
QUIET_SECONDS = 1800  # about one unit, nothing more is sent for this long
SEND_SECONDS = 30
# Both bounded: a machine that fails all over must not fill its disk with saying so.
LARGEST_QUEUE, LARGEST_HISTORY = 500, 200
JOURNAL_LINES = 8
# Bytes; an alert has a few lines of the journal.
LARGEST_ALERT = 1 << 20


def describe(unit: str) -> dict[str, Any]:
    """Return what is known about a unit that failed: its result, and its last lines in the journal."""
    wanted = "--property=ActiveState,Result,ExecMainStatus,NRestarts,InvocationID,Description"
    told = core.run(["systemctl", "show", wanted, "--", unit], check=False).stdout.decode(errors="replace")
    state = dict(line.split("=", 1) for line in told.splitlines() if "=" in line)
    journal = ["journalctl", "--no-pager", "--quiet", "--output=cat", f"--lines={JOURNAL_LINES}", f"--unit={unit}"]
    lines = core.run(journal, check=False, timeout=60).stdout.decode(errors="replace").splitlines()
    return {
        "unit": unit,
        "description": state.get("Description", ""),
        "result": state.get("Result", "unknown"),
        "status": state.get("ExecMainStatus", ""),
        "restarts": state.get("NRestarts", "0"),
        "lines": lines,
    }


def sentence(alert: Mapping[str, Any]) -> str:
    """Return the one line that an administrator is to find."""
    if alert["unit"] == "test":
        return f"ALERT on {alert['host']}: this is a test, nothing is wrong"
    more = f", {alert['suppressed']} more since the last message" if alert["suppressed"] else ""
    return (
        f"ALERT on {alert['host']}: {alert['unit']} failed (result {alert['result']}, status {alert['status']}, "
        f"{alert['restarts']} restarts{more}); look at: journalctl -u {alert['unit']}"
    )


def host_name() -> str:
    """Return the name that an operator knows this machine by."""
    try:
        return Path("/run/golden/names").read_text(encoding="utf-8").split()[0]
    except (OSError, IndexError):
        return socket.gethostname()


def new(unit: str, *, now: float, spool: Path = SPOOL) -> tuple[dict[str, Any], bool]:
    """Return the alert about a unit, and whether it is to be sent now, or was sent a short while ago."""
    state = spool / "units" / re.sub(r"[^A-Za-z0-9@._-]", "_", unit)[:200]
    try:
        last = _read(state)
        last = {"sent": float(last["sent"]), "suppressed": int(last["suppressed"])}
    except (core.Problem, KeyError, TypeError, ValueError):
        last = {"sent": 0.0, "suppressed": 0}
    due = unit == "test" or not 0 <= now - last["sent"] < QUIET_SECONDS
    alert = describe(unit) | {
        "host": host_name(), "time": now, "suppressed": last["suppressed"] if due else 0, "delivered": []
    }  # fmt: skip
    last = {"sent": now, "suppressed": 0} if due else {**last, "suppressed": last["suppressed"] + 1}
    state.parent.mkdir(mode=0o700, exist_ok=True)
    core.write_whole(state, json.dumps(last).encode())
    return alert, due


def keep(alert: Mapping[str, Any], *, spool: Path = SPOOL) -> Path:
    """Put an alert into the queue; the oldest make room."""
    queue = spool / "outgoing"
    waiting = sorted(queue.glob("*.json"))
    for old in waiting[: max(0, len(waiting) - LARGEST_QUEUE + 1)]:
        old.unlink(missing_ok=True)
    path = queue / f"{time.time_ns()}.json"
    core.write_whole(path, json.dumps(alert, indent=1).encode())
    return path


def listed(*, spool: Path = SPOOL) -> dict[str, list[dict[str, Any]]]:
    """Return the alerts that wait and those that are done, the oldest first."""
    return {place: list(_readable(spool / place)) for place in ("outgoing", "history")}


def _readable(place: Path) -> Iterator[dict[str, Any]]:
    """Return the alerts of a directory; a file that is none costs only itself, and is named."""
    for path in sorted(place.glob("*.json")):
        try:
            alert = _read(path)
            alert |= {"unit": str(alert["unit"]), "time": float(alert["time"]), "delivered": [*map(str, alert["delivered"])]}
            sentence(alert)
            yield alert
        except (core.Problem, KeyError, TypeError, ValueError) as problem:
            print(f"{path} is not an alert: {problem}", file=sys.stderr)


def _read(path: Path) -> dict[str, Any]:
    """Read a file of the spool, which is the sender's: root follows no link there, and waits for no pipe.

    Raises Problem for what is not an object of JSON.
    """
    try:
        found = json.loads(core.read_regular(path, limit=LARGEST_ALERT))
    except (ValueError, RecursionError) as error:
        raise core.Problem(f"{path} is not JSON: {error}", hint="remove it") from None
    if not isinstance(found, dict):
        raise core.Problem(f"{path} is not an object of JSON", hint="remove it")
    return found


def send_all(site: Mapping[str, Any], *, spool: Path = SPOOL) -> tuple[list[str], list[str]]:
    """Send what waits; return what went out, and what could not and stays."""
    ways = {name: way for name, way in WAYS.items() if site["alerts"][name]}
    context = ssl.create_default_context()
    if site["alerts"]["ca"]:
        try:
            context.load_verify_locations(cadata=core.pem_certificates(Path(site["alerts"]["ca"]).read_bytes()))
        except OSError as error:
            return [], [f"{site['alerts']['ca']}: {error.strerror or error}"]
    sent: list[str] = []
    failed: dict[str, str] = {}
    tried: set[Path] = set()
    # Until nothing is new: what comes while this runs starts no second sender.
    while fresh := sorted(set((spool / "outgoing").glob("*.json")) - tried):
        for path in fresh:
            tried.add(path)
            _send(path, ways, site["alerts"], context, sent, failed)
    _trim(spool / "history")
    return sent, [f"{way}: {reason}" for way, reason in failed.items()]


def _send(
    path: Path, ways: Mapping[str, Callable[..., None]], settings: Mapping[str, Any], context: ssl.SSLContext,
    sent: list[str], failed: dict[str, str],
) -> None:  # fmt: skip
    """Send one alert on every way it has not gone yet; a way that failed once is left alone for this run."""
    try:
        alert = _read(path)
        alert["delivered"] = [*map(str, alert["delivered"])]
    except (core.Problem, KeyError, TypeError) as problem:
        failed[path.name] = f"not an alert: {problem}"
        return
    for name, way in ways.items():
        if name in alert["delivered"] or name in failed:
            continue
        try:
            way(alert, settings[name], context)
        except (OSError, smtplib.SMTPException, http.client.HTTPException) as error:
            failed[name] = f"{type(error).__name__}: {error}"
            continue
        alert["delivered"].append(name)
        sent.append(f"{name}: {alert['unit']}")
        core.write_whole(path, json.dumps(alert, indent=1).encode())
    if set(ways) <= set(alert["delivered"]):
        path.rename(path.parent.with_name("history") / path.name)


def _trim(history: Path) -> None:
    for old in sorted(history.glob("*.json"))[:-LARGEST_HISTORY]:
        old.unlink(missing_ok=True)


def mail(alert: Mapping[str, Any], settings: Mapping[str, Any], context: ssl.SSLContext) -> None:
    """Send an alert to the mail server: never without TLS, never to a server that cannot prove its name."""
    message = EmailMessage()
    what = "test" if alert["unit"] == "test" else f"{alert['unit']} failed"
    message["Subject"] = f"[{alert['host']}] {what}"
    message["From"], message["To"] = settings["from"], ", ".join(settings["to"])
    message["Date"] = formatdate(alert["time"])
    message.set_content("\n".join([sentence(alert), "", *alert["lines"]]))
    host, _colon, port = settings["server"].rpartition(":")
    with _connect(host.strip("[]"), int(port), context, implicit=settings["tls"] == "implicit") as server:
        if settings["user"]:
            server.login(settings["user"], password())
        if refused := server.send_message(message):
            # The others have it: an alert that is sent again would come twice.
            print(f"<4>mail: refused by the server: {', '.join(sorted(refused))}", flush=True)


def _connect(host: str, port: int, context: ssl.SSLContext, *, implicit: bool) -> smtplib.SMTP:
    """Connect with TLS: from the first byte (RFC 8314), or by STARTTLS."""
    if implicit:
        return smtplib.SMTP_SSL(host, port, timeout=SEND_SECONDS, context=context)
    server = smtplib.SMTP(host, port, timeout=SEND_SECONDS)
    try:
        server.starttls(context=context)
    except BaseException:
        server.close()
        raise
    return server


def password() -> str:
    """Return the password for the mail server: a credential of the unit, which golden-site wrote."""
    return (Path(os.environ["CREDENTIALS_DIRECTORY"]) / "mail-password").read_text(encoding="utf-8")


def webhook(alert: Mapping[str, Any], url: str, context: ssl.SSLContext) -> None:
    """Post an alert as JSON; an answer other than 2xx, a redirection too, is a failure."""
    parts = urlsplit(url)
    connection = http.client.HTTPSConnection(str(parts.hostname), parts.port or 443, timeout=SEND_SECONDS, context=context)
    body = {key: value for key, value in alert.items() if key != "delivered"} | {"text": sentence(alert)}
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("POST", target, json.dumps(body), {"Content-Type": "application/json"})
        status = connection.getresponse().status
    finally:
        connection.close()
    if not 200 <= status < 300:
        raise http.client.HTTPException(f"the answer was {status}")


WAYS: dict[str, Callable[..., None]] = {"mail": mail, "webhook": webhook}
