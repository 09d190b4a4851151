"""The audit trail: what is recorded, that it cannot be disabled, and that changed files are detected."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import Any

import pytest
from testinfra.host import Host

from .facts import Fact, gather, properties
from .remote import seconds

FEWEST_RULES = 40
# Created beside the web server's configuration during the test; nginx does not include a file with such a name.
STRANGER = "/etc/nginx/golden-test.tmp"
# At idle priority; at full speed, as every limit here.
DATABASE_SECONDS = 90
RECORD_SECONDS = 10


@pytest.fixture(scope="module")
def facts(host: Host, expected: dict[str, Any]) -> dict[str, Fact]:
    """The rules, the settings of the daemon, and the files that AIDE checks."""
    ask = "aide --config /etc/aide/aide.conf --path-check"
    checks = "; ".join(f"{ask} f:{path} >/dev/null; echo $? {path}" for path in expected["watched"])
    return gather(
        host,
        {
            "rules": "cat /etc/audit/rules.d/*.rules",
            "rule files": "ls /etc/audit/rules.d; stat -c '%a %U:%G' /etc/audit /etc/audit/auditd.conf "
            "/etc/audit/rules.d/*.rules",
            "settings": "grep -v '^#' /etc/audit/auditd.conf",
            "setuid": "find / -xdev -type f -perm /6000 2>/dev/null",
            "loaded": "auditctl -l",
            "status": "auditctl -s",
            "unlock": "auditctl -e 0; auditctl -D",
            "log": "stat -c '%a %U:%G %n' /var/log/audit /var/log/audit/audit.log",
            "units": "systemctl is-enabled auditd audit-rules golden-aide.timer aidecheck.timer golden-aide-first",
            "service": "systemctl show -p Restart -p ActiveState auditd",
            "watched": checks,
            "exposure": "systemd-analyze security --no-pager golden-aide.service golden-aide-first.service",
            "help": "golden-aide --help",
        },
    )


@pytest.fixture(scope="module")
def database(host: Host) -> str:
    """Wait for the AIDE database of the clone; return its ``stat`` output."""
    deadline = time.monotonic() + seconds(host, DATABASE_SECONDS)
    while time.monotonic() < deadline:
        found = host.run("systemctl is-failed golden-aide-first; stat -c '%a %U:%G %s' /var/lib/aide/aide.db")
        if found.rc == 0:
            return str(found.stdout.split("\n", 1)[1]).strip()
        assert not found.stdout.startswith("failed"), host.run("journalctl -u golden-aide-first --no-pager").stdout
        time.sleep(2)
    raise AssertionError(f"no database after {seconds(host, DATABASE_SECONDS)} s")


def _rules(fact: Fact) -> list[str]:
    return [line for line in fact.lines if line.startswith(("-a ", "-w "))]


@pytest.mark.req("R9")
def test_rules(facts: dict[str, Fact], expected: dict[str, Any]) -> None:
    """There are at least 40 rules, with every key that the layers name, and the last rule locks them"""
    rules = _rules(facts["rules"])
    assert len(rules) >= FEWEST_RULES
    assert {rule.replace("-k ", "key=").split("key=")[1] for rule in rules} >= {*expected["audit_keys"]}
    assert facts["rules"].lines[-1] == "-e 2"


@pytest.mark.req("R9")
def test_rules_are_closed(facts: dict[str, Fact], expected: dict[str, Any]) -> None:
    """Only root can read the rules, and there are no files of rules except Goldsmith's"""
    number = len(expected["audit_rules"])
    assert facts["rule files"].lines[:number] == sorted(expected["audit_rules"])
    directory, settings, *files = facts["rule files"].lines[number:]
    assert (directory, settings) == ("750 root:root", "640 root:root")
    assert set(files) == {"600 root:root"}


@pytest.mark.req("R9")
def test_privileged_programs_are_recorded(facts: dict[str, Fact]) -> None:
    """Every setuid or setgid program has a rule"""
    covered = {word.removeprefix("path=") for rule in _rules(facts["rules"]) for word in rule.split() if "path=" in word}
    assert set(facts["setuid"].lines) - covered == set()


