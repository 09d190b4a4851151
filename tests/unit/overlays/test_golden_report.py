"""golden-report: its metrics, what needs attention, and that an unreadable part is reported."""

from __future__ import annotations

import gzip
import json
import os
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.unit.golden_modules import golden_module
from tests.unit.overlays.conftest import Programs, Result

report = golden_module("golden.report")
tools = golden_module("golden.report_tools")
alerts = golden_module("golden.report_parts.alerts")
application = golden_module("golden.report_parts.application")
backups = golden_module("golden.report_parts.backups")
bans = golden_module("golden.report_parts.bans")
certificates = golden_module("golden.report_parts.certificates")
integrity = golden_module("golden.report_parts.integrity")
updates = golden_module("golden.report_parts.updates")
web = golden_module("golden.report_parts.web")
GOOD: dict[str, Any] = {
    "system": {"failed_units": [], "full_percent": {"/": 20}}, "logins": {}, "web": {}, "defence": {},
    "users": {"admin": {"uid": 1000, "keys": ["256 SHA256:x"]}, "root": {"uid": 0, "keys": []}},
    "certificates": {"days": 80}, "updates": {"pending": [], "reboot_required": False}, "integrity": {"ok": True},
    "backups": {"configured": True, "hours_since_last": 20}, "timers": {"a.timer": {"result": "success"}},
    "application": {"release": "image", "opens": ["web: /"], "problems": []}, "alerts": {"alerts": []}, "bans": {},
}  # fmt: skip


def entries(*messages: str, **more: str) -> str:
    return "".join(json.dumps({"MESSAGE": message, **more}) + "\n" for message in messages)


def parts(found: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of the report with functions that return the test's data."""
    looks = {name: (lambda part=part: part) for name, part in found.items()}
    return {name: report.Part(looks[name], part.attention) for name, part in report.parts().items()}


def attention(monkeypatch: pytest.MonkeyPatch, found: dict[str, Any]) -> list[str]:
    replaced = parts(found)
    monkeypatch.setattr(report, "parts", lambda: replaced)
    told: list[str] = report.report()["attention"]
    return told


def test_every_layer_adds_its_parts() -> None:
    assert set(report.parts()) == set(GOOD)
    assert list(report.parts())[:2] == ["system", "timers"]


def test_nothing_needs_attention_on_a_good_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert attention(monkeypatch, GOOD) == []


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("system", {"failed_units": ["x.service"]}, "x.service has failed: systemctl status x.service"),
        ("system", {"full_percent": {"/var": 80}}, "/var is 80 % full"),
        ("alerts", {"alerts": ["one", "two"]}, "2 alerts: golden-alert --list"),
        ("users", {"eve": {"uid": 1001, "keys": []}}, "eve has no key, and so no way in"),
        ("certificates", {"days": 20}, "the certificate ends in 20 days"),
        ("updates", {"pending": ["nginx"]}, "1 packages have updates"),
        ("updates", {"reboot_required": True}, "an update needs a restart of the machine"),
        ("integrity", {"ok": False}, "files differ from what AIDE knows"),
        ("backups", {"configured": False}, "no backup is configured"),
        ("backups", {"hours_since_last": None}, "the last backup is old, or there is none"),
        ("backups", {"hours_since_last": 49}, "the last backup is old, or there is none"),
        ("application", {"problems": ["x differs"]}, "the application's contract: x differs"),
        ("timers", {"a.timer": {"result": "exit-code"}}, "a.timer failed at its last run"),
    ],
)
def test_what_needs_attention(monkeypatch: pytest.MonkeyPatch, part: str, change: dict[str, Any], message: str) -> None:
    found = attention(monkeypatch, GOOD | {part: GOOD[part] | change})
    assert [line for line in found if line.startswith(message)] == found
    assert len(found) == 1


