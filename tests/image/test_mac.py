"""AppArmor: the services are confined to the access that they need, with named profiles; no other profiles are loaded."""

from __future__ import annotations

import json
from typing import Any

import pytest
from testinfra.host import Host

from .facts import Fact, gather

PYTHON = "/opt/app/current/venv/bin/python"
LABELS = """
for unit in {units}; do
    echo unit $unit
    for process in $(cat /sys/fs/cgroup/system.slice/$unit/cgroup.procs /sys/fs/cgroup/system.slice/*/$unit/cgroup.procs)
    do cat /proc/$process/attr/current; done
done 2>/dev/null
"""
# With auditd, denials are in its log; otherwise in the journal.
DENIED = """
{ journalctl -b --no-pager -o cat _TRANSPORT=kernel + _TRANSPORT=audit; cat /var/log/audit/audit.log; } 2>/dev/null |
    grep -a 'apparmor="DENIED"' | sort -u
"""


def _confined(profile: str, program: str, *arguments: str) -> str:
    """Return a command that runs a program as root in a profile."""
    words = " ".join(f"'{word}'" for word in arguments)
    return f"aa-exec -p {profile} -- {program} {words}"


@pytest.fixture(scope="module")
def named(expected: dict[str, Any]) -> dict[str, str]:
    """The units with a profile of the layers, and its name; the names of other profiles are paths of programs."""
    return {unit: profile for unit, profile in expected["confined"].items() if not profile.startswith("/")}


@pytest.fixture(scope="module")
def units(host: Host, named: dict[str, str]) -> dict[str, Fact]:
    """The properties of the units, and the profiles."""
    profiles = " ".join(f"/etc/apparmor.d/{profile}" for profile in named.values())
    return gather(
        host,
        {
            "named": f"systemctl show -p Id -p AppArmorProfile {' '.join(named)}",
            "ignored": "grep -l 'AppArmorProfile=-' -r /etc/systemd/system",
            "exec rules": f"grep -nE '^[^#]*[[:space:]][a-zA-Z]*x[a-zA-Z]*,' {profiles}",
            "modes": f"grep -nE 'flags=.*(complain|unconfined|kill)' {profiles}",
            "on": "cd /etc/apparmor.d; for file in *; do [ ! -f $file ] || [ -e disable/$file ] || echo $file; done",
            "loader": "systemctl is-enabled apparmor",
        },
    )


@pytest.fixture(scope="module")
def facts(host: Host, expected: dict[str, Any], named: dict[str, str]) -> dict[str, Fact]:
    """The enforcement by the kernel. The attempts that must fail come last, because they log denials."""
    harmless = 'print(len(open("/opt/app/current/code/manage.py").read()) > 9)'
    sql = "runuser -u postgres -- psql -XAtq -d postgres -c"
    return gather(
        host,
        {
            # An image without services has none with a profile of its layers.
            "reload": f"systemctl reload {' '.join(named)}" if named else "true",
            "enabled": "aa-enabled; systemctl is-active apparmor",
            "status": "aa-status --json",
            "labels": LABELS.format(units=" ".join(expected["confined"])),
            "denied": DENIED,
            "missing": "systemd-run --quiet --wait --collect --pipe -p AppArmorProfile=no-such-profile true; echo status $?",
            "nginx reads": _confined("nginx", "/usr/sbin/nginx", "-t", "-c", "/etc/shadow"),
            "nginx runs": _confined("nginx", "/usr/bin/env", "id"),
            "gunicorn reads": _confined("gunicorn", PYTHON, "-c", 'open("/etc/shadow")'),
            "gunicorn reads key": _confined("gunicorn", PYTHON, "-c", 'open("/etc/ssl/private/app.key")'),
            "gunicorn writes": _confined("gunicorn", PYTHON, "-c", 'open("/opt/app/current/code/x", "w")'),
            "gunicorn runs": _confined("gunicorn", PYTHON, "-c", 'import os; os.execv("/usr/bin/id", ["id"])'),
            "gunicorn calls": _confined("gunicorn", PYTHON, "-c", "import socket; socket.socket(socket.AF_INET)"),
            "gunicorn allowed": _confined("gunicorn", PYTHON, "-c", harmless),
            "postgres runs": f"{sql} \"COPY (SELECT 1) TO PROGRAM 'id'\"",
            "postgres reads": f"{sql} \"SELECT pg_read_file('/etc/hostname')\"",
            "postgres allowed": f"{sql} 'SELECT 6 * 7'",
        },
    )


