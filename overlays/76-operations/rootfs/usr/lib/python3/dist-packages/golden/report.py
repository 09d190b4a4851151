"""What the weekly report looks at. Each part is a function that returns plain data and changes nothing.

A part that cannot be read has a note instead: an incomplete report is better than none.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from golden import core

ELSEWHERE = ("systemd-run", "--quiet", "--pipe", "--wait", "--collect")
DAYS = 7
WARN_DAYS = 21
BACKUP_DAYS = 2
FULL_PERCENT = 80
CERTIFICATE = Path("/etc/ssl/certs/app.pem")
BACKUPS, DRILL = Path("/var/backups/golden"), Path("/var/lib/golden-restore/last.json")
LOGIN = re.compile(r"Accepted (\w+) for (\S+) from (\S+)")
REFUSED = re.compile(r"(?:Invalid user|Failed \w+ for|maximum authentication attempts exceeded for|authenticating user)")


def journal(*words: str, days: int = DAYS) -> list[dict[str, Any]]:
    """Return the journal's entries that match, of the last days."""
    argv = ["journalctl", "--quiet", "--no-pager", "--output=json", f"--since=-{days}d", *words]
    argv.append("--output-fields=MESSAGE,_COMM,SYSLOG_IDENTIFIER,_SYSTEMD_UNIT")
    text = core.run(argv, timeout=600, check=False).stdout.decode(errors="replace")
    return [entry for entry in map(json.loads, text.splitlines()) if isinstance(entry.get("MESSAGE"), str)]


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


def _lines(directory: Path, pattern: str) -> Iterator[str]:
    """Return the lines of a log and of the older files beside it, as far as they were written in the last days."""
    for path in sorted(directory.glob(pattern)):
        if path.stat().st_mtime < time.time() - DAYS * 86400:
            continue
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8", errors="replace") as stream:
            yield from stream


def web(directory: Path = Path("/var/log/nginx")) -> dict[str, Any]:
    """How the web server answered, and which paths failed most."""
    since = (datetime.now(UTC) - timedelta(days=DAYS)).isoformat()
    kinds: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for line in _lines(directory, "access.log*"):
        try:
            entry = json.loads(line)
            status, when, requests = int(entry["status"]), str(entry["ts"]), int(entry.get("requests", 1))
        except (ValueError, KeyError, TypeError):
            kinds["not readable"] += 1
            continue
        if when < since[:19]:
            continue
        kinds[f"{status // 100}xx"] += requests
        kinds["429"] += requests * (status == 429)
        if status >= 500:
            failed[f"{status} {str(entry.get('uri', ''))[:80]}"] += requests
    total = sum(count for kind, count in kinds.items() if kind.endswith("xx"))
    rates = {kind: round(100 * kinds[kind] / total, 2) for kind in ("4xx", "5xx") if total}
    return {"requests": total, "answers": dict(kinds), "percent": rates, "failed": dict(failed.most_common(10))}


def defence() -> dict[str, Any]:
    """Tell what the packet filter dropped since the machine started, and whom fail2ban banned."""
    bans = [entry["MESSAGE"] for entry in journal("--unit=fail2ban.service") if " Ban " in entry["MESSAGE"]]
    jails = Counter(banned[1] for line in bans if (banned := re.search(r"\[([\w-]+)\] Ban ", line)))
    dropped = None
    if Path("/usr/sbin/golden-firewall").exists():
        # In a separate unit: the unit of the report has no network, and no right to change it.
        status = core.run([*ELSEWHERE, "golden-firewall", "--json", "status"], check=False)
        dropped = json.loads(status.stdout)["dropped"] if status.returncode == 0 else "cannot be read"
    return {"bans": dict(jails), "dropped": dropped}


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
    told = core.run(["ssh-keygen", "-lf", path], check=False).stdout.decode(errors="replace")
    return [" ".join(line.split()) for line in told.splitlines()]


def certificates() -> dict[str, Any]:
    """Until when the web server's certificate holds."""
    told = core.run(["openssl", "x509", "-in", CERTIFICATE, "-noout", "-enddate", "-subject", "-issuer"])
    fields = dict(line.split("=", 1) for line in told.stdout.decode().splitlines())
    until = datetime.strptime(fields["notAfter"], "%b %d %H:%M:%S %Y %Z").replace(tzinfo=UTC)
    days = (until - datetime.now(UTC)).days
    return {"until": until.isoformat(), "days": days, "subject": fields["subject"], "issuer": fields["issuer"]}


def updates() -> dict[str, Any]:
    """Tell what would be upgraded, and whether something still runs from before an upgrade (requirement R78)."""
    simulated = core.run(["apt-get", "--simulate", "--quiet", "-o", "Debug::NoLocking=1", "dist-upgrade"], check=False)
    pending = [line.split()[1] for line in simulated.stdout.decode().splitlines() if line.startswith("Inst ")]
    asked = sorted(Path("/var/lib/apt/lists").glob("*Release"))
    age = (time.time() - max(path.stat().st_mtime for path in asked)) / 86400 if asked else None
    return {
        "pending": pending,
        "days_since_asked": age and round(age, 1),
        "reboot_required": Path("/run/reboot-required").exists() or _newer_kernel(),
    }


def _newer_kernel() -> bool:
    """Return whether a kernel is installed that is newer than the one that runs."""
    installed = {path.name.removeprefix("vmlinuz-") for path in Path("/boot").glob("vmlinuz-*")}
    running = os.uname().release
    newest = max(installed, key=lambda name: [int(one) for one in re.findall(r"\d+", name)], default="")
    return running in installed and running != newest