@pytest.mark.vm
@pytest.mark.req("R9")
def test_rules_are_loaded_and_locked(facts: dict[str, Fact]) -> None:
    """The kernel has the rules, and refuses changes before the next boot, also from root"""
    assert len(_rules(facts["loaded"])) >= FEWEST_RULES
    assert "enabled 2" in facts["status"].lines
    assert facts["unlock"].status != 0


@pytest.mark.vm
@pytest.mark.layers("50-nginx")
@pytest.mark.req("R9")
def test_change_is_recorded(host: Host) -> None:
    """A change of the web server's configuration is recorded with its key"""
    host.check_output("touch -r /etc/nginx/nginx.conf /etc/nginx/nginx.conf")
    deadline = time.monotonic() + seconds(host, RECORD_SECONDS)
    while "nginx.conf" not in (records := host.run("ausearch --input-logs -k golden-nginx -ts recent -i").stdout):
        assert time.monotonic() < deadline, records
        time.sleep(1)


@pytest.mark.vm
@pytest.mark.req("R9")
def test_log_is_closed(facts: dict[str, Fact]) -> None:
    """Only root and administrators can read the audit log, and its daemon runs and is restarted after a failure"""
    directory, log = facts["log"].lines
    assert directory.split()[0] == "750"
    assert log.split()[:2] == ["640", "root:adm"]
    assert properties(facts["service"]) == {"Restart": "on-failure", "ActiveState": "active"}


@pytest.mark.req("R9")
def test_log_fits_its_file_system(facts: dict[str, Fact], spec: SimpleNamespace) -> None:
    """Rotation keeps the log so small that it alone never reaches the thresholds for a full disk"""
    settings = dict(line.split(" = ") for line in facts["settings"].lines)
    size = next(partition.size_mib for partition in spec.disk.partitions if partition.mount == "/var/log/audit")
    most = int(settings["max_log_file"]) * (int(settings["num_logs"]) + 1)
    assert settings["max_log_file_action"].lower() == "rotate"
    # ext4 reserves a tenth for itself and for root.
    assert most + int(settings["space_left"]) <= 0.9 * size
    assert int(settings["space_left"]) > int(settings["admin_space_left"])


@pytest.mark.req("R9", "R31")
def test_units(facts: dict[str, Fact]) -> None:
    """The units of auditd and AIDE are enabled"""
    assert facts["units"].lines == ["enabled", "enabled", "enabled", "alias", "enabled"]


@pytest.mark.req("R31", "R35")
def test_watched_files(facts: dict[str, Fact], expected: dict[str, Any]) -> None:
    """AIDE checks the web server's configuration, its certificate, units, accounts and programs"""
    assert facts["watched"].lines == [f"0 {path}" for path in expected["watched"]]


@pytest.mark.req("R31")
def test_database_is_made(database: str) -> None:
    """The clone has an AIDE database after its first boot, which only root can read"""
    access, owner, size = database.split()
    assert (access, owner) == ("600", "root:root")
    assert int(size) > 100_000


@pytest.mark.layers("50-nginx")
@pytest.mark.req("R31")
def test_stranger_is_noticed(host: Host, database: str) -> None:
    """AIDE reports a file that is added to the web server's configuration, and nothing else there"""
    assert database
    check = host.run(f"trap 'rm -f {STRANGER}' EXIT; touch {STRANGER}; golden-aide --json check --only '^/etc/nginx/'")
    result = json.loads(check.stdout)
    assert check.rc == 3
    assert result["ok"] is False
    assert result["added"] == [STRANGER]
    # The directory has one more entry, which changes its time only, and times are not compared.
    assert (result["removed"], result["changed"]) == ([], [])


@pytest.mark.req("R31")
def test_units_of_aide_are_confined(facts: dict[str, Fact]) -> None:
    """The services of AIDE can read all files and cannot change any"""
    scores = [float(line.split()[1]) for line in facts["exposure"].lines if line.startswith("golden-aide")]
    assert len(scores) == 2
    assert max(scores) <= 2.0
    assert "check" in facts["help"].text
