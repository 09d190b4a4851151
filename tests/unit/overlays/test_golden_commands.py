"""The commands of the image: the programs that they start, files, output and exit codes."""

from __future__ import annotations

import functools
import io
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.golden_modules import golden_module
from tests.unit.overlays.conftest import Programs, Result

core = golden_module("golden.core")
Command = Callable[..., Result]
COLLECTOR = {"host": "logs.example.org", "protocol": "relp", "port": 6514, "ca": "/etc/ca.pem", "peer": "peer.example"}


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """Write site settings into the place where the commands read them."""
    monkeypatch.setattr(core, "SITE", tmp_path / "site.json")

    def write(**settings: Any) -> Path:
        (tmp_path / "site.json").write_text(json.dumps(settings))
        return tmp_path / "site.json"

    write()
    return write


def place(monkeypatch: pytest.MonkeyPatch, name: str, **paths: Path) -> Any:
    """Let constants of a module point into a directory of the test; return the module."""
    module = golden_module(name)
    for constant, path in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        monkeypatch.setattr(module, constant, path)
    return module


# --- golden-aide --------------------------------------------------------------------------------------------------------


@pytest.fixture
def aide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    places = {name: tmp_path / name for name in ("DATABASE", "FRESH", "LAST", "CLEAN")}
    return place(monkeypatch, "golden.commands.aide", **places)


def test_aide_without_a_database(aide: Any, command: Command, programs: Programs) -> None:
    assert command("aide", "check").err == f"error: {aide.DATABASE} is not there\nhint: golden-aide first\n"
    aide.FRESH.write_text("known")
    assert command("aide", "first").out == "the database is made\n"
    assert (aide.DATABASE.read_text(), aide.DATABASE.stat().st_mode & 0o777) == ("known", 0o600)
    assert command("aide", "first").out == "nothing: the database is there\n"
    assert len(programs.named("aide")) == 1


def test_aide_names_what_differs(aide: Any, command: Command, programs: Programs) -> None:
    aide.DATABASE.touch()
    programs.answer("--check", status=4, out='{"changed": {"/etc/passwd": {}}, "added": {"/etc/x": {}}}')
    found = command("aide", "check", "--before-upgrade")
    assert (found.code, found.out) == (core.CHECK_FAILED, "added: /etc/x\nchanged: /etc/passwd\n2 paths differ\n")
    assert json.loads(aide.LAST.read_text())["changed"] == ["/etc/passwd"]
    # Not clean before the upgrade: what the upgrade changed is not accepted by itself.
    assert command("aide", "renew", "--after-upgrade").code == core.FAILED
    assert programs.named("aide")[-1][2] == "--check"


def test_aide_accepts_an_upgrade_after_a_clean_check(aide: Any, command: Command, programs: Programs) -> None:
    aide.DATABASE.touch()
    assert command("aide", "check", "--before-upgrade").out == "nothing differs\n"
    aide.FRESH.write_text("renewed")
    programs.answer("--update", status=1, out='{"added": {"/usr/bin/x": {}}}')
    assert command("aide", "renew", "--after-upgrade").out == "added: /usr/bin/x\nthe database is renewed\n"
    assert aide.DATABASE.read_text() == "renewed"
    assert not aide.CLEAN.exists()


def test_aide_that_fails_is_no_difference(aide: Any, command: Command, programs: Programs) -> None:
    aide.DATABASE.touch()
    programs.answer("aide", status=17, err="cannot read configuration\n")
    found = command("aide", "check", "--only", "/opt")
    assert (found.code, found.err) == (core.FAILED, "error: aide failed (17): cannot read configuration\n")
    assert programs.named("aide")[0][3:5] == ["--limit", "/opt"]
    assert not aide.LAST.exists()


# --- golden-waf, golden-app, golden-postgresql-memory, golden-firewall --------------------------------------------------


