"""Knows this machine's files as they were, and says which are not as they were.

The database is /var/lib/aide/aide.db; what is watched stands in /etc/aide/aide.conf. It is replaced whole: a power cut
leaves the old one or the new one. The result of the last check is /var/lib/aide/last.json.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from golden import core

CONFIGURATION = Path("/etc/aide/aide.conf")
DATABASE = Path("/var/lib/aide/aide.db")
FRESH = Path("/var/lib/aide/aide.db.new")
LAST = Path("/var/lib/aide/last.json")
# In memory: a clean check counts for the upgrade that follows it, not for one after a restart.
CLEAN = Path("/run/golden-aide-clean")
SECONDS = 3600
# aide's exit status: bits that say what differs; from 14 on it could not do its work.
DIFFERENCES = 7
SHOWN = 50


def main() -> None:
    """Read the command line and do what it asks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="compare the files with the database; exit status 3 when any differs")
    check.add_argument("--only", metavar="REGEX", help="look at the paths that match, and at no others")
    check.add_argument("--before-upgrade", action="store_true", help="remember for the upgrade that nothing differed")
    renew = commands.add_parser("renew", help="accept the files as they are, and say what differed")
    renew.add_argument("--only", metavar="REGEX", help="accept the paths that match, and no others")
    renew.add_argument("--after-upgrade", action="store_true", help="only if nothing differed before the upgrade")
    commands.add_parser("first", help="make the database if there is none")
    core.run_command(parser, act, show)


def act(arguments: argparse.Namespace) -> Mapping[str, Any]:
    """Do one command, alone."""
    core.need_root()
    with core.only_one("aide"):
        if arguments.command == "first":
            return first()
        if not DATABASE.exists():
            raise core.Problem(f"{DATABASE} is not there", hint="golden-aide first")
        if arguments.command == "check":
            return check(only=arguments.only, before_upgrade=arguments.before_upgrade)
        return renew(only=arguments.only, after_upgrade=arguments.after_upgrade)


def first() -> Mapping[str, Any]:
    """Make the database, unless it is there."""
    if DATABASE.exists():
        return {"done": "nothing: the database is there"}
    aide("--init", only=None)
    keep()
    return {"done": "the database is made"}


def check(*, only: str | None, before_upgrade: bool) -> Mapping[str, Any]:
    """Compare; keep the result where the weekly report finds it."""
    CLEAN.unlink(missing_ok=True)
    result = aide("--check", only=only)
    if only is None:
        stored = {**result, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        core.write_whole(LAST, json.dumps(stored).encode())
    if before_upgrade and result["ok"]:
        CLEAN.touch(mode=0o600)
    return result


def renew(*, only: str | None, after_upgrade: bool) -> Mapping[str, Any]:
    """Accept the files as they are; after an upgrade only what was clean before it."""
    if after_upgrade and not CLEAN.exists():
        raise core.Problem("there were differences before the upgrade: not renewed", hint="golden-aide check")
    CLEAN.unlink(missing_ok=True)
    result = aide("--update", only=only)
    keep()
    return {**result, "ok": True, "done": "the database is renewed"}


def aide(command: str, *, only: str | None) -> dict[str, Any]:
    """Run aide and return what it found."""
    limit = ["--limit", only] if only else []
    done = core.run(
        ["aide", "--config", CONFIGURATION, command, *limit, "-B", "report_format=json"], timeout=SECONDS, check=False
    )
    if done.returncode & ~DIFFERENCES:
        words = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()[-3:]
        raise core.Problem(f"aide failed ({done.returncode}): {' / '.join(words)}")
    report = json.loads(done.stdout or b"{}")
    found = {name: sorted(report.get(name, {})) for name in ("added", "removed", "changed")}
    return {"ok": done.returncode == 0 or command == "--init", **found}


def keep() -> None:
    """Give the new database its name when it is on the disk."""
    descriptor = os.open(FRESH, os.O_RDONLY)
    try:
        os.fchmod(descriptor, 0o600)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    FRESH.replace(DATABASE)
    directory = os.open(DATABASE.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def show(result: Mapping[str, Any]) -> str:
    """Return the result as lines for people; the journal gets them too."""
    lines = [f"{kind}: {path}" for kind in ("added", "removed", "changed") for path in result.get(kind, [])[:SHOWN]]
    total = sum(len(result.get(kind, [])) for kind in ("added", "removed", "changed"))
    end = result.get("done") or ("nothing differs" if result.get("ok") else f"{total} paths differ")
    return "\n".join([*lines, str(end)])
