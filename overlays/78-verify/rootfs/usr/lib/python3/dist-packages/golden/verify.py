"""The checks of golden-verify: each kind is a function of the machine and a check's data that returns problems.

A check without problems has passed. The machine is accessed through ``System``, so that unit tests can run every check on a
machine on which it must fail. The expected values are in the parts of the layers (golden.check_list); a layer may add a
kind of check: the module ``golden.verify_kinds.NAME`` with the function ``find``.
"""

from __future__ import annotations

import fnmatch
import functools
import grp
import importlib
import json
import os
import pwd
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from golden import core
from golden import web as web_client

Check = Mapping[str, Any]
SECONDS = 120
KINDS_OF_LAYERS = "golden.verify_kinds"
# The unit's sandbox has no network and few privileges: commands that need more run in a separate transient unit.
ELSEWHERE = ("systemd-run", "--quiet", "--pipe", "--wait", "--collect")
ASKER = ("--property=DynamicUser=yes", "--property=IPAddressDeny=any", "--property=IPAddressAllow=localhost")
IN_MEMORY = ("tmpfs", "ramfs", "proc", "devpts", "mqueue", "hugetlbfs")
# What openssl prints of each certificate: its first and last moment, then its subject.
LIFE_OF_CERTIFICATE = re.compile(r"Not Before: (.*)\n\s*Not After : (.*)\n\s*Subject: (.*)")
OPENSSL_TIME = "%b %d %H:%M:%S %Y GMT"
# The private /var/tmp of a unit, systemd's memory pressure file, and the files of systemd-nspawn in a container.
ALWAYS_WRITABLE = ("/var/tmp", "/sys/fs/cgroup/system.slice/*/memory.pressure", "/run/host/*")


class Skip(Exception):
    """The check cannot be made on this machine."""


class System:
    """The machine that is checked: its files below ``root``, its programs, and the processes of its services."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root
        self._expected: list[Mapping[str, Any]] = []
        self._answers: dict[str, web_client.Answer] = {}

    def path(self, name: str) -> Path:
        """Return the path of a file of the machine."""
        return self.root / name.lstrip("/")

    def run(self, argv: Sequence[str]) -> tuple[int, str]:
        """Run a program; return its exit status and its output, stdout and stderr together."""
        done = core.run(argv, timeout=SECONDS, check=False, env={"LC_ALL": "C.UTF-8"})
        return done.returncode, (done.stdout + done.stderr).decode(errors="replace")

    def expect(self, requests: Iterable[Mapping[str, Any]]) -> None:
        """Register the requests of all checks: they are sent together, in one unit, with the first of them."""
        self._expected = list(requests)

    def browse(self, requests: Iterable[Mapping[str, Any]]) -> list[web_client.Answer]:
        """Send requests to the web server as a dynamic user."""
        wanted = [json.dumps(one, sort_keys=True) for one in requests]
        if missing := {*wanted} - {*self._answers}:
            asked = sorted(missing | {json.dumps(one, sort_keys=True) for one in self._expected})
            status, text = self.run([*ELSEWHERE, *ASKER, "python3", "-I", "-m", web_client.__name__, f"[{','.join(asked)}]"])
            if status:
                raise ValueError(f"the requests could not be sent: {(text.strip().splitlines() or ['no output'])[-1]}")
            answers = [web_client.Answer(**one) for one in json.loads(text.splitlines()[-1])]
            self._answers |= dict(zip(asked, answers, strict=True))
        return [self._answers[one] for one in wanted]

    def properties(self, unit: str, names: Iterable[str]) -> dict[str, str]:
        """Return properties of a unit."""
        _, text = self.run(["systemctl", "show", unit, *(f"--property={name}" for name in names)])
        return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)

    def processes(self, unit: str) -> list[Path]:
        """Return the /proc directories of a unit's processes."""
        group = self.properties(unit, ["ControlGroup"]).get("ControlGroup", "")
        listed = self.path(f"/sys/fs/cgroup{group}/cgroup.procs") if group else None
        numbers = listed.read_text().split() if listed is not None and listed.exists() else []
        return [self.path(f"/proc/{number}") for number in numbers if self.path(f"/proc/{number}/status").exists()]