def test_waf_keeps_its_mode_when_the_web_server_does_not_take_the_new_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: Command, programs: Programs
) -> None:
    module = place(monkeypatch, "golden.commands.waf", MODE=tmp_path / "mode.conf")
    module.MODE.write_text("SecRuleEngine DetectionOnly\n")
    assert command("waf").out == "watch\n"
    assert command("waf", "refuse").out == "refuse\n"
    assert module.MODE.read_text() == "SecRuleEngine On\n"
    assert programs.named("chgrp") == [["nginx", str(module.MODE)]]
    programs.answer("reload", status=1, err="nginx: bad\n")
    assert command("waf", "off").code == core.FAILED
    assert module.MODE.read_text() == "SecRuleEngine On\n"
    assert command("waf", "maybe").code == core.USAGE


def test_app_runs_as_the_application_and_names_what_it_says(command: Command, programs: Programs) -> None:
    accounts = [{"name": "a", "active": True, "administrator": False, "last_login": None}]
    programs.answer("accounts", out=json.dumps(accounts))
    assert command("app", "accounts").out == f"{'a':<30}  active  user           last login never\n"
    # User, sandbox and environment are those of the drop-ins of this prefix.
    assert any(word.startswith("--unit=application-run-") for word in programs.started[0])
    programs.answer("account", out='{"name": "b", "active": false}')
    assert command("app", "close", "b").out == "b is closed.\n"
    # A name that begins with a dash is a name.
    assert programs.started[-1][-2:] == ["--", "b"]
    programs.answer("accounts", status=1, err="CommandError: no database\n")
    assert command("app", "accounts").err == "error: no database\n"
    programs.answer("accounts", out="not JSON")
    assert "answers no JSON" in command("app", "accounts").err


def test_app_reads_the_password_of_who_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, command: Command, programs: Programs
) -> None:
    module = golden_module("golden.commands.app")
    stdin = SimpleNamespace(isatty=lambda: False, buffer=SimpleNamespace(readline=lambda: b"correct horse battery\n"))
    monkeypatch.setattr(module.sys, "stdin", stdin)
    programs.answer("account", out='{"name": "c", "active": true, "otpauth": "otpauth://x"}')
    assert command("app", "account", "c", "--administrator").out.endswith("otpauth://x\n")
    assert programs.inputs == [b"correct horse battery\n"]
    assert "--administrator" in programs.started[0]


def test_postgresql_memory_writes_what_it_shows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: Command) -> None:
    module = place(monkeypatch, "golden.commands.postgresql_memory", TARGET=tmp_path / "memory.conf")
    shown = command("postgresql_memory", "--show", "--workers", "4").out
    assert not module.TARGET.exists()
    assert command("postgresql_memory", "--workers", "4").out == shown
    assert module.TARGET.read_text() == shown
    assert module.TARGET.stat().st_mode & 0o777 == 0o644
    assert command("postgresql_memory", "--workers", "0").code == core.USAGE


RULESET = {
    "nftables": [
        {"set": {"name": "admin_inet4", "elem": ["192.0.2.7"]}}, {"set": {"name": "admin_inet6"}},
        {"set": {"name": "site_out", "elem": [{"concat": ["root", 443]}]}},
        {"counter": {"name": "dropped_input", "packets": 5}},
    ]
}  # fmt: skip


def test_firewall_loads_the_settings_of_the_site(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: Command, programs: Programs, site: Callable[..., Path]
) -> None:
    module = place(monkeypatch, "golden.commands.firewall", SITE_RULES=tmp_path / "a/site.nft")
    programs.answer("-j", out=json.dumps(RULESET))
    site(admin_cidrs=["192.0.2.7"])
    found = command("firewall", "load")
    assert found.out.splitlines()[:2] == ["in service", "SSH from: 192.0.2.7"]
    assert b"add element inet golden admin_inet4 { 192.0.2.7/32 }\n" in programs.inputs[0]
    assert module.SITE_RULES.read_bytes() == programs.inputs[0]
    site(admin_cidrs=["x"])
    assert "admin_cidrs" in command("firewall", "load").err
    # Nothing of a faulty setting is loaded, or kept for the next start.
    assert programs.inputs[-1] == b""
    assert b"192.0.2.7" in module.SITE_RULES.read_bytes()
    monkeypatch.setenv("ADMIN_CIDRS", "198.51.100.0/24")
    (tmp_path / "site.json").unlink()
    assert command("firewall", "load").code == 0
    assert b"198.51.100.0/24" in module.SITE_RULES.read_bytes()


