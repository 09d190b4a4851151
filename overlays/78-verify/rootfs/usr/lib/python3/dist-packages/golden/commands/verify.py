"""Checks this machine against the requirements that it can test by itself, and prints PASS, FAIL or SKIP for each check.

Exit codes: 0 all checks passed, 3 a check failed. A skipped check prints its reason; it is not counted as passed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from golden import check_list, core, verify

CHECKS = Path("/usr/lib/golden/verify.d")
SAVED = Path("/var/lib/golden-verify/last.json")


def main() -> None:
    """Parse the command line and check."""
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(prog="golden-verify", description=__doc__, formatter_class=raw)
    parser.add_argument("only", nargs="*", metavar="ID", help="only checks of these requirements, such as R39")
    parser.add_argument("--list", action="store_true", help="list the checks without running them")
    parser.add_argument("--last", action="store_true", help="show the last stored result instead of running the checks")
    parser.add_argument("--save", action="store_true", help=f"store the result in {SAVED}")
    core.run_command(parser, act, show)


def act(arguments: argparse.Namespace) -> Mapping[str, Any]:
    """Return the results of the selected checks."""
    core.need_root()
    if arguments.last:
        if not SAVED.exists():
            raise core.Problem("no result is stored yet", hint="systemctl start golden-verify.service")
        kept: dict[str, Any] = json.loads(SAVED.read_text())
        return kept
    checks = [check for check in check_list.read(CHECKS) if not arguments.only or {*check["ids"]} & {*arguments.only}]
    if not checks:
        raise core.Problem(f"no check is for {' '.join(arguments.only)}", hint="golden-verify --list", code=core.USAGE)
    if arguments.list:
        return {"checks": [{"ids": check["ids"], "title": check["title"], "result": ""} for check in checks]}
    result = verify.verify(checks, verify.System())
    if arguments.save:
        core.write_whole(SAVED, json.dumps(result, indent=1).encode())
    return result


def show(result: Mapping[str, Any]) -> str:
    """Return one line for each check, and the problems below those that failed."""
    lines = [f"{result['time']}"] if "time" in result else []
    for check in result["checks"]:
        lines.append(f"{check['result']:4} {' '.join(check['ids']):20} {check['title']}".strip())
        lines += [f"     - {problem}" for problem in check.get("problems", ())]
    if "passed" in result:
        lines.append(f"{result['passed']} passed, {result['failed']} failed, {result['skipped']} skipped")
    return "\n".join(lines)