def of_process(process: Path, name: str) -> str:
    """Return a file of a process in /proc; empty for a process that has ended: a service starts and ends some."""
    try:
        return (process / name).read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def verify(checks: Sequence[Check], system: System) -> dict[str, Any]:
    """Run the checks; a check that raises an error has failed."""
    system.expect(one["ask"] for check in checks if check["check"] == web.__name__ for one in check["requests"])
    results = [_result(check, system) for check in checks]
    counts = {word: sum(one["result"] == word for one in results) for word in ("PASS", "FAIL", "SKIP")}
    return {
        "ok": counts["FAIL"] == 0 and counts["PASS"] > 0, "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "passed": counts["PASS"], "failed": counts["FAIL"], "skipped": counts["SKIP"], "checks": results,
    }  # fmt: skip


def _result(check: Check, system: System) -> dict[str, Any]:
    try:
        if check.get("own_kernel") and system.run(["systemd-detect-virt", "--container", "--quiet"])[0] == 0:
            raise Skip("a container has the kernel and the file systems of its host")  # noqa: TRY301
        problems = kind(check["check"])(system, check)
        outcome = "FAIL" if problems else "PASS"
    except Skip as reason:
        problems, outcome = [str(reason)], "SKIP"
    except (OSError, ValueError, LookupError, core.Problem) as error:
        problems, outcome = [f"the check could not be made: {type(error).__name__}: {error}"], "FAIL"
    return {"ids": check["ids"], "title": check["title"], "result": outcome, "problems": problems}


# --- services ---------------------------------------------------------------------------------------------------------


def failed_units(system: System, check: Check) -> list[str]:
    """Find units that failed; ``but`` has patterns of units that may fail."""
    _, text = system.run(["systemctl", "list-units", "--failed", "--plain", "--no-legend", "--no-pager"])
    names = [line.split()[0] for line in text.splitlines() if line.strip()]
    return [f"{name} failed" for name in names if not any(fnmatch.fnmatchcase(name, pattern) for pattern in check["but"])]


def units(system: System, check: Check) -> list[str]:
    """Find units whose properties differ from the expected values."""
    found = []
    for unit, wanted in check["units"].items():
        have = system.properties(unit, wanted)
        wrong = [name for name, value in wanted.items() if have.get(name) != str(value)]
        found += [f"{unit}: {name} is {have.get(name, '?')}" for name in wrong]
    return found


def presets(system: System, check: Check) -> list[str]:
    """Find units of ``kinds`` that the presets of /etc enable, and that are not active."""
    endings = tuple(f".{kind}" for kind in check["kinds"])
    wanted = [
        words[1]
        for preset in sorted(system.path("/etc/systemd/system-preset").glob("*.preset"))
        for words in (line.split() for line in preset.read_text().splitlines())
        if words[:1] == ["enable"] and words[1].endswith(endings) and "@." not in words[1]
    ]
    if not wanted:
        raise LookupError("no preset enables anything")
    _, text = system.run(["systemctl", "show", "--property=Id,ActiveState,ConditionResult,LoadState", *wanted])
    blocks = [dict(line.split("=", 1) for line in block.splitlines()) for block in text.strip().split("\n\n")]
    return [
        f"{block['Id']} is {block['ActiveState']} ({block['LoadState']})" for block in blocks
        # A unit may be inactive if its condition is not met on this machine.
        if block["ActiveState"] != "active" and not (block["LoadState"] == "loaded" and block["ConditionResult"] == "no")
    ]  # fmt: skip


# --- processes --------------------------------------------------------------------------------------------------------