@pytest.mark.req("R33", "R70", "R85")
def test_profiles_are_named_in_the_units(units: dict[str, Fact], named: dict[str, str]) -> None:
    """The unit of each service names its profile, and does not start without it"""
    # Without a unit systemctl shows the manager's properties; none of these is requested.
    shown = [block for block in units["named"].text.split("\n\n") if block]
    blocks = [dict(line.split("=", 1) for line in block.splitlines()) for block in shown]
    # systemd prints "-" before the name of an optional profile.
    assert {block["Id"]: block["AppArmorProfile"] for block in blocks} == named
    assert units["ignored"].lines == []
    assert units["loader"].text == "enabled"


@pytest.mark.req("R70")
def test_profiles_start_no_program(units: dict[str, Fact]) -> None:
    """No profile of the layers lets a service start a program, and all are in enforce mode"""
    assert units["exec rules"].lines == []
    assert units["modes"].lines == []


@pytest.mark.req("R33")
def test_only_used_profiles_are_on(units: dict[str, Fact], expected: dict[str, Any], named: dict[str, str]) -> None:
    """Of Debian's profiles only that of chrony is loaded: the others are for programs that are not installed"""
    assert set(units["on"].lines) == {*named.values(), *expected["profiles"], "usr.sbin.chronyd"}


@pytest.mark.vm
@pytest.mark.req("R33", "R70", "R85")
def test_every_loaded_profile_is_enforced(facts: dict[str, Fact], expected: dict[str, Any]) -> None:
    """AppArmor is enabled; exactly the known profiles are loaded, all of them in enforce mode"""
    assert facts["enabled"].lines == ["Yes", "active"]
    profiles = json.loads(facts["status"].text)["profiles"]
    assert profiles == dict.fromkeys([*expected["confined"].values(), *expected["profiles"]], "enforce")


@pytest.mark.vm
@pytest.mark.req("R33", "R70")
def test_every_process_is_confined(facts: dict[str, Fact], expected: dict[str, Any]) -> None:
    """Every process of nginx, the application, the database and the time service runs in its enforced profile"""
    found: dict[str, set[str]] = {}
    unit = ""
    for line in facts["labels"].lines:
        if line.startswith("unit "):
            unit = line.split()[1]
        else:
            found.setdefault(unit, set()).add(line.strip("\0"))
    assert found == {unit: {f"{profile} (enforce)"} for unit, profile in expected["confined"].items()}


@pytest.mark.vm
@pytest.mark.req("R70")
def test_nothing_needed_is_refused(facts: dict[str, Fact]) -> None:
    """AppArmor has denied nothing to the services at start, at a reload and in the tests before this one"""
    assert facts["reload"].status == 0, facts["reload"].text
    assert facts["denied"].lines == []


@pytest.mark.vm
@pytest.mark.req("R33", "R70")
def test_missing_profile_fails_the_start(facts: dict[str, Fact]) -> None:
    """A unit whose profile is not loaded does not start"""
    assert facts["missing"].lines[-1] == "status 231"


@pytest.mark.vm
@pytest.mark.req("R70")
@pytest.mark.parametrize(
    "attempt",
    [
        *(pytest.param(f"nginx {what}", marks=pytest.mark.layers("50-nginx")) for what in ("reads", "runs")),
        *(
            pytest.param(f"gunicorn {what}", marks=pytest.mark.layers("40-app"))
            for what in ("reads", "reads key", "writes", "runs", "calls")
        ),
        *(pytest.param(f"postgres {what}", marks=pytest.mark.layers("30-postgresql")) for what in ("runs", "reads")),
    ],
)
def test_confined_root_is_powerless(facts: dict[str, Fact], attempt: str) -> None:
    """Even root, inside a profile, cannot read other files, write code, start programs, or open network sockets"""
    assert facts[attempt].status != 0
    assert "ermission denied" in facts[attempt].text


@pytest.mark.vm
@pytest.mark.layers("30-postgresql", "40-app")
@pytest.mark.req("R70")
def test_confined_services_do_their_work(facts: dict[str, Fact]) -> None:
    """The same programs in the same profiles can do their work: the refusals above are no coincidence"""
    assert facts["gunicorn allowed"].text == "True"
    assert facts["postgres allowed"].text == "42"