def integrity(path: Path = Path("/var/lib/aide/last.json")) -> dict[str, Any]:
    """Return the result of the last check of AIDE."""
    if not path.exists():
        return {"checked": None}
    last = json.loads(path.read_text(encoding="utf-8"))
    differences = {key: last.get(key) for key in ("added", "removed", "changed")}
    return {"checked": last.get("time"), "ok": last.get("ok"), **differences}


def backups(directory: Path = BACKUPS, drill: Path = DRILL) -> dict[str, Any]:
    """How old the newest backup is, and how the last drill went."""
    found = sorted(directory.glob("*.tar.age"), key=lambda path: path.stat().st_mtime)
    age = round((time.time() - found[-1].stat().st_mtime) / 3600, 1) if found else None
    last = json.loads(drill.read_text(encoding="utf-8")) if drill.exists() else None
    return {"configured": core.site().get("backup") is not None, "kept": len(found), "hours_since_last": age, "drill": last}


def timers() -> dict[str, Any]:
    """When each timer ran last, and with which result."""
    told = core.run(["systemctl", "list-units", "--type=timer", "--all", "--plain", "--no-legend"]).stdout.decode()
    found = {}
    for name in sorted(line.split()[0] for line in told.splitlines() if line.split()):
        timer = _shown(name, "LastTriggerUSec", "NextElapseUSecRealtime", "Unit")
        result = _shown(timer["Unit"], "Result", "ActiveState")
        ran = timer["LastTriggerUSec"] or "never"
        last = result["Result"] if ran != "never" else None
        found[name] = {"last": ran, "next": timer["NextElapseUSecRealtime"], "result": last}
    return found


def _shown(unit: str, *names: str) -> dict[str, str]:
    told = core.run(["systemctl", "show", f"--property={','.join(names)}", unit]).stdout.decode()
    return dict.fromkeys(names, "") | dict(line.split("=", 1) for line in told.splitlines() if "=" in line)


def system() -> dict[str, Any]:
    """Tell what failed, what alerts there were, how full the disks are."""
    told = core.run(["systemctl", "list-units", "--failed", "--plain", "--no-legend"]).stdout.decode()
    alerts = [entry["MESSAGE"] for entry in journal("SYSLOG_IDENTIFIER=golden-alert", "--priority=alert")]
    full = {}
    for point in ("/", "/var", "/var/log", "/var/log/audit", "/var/www", "/var/cache/nginx", "/home"):
        if Path(point).is_dir():
            status = os.statvfs(point)
            full[point] = round(100 * (status.f_blocks - status.f_bfree) / max(1, status.f_blocks))
    failed = [line.split()[0] for line in told.splitlines() if line.split()]
    return {"failed_units": failed, "alerts": alerts[-20:], "full_percent": full}


def application() -> dict[str, Any]:
    """Tell what the application opens by its contract, and where the machine differs from it."""
    if not Path("/usr/sbin/golden-contract").exists():
        return {"release": None, "opens": [], "problems": []}
    done = core.run(["golden-contract", "--json", "--compare"], check=False)
    if done.returncode not in (core.OK, core.CHECK_FAILED):
        return {"release": None, "opens": [], "problems": []}
    found = json.loads(done.stdout)
    return {name: found[name] for name in ("release", "opens", "problems")}


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "system": system, "logins": logins, "users": users, "web": web, "defence": defence, "certificates": certificates,
    "updates": updates, "integrity": integrity, "backups": backups, "timers": timers,
    "application": application,
}  # fmt: skip


def report() -> dict[str, Any]:
    """Return all parts, and what needs attention."""
    parts: dict[str, Any] = {}
    for name, part in PARTS.items():
        try:
            parts[name] = part()
        except (core.Problem, OSError, ValueError, KeyError) as error:
            parts[name] = {"error": f"{type(error).__name__}: {error}"}
    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    return {"time": now, "host": os.uname().nodename, **parts, "attention": attention(parts)}


def attention(parts: dict[str, Any]) -> list[str]:
    """Return what needs attention, as sentences."""
    found = [f"{name} could not be looked at: {part['error']}" for name, part in parts.items() if "error" in part]
    get = {name: part if "error" not in part else {} for name, part in parts.items()}
    found += _troubles(get["system"], get["timers"], get["users"])
    if get["certificates"].get("days", WARN_DAYS) < WARN_DAYS:
        found.append(f"the certificate ends in {get['certificates']['days']} days: golden-certificate --help")
    if get["updates"].get("pending"):
        found.append(f"{len(get['updates']['pending'])} packages have updates: unattended-upgrade --dry-run")
    if get["updates"].get("reboot_required"):
        found.append("an update needs a restart of the machine")
    if get["integrity"].get("ok") is False:
        found.append("files differ from what AIDE knows: golden-aide check")
    found += [f"the application's contract: {problem}" for problem in get["application"].get("problems", [])]
    backup = get["backups"]
    if backup and not backup["configured"]:
        found.append("no backup is configured: set backup in /etc/golden/site.yaml")
    elif backup and (backup["hours_since_last"] is None or backup["hours_since_last"] > 24 * BACKUP_DAYS):
        found.append("the last backup is old, or there is none: systemctl status golden-backup.service")
    return found


def _troubles(system: dict[str, Any], timers: dict[str, Any], users: dict[str, Any]) -> list[str]:
    found = [f"{unit} has failed: systemctl status {unit}" for unit in system.get("failed_units", [])]
    found += [f"{point} is {full} % full" for point, full in system.get("full_percent", {}).items() if full >= FULL_PERCENT]
    if system.get("alerts"):
        found.append(f"{len(system['alerts'])} alerts: golden-alert --list")
    found += [f"{name} failed at its last run" for name, one in timers.items() if one["result"] not in (None, "", "success")]
    keyless = [name for name, one in users.items() if not one["keys"] and one["uid"] >= 1000]
    found += [f"{name} has no key, and so no way in" for name in keyless]
    return found