def processes(system: System, check: Check) -> list[str]:
    """Find processes of a unit with another user, more capabilities than listed, new privileges, or no seccomp filter."""
    found, running = [], system.processes(check["unit"])
    if len(running) < check["at_least"]:
        found.append(f"{check['unit']} has {len(running)} processes, should have {check['at_least']}")
    allowed = int(check.get("bounding", 0))
    for process in running:
        if not (text := of_process(process, "status")):
            continue
        status = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        who, name = f"process {process.name}", status["Name"].strip()
        users = {_user(int(number)) for number in status["Uid"].split()}
        found += [f"{who} ({name}) runs as {', '.join(sorted(users))}"] if users != {check["user"]} else []
        for kind, limit in (("CapEff", 0), ("CapPrm", 0), ("CapAmb", 0), ("CapBnd", allowed)):
            held = int(status[kind].strip(), 16)
            found += [f"{who} ({name}) has {kind} {held:#x}"] if held & ~limit else []
        found += [f"{who} ({name}) may gain privileges"] if status["NoNewPrivs"].strip() != "1" else []
        found += [f"{who} ({name}) has no system call filter"] if status["Seccomp"].strip() != "2" else []
    return found


def read_only(system: System, check: Check) -> list[str]:
    """Find file systems that a unit's processes can write to, except listed mounts and file systems in memory."""
    found, writable = [], (*ALWAYS_WRITABLE, *check["but"])
    for process in system.processes(check["unit"]):
        if not (text := of_process(process, "mountinfo")):
            continue
        for line in text.splitlines():
            left, _, right = line.partition(" - ")
            mount, options, file_system = left.split()[4], left.split()[5].split(","), right.split()[0]
            known = file_system in IN_MEMORY or any(fnmatch.fnmatch(mount, pattern) for pattern in writable)
            if "rw" in options and not known:
                found.append(f"process {process.name} can write to {mount} ({file_system})")
        break
    else:
        found.append(f"{check['unit']} has no process")
    return found


def confined(system: System, check: Check) -> list[str]:
    """Find processes of the units for which AppArmor enforces no profile."""
    if not system.path("/sys/module/apparmor/parameters/enabled").exists():
        raise Skip("the kernel has no AppArmor")
    found = []
    for unit in check["units"]:
        running = system.processes(unit)
        found += [] if running else [f"{unit} has no process"]
        for process in running:
            label = of_process(process, "attr/current").strip("\0\n")
            # Of a process without a profile the kernel writes "unconfined".
            if not label and not (process / "status").exists():
                continue
            found += [] if label.endswith(" (enforce)") else [f"process {process.name} of {unit}: {label or 'no profile'}"]
    return found


def secrets(system: System, check: Check) -> list[str]:
    """Find processes that have a secret from the files in their environment or arguments."""
    values = [
        value for name in check["files"] if system.path(name).exists()
        for value in [system.path(name).read_bytes().strip()] if len(value) >= 16
    ]  # fmt: skip
    if not values:
        raise LookupError(f"no secret in {', '.join(check['files'])}")
    found = []
    for process in system.path("/proc").glob("[0-9]*"):
        for name in ("environ", "cmdline"):
            try:
                content = (process / name).read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            found += [f"{process / name} holds a secret"] if any(value in content for value in values) else []
    return found


# --- files ------------------------------------------------------------------------------------------------------------


@functools.cache
def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


@functools.cache
def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def _access(path: Path) -> str:
    state = path.lstat()
    return f"{_user(state.st_uid)}:{_group(state.st_gid)} {stat.S_IMODE(state.st_mode):o}"


def access(system: System, check: Check) -> list[str]:
    """Find paths with other owners or modes; a pattern may match several, and must match one."""
    found = []
    for pattern, wanted in check["paths"].items():
        matches = sorted(system.root.glob(pattern.lstrip("/")))
        found += [] if matches else [f"{pattern} is not there"]
        choices = [wanted] if isinstance(wanted, str) else wanted
        found += [f"{path} is {_access(path)}" for path in matches if _access(path) not in choices]
    return found