def test_firewall_isolates_until_it_is_released(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: Command, programs: Programs
) -> None:
    module = place(monkeypatch, "golden.commands.firewall", ISOLATION=tmp_path / "b/x.nft")
    rules = golden_module("golden.firewall")
    programs.answer("-j", out=json.dumps({"nftables": [*RULESET["nftables"], {"rule": {"chain": "gate_in"}}]}))
    assert command("firewall", "isolate").out.startswith("ISOLATED: administrators only\n")
    assert module.ISOLATION.read_text() == rules.ISOLATE
    assert command("firewall", "release").code == 0
    assert not module.ISOLATION.exists()
    assert programs.inputs[-2] == rules.RELEASE.encode()


# --- what units run -----------------------------------------------------------------------------------------------------


def test_proxy_reads_its_setting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: Command, site: Callable[..., Path]
) -> None:
    seen: list[Mapping[str, Any]] = []

    def apply(setting: Mapping[str, Any]) -> dict[str, Any]:
        seen.append(setting)
        return {"ok": True, "open": bool(setting["cidrs"]), "cidrs": setting["cidrs"], "reason": "nothing is set"}

    monkeypatch.setattr(golden_module("golden.proxy"), "apply", apply)
    site(admin_proxy={"client_ca": None, "cidrs": []})
    assert command("proxy").out == "the administration is closed: nothing is set\n"
    site(admin_proxy={"client_ca": "/x", "cidrs": ["192.0.2.0/24"]})
    assert command("proxy").out == "the administration is open to 192.0.2.0/24\n"
    assert len(seen) == 2
    target = place(monkeypatch, "golden.proxy", TARGET=tmp_path / "run").TARGET
    target.mkdir()
    proxies = {"addresses": ["192.0.2.10/32"], "client": "x-forwarded-for"}
    site(admin_proxy={"client_ca": None, "cidrs": []}, proxies=proxies)
    assert command("proxy").out.startswith("clients are named by 192.0.2.10/32; the administration is closed")
    assert (target / "proxies.conf").is_file()


def test_bans_are_written_for_the_web_server(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: Command, programs: Programs
) -> None:
    module = place(monkeypatch, "golden.commands.bans", CHANGED=tmp_path / "a/changed", FILE=tmp_path / "b/banned.conf")
    module.CHANGED.touch()
    listed = {"nftables": [{"set": {"name": "addr-set-golden-probes", "elem": ["192.0.2.7"]}}]}
    programs.answer("-j", out=json.dumps(listed))
    assert command("bans").out == "1 banned\n"
    assert module.FILE.read_text() == "192.0.2.7 1;\n"
    assert not module.CHANGED.exists()
    assert len(programs.named("systemctl")) == 1
    # The web server is left alone while nothing changed.
    assert command("bans").code == 0
    assert len(programs.named("systemctl")) == 1


def test_tables_of_the_demonstration_are_moved(
    monkeypatch: pytest.MonkeyPatch, command: Command, programs: Programs
) -> None:
    statements = golden_module("golden.aside").STATEMENTS
    for move in ("put", "back"):
        monkeypatch.setenv("MOVE", move)
        assert command("aside").code == 0
        assert programs.inputs[-1] == statements[move].encode()
    monkeypatch.setenv("MOVE", "away")
    assert command("aside").code == core.USAGE
    assert len(programs.named("psql")) == 2


