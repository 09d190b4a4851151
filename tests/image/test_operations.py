"""Operations: the weekly report is complete; the isolation of an incident closes, saves evidence, and can be released."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from testinfra.host import Host

from .facts import Fact, gather, properties

pytestmark = pytest.mark.story

WORK = "/var/tmp/goldentest-evidence"
KEEP = "192.0.2.7"
SECRET = "/etc/credstore/app.secret-key"
TABLE = "nft list table inet golden_fence"


@pytest.fixture(scope="module")
def facts(host: Host) -> dict[str, Fact]:
    """The output of report and isolation; the fence is created in a separate network namespace."""
    # In a separate network namespace the fence of this test does not isolate the machine.
    fenced = "unshare --net sh -c 'nft -f /etc/nftables.conf; "
    fenced += f"golden-isolate --keep {KEEP} --reason drill --no-evidence --json && {TABLE} && "
    fenced += "golden-isolate --status; echo status $?; golden-isolate --resume; golden-isolate --release; "
    fenced += f"{TABLE} || echo gone'"
    return gather(
        host,
        {
            "unit": "systemctl start golden-report.service && systemctl show -p Result golden-report.service",
            "kept": "golden-report --last --json",
            "text": "cat /var/lib/golden-report/*.txt",
            "access": "stat -c '%a %U' /var/lib/golden-report",
            "line": "journalctl -b -q -o cat -u golden-report.service | grep matters",
            "timer": "systemctl show -p NextElapseUSecRealtime -p ActiveState golden-report.timer",
            "exposure": "for u in golden-report golden-isolate; do systemd-analyze security --no-pager $u | tail -1; done",
            "dry": f"golden-isolate --dry-run --keep {KEEP} --keep 2001:db8::7; {TABLE} || echo none",
            "everybody": "golden-isolate --dry-run --keep 0.0.0.0/0",
            "evidence": f"rm -rf {WORK}; golden-isolate --evidence-only --reason 'a drill' --directory {WORK} --json",
            "files": f"stat -c '%a %U %n' {WORK} {WORK}/*",
            "hash": f"cd {WORK} && sha256sum --check *.sha256",
            "members": f"cd {WORK} && mkdir x && tar -xzf *.tar.gz -C x && cd x && sha256sum --check --quiet */SHA256SUMS; "
            "cd * && ls; cat incident.json",
            "content": f"cd {WORK}/x/* && grep -c . programs.txt open-files.txt hashes.txt connections.txt processes.txt; "
            "ls -d var/log/journal/*",
            "secrets": f"cd {WORK}/x && test ! -e {SECRET} || grep -rlF -f {SECRET} .; "
            "grep -rl 'PRIVATE [K]EY-----' .; true",
            "firewall before": "golden-firewall --json status",
            "fenced": fenced,
            "firewall after": "golden-firewall --json status",
            "removed": f"rm -rf {WORK}; golden-isolate --status",
        },
    )


@pytest.mark.req("R96", "R77")
def test_report_is_written_weekly(facts: dict[str, Fact]) -> None:
    """The weekly report is written by its unit, readable only by root, and summarized in one line of the journal"""
    assert properties(facts["unit"])["Result"] == "success"
    assert facts["access"].text == "700 root"
    assert "matters need attention" in facts["line"].lines[-1]
    assert properties(facts["timer"])["ActiveState"] == "active"
    assert properties(facts["timer"])["NextElapseUSecRealtime"].startswith("Mon ")


@pytest.mark.req("R96", "R78")
def test_report_sees_what_it_is_about(facts: dict[str, Fact], expected: dict[str, Any]) -> None:
    """All parts of the report work inside its sandbox: logins, responses, bans, certificate, updates, backups"""
    report = json.loads(facts["kept"].text)
    assert {name for name, part in report.items() if isinstance(part, dict)} == {*expected["report_parts"]}
    assert {name: part["error"] for name, part in report.items() if isinstance(part, dict) and "error" in part} == {}
    assert report["defence"]["dropped"] not in (None, "cannot be read")
    assert "golden-report.timer" in report["timers"]
    assert "Needs attention" in facts["text"].text


@pytest.mark.layers("50-nginx", "65-certificates")
@pytest.mark.req("R96")
def test_report_sees_the_web_server(facts: dict[str, Fact]) -> None:
    """The report counts the responses of the web server, and contains the expiry of its certificate"""
    report = json.loads(facts["kept"].text)
    assert report["web"]["requests"] == sum(n for kind, n in report["web"]["answers"].items() if kind.endswith("xx"))
    assert "not readable" not in report["web"]["answers"]
    assert report["certificates"]["days"] > 0


@pytest.mark.layers("70-backup")
@pytest.mark.req("R92", "R96")
def test_report_sees_that_no_backup_is_configured(facts: dict[str, Fact]) -> None:
    """The report of a machine without a recipient for backups lists that as needing attention"""
    report = json.loads(facts["kept"].text)
    assert report["backups"]["configured"] is False
    assert any("no backup is configured" in line for line in report["attention"])


@pytest.mark.req("R99")
def test_report_lists_who_may_come_in(facts: dict[str, Fact], spec: SimpleNamespace) -> None:
    """The report lists all login accounts with roles, keys and last login; the only key is the administrator's"""
    users = json.loads(facts["kept"].text)["users"]
    assert "sudo" in users[spec.admin.user]["roles"]
    # cloud-init adds the key to root too, with a command that names the administrator; sshd refuses root before that.
    assert {key for one in users.values() for key in one["keys"]} == set(users[spec.admin.user]["keys"])
    assert users[spec.admin.user]["keys"]
    assert all("last_login" in one for one in users.values())