def absent(system: System, check: Check) -> list[str]:
    """Find paths that must not exist."""
    return [str(path) for pattern in check["paths"] for path in sorted(system.root.glob(pattern.lstrip("/")))]


def _below(directory: Path) -> Iterator[Path]:
    for parent, directories, names in os.walk(directory):
        yield from (Path(parent) / name for name in (*directories, *names))


def trees(system: System, check: Check) -> list[str]:
    """Find paths below the directories that belong to a user in ``not_of``, or have a bit of ``not_mode``."""
    bits, found = int(str(check["not_mode"]), 8), []
    for name in check["trees"]:
        if not system.path(name).is_dir():
            raise LookupError(f"{name} is not a directory")
        for path in _below(system.path(name)):
            state = path.lstat()
            if stat.S_ISLNK(state.st_mode):
                continue
            if state.st_mode & bits or _user(state.st_uid) in check["not_of"]:
                found.append(f"{path} is {_access(path)}")
    return found


def mounts(system: System, check: Check) -> list[str]:
    """Find directories that are not mount points, or lack options, in the mounts of process 1, which sees all of them."""
    table = {}
    for line in system.path("/proc/1/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        table[left.split()[4]] = (set(left.split()[5].split(",")), right.split()[0])
    found = []
    for name, wanted in check["mounts"].items():
        options, _ = table.get(name, (set(), ""))
        found += [f"{name} is not a mount point"] if name not in table else []
        found += [f"{name} lacks {', '.join(sorted(missing))}"] if name in table and (missing := {*wanted} - options) else []
    return found


# --- accounts, settings, network --------------------------------------------------------------------------------------


def accounts(system: System, check: Check) -> list[str]:
    """Find other accounts with number 0, passwords, and shells of system accounts that are not in ``shells``."""
    found = []
    for line in system.path("/etc/passwd").read_text().splitlines():
        name, _, number, _, _, _, shell = line.split(":")
        found += [f"{name} has number 0"] if number == "0" and name != "root" else []
        login = not shell.endswith(("/nologin", "/false", "/sync"))
        found += [f"{name} has the shell {shell}"] if login and int(number) < 1000 and name not in check["shells"] else []
    for line in system.path("/etc/shadow").read_text().splitlines():
        name, password = line.split(":")[:2]
        if not password.startswith(("!", "*")):
            found.append(f"{name} has {'a password' if password else 'an empty password'}")
    return found


def sysctl(system: System, check: Check) -> list[str]:
    """Find settings that differ from the files of /etc/sysctl.d; the last file has precedence."""
    wanted: dict[str, str] = {}
    for path in sorted(path for name in check["files"] for path in system.path("/etc/sysctl.d").glob(name)):
        for line in path.read_text().splitlines():
            key, _, value = line.partition("=")
            if value and not line.lstrip().startswith(("#", ";")):
                wanted[key.strip().lstrip("-")] = " ".join(value.split())
    if not wanted:
        raise LookupError("the files contain no setting")
    names = {f"/proc/sys/{key if '/' in key else key.replace('.', '/')}": key for key in wanted if "*" not in key}
    # Each network namespace has separate settings, and only root with all capabilities can read some of them. A setting
    # of a feature that this kernel does not have has no file, and is not checked.
    _status, text = system.run([*ELSEWHERE, "grep", "-sH", "", "--", *names])
    lines = [line.partition(":") for line in text.splitlines()]
    kept = {names[name]: " ".join(value.split()) for name, _, value in lines if name in names}
    if not kept:
        raise ValueError(f"no setting can be read: {text.strip()}")
    return [f"{key} is {value}, should be {wanted[key]}" for key, value in kept.items() if value != wanted[key]]


def listeners(system: System, check: Check) -> list[str]:
    """Find ports that listen outside the loopback interface and are not listed, and listed ones that do not listen."""
    status, text = system.run([*ELSEWHERE, "ss", "-Hltnu"])
    if status:
        raise ValueError(text.strip())
    open_ports = set()
    for line in text.splitlines():
        kind, _, _, _, local = line.split()[:5]
        address, port = local.rsplit(":", 1)
        interface = address.partition("%")[2]
        if not (address.startswith(("127.", "[::1]")) or interface == "lo"):
            open_ports.add(f"{kind}/{port}")
    wanted, allowed = set(check["ports"]), set(check["ports"]) | set(check.get("also", ()))
    extra = [f"{port} listens" for port in sorted(open_ports - allowed)]
    return extra + [f"{port} does not listen" for port in sorted(wanted - open_ports)]


def programs(system: System, check: Check) -> list[str]:
    """Find programs that fail, do not print what they must, or print what they must not (regular expressions).

    ``with``: run in a separate unit with these properties (``[]``: outside the sandbox of this unit).
    """
    found = []
    for one in check["programs"]:
        name = one["run"][0]
        outside = [*ELSEWHERE, *(f"--property={setting}" for setting in one["with"])] if "with" in one else []
        status, text = system.run([*outside, *one["run"]])
        last = (text.strip().splitlines() or ["no output"])[-1]
        found += [f"{name} ended with {status}: {last}"] if status else []
        found += [f"{name} does not print {want}" for want in one.get("says", ()) if not re.search(want, text, re.MULTILINE)]
        found += [f"{name} prints {seen[0]}" for bad in one.get("never", ()) if (seen := re.search(bad, text, re.MULTILINE))]
    return found


def certificates(system: System, check: Check, *, now: datetime | None = None) -> list[str]:
    """Find certificates in ``files`` that end within ``days``, or a quarter of their lives if that is less.

    A file may have several, such as a chain. One that does not exist is no problem: the site names no such certificate.
    A short-lived certificate is renewed later than three weeks before its end: see golden.renewal.
    """
    today = now or datetime.now(UTC)
    found = []
    for name in check["files"]:
        if not system.path(name).exists():
            continue
        status, text = system.run(["openssl", "storeutl", "-noout", "-text", "-certs", name])
        lives = LIFE_OF_CERTIFICATE.findall(text)
        if status or not lives:
            found.append(f"{name}: no certificate can be read")
        for first, last, subject in lives:
            begins, ends = (datetime.strptime(moment, OPENSSL_TIME).replace(tzinfo=UTC) for moment in (first, last))
            if ends - today < min(timedelta(days=check["days"]), (ends - begins) / 4):
                found.append(f"{name}: {subject} ends on {last}")
    return found


def web(system: System, check: Check) -> list[str]:
    """Find requests with unexpected responses of the web server; ``every``: the expectations for each response."""
    found: list[str] = []
    answers = system.browse([one["ask"] for one in check["requests"]])
    for one, answer in zip(check["requests"], answers, strict=True):
        found += [f"{one['name']}: {problem}" for problem in web_client.judge(answer, {**check.get("every", {}), **one})]
    return found


KINDS: dict[str, Callable[[System, Check], list[str]]] = {
    function.__name__: function
    for function in (
        failed_units, units, presets, processes, read_only, confined, secrets, access, absent, trees, mounts, accounts,
        sysctl, listeners, programs, certificates, web,
    )
}  # fmt: skip


def kind(name: str) -> Callable[[System, Check], list[str]]:
    """Return the function of a kind of check. Raises ValueError for a kind that no layer of this image has."""
    if name in KINDS:
        return KINDS[name]
    module = f"{KINDS_OF_LAYERS}.{name}"
    try:
        found: Callable[[System, Check], list[str]] = importlib.import_module(module).find
    except ModuleNotFoundError as error:
        if error.name not in (module, KINDS_OF_LAYERS):
            raise
        raise ValueError(f"no layer has the kind of check {name!r}") from None
    return found
