"""The audit as a whole: which units it checks, how it connects to a machine, and how it evaluates the metrics."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from build.audit import audit, tools
from build.audit import auditors as audit_auditors
from build.audit.ledger import Better, Figure
from build.audit.tools import Tools
from build.cli import options as common
from build.core.cache import Cache
from build.core.errors import SpecError, StepFailed, VerificationFailed
from build.core.result import Result
from build.machines import target
from build.machines.target import Target
from build.packages import apt, lock
from build.packages.apt import Mirrors, Store
from build.packages.lock import Entry
from build.pipeline.build import Options
from tests.unit.helpers import ROOT, entry, make_checkout, read_stack, write_layer, write_lock

MIRRORS = Mirrors("http://127.0.0.1:9/debian", "http://127.0.0.1:9/debian-security")
GOOD = Figure("lynis.index", 92, Better.HIGHER, 90)


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(make_checkout(tmp_path / "checkout"), Cache(tmp_path / "cache"), MIRRORS)


def conclude(options: Options, *figures: Figure, update: bool = False, auditors: tuple[str, ...] = ("lynis",)) -> Result:
    """Let the audit conclude for a machine that measured these figures; return the table, and the error if there is one."""
    out = report_of(options)
    out.mkdir(parents=True, exist_ok=True)
    image = options.project.root / "artifacts" / "golden-1-abc" / "image.qcow2"
    image.parent.mkdir(parents=True, exist_ok=True)
    wanted = audit.Wanted(auditors, unverified=True, update=update)
    return audit.conclude(options, wanted, figures, tools=Tools(out, {"lynis": "3"}), image=image, out=out)


def report_of(options: Options) -> Path:
    return options.cache.root / "out"


# --- figures and ledger -----------------------------------------------------------------------------------------------


def test_a_first_audit_asks_for_a_ledger_and_an_update_writes_it(options: Options) -> None:
    ledger = options.project.audit_ledger
    assert conclude(options, GOOD).error is None
    assert not ledger.exists()
    assert conclude(options, GOOD, update=True).error is None
    kept = {"value": 92, "shown": "92", "limit": ">= 90", "items": []}
    assert json.loads(ledger.read_text())["figures"] == {"lynis.index": kept}


def test_a_regression_is_a_failed_verification(options: Options, capsys: pytest.CaptureFixture[str]) -> None:
    conclude(options, GOOD, update=True)
    result = conclude(options, Figure("lynis.index", 91, Better.HIGHER, 90))
    assert isinstance(result.error, VerificationFailed)
    assert "1 figures worse" in result.error.brief
    assert result.error.exit_code == 3
    assert "lynis.index: 91, was 92" in result.error.details
    assert "--update" in result.error.hint
    assert "| worse | `lynis.index` | 91 |" in result.text
    with pytest.raises(VerificationFailed):
        common.show(result)
    assert capsys.readouterr().out == f"{result.text}\n", "the table is printed before the error"


def test_an_update_does_not_forgive_a_broken_limit(options: Options) -> None:
    result = conclude(options, Figure("lynis.index", 89, Better.HIGHER, 90), update=True)
    assert isinstance(result.error, VerificationFailed)
    assert "must be >= 90" in result.error.details


def test_some_auditors_leave_the_figures_of_the_others_alone(options: Options) -> None:
    conclude(options, GOOD, Figure("tls.score", 96, Better.HIGHER), update=True, auditors=("lynis", "tls"))
    conclude(options, Figure("tls.score", 97, Better.HIGHER), update=True, auditors=("tls",))
    figures = json.loads((options.project.audit_ledger).read_text())["figures"]
    assert {name: one["value"] for name, one in figures.items()} == {"lynis.index": 92, "tls.score": 97}


def test_the_report_is_left_for_people_and_for_programs(options: Options) -> None:
    conclude(options, GOOD)
    out = report_of(options)
    assert "`lynis.index`" in (out / "audit.md").read_text()
    assert json.loads((out / "audit.json").read_text())["figures"]["lynis.index"]["value"] == 92


def test_an_auditor_that_breaks_off_costs_nobody_elses_figures(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_job: object) -> list[Figure]:
        raise StepFailed("oscap did not end within 50 min")

    @contextmanager
    def placed(*_words: object) -> Iterator[tuple[Target, Path]]:
        yield here(), tmp_path / "golden-1-abc" / "image.qcow2"

    monkeypatch.setattr(audit, "AUDITORS", {"cis": broken, "lynis": lambda _job: [GOOD]})
    monkeypatch.setattr(audit, "_place", placed)
    monkeypatch.setattr(audit, "settle", lambda _place: None)
    monkeypatch.setattr("build.core.host.ensure", lambda *_tools, **_words: None)
    monkeypatch.setattr(tools, "PARTS", {"cis": (), "lynis": ()})
    monkeypatch.setattr(tools, "fetch", lambda *_words, **_more: Tools(tmp_path, {"lynis": "3"}))
    result = audit.audit(options, audit.Wanted(("cis", "lynis"), update=True))
    assert isinstance(result.error, StepFailed)
    assert "oscap did not end" in result.error.brief
    assert "`lynis.index`" in result.text
    assert "cis is not measured" in capsys.readouterr().err
    assert list(json.loads(options.project.audit_ledger.read_text())["figures"]) == ["lynis.index"]


# --- what is asked ----------------------------------------------------------------------------------------------------


def test_units_that_a_layer_brings_have_a_limit_and_those_it_changes_have_none(tmp_path: Path) -> None:
    home = audit_auditors.UNITS
    write_layer(
        tmp_path, "10-x",
        {f"{home}nginx.service": "x", f"{home}own.service": "x", f"{home}alert@.service": "x", f"{home}own.timer": "x",
         f"{home}ssh.service.d/a.conf": "x", f"{home}postgresql@17-main.service.d/a.conf": "x",
         f"{home}own.service.d/b.conf": "x", f"{home}own-.service.d/c.conf": "x"},
    )  # fmt: skip
    assert audit_auditors.units(read_stack(tmp_path, "10-x")) == {
        "nginx.service": 0.7, "own.service": 1.5, "alert@audit.service": 1.5, "ssh.service": None,
        "postgresql@17-main.service": 0.5,
    }  # fmt: skip


def test_every_auditor_says_what_the_machine_needs_for_it() -> None:
    assert set(audit_auditors.AUDITORS) <= set(tools.PARTS)


def test_the_committed_locks_hold_the_auditors() -> None:
    for suite in tools.SUITES:
        locked = lock.parse(suite.path(ROOT / "tests" / "audit"))
        assert set(suite.packages) <= set(locked.versions())
        assert locked.release == suite.release


def test_a_package_that_no_archive_has_any_more_is_an_error(tmp_path: Path) -> None:
    for suite in tools.SUITES:
        write_lock(suite.path(tmp_path), entry("gone"))
    with pytest.raises(StepFailed, match="no archive has") as caught:
        tools.fetch(tmp_path, store=Store(tmp_path / "files"), mirrors=MIRRORS, into=tmp_path / "tools")
    assert "--lock" in caught.value.hint


def test_a_tool_that_its_package_lost_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="no usr/bin/testssl"):
        Tools(tmp_path, {}).program("usr/bin/testssl")


# --- how a machine is reached -----------------------------------------------------------------------------------------


def here(*, over_ssh: bool = False) -> Target:
    """Return this host as a place; over SSH, with a program that takes the place of ssh and sudo."""
    program = "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1].replace('sudo -n ', ''), shell=True).returncode)"
    fake = (sys.executable, "-c", program)
    return Target("container", fake if over_ssh else (), (), {"ssh": 22}, 1.0, over_ssh=over_ssh)


@pytest.mark.parametrize("over_ssh", [False, True])
def test_a_command_keeps_its_quotes(*, over_ssh: bool) -> None:
    assert here(over_ssh=over_ssh).shell("echo \"a  'b'\" '$HOME'").stdout == "a  'b' $HOME\n"


def test_long_work_tells_how_far_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "POLL_SECONDS", 0.05)
    written = tmp_path / "output"
    written.write_text("of the last time")
    status = here().watch(
        "echo one; sleep 2; echo two; exit 3", title="counting", tell=lambda text: f"{text.count(chr(10))} lines",
        timeout=60, output=written,
    )  # fmt: skip
    assert (status, written.read_text()) == (3, "one\ntwo\n")
    assert "counting: 1 lines" in capsys.readouterr().err


def test_long_work_ends_when_its_time_is_up(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="counting did not end within") as caught:
        here().watch("echo one; sleep 600", title="counting", tell=str.strip, timeout=0.1, output=tmp_path / "output")
    assert caught.value.details == "one"


def test_files_are_sent(tmp_path: Path) -> None:
    (tmp_path / "from" / "one").mkdir(parents=True)
    (tmp_path / "from" / "one" / "file").write_text("x")
    (tmp_path / "from" / "not").write_text("x")
    here().send(tmp_path / "from", ["one"], target=str(tmp_path / "to"), output=tmp_path / "log")
    assert [path.name for path in (tmp_path / "to").rglob("*")] == ["one", "file"]


def test_a_context_file_names_the_machine(tmp_path: Path) -> None:
    path = tmp_path / "context.json"
    path.write_text(json.dumps({"clones": [{"enter": ["nsenter", "--target", "77", "--mount", "--"]}]}))
    assert target.of_context(path).outside == ("nsenter", "--target", "77", "--net", "--")
    path.write_text(json.dumps({"clones": [{"ssh_config": "c", "alias": "a", "ports": {"ssh": 2222}}]}))
    assert target.of_context(path).ports == {"ssh": 2222}
    assert target.of_context(path).argv("id -u")[:4] == ["ssh", "-F", "c", "a"]
    path.write_text("{}")
    with pytest.raises(SpecError):
        target.of_context(path)


def test_a_suite_that_is_out_of_step_costs_only_its_own_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each suite is resolved from its own component main; files that the mirror lacks are no lock either."""
    read: list[str] = []

    def set_up(private: apt.PrivateApt) -> None:
        read.append(f"{private.release} {private.components}")
        if private.release == "trixie":
            raise apt.MirrorChanging("the index of trixie")

    found = entry("ssg-debian", b"content")
    monkeypatch.setattr(apt.PrivateApt, "set_up", set_up)
    monkeypatch.setattr(apt.PrivateApt, "locate", lambda _self, _packages: (found,))
    monkeypatch.setattr(apt.PrivateApt, "date", lambda _self: 1795140670.0)
    lacking: list[tuple[Entry, ...]] = [(), (found,)]
    monkeypatch.setattr(Store, "fetch", lambda _self, _entries, _mirrors: lacking[0])

    def write(name: str) -> str:
        with pytest.raises(StepFailed) as caught:
            tools.write_locks(tmp_path, store=Store(tmp_path / "files"), mirrors=MIRRORS, scratch=tmp_path / name, image=[])
        return caught.value.brief

    assert write("first") == "not written: the lock of trixie; written: forky"
    assert read == ["trixie main", "forky main"]
    locked = tmp_path / "forky.lock"
    assert lock.parse(locked).entries == (found,)
    locked.unlink()
    lacking.pop(0)
    assert write("second") == "not written: the lock of trixie, forky; written: none"
    assert not locked.exists()
