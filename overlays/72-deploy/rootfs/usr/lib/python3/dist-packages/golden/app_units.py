"""The units and the environment of an application, generated from its contract (golden-app.yaml).

Each process and job has a unit ``application-NAME``. Its sandbox is that of the application server, in drop-ins that all
units of that prefix share (application-.service.d). systemd reads the units through a generator, below the link
/opt/app/current: switching the release switches them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Contract = Mapping[str, Any]
PREFIX, SERVICE = "application-", "gunicorn.service"
PYTHON, BINARIES = "/opt/app/current/venv/bin/python", "/opt/app/current/venv/bin"
DATABASE = {"PGHOST": "/run/postgresql", "PGDATABASE": "app"}
# Written by golden-site from the files that the site names.
SECRETS = "/run/golden/app-secret-"
DROP_IN = "80-contract.conf"
DESTINATIONS = "golden-destinations.timer"
# A file whose text begins so is a link to what follows.
LINK = "-> "
# Of the layer 60-mac: the profile of the application server, with TCP. Where it is not there, the unit names none.
NETWORK_PROFILE = Path("/etc/apparmor.d/gunicorn-network")


def environment(contract: Contract) -> str:
    """Return the environment of every process of the application, as EnvironmentFile= reads it."""
    entry, web = contract["entry"], contract["web"]
    timeout = max([web["timeout"], *(rule["timeout"] or 0 for rule in web["paths"])])
    limits = {"GOLDEN_TIMEOUT": str(timeout), "GOLDEN_HEADER": str(web["headers"] - 2)}
    values = {**contract["environment"], **DATABASE, **limits}
    # Read by golden_settings (layer 40-app), which every process has as DJANGO_SETTINGS_MODULE, and by gunicorn.conf.py.
    values |= {f"GOLDEN_{kind.upper()}": entry[kind] for kind in ("settings", "wsgi", "asgi") if entry[kind]}
    return "".join(f"{name}={_quoted(value)}\n" for name, value in sorted(values.items()))


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$").replace("`", "\\`")
    return f'"{escaped}"'


def files(contract: Contract) -> dict[str, str]:
    """Return the unit files and drop-ins by their paths below a directory of systemd's units."""
    granted = "".join(f"{line}\n" for line in _granted(contract))
    sandbox = f"[Service]\n{granted}" if granted else ""
    # Whoever starts the application server, such as a restore that stopped it, starts the processes with it.
    processes = " ".join(f"{PREFIX}{name}.service" for name in contract["processes"])
    wanted = f"[Unit]\nWants={processes}\n" if processes else ""
    service = "\n".join(filter(None, (wanted, sandbox)))
    drop_ins = {f"{SERVICE}.d/{DROP_IN}": service, f"{PREFIX}.service.d/{DROP_IN}": sandbox}
    units = {name: text for name, text in drop_ins.items() if text}
    for name, process in contract["processes"].items():
        units[f"{PREFIX}{name}.service"] = _process(name, process)
        units[f"multi-user.target.wants/{PREFIX}{name}.service"] = f"{LINK}../{PREFIX}{name}.service"
    for name, job in contract["jobs"].items():
        units[f"{PREFIX}job-{name}.service"] = _job(name, job)
        units[f"{PREFIX}job-{name}.timer"] = _timer(name, job)
        units[f"timers.target.wants/{PREFIX}job-{name}.timer"] = f"{LINK}../{PREFIX}job-{name}.timer"
    if contract["destinations"]:
        units[f"timers.target.wants/{DESTINATIONS}"] = f"{LINK}/etc/systemd/system/{DESTINATIONS}"
    return units


def names(contract: Contract) -> list[str]:
    """Return the units that run with the application server: services of processes, timers of jobs."""
    return [
        *(f"{PREFIX}{name}.service" for name in contract["processes"]),
        *(f"{PREFIX}job-{name}.timer" for name in contract["jobs"]),
        *([DESTINATIONS] if contract["destinations"] else []),
    ]


def _granted(contract: Contract) -> Iterator[str]:
    """Yield what the contract opens in the sandbox of every unit of the application."""
    for name in contract["secrets"]:
        yield f"LoadCredential=app.{name}:{SECRETS}{name}"
    if contract["destinations"]:
        # Which addresses and ports: decided by the packet filter, for this user alone (golden-destinations.service). What is
        # on this machine stays closed, and it cannot listen: its listeners come from systemd.
        yield "PrivateNetwork=false"
        yield "IPAddressDeny="
        yield "IPAddressDeny=localhost link-local multicast"
        yield "RestrictAddressFamilies=AF_INET AF_INET6"
        yield "SocketBindDeny=any"
        if NETWORK_PROFILE.exists():
            yield f"AppArmorProfile={NETWORK_PROFILE.name}"


def _process(name: str, process: Mapping[str, Any]) -> str:
    return (
        "[Unit]\n"
        f"Description=Process {name} of the application\n"
        f"OnFailure=golden-alert@%n.service\n"
        f"PartOf={SERVICE}\n"
        f"After={SERVICE} postgresql.service\n"
        "StartLimitIntervalSec=300\n"
        "StartLimitBurst=10\n"
        "\n[Service]\n"
        "Type=exec\n"
        f"ExecStart={command(process['command'])}\n"
        "Restart=always\n"
        "RestartSec=5\n"
        "KillMode=mixed\n"
        f"TimeoutStopSec={process['stop']}\n"
        f"MemoryMax={process['memory']}%\n"
    )


def _job(name: str, job: Mapping[str, Any]) -> str:
    return (
        "[Unit]\n"
        f"Description=Job {name} of the application\n"
        "OnFailure=golden-alert@%n.service\n"
        "After=postgresql.service\n"
        "\n[Service]\n"
        "Type=oneshot\n"
        f"ExecStart={command(['manage.py', *job['command']])}\n"
        f"TimeoutStartSec={job['timeout']}\n"
        f"MemoryMax={job['memory']}%\n"
    )


def _timer(name: str, job: Mapping[str, Any]) -> str:
    return (
        "[Unit]\n"
        f"Description=Times of the job {name} of the application\n"
        "\n[Timer]\n"
        f"OnCalendar={job['when']}\n"
        "Persistent=true\n"
        "RandomizedDelaySec=30\n"
    )


def command(words: Sequence[str]) -> str:
    """Return a command line for ExecStart=: a program of the application's environment, by its interpreter."""
    first = "manage.py" if words[0] == "manage.py" else f"{BINARIES}/{words[0]}"
    return " ".join(_word(word) for word in (PYTHON, first, *words[1:]))


def _word(word: str) -> str:
    """Return a word as systemd reads it back: no specifier, no variable, no separator of commands."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'
