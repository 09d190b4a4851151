"""What the weekly report looks at. Each part is a function that returns plain data and changes nothing.

A layer adds a part as the module golden.report_parts.NAME: ``look`` returns the data, ``attention`` what of it needs
attention, as sentences. A part that cannot be read has a note instead: an incomplete report is better than none.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from golden import core, report_parts
from golden.report_tools import journal

ELSEWHERE = ("systemd-run", "--quiet", "--pipe", "--wait", "--collect")
FULL_PERCENT = 80
LOGIN = re.compile(r"Accepted (\w+) for (\S+) from (\S+)")
REFUSED = re.compile(r"(?:Invalid user|Failed \w+ for|maximum authentication attempts exceeded for|authenticating user)")


@dataclass(frozen=True)
class Part:
    """A part of the report: what looks, and what finds in that what needs attention."""

    look: Callable[[], dict[str, Any]]
    attention: Callable[[dict[str, Any]], list[str]]


def logins() -> dict[str, Any]:
    """Who came in over SSH, who was refused, what was done with sudo."""
    came: Counter[str] = Counter()
    refused = 0
    for entry in journal("--unit=ssh.service"):
        if found := LOGIN.search(entry["MESSAGE"]):
            came[f"{found[2]} from {found[3]} ({found[1]})"] += 1
        elif REFUSED.search(entry["MESSAGE"]):
            refused += 1
    sudo = [entry["MESSAGE"] for entry in journal("SYSLOG_IDENTIFIER=sudo")]
    commands = Counter(line.split("COMMAND=", 1)[1].split()[0] for line in sudo if "COMMAND=" in line)
    denied = sum("NOT in sudoers" in line or "authentication failure" in line for line in sudo)
    done = dict(commands.most_common(20))
    return {"came": dict(came.most_common(20)), "refused": refused, "sudo": done, "sudo_denied": denied}


def defence() -> dict[str, Any]:
    """Tell what the packet filter dropped since the machine started."""
    dropped = None
    if Path("/usr/sbin/golden-firewall").exists():
        # In a separate unit: the unit of the report has no network, and no right to change it.
        status = core.run([*ELSEWHERE, "golden-firewall", "--json", "status"], check=False)
        dropped = json.loads(status.stdout)["dropped"] if status.returncode == 0 else "cannot be read"
    return {"dropped": dropped}


def users() -> dict[str, Any]:
    """Who may log in, by which key, who administers, when each was last here (requirement R99)."""
    seen: dict[str, str] = {}
    for entry in journal("--unit=ssh.service", days=90):
        if login := LOGIN.search(entry["MESSAGE"]):
            stamp = int(entry["__REALTIME_TIMESTAMP"]) / 1e6
            seen[login[2]] = f"{datetime.fromtimestamp(stamp, UTC):%Y-%m-%d %H:%M}Z from {login[3]}"
    groups = [line.split(":") for line in Path("/etc/group").read_text(encoding="utf-8").splitlines()]
    people = {}
    for line in Path("/etc/passwd").read_text(encoding="utf-8").splitlines():
        name, _word, uid, gid, _about, home, shell = line.split(":")
        if shell.endswith(("nologin", "false", "sync")):
            continue
        roles = sorted(group[0] for group in groups if name in group[3].split(",") or group[2] == gid)
        keys = _keys(Path(home) / ".ssh/authorized_keys")
        people[name] = {"uid": int(uid), "roles": roles, "keys": keys, "last_login": seen.get(name)}
    return people


def _keys(path: Path) -> list[str]:
    """Return the fingerprints of the keys that open an account."""
    if not path.exists():
        return []
    output = core.run(["ssh-keygen", "-lf", path], check=False).stdout.decode(errors="replace")
    return [" ".join(line.split()) for line in output.splitlines()]


def timers() -> dict[str, Any]:
    """When each timer ran last, and with which result."""
    output = core.run(["systemctl", "list-units", "--type=timer", "--all", "--plain", "--no-legend"]).stdout.decode()
    found = {}
    for name in sorted(line.split()[0] for line in output.splitlines() if line.split()):
        timer = _shown(name, "LastTriggerUSec", "NextElapseUSecRealtime", "Unit")
        result = _shown(timer["Unit"], "Result", "ActiveState")
        ran = timer["LastTriggerUSec"] or "never"
        last = result["Result"] if ran != "never" else None
        found[name] = {"last": ran, "next": timer["NextElapseUSecRealtime"], "result": last}
    return found


def _shown(unit: str, *names: str) -> dict[str, str]:
    output = core.run(["systemctl", "show", f"--property={','.join(names)}", unit]).stdout.decode()
    return dict.fromkeys(names, "") | dict(line.split("=", 1) for line in output.splitlines() if "=" in line)


def system() -> dict[str, Any]:
    """Tell what failed, and how full the disks are."""
    output = core.run(["systemctl", "list-units", "--failed", "--plain", "--no-legend"]).stdout.decode()
    full = {}
    for point in ("/", "/var", "/var/log", "/var/log/audit", "/var/www", "/var/cache/nginx", "/home"):
        if Path(point).is_dir():
            status = os.statvfs(point)
            full[point] = round(100 * (status.f_blocks - status.f_bfree) / max(1, status.f_blocks))
    failed = [line.split()[0] for line in output.splitlines() if line.split()]
    return {"failed_units": failed, "full_percent": full}


def _troubles_of_system(found: dict[str, Any]) -> list[str]:
    lines = [f"{unit} has failed: systemctl status {unit}" for unit in found["failed_units"]]
    return lines + [f"{point} is {full} % full" for point, full in found["full_percent"].items() if full >= FULL_PERCENT]


def _troubles_of_timers(found: dict[str, Any]) -> list[str]:
    return [f"{name} failed at its last run" for name, one in found.items() if one["result"] not in (None, "", "success")]


def _troubles_of_users(found: dict[str, Any]) -> list[str]:
    keyless = [name for name, one in found.items() if not one["keys"] and one["uid"] >= 1000]
    return [f"{name} has no key, and so no way in" for name in keyless]


def _nothing(_found: dict[str, Any]) -> list[str]:
    return []


OWN = {
    "system": Part(system, _troubles_of_system), "timers": Part(timers, _troubles_of_timers),
    "users": Part(users, _troubles_of_users), "logins": Part(logins, _nothing), "defence": Part(defence, _nothing),
}  # fmt: skip


def parts() -> dict[str, Part]:
    """Return the parts that every report has, and those of the layers of this image."""
    names = sorted(module.name for module in pkgutil.iter_modules(report_parts.__path__))
    modules = {name: importlib.import_module(f"{report_parts.__name__}.{name}") for name in names}
    return OWN | {name: Part(module.look, module.attention) for name, module in modules.items()}


def report() -> dict[str, Any]:
    """Return all parts, and what needs attention."""
    found: dict[str, Any] = {}
    attention: list[str] = []
    for name, part in parts().items():
        try:
            found[name] = part.look()
            attention += part.attention(found[name])
        except (core.Problem, OSError, ValueError, KeyError) as error:
            found[name] = {"error": f"{type(error).__name__}: {error}"}
            attention.append(f"{name} could not be looked at: {found[name]['error']}")
    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    return {"time": now, "host": os.uname().nodename, **found, "attention": attention}
