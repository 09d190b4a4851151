"""Interrupted logging, and secrets that must never be logged or read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from testinfra.host import Host

from .journal import AccessLog, Journal
from .traffic import Traffic

# All accounts that are not root and must not read the keys; the web server has a separate copy in memory.
STRANGERS = ("nginx", "gunicorn", "app-migrate", "postgres", "www-data", "nobody", "admin")
SECRETS = ("/etc/ssl/private/app.key", "/etc/credstore/app.secret-key")
# Looks for each line of each secret where others may read; prints where it is.
LOOK = r"""
import pathlib, subprocess, sys
words = set()
for name in sys.argv[1:]:
    lines = pathlib.Path(name).read_text().split("\n")
    words |= {line.strip().encode() for line in lines if len(line.strip()) >= 24 and "-----" not in line}
assert words, "no secret to look for"
journal = subprocess.run(["journalctl", "--output", "export", "--all"], capture_output=True, check=True).stdout
units = subprocess.run(["systemctl", "show", "*"], capture_output=True, check=True).stdout
places = {"journal": journal, "units": units}
for path in pathlib.Path("/var/log").rglob("*"):
    if path.is_file() and "journal" not in path.parts:
        places[str(path)] = path.read_bytes()
for name in ("cmdline", "environ"):
    for path in pathlib.Path("/proc").glob("[0-9]*/" + name):
        try:
            places[str(path)] = path.read_bytes()
        except OSError:
            continue
print("\n".join(place for place, text in places.items() if any(word in text for word in words)))
"""


@pytest.mark.req("F22", "R9")
def test_stop_log_writer(
    host: Host, load: Callable[..., Any], journal: Journal, traffic: Traffic, access_log: AccessLog
) -> None:
    """While the access log and rsyslog are stopped nginx serves and reports it; lines are written afterwards"""
    writers = "rsyslog.service syslog.socket golden-access-log.socket golden-access-log.service"
    with load() as going:
        host.check_output(f"systemctl stop {writers} 2>/dev/null; ! systemctl is-active rsyslog golden-access-log.socket")
        going.more(24)
        host.check_output("systemctl start rsyslog.service golden-access-log.socket golden-access-log.service")
        going.more()
    going.lost()
    journal.expect(r'write\(\) to ".*/requests" failed', unit="nginx")
    traffic.get("/?faultsresumed")
    access_log.expect("faultsresumed")


@pytest.mark.req("F22", "R9")
def test_kill_journal(host: Host, load: Callable[..., Any], journal: Journal) -> None:
    """A killed journald is started again; no request is lost, and what is logged afterwards is kept"""
    with load() as going:
        host.check_output("systemctl kill --signal KILL systemd-journald.service")
        going.more(24)
        host.check_output("echo after the journal was killed | systemd-cat --identifier faults")
    going.lost()
    journal.expect("systemd-journald.service: Main process exited, code=killed")
    journal.expect("after the journal was killed")


@pytest.mark.req("F34", "R60", "R37", "R81")
def test_secrets_stay_secret(host: Host, traffic: Traffic) -> None:
    """Only root reads a key, and no key is in the journal, a log, a unit, or a process's arguments"""
    script = "\n".join(
        f"if id {user} >/dev/null 2>&1; then runuser -u {user} -- cat {path} >/dev/null 2>&1 && echo {user} reads {path}; fi"
        for user in STRANGERS
        for path in SECRETS
    )
    assert host.check_output(f"{script}\n:") == ""
    traffic.get("/")
    host.check_output("systemctl reload nginx; systemctl restart gunicorn")
    assert host.check_output("python3 -c %s %s %s", LOOK, *SECRETS) == ""