def test_logs_follow_the_setting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: Command, programs: Programs, site: Callable[..., Path]
) -> None:
    names = ("FORWARD", "CHANGED", "CERTIFICATE", "KEY")
    module = place(monkeypatch, "golden.commands.logs", **{name: tmp_path / f"{name}/file" for name in names})
    monkeypatch.setattr(module, "LISTS", tmp_path / "logs.d")
    (tmp_path / "logs.d").mkdir()
    (tmp_path / "logs.d/10-a.toml").write_text(f'[files]\nhere = "{tmp_path}/*.log"\nabsent = "{tmp_path}/no/*.log"\n')
    site(log_collector=None)
    assert command("logs").code == 0
    assert not module.CHANGED.exists()
    site(log_collector=COLLECTOR)
    (tmp_path / "CERTIFICATE/file.new").touch()
    assert command("logs").code == 0
    text = module.FORWARD.read_text()
    assert 'target="logs.example.org" port="6514"' in text
    assert 'tls.permittedPeer=["peer.example"]' in text
    assert f'File="{tmp_path}/*.log" Tag="here:"' in text
    assert "absent" not in text
    assert [argv[0] for argv in programs.named("openssl")] == ["req"]
    # A second run changes nothing, and rsyslog is not restarted for it.
    module.CHANGED.unlink()
    assert command("logs").code == 0
    assert not module.CHANGED.exists()
    site(log_collector=COLLECTOR | {"protocol": "syslog"})
    assert command("logs").code == 0
    assert 'StreamDriverAuthMode="x509/name"' in module.FORWARD.read_text()
    site(log_collector=None)
    assert command("logs").code == 0
    assert (module.FORWARD.exists(), module.CHANGED.exists()) == (False, True)
    (tmp_path / "site.json").unlink()
    assert "systemctl --failed" in command("logs").err


@pytest.mark.parametrize(
    ("space", "inodes", "messages"),
    [((100, 50, 50), (100, 90, 90), []), ((100, 10, 10), (100, 90, 90), ["90 % of the space"]),
     ((100, 50, 50), (100, 5, 5), ["95 % of the inodes"]), ((100, 11, 0), (0, 0, 0), ["100 % of the space"])],
)  # fmt: skip
def test_disks_that_are_nearly_full(
    monkeypatch: pytest.MonkeyPatch, command: Command,
    space: tuple[int, int, int], inodes: tuple[int, int, int], messages: list[str],
) -> None:  # fmt: skip
    module = golden_module("golden.commands.disks")
    status = SimpleNamespace(
        f_blocks=space[0], f_bfree=space[1], f_bavail=space[2], f_files=inodes[0], f_ffree=inodes[1], f_favail=inodes[2]
    )
    monkeypatch.setattr(module, "mounts", lambda: {1: "/var"})
    monkeypatch.setattr(module.os, "statvfs", lambda _point: status)
    found = command("disks")
    assert found.code == bool(messages)
    assert [line for line in found.out.splitlines() if not line.startswith("<3>/var: ")] == []
    assert [part for part in messages if part not in found.out] == []
    assert len(found.out.splitlines()) == len(messages)


def test_disks_are_those_that_hold_data() -> None:
    found = golden_module("golden.commands.disks").mounts()
    assert Path("/").stat().st_dev in found
    assert not [point for point in found.values() if point.startswith(("/proc", "/sys", "/dev"))]


def test_a_release_is_built_from_its_own_wheels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: Command) -> None:
    module = golden_module("golden.commands.release_build")
    steps: list[tuple[list[str], Path]] = []
    secrets: dict[str, str] = {}

    def run(*argv: str | Path, place: Path) -> None:
        steps.append((list(map(str, argv)), place))
        if argv[1] == "manage.py":
            found = Path(os.environ["CREDENTIALS_DIRECTORY"]).iterdir()
            secrets.update({path.name: path.read_text() for path in found})

    monkeypatch.setattr(module, "run", run)
    (tmp_path / "given").mkdir()
    (tmp_path / "given/app.secret-key").write_text("placeholder of the unit")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "given"))
    (tmp_path / "code").mkdir()
    (tmp_path / "code/golden-app.yaml").write_text("secrets: [payment-key]\n")
    monkeypatch.setattr(module, "PIP", [Path("/usr/share/python-wheels/pip-1.whl")])
    monkeypatch.chdir(tmp_path)
    before = os.umask(0o022)
    try:
        assert command("release_build").code == 0
        assert os.umask(0o022) == 0o077
    finally:
        os.umask(before)
    installed = next(argv for argv, _place in steps if "install" in argv)
    assert {"--no-index", "--no-deps", "--require-hashes", "--only-binary=:all:"} <= {*installed}
    assert [argv[1:3] for argv, at in steps if at == tmp_path / "code"] == [
        ["manage.py", "check"], ["manage.py", "collectstatic"],
    ]  # fmt: skip
    assert secrets == {"app.secret-key": "placeholder of the unit", "app.payment-key": f"{module.PLACEHOLDER}\n"}
    # The interpreter of each step of the bundle is that of the release.
    assert {argv[0] for argv, at in steps if at == tmp_path / "code"} == {str(tmp_path / "venv/bin/python")}