def test_a_part_that_cannot_be_read_is_named_and_the_others_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> dict[str, Any]:
        raise OSError("no such file")

    replaced = parts(GOOD)
    for name in ("system", "updates"):
        replaced[name] = report.Part(broken, replaced[name].attention)
    monkeypatch.setattr(report, "parts", lambda: replaced)
    found = report.report()
    assert found["updates"] == {"error": "OSError: no such file"}
    assert found["certificates"] == {"days": 80}
    assert [line.partition(" ")[0] for line in found["attention"]] == ["system", "updates"]


def test_logins_are_counted(programs: Programs) -> None:
    programs.answer("--unit=ssh.service", out=entries(
        "Accepted publickey for admin from 192.0.2.7 port 1 ssh2", "Accepted publickey for admin from 192.0.2.7 port 2 ssh2",
        "Invalid user oracle from 198.51.100.9", "Connection closed",
    ))  # fmt: skip
    programs.answer("SYSLOG_IDENTIFIER=sudo", out=entries(
        "admin : TTY=pts/0 ; COMMAND=/usr/bin/apt update", "eve : user NOT in sudoers ; COMMAND=/bin/sh"
    ))  # fmt: skip
    assert report.logins() == {
        "came": {"admin from 192.0.2.7 (publickey)": 2}, "refused": 1, "sudo": {"/usr/bin/apt": 1, "/bin/sh": 1},
        "sudo_denied": 1,
    }  # fmt: skip


def test_answers_of_the_web_server_are_counted(tmp_path: Path) -> None:
    now, old = datetime.now(UTC), datetime.now(UTC) - timedelta(days=tools.DAYS + 1)
    lines = [
        {"ts": now.isoformat(), "status": 200, "uri": "/"}, {"ts": now.isoformat(), "status": "429", "uri": "/login"},
        {"ts": now.isoformat(), "status": 502, "uri": "/slow"}, {"ts": old.isoformat(), "status": 500, "uri": "/old"},
    ]  # fmt: skip
    (tmp_path / "access.log").write_text("".join(f"{json.dumps(line)}\n" for line in lines) + "not JSON\n")
    with gzip.open(tmp_path / "access.log.1.gz", "wt") as stream:
        stream.write(json.dumps(lines[0]) + "\n")
    (tmp_path / "access.log.2").write_text(json.dumps(lines[2]) + "\n")
    aged = time.time() - (tools.DAYS + 1) * 86400
    os.utime(tmp_path / "access.log.2", (aged, aged))
    assert web.look(tmp_path) == {
        "requests": 4, "answers": {"2xx": 2, "4xx": 1, "429": 1, "5xx": 1, "not readable": 1},
        "percent": {"4xx": 25.0, "5xx": 25.0}, "failed": {"502 /slow": 1},
    }  # fmt: skip


def test_bans_and_dropped_packets(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report.Path, "exists", lambda _path: True)
    programs.answer("--unit=fail2ban.service", out=entries("NOTICE [sshd] Ban 192.0.2.9", "NOTICE [sshd] Unban 192.0.2.9"))
    programs.answer("golden-firewall", out='{"dropped": {"input": 3}}')
    assert bans.look() == {"jails": {"sshd": 1}}
    assert report.defence() == {"dropped": {"input": 3}}
    programs.answer("golden-firewall", status=1)
    assert report.defence()["dropped"] == "cannot be read"


