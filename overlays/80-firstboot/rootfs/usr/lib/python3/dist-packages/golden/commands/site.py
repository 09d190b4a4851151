"""The site settings of this clone: shows them, checks a file, applies what was changed.

golden-site.service runs `golden-site write` at each boot: it reads /etc/golden/site.yaml and writes /run/golden/site.json.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from golden import apply as applying
from golden import core
from golden import site as settings_file
from golden.site_table import Fault

FILE = Path("/etc/golden/site.yaml")
# An empty file for each key with a value: units whose program has nothing to do without the key have it as a condition,
# which costs a boot nothing, while an interpreter costs it seconds on a slow machine.
SET = "site-has-"
PROBLEMS = core.SITE.with_name("site-problems.json")
SERVICE = "golden-site.service"


def main() -> None:
    """Parse the command line and do what it asks for."""
    parser = argparse.ArgumentParser(prog="golden-site", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", metavar="FILE", type=Path, help="check a settings file; exit code 3: faults")
    what.add_argument("--schema", action="store_true", help="show the JSON Schema of the keys of this image")
    what.add_argument("--show", action="store_true", help="show the settings that are in force (default)")
    verbs = "apply: use a changed site.yaml without a restart of the machine\nwrite: what the unit does"
    parser.add_argument("verb", nargs="?", choices=("apply", "write"), help=verbs)
    core.run_command(parser, act, show)


def act(arguments: argparse.Namespace) -> Mapping[str, Any]:
    """Return what the command found out or did."""
    core.need_root()
    if arguments.verb and (arguments.check or arguments.show or arguments.schema):
        raise core.Problem("--check, --show and --schema change nothing, and go with no verb", code=core.USAGE)
    if arguments.schema:
        return {"schema": settings_file.schema()}
    if arguments.check:
        return check(arguments.check)
    if arguments.verb == "write":
        return write()
    if arguments.verb == "apply":
        with core.only_one("site"):
            return apply()
    return {"settings": core.site(), "problems": _problems()}


def check(path: Path) -> dict[str, Any]:
    """Read a settings file; change nothing."""
    if not path.exists():
        raise core.Problem(f"{path} is not there", code=core.USAGE)
    settings, faults = settings_file.read(path)
    return {"ok": not faults, "settings": settings, "problems": settings_file.as_json(faults)}


def write() -> dict[str, Any]:
    """Write the settings for the units that use them, also from a file with faults."""
    settings, faults = settings_file.collect(FILE)
    _write(settings, faults, core.SITE.parent)
    # The journal is read by more people than the settings.
    return {"ok": not faults, "settings": {}, "problems": settings_file.as_json(faults)}


def _write(settings: Mapping[str, Any], faults: list[Fault], directory: Path) -> None:
    """Write the files of the settings into a directory."""
    for name, content in settings_file.files(settings).items():
        core.write_whole(directory / name, content)
    core.write_whole(directory / PROBLEMS.name, json.dumps(settings_file.as_json(faults), indent=1).encode())
    core.write_whole(directory / core.SITE.name, json.dumps(settings, indent=1, sort_keys=True).encode())
    for key, value in settings.items():
        flag = directory / (SET + key)
        if _is_set(value):
            flag.touch(mode=0o600)
        else:
            flag.unlink(missing_ok=True)


def _is_set(value: object) -> bool:
    """Return True if a setting, or any part of it, has a value."""
    return any(map(_is_set, value.values())) if isinstance(value, Mapping) else bool(value)


def apply() -> dict[str, Any]:
    """Check and try site.yaml; then restart the unit that writes the settings and those that use them; wait for them.

    A service that had failed is started again. A unit that has nothing to do with the settings is left alone, and what it
    failed of long ago is not this command's result.
    """
    settings, faults = settings_file.collect(FILE)
    if faults:
        raise core.Problem(
            f"{FILE} is not applied, and nothing was changed: " + "; ".join(map(str, faults)),
            hint=f"correct it; golden-site --check {FILE}", code=core.CHECK_FAILED,
        )  # fmt: skip
    applying.rehearse(lambda directory: _write(settings, faults, directory))
    consumers, served = applying.dependents(SERVICE), applying.dependents(applying.NAMES_SERVICE)
    enabled = applying.enabled([*consumers, *served])
    started = [name for name in consumers if name in enabled]
    others = [name for name in consumers if name not in enabled]
    # They follow the host names; the restart of that unit brings along only what runs.
    behind = [name for name in served if name in enabled and name not in consumers]
    core.run(["systemctl", "reset-failed", "--", SERVICE, *started, *behind], check=False)
    # One call each: systemd puts the jobs into the order that the units declare.
    for verb, names in (("restart", [SERVICE]), ("restart", started), ("try-restart", others), ("start", behind)):
        if names:
            core.run(["systemctl", verb, "--", *names], check=False)
    failed = applying.settle([SERVICE, *started, *behind])
    return {
        "ok": not failed, "settings": core.site(), "problems": [], "restarted": started, "failed": sorted(failed),
        "reasons": failed,
    }  # fmt: skip


def _problems() -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(PROBLEMS.read_text()) if PROBLEMS.exists() else []
    return found


def show(result: Mapping[str, Any]) -> str:
    """Return a result as text."""
    if "schema" in result:
        return json.dumps(result["schema"], indent=2)
    # systemd takes the number for the line's priority, and the journal keeps it out of the text.
    mark = "<3>" if "JOURNAL_STREAM" in os.environ else ""
    lines = [f"{mark}site setting not used: {one['key']}: {one['value']}: {one['remedy']}" for one in result["problems"]]
    lines += [f"{key}: {json.dumps(value)}" for key, value in sorted(result["settings"].items())]
    lines += [f"restarted: {name}" for name in result.get("restarted", [])]
    lines += [f"failed: {name}: {result['reasons'][name]}" for name in result.get("failed", [])]
    return "\n".join(lines)