def test_a_bundle_is_fetched_from_the_address_of_the_credential(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: Command
) -> None:
    module = golden_module("golden.commands.fetch")
    answers = {"https://files.example.org/shop.bundle": b"a bundle"}

    def urlopen(url: str, **_options: Any) -> io.BytesIO:
        if url.endswith("/odd"):
            raise module.bundle.http.client.BadStatusLine("what")
        if url not in answers:
            raise OSError("HTTP Error 404: Not Found")
        return io.BytesIO(answers[url])

    monkeypatch.setattr(module.bundle.urllib.request, "urlopen", urlopen)
    monkeypatch.setattr(module.bundle, "FETCHED", tmp_path / "bundle")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "address").write_text("https://files.example.org/shop.bundle")
    assert command("fetch").code == 0
    assert (tmp_path / "bundle").read_bytes() == b"a bundle"
    (tmp_path / "address").write_text("https://files.example.org/none")
    found = command("fetch")
    assert (found.code, "404" in found.err) == (1, True)
    (tmp_path / "address").write_text("https://files.example.org/odd")
    assert "cannot be fetched: what" in command("fetch").err
    (tmp_path / "address").write_text("file:///etc/shadow")
    assert command("fetch").code == 2
    monkeypatch.setattr(module.bundle, "LARGEST_BUNDLE", 4)
    (tmp_path / "address").write_text("https://files.example.org/shop.bundle")
    assert "larger than 4 bytes" in command("fetch").err


