"""Steps of a deployment that are units: run to their ends, and why one failed, from what it wrote into the journal."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from golden.core import Problem, run

# Of what a failed step wrote: read at most, shown at most, and shown of Django's errors.
MOST_LINES, SHOWN_LINES, SHOWN_ERRORS = 2000, 20, 60


def start(unit: str, what: str, seconds: float) -> None:
    """Run a unit to its end, or until it is ready; raise Problem with the reason when it fails."""
    run(["systemctl", "reset-failed", unit], check=False)
    if run(["systemctl", "start", unit], timeout=seconds, check=False).returncode:
        raise Problem(what, hint=said(unit))


def said(unit: str) -> str:
    """Return where a unit's log is, and the lines of its last run that say why it failed."""
    shown = run(["systemctl", "show", "--property=InvocationID", "--value", unit], check=False).stdout.decode().strip()
    # Of this run alone. systemd writes about it under the other name.
    this_run = [f"_SYSTEMD_INVOCATION_ID={shown}"] if shown else [f"--unit={unit}"]
    found = run(["journalctl", "--boot", "--output=cat", "--no-pager", f"--lines={MOST_LINES}", *this_run], check=False)
    lines = [line for line in found.stdout.decode(errors="replace").splitlines() if not line.startswith(unit)]
    return f"journalctl -u {unit}:\n      " + "\n      ".join(reason(_plain(lines)))


def _plain(lines: Sequence[str]) -> list[str]:
    """Return lines as they are without the form of the application server, which writes JSON (gunicorn.conf.py)."""
    found: list[str] = []
    for line in lines:
        try:
            event = json.loads(line) if line.startswith("{") else None
        except (ValueError, RecursionError):
            event = None
        if isinstance(event, dict) and "msg" in event:
            found += [*str(event["msg"]).splitlines(), *str(event.get("trace", "")).splitlines()]
        else:
            found.append(line)
    return found


def reason(lines: Sequence[str]) -> list[str]:
    """Return the lines of a failed step that say why it failed.

    Django's checks name errors before many warnings, and an exception stands at the end of a traceback; what stands behind
    it matters as well. Without either, the last lines.
    """
    errors = _sections(lines)
    traces = [number for number, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    if errors:
        return [*errors, *lines[-1:]][:SHOWN_ERRORS]
    if traces:
        after = [line for line in lines[traces[-1] + 1 :] if not line.startswith(" ")]
        return after[:SHOWN_LINES] or list(lines[-SHOWN_LINES:])
    return list(lines[-SHOWN_LINES:])


def _sections(lines: Sequence[str]) -> list[str]:
    """Return the sections of Django's system checks that make a command fail."""
    found, within = [], False
    for line in lines:
        if re.fullmatch(r"(CRITICALS|ERRORS|WARNINGS|INFOS|DEBUGS):|System check identified .*", line):
            within = line in ("CRITICALS:", "ERRORS:")
        if within and line.strip():
            found.append(line)
    return found