def test_the_certificate_ends(programs: Programs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A certificate of a year needs attention for 21 days, one of 45 days by ACME for a quarter of them."""
    ends = datetime.now(UTC) + timedelta(days=14, hours=1)
    pem = ssl.DER_cert_to_PEM_cert(b"a certificate")
    (tmp_path / "app.pem").write_text(pem)
    monkeypatch.setattr(golden_module("golden.certificates"), "CERTIFICATE", tmp_path / "app.pem")
    monkeypatch.setattr(golden_module("golden.renewal"), "issued_serial", lambda: "45")
    for life, attention in ((365, True), (45, False)):
        begins, last = (f"{moment:%b %d %H:%M:%S %Y} GMT" for moment in (ends - timedelta(days=life), ends))
        dates = f"notBefore={begins}\nnotAfter={last}\n"
        programs.answer("x509", out=f"{dates}subject=CN=a\nissuer=CN=b\nserial={life}\n")
        found = certificates.look()
        assert (found["days"], found["subject"], found["issuer"]) == (14, "CN=a", "CN=b")
        assert bool(certificates.attention(found)) is attention


def test_alerts_updates_and_contract(programs: Programs) -> None:
    programs.answer("SYSLOG_IDENTIFIER=golden-alert", out=entries("one", "two"))
    assert alerts.look() == {"alerts": ["one", "two"]}
    programs.answer("dist-upgrade", out="Inst nginx [1] (2 Debian)\nConf nginx\n")
    assert updates.look()["pending"] == ["nginx"]
    programs.answer("golden-contract", out='{"release": "image", "opens": [], "problems": ["x"], "ok": false}', status=3)
    assert application.look() == {"release": "image", "opens": [], "problems": ["x"]}
    programs.answer("golden-contract", status=1)
    assert application.look() == {"release": None, "opens": [], "problems": []}


def test_the_result_of_each_timer(programs: Programs) -> None:
    programs.answer("list-units", out="a.timer loaded active waiting A\nb.timer loaded active waiting B\n")
    programs.answer("a.timer", out="LastTriggerUSec=Mon\nNextElapseUSecRealtime=Tue\nUnit=a.service\n")
    programs.answer("b.timer", out="LastTriggerUSec=\nNextElapseUSecRealtime=Wed\nUnit=b.service\n")
    programs.answer("a.service", out="Result=exit-code\nActiveState=failed\n")
    assert report.timers() == {
        "a.timer": {"last": "Mon", "next": "Tue", "result": "exit-code"},
        "b.timer": {"last": "never", "next": "Wed", "result": None},
    }


def test_backups_and_aide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    core = golden_module("golden.core")
    monkeypatch.setattr(core, "SITE", tmp_path / "site.json")
    (tmp_path / "site.json").write_text('{"backup": null}')
    assert backups.look(tmp_path, tmp_path / "drill.json") == {
        "configured": False, "kept": 0, "hours_since_last": None, "drill": None,
    }  # fmt: skip
    # In an image without backups there is no such key.
    (tmp_path / "site.json").write_text("{}")
    assert backups.look(tmp_path, tmp_path / "drill.json")["configured"] is False
    (tmp_path / "x.tar.age").touch()
    (tmp_path / "drill.json").write_text('{"ok": true}')
    found = backups.look(tmp_path, tmp_path / "drill.json")
    assert (found["kept"], found["hours_since_last"], found["drill"]) == (1, 0.0, {"ok": True})
    assert integrity.look(tmp_path / "last.json") == {"checked": None}
    (tmp_path / "last.json").write_text('{"time": "t", "ok": false, "added": ["/x"]}')
    assert integrity.look(tmp_path / "last.json") == {
        "checked": "t", "ok": False, "added": ["/x"], "removed": None, "changed": None,
    }  # fmt: skip


def test_the_command_keeps_reports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: Callable[..., Result]) -> None:
    module = golden_module("golden.commands.report")
    monkeypatch.setattr(module, "STORE", tmp_path / "kept")
    monkeypatch.setattr(module, "KEPT", 2)
    replaced = parts(GOOD)
    monkeypatch.setattr(report, "parts", lambda: replaced)
    assert command("report", "--last").code == golden_module("golden.core").FAILED
    shown = command("report")
    assert "Needs attention\n  nothing\n" in shown.out
    assert "configured: yes" in shown.out
    (tmp_path / "kept").mkdir()
    for name in ("2001", "2002"):
        (tmp_path / f"kept/{name}.json").write_text("{}")
    stored = command("report", "--store")
    assert stored.out.startswith("report: 0 matters need attention")
    assert len(list((tmp_path / "kept").glob("*.json"))) == 2
    assert not (tmp_path / "kept/2001.json").exists()
    assert json.loads(command("report", "--last", "--json").out)["certificates"] == {"days": 80}