def test_a_release_that_cannot_be_built_names_the_step(monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    module = golden_module("golden.commands.release_build")

    def fail() -> None:
        raise module.subprocess.CalledProcessError(1, ["python", "manage.py", "check"])

    monkeypatch.setattr(module, "build", fail)
    before = os.umask(0o022)
    try:
        found = command("release_build")
    finally:
        os.umask(before)
    assert (found.code, found.err) == (1, "failed: python manage.py check\n")


# --- golden-alert, golden-verify ----------------------------------------------------------------------------------------


def test_alert_raises_once_in_half_an_hour(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: Command, programs: Programs
) -> None:
    alerts = golden_module("golden.alert")
    programs.answer("show", out="Result=exit-code\nExecMainStatus=1\nNRestarts=0\n")
    for name in ("outgoing", "history"):
        (tmp_path / name).mkdir()
    for name in ("new", "keep", "listed"):
        monkeypatch.setattr(alerts, name, functools.partial(getattr(alerts, name), spool=tmp_path))
    assert "x.service failed" in command("alert", "raise", "x.service").out
    second = command("alert", "raise", "x.service")
    assert "x.service: an alert was sent a short while ago, not sent again" in second.out
    assert command("alert").out.count("x.service failed") == 1
    assert command("alert", "raise").code == core.USAGE


def test_alert_that_cannot_be_kept_is_said_all_the_same(monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    def full(_unit: str, *, now: float) -> None:
        raise OSError(28, f"No space left on device at {now:.0f}"[:23])

    monkeypatch.setattr(golden_module("golden.alert"), "new", full)
    found = command("alert", "raise", "x.service")
    assert found.code == core.FAILED
    assert found.out.startswith("<1>ALERT: x.service failed; the alert cannot be kept ([Errno 28] No space left on device)")


CHECKS = [
    {"ids": ["R1"], "title": "A file is there", "check": "absent", "paths": ["/nowhere"]},
    {"ids": ["R2"], "title": "Another is not", "check": "absent", "paths": ["/etc"]},
]


def test_verify_says_each_result_and_keeps_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: Command) -> None:
    places = {"CHECKS": tmp_path / "verify.d", "SAVED": tmp_path / "kept/last.json"}
    module = place(monkeypatch, "golden.commands.verify", **places)
    module.CHECKS.mkdir()
    (module.CHECKS / "10-base.yaml").write_text(json.dumps(CHECKS))
    assert command("verify", "--last").code == core.FAILED
    assert [line.split()[0] for line in command("verify", "--list").out.splitlines()] == ["R1", "R2"]
    found = command("verify", "--save")
    assert found.code == core.CHECK_FAILED
    assert [line.split()[:2] for line in found.out.splitlines()[1:3]] == [["PASS", "R1"], ["FAIL", "R2"]]
    assert found.out.endswith("1 passed, 1 failed, 0 skipped\n")
    assert command("verify", "--last").out == found.out
    assert command("verify", "R1").code == 0
    assert command("verify", "R3").code == core.USAGE


# --- golden-backup, golden-restore, golden-deploy, golden-site ----------------------------------------------------------


def test_backup_makes_sends_and_removes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: Command, site: Callable[..., Path]
) -> None:
    backup, targets = golden_module("golden.backup"), golden_module("golden.targets")
    calls: list[str] = []
    none_is_set = command("backup").err
    assert none_is_set == f"error: no recipient for backups is set\nhint: {backup.HOW_TO_SET}\n"
    manifest = {"database": {"tables": {"public.a": {"rows": 3}}}, "media": {"files": 2}}
    archive = tmp_path / "20261122T020000Z-clone.tar.age"
    archive.write_bytes(b"age")

    def note(name: str, result: Any) -> Callable[..., Any]:
        def called(*_words: object, **_options: object) -> Any:
            calls.append(name)
            return result

        return called

    monkeypatch.setattr(backup, "make", note("make", (archive, manifest)))
    monkeypatch.setattr(backup, "note", note("note", None))
    monkeypatch.setattr(backup, "prune", note("prune", ["old"]))
    monkeypatch.setattr(targets, "send_pending", note("send", ["x"]))
    recipient = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"
    site(backup={"recipient": recipient, "target": "scp://a@b/c", "keep_days": 1})
    assert command("backup", "--configured").out == f"backups are encrypted for {recipient}\n"
    assert calls == []
    assert "1 tables with 3 rows, 2 media files; sent 1 to scp://a@b/c, removed 1 old" in command("backup").out
    assert calls == ["make", "note", "send", "prune"]
    calls.clear()
    assert command("backup", "--no-send").code == command("backup", "--send").code == 0
    assert calls == ["make", "note", "prune", "send", "prune"]
    monkeypatch.setattr(backup, "archives", lambda: [archive])
    assert command("backup", "--list").out.startswith("2026-11-22T02:00:00+00:00")


def test_restore_says_in_the_journal_what_came_of_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: Command, programs: Programs, site: Callable[..., Path]
) -> None:
    restore, drill = golden_module("golden.restore"), golden_module("golden.drill")
    key, archive = tmp_path / "key", tmp_path / "x.tar.age"
    key.touch()
    done = {"rows": 3, "tables": {"a": 3}, "media_files": 2, "made": "today", "rto_seconds": 1, "downtime_seconds": 1}
    signers: list[Any] = []
    monkeypatch.setattr(restore, "source", lambda *_words, **options: signers.append(options["signers"]))
    monkeypatch.setattr(restore, "restore", lambda _backup: done)
    assert command("restore", archive).code == command("restore", "--identity", key).code == core.USAGE
    assert command("restore", archive, "--identity", tmp_path / "none").code == core.USAGE
    signer = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0y0kqPqXzW0bT8vJtP1Kq7bq0q5m9m3vXJc2m5rO3F"
    site(backup={"signers": ["ssh-ed25519 BBBB"]})
    found = command("restore", archive, "--identity", key, "--signer", f"{signer} me@here")
    assert found.out.startswith("restored 3 rows in 1 tables and 2 media files of today")
    assert signers == [[signer, "ssh-ed25519 BBBB"]]
    assert programs.named("logger")[-1][1] == "auth.warning"

    def refuse(_backup: object) -> None:
        raise core.Problem("it is broken", code=core.CHECK_FAILED)

    monkeypatch.setattr(restore, "restore", refuse)
    assert command("restore", archive, "--identity", key, "--unsigned").code == core.CHECK_FAILED
    assert signers[-1] is None
    assert "(with --unsigned) could not restore" in programs.named("logger")[-1][-1]
    tables = {"a": {"rows": 3, "content": "x"}}
    media = {"files": 2, "bytes": 5, "sha256": "y"}
    kept = {"made": "today", "rto_seconds": 1, "tables": tables, "media": media}
    monkeypatch.setattr(drill, "drill", lambda backup: kept | {"backup": backup})
    assert "  a: 3 rows, x\n" in command("restore", "--drill").out


