"""The report on this machine: logins, users, keys, updates, timers, and what the layers of the image add.

golden-report.timer has it written every Monday into /var/lib/golden-report. What needs attention stands first.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from golden import core
from golden import report as weekly
from golden.report_tools import DAYS

STORE = Path("/var/lib/golden-report")
KEPT = 60


def main() -> None:
    """Parse the command line and do what it asks for."""
    form = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(prog="golden-report", description=__doc__, formatter_class=form)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--store", action="store_true", help=f"keep it in {STORE}, say one line (the timer)")
    what.add_argument("--last", action="store_true", help="show the last one that was kept")
    core.run_command(parser, act, show)


def act(arguments: argparse.Namespace) -> Mapping[str, Any]:
    """Return the report."""
    core.need_root()
    if arguments.last:
        kept = sorted(STORE.glob("*.json"))
        if not kept:
            raise core.Problem("no report was kept yet", hint="systemctl start golden-report.service")
        found: dict[str, Any] = json.loads(kept[-1].read_text(encoding="utf-8"))
        return found
    report = weekly.report()
    if not arguments.store:
        return report
    STORE.mkdir(mode=0o700, exist_ok=True)
    name = report["time"].replace(":", "")
    core.write_whole(STORE / f"{name}.json", json.dumps(report, indent=1, default=str).encode())
    core.write_whole(STORE / f"{name}.txt", show(report).encode())
    for suffix in ("json", "txt"):
        for old in sorted(STORE.glob(f"*.{suffix}"))[:-KEPT]:
            old.unlink()
    return {"stored": str(STORE / name), "attention": report["attention"]}


def show(report: Mapping[str, Any]) -> str:
    """Return a report as text."""
    if "stored" in report:
        mark = "<4>" if report["attention"] else ""
        return f"{mark}report: {len(report['attention'])} matters need attention: {report['stored']}.txt"
    lines = [f"{report['host']}, {report['time']}, the last {DAYS} days", "", "Needs attention"]
    lines += [f"  - {one}" for one in report["attention"]] or ["  nothing"]
    for name in (name for name, part in report.items() if isinstance(part, Mapping)):
        lines += ["", name.capitalize(), *(f"  {line}" for line in _plain(report[name]))]
    return "\n".join(lines) + "\n"


def _plain(value: object) -> Iterator[str]:
    """Return nested data as indented lines."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            if isinstance(one, (Mapping, list)) and one:
                yield f"{str(key).replace('_', ' ')}:"
                yield from (f"  {line}" for line in _plain(one))
            else:
                yield f"{str(key).replace('_', ' ')}: {_word(one)}"
    elif isinstance(value, list):
        for one in value:
            yield f"- {one}"


def _word(value: object) -> str:
    if value is None or value in ([], {}):
        return "none"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
