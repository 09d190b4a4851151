"""Processes that are killed, stopped, restarted and reloaded while requests come in."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from testinfra.host import Host

from tests.image.remote import seconds

from .conftest import wait_until
from .journal import Journal

# Kills workers one after the other and prints how many milliseconds each took to be replaced.
KILL_WORKERS = """set -eu
for round in 1 2 3; do
    victim=$(pgrep --parent $(systemctl show --value --property MainPID {unit}) {match} | head -n 1)
    began=$(date +%s%N)
    kill -{signal} "$victim"
    for i in $(seq $((200 * PACE))); do
        now=$(pgrep --parent $(systemctl show --value --property MainPID {unit}) {match} || :)
        if [ "$(echo $now | wc -w)" -ge {count} ] && ! echo " $now " | tr '\\n' ' ' | grep -q " $victim "; then break; fi
        sleep 0.05
    done
    echo $((($(date +%s%N) - began) / 1000000))
done
"""


def kill_main(host: Host, unit: str) -> str:
    """Kill the main process of a unit; return its number."""
    pid = str(host.check_output(f"systemctl show --value --property MainPID {unit}")).strip()
    host.check_output(f"kill -KILL {pid}")
    return pid


def is_back(host: Host, unit: str, before: str) -> bool:
    """Return True if a unit is active with another main process."""
    said = host.check_output(f"systemctl show --value --property MainPID --property ActiveState {unit}").split()
    return "active" in said and before not in said and "0" not in said


@pytest.mark.req("F01", "R23")
def test_kill_application_workers(
    host: Host, spec: SimpleNamespace, load: Callable[..., Any], journal: Journal, numbers: Callable[..., None],
    patience: Callable[[float], float],
) -> None:  # fmt: skip
    """Each killed gunicorn worker costs one request at most and is replaced within 2 s"""
    workers = spec.application.workers
    with load() as going:
        took = host.check_output(KILL_WORKERS.format(unit="gunicorn", match="", signal="KILL", count=workers)).split()
        going.more()
    numbers(replaced_ms=max(map(int, took)))
    going.lost(at_most=3)
    assert max(map(int, took)) <= patience(2000), took
    journal.expect(r"Worker \(pid:[0-9]+\) was sent SIGKILL", unit="gunicorn")


# While gunicorn starts, only pages are asked for: /health gives up after seconds, as it should, where that takes long.


@pytest.mark.req("F02", "R9", "R21", "R23")
def test_kill_application_master(
    host: Host, load: Callable[..., Any], journal: Journal, numbers: Callable[..., None]
) -> None:
    """A killed gunicorn is started again by systemd, which holds its socket: no request is lost"""
    with load("/") as going:
        killed = kill_main(host, "gunicorn")
        took = wait_until(lambda: is_back(host, "gunicorn", killed), seconds=seconds(host, 20), what="a new gunicorn")
        going.more()
    numbers(back_after_s=round(took, 1))
    going.lost()
    journal.expect("code=killed, status=9/KILL", unit="gunicorn")


@pytest.mark.req("F03", "R22")
@pytest.mark.parametrize("verb", ["restart", "reload"])
def test_restart_application(host: Host, load: Callable[..., Any], journal: Journal, verb: str) -> None:
    """A restart or a reload of gunicorn loses no request"""
    with load("/") as going:
        for _round in range(3):
            host.check_output(f"systemctl {verb} gunicorn")
            going.more()
    going.lost()
    journal.expect("Started gunicorn.service|Reloaded gunicorn.service", unit="gunicorn")


@pytest.mark.parametrize(
    "verb", [pytest.param("reload", marks=pytest.mark.req("F04")), pytest.param("restart", marks=pytest.mark.req("F05"))]
)
def test_restart_web_server(host: Host, load: Callable[..., Any], journal: Journal, verb: str) -> None:
    """Three reloads or restarts of nginx lose no request"""
    with load() as going:
        for _round in range(3):
            host.check_output(f"systemctl {verb} nginx")
            going.more()
    going.lost()
    journal.expect("Started nginx.service|Reloaded nginx.service", unit="nginx")


@pytest.mark.req("F06")
def test_kill_web_workers(
    host: Host, load: Callable[..., Any], journal: Journal, numbers: Callable[..., None], patience: Callable[[float], float]
) -> None:
    """Each killed nginx worker costs the requests it was working on at most, and is replaced at once"""
    workers = int(host.check_output("pgrep --count --parent $(systemctl show --value --property MainPID nginx) nginx"))
    with load() as going:
        took = host.check_output(KILL_WORKERS.format(unit="nginx", match="nginx", signal="KILL", count=workers)).split()
        going.more()
    numbers(replaced_ms=max(map(int, took)))
    # Four clients: no more can be in a worker's hands when it is killed.
    going.lost(at_most=3 * 4)
    assert max(map(int, took)) <= patience(2000), took
    journal.expect("exited on signal 9", unit="nginx")


@pytest.mark.req("F07", "R9")
def test_kill_web_master(
    host: Host, load: Callable[..., Any], journal: Journal, numbers: Callable[..., None], patience: Callable[[float], float]
) -> None:
    """A killed nginx is started again by systemd, which holds its listeners: no request is lost, and none waits long"""
    limit = host.check_output("systemctl show --value --property TimeoutStopUSec nginx").strip()
    assert limit.endswith("s")
    with load() as going:
        killed = kill_main(host, "nginx")
        took = wait_until(lambda: is_back(host, "nginx", killed), seconds=patience(60), what="a new nginx")
        going.more()
    numbers(back_after_s=round(took, 1))
    going.lost()
    assert going.count["longest"] <= patience(float(limit.removesuffix("s")) + 2)
    journal.expect("code=killed, status=9/KILL", unit="nginx")


@pytest.mark.req("F09", "R9")
def test_kill_database(
    host: Host, load: Callable[..., Any], journal: Journal, numbers: Callable[..., None], patience: Callable[[float], float]
) -> None:
    """A killed PostgreSQL is back by itself within 10 s, and the application with it, without a restart"""
    application = host.check_output("systemctl show --value --property MainPID gunicorn")
    with load("/health") as going:
        killed = kill_main(host, "postgresql@17-main")
        took = wait_until(lambda: is_back(host, "postgresql@17-main", killed), seconds=patience(10), what="a new postmaster")
        going.more(24)
    numbers(back_after_s=round(took, 1))
    assert all("status 503" in failure for failure in going.count["failures"]), going.count["failures"]
    assert host.check_output("systemctl show --value --property MainPID gunicorn") == application
    journal.expect("code=killed, status=9/KILL", unit="postgresql@17-main")


@pytest.mark.req("F17", "R19")
def test_stop_application_worker(
    host: Host, spec: SimpleNamespace, load: Callable[..., Any], journal: Journal, numbers: Callable[..., None],
    patience: Callable[[float], float],
) -> None:  # fmt: skip
    """While a gunicorn worker hangs the others serve, and it is replaced within its timeout and 30 s"""
    command = "pgrep --parent $(systemctl show --value --property MainPID gunicorn)"
    victim = host.check_output(command).split()[0]
    with load() as going:
        host.check_output(f"kill -STOP {victim}")
        going.more(24)

        def replaced() -> bool:
            now = host.check_output(command).split()
            return victim not in now and len(now) >= spec.application.workers

        took = wait_until(replaced, seconds=patience(60), what="a new worker", pause=1)
        going.more()
    numbers(replaced_after_s=round(took, 1))
    # What the worker had in its hands.
    going.lost(at_most=1)
    journal.expect("WORKER TIMEOUT", unit="gunicorn")