def test_deploy_needs_exactly_one_thing_to_do(
    monkeypatch: pytest.MonkeyPatch, command: Command, site: Callable[..., Path], tmp_path: Path
) -> None:
    deploy = place(monkeypatch, "golden.deploy", SITE_DONE=tmp_path / "site.sha256")
    asked: list[Any] = []

    def deployed(*words: str, **options: object) -> dict[str, Any]:
        asked.append((words, options))
        return {"release": "abc", "changed": True, "removed": ["old"]}

    monkeypatch.setattr(deploy, "deploy", deployed)
    monkeypatch.setattr(deploy, "roll_back", lambda: {"release": "old", "changed": False, "removed": []})
    assert command("deploy", "x.bundle").code == command("deploy").code == core.USAGE
    assert command("deploy", "x.bundle", "--sha256", "ab", "--rollback").code == core.USAGE
    assert command("deploy", "x.bundle", "--sha256", "ab", "--no-backup").out == "abc serves and is healthy; removed old\n"
    assert asked == [(("x.bundle", "ab"), {"backup": False})]
    compared = {"release": "ab", "name": "x", "opens": ["+ process: a: b"], "not_allowed": ["processes: 9"], "ok": False}
    monkeypatch.setattr(deploy, "compare", lambda *_words: compared)
    shown = command("deploy", "x.bundle", "--sha256", "ab", "--show")
    assert shown.code == core.CHECK_FAILED
    assert shown.out.splitlines()[1:] == ["  + process: a: b", "not allowed: processes: 9"]
    assert command("deploy", "--show", "--site").code == core.USAGE
    assert command("deploy", "--rollback").out == "old serves already\n"
    assert command("deploy", "--wanted").code == core.FAILED
    site(application={"bundle": "/srv/x.bundle", "sha256": "ab"})
    assert command("deploy", "--wanted").out == "to be deployed: /srv/x.bundle\n"
    deploy.SITE_DONE.write_text("ab\n")
    assert command("deploy", "--wanted").code == core.FAILED


@pytest.mark.skipif(os.geteuid() != 0, reason="the file must be root's")
def test_site_writes_settings_flags_and_files_of_units(
    monkeypatch: pytest.MonkeyPatch, command: Command, site: Callable[..., Path], tmp_path: Path
) -> None:
    places = {"FILE": tmp_path / "site.yaml", "PROBLEMS": tmp_path / "site-problems.json"}
    module = place(monkeypatch, "golden.commands.site", **places)
    settings = golden_module("golden.site")
    collect = settings.collect
    monkeypatch.setattr(settings, "collect", lambda path: collect(path, hypervisor=tmp_path / "none"))
    site()
    module.FILE.write_text("server_names: [a.example.org]\nbackup: {}\n")
    module.FILE.chmod(0o600)
    written = command("site", "write")
    assert written.code == core.CHECK_FAILED
    assert "site setting not used: backup.recipient: None: is needed here" in written.out
    names = {path.name for path in tmp_path.iterdir() if path.name.startswith(("site-", "mail-"))}
    assert names == {"site-names", "mail-password", "site-problems.json", "site-has-server_names"}
    assert (tmp_path / "site-names").read_text() == "a.example.org\n"
    shown = command("site")
    assert 'server_names: ["a.example.org"]' in shown.out
    assert "backup.recipient" in shown.out
    module.FILE.write_text("{}")
    assert command("site", "write").code == 0
    assert not (tmp_path / "site-has-server_names").exists()
    assert command("site", "--check", module.FILE).code == 0
    assert command("site", "--check", tmp_path / "none").code == core.USAGE
    assert command("site", "write", "--schema").code == core.USAGE
    assert json.loads(command("site", "--schema").out) == settings.schema()