@pytest.mark.req("R100")
def test_fence_is_shown_before_it_is_put_up(facts: dict[str, Fact]) -> None:
    """A dry run shows a fence that drops everything but SSH from the kept addresses, and changes nothing"""
    text = facts["dry"].text
    assert text.count("policy drop;") == 3
    assert f"ip saddr {KEEP}/32 tcp dport 22 accept" in text
    assert "ip6 saddr 2001:db8::7/128 tcp dport 22 accept" in text
    assert facts["dry"].lines[-1] == "none"
    assert facts["everybody"].status == 2


@pytest.mark.req("R100")
def test_evidence_is_whole_and_holds_no_secret(facts: dict[str, Fact]) -> None:
    """The evidence: processes, open files, connections and logs, with hashes, for root only, and without secrets"""
    evidence = json.loads(facts["evidence"].text)["evidence"]
    assert len(evidence["sha256"]) == 64
    assert facts["files"].lines[0].startswith("700 root")
    assert all(line.startswith("600 root") for line in facts["files"].lines[1:])
    assert facts["hash"].status == 0
    assert not [line for line in facts["members"].lines if "FAILED" in line]
    assert '"reason": "a drill"' in facts["members"].text
    assert "packet-filter.txt" in facts["members"].words
    counts = dict(line.split(":") for line in facts["content"].lines if ":" in line)
    # A machine without load has few connections.
    assert all(int(count) > (2 if name == "connections.txt" else 5) for name, count in counts.items()), counts
    assert any(line.startswith("var/log/journal/") for line in facts["content"].lines)
    assert facts["secrets"].lines == []


@pytest.mark.req("R100")
def test_fence_goes_up_and_down(facts: dict[str, Fact]) -> None:
    """The fence is created, reports its state, can be restored, and is removed completely by a release"""
    assert f'"{KEEP}/32"' in facts["fenced"].text
    assert '"firewall": "closed"' in facts["fenced"].text
    assert "status 3" in facts["fenced"].text
    assert "the fence is down" in facts["fenced"].text
    assert facts["fenced"].lines[-1] == "gone"
    assert facts["removed"].status == 0
    before, after = (json.loads(facts[name].text) for name in ("firewall before", "firewall after"))
    assert before["isolated"] == after["isolated"] is False
    assert before["administrators"] == after["administrators"]


@pytest.mark.req("R9", "R100")
def test_operation_units_are_confined(facts: dict[str, Fact]) -> None:
    """systemd rates the sandbox of the units of report and fence 2.0 or better"""
    for line in facts["exposure"].lines:
        assert float(line.split(".service: ")[1].split()[0]) <= 2.0, line
