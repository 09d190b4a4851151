"""The machines of a cluster: the report for each, and what counts as a difference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from build.cli import fleet as command
from build.cli import main
from build.clone import health
from build.fleet import fleet, page
from build.proxmox import client, labels, roles
from build.spec.cluster import Role
from tests.contract.cloning import OPERATOR, Field
from tests.contract.replacing import NEWER, Ground, Machines, prepare
from tests.contract.shipping import write_spec
from tests.fakes.proxmox import Proxmox
from tests.patience import PATIENCE_SECONDS

CHANNELS = ("candidate", "stable")
VERIFY = {"ok": True, "time": "2026-01-04T03:10:00+00:00", "checks": [{"title": "Units", "result": "PASS"}]}


@pytest.fixture
def proxmox_class() -> type[Proxmox]:
    return Machines


@pytest.fixture
def ground(field: Field) -> Ground:
    ground = prepare(field)
    for vm in ground.proxmox.vms:
        if vm.template and vm.name == "golden-1.2.3":
            vm.config["tags"] = ";".join(sorted({*vm.config["tags"].split(";"), "stable"}))
    say(ground, VERIFY=VERIFY, AIDE={"ok": True, "time": "2026-01-05T04:00:00Z"})
    return ground


def say(ground: Ground, **results: Any) -> None:
    """Set the results of the machine's own checks."""
    files = ground.proxmox.vm(ground.old).agent["files"]
    files |= {getattr(fleet, name): json.dumps(result) for name, result in results.items()}


def seen(ground: Ground, channel: str = "stable") -> list[fleet.Fact]:
    with client.Api(ground.field.bench.settings, OPERATOR) as api:
        return fleet.fleet(api, "golden", CHANNELS, channel)


@pytest.mark.parametrize("version", ["8.4.1", "9.0.10"])
def test_a_machine_that_is_as_it_should_be(ground: Ground, version: str) -> None:
    ground.proxmox.version = version
    for grant in roles.grants(Role.OPERATOR, ground.field.bench.settings, major=int(version[0])):
        ground.proxmox.entitle(OPERATOR.identity, grant.path, *grant.privileges)
    [fact] = seen(ground)
    assert (fact.name, fact.status, fact.template, fact.channels) == (
        "web1", "running", "golden-1.2.3", ["candidate", "stable"],
    )  # fmt: skip
    assert (fact.healthy, fact.restart, fact.data_gib, fact.problem) == (True, False, 40, "")
    assert fact.differences == []
    assert fleet.days_left(fact.backup) == -1
    left = fleet.days_left(fact.certificate_until)
    assert left is not None
    assert left > 0
    assert not [call for call in ground.proxmox.calls if call[0] != "GET"]


def behind(ground: Ground) -> None:
    for vm in ground.proxmox.vms:
        if vm.template and vm.name == NEWER:
            vm.config["tags"] += ";stable"


def revoked(ground: Ground) -> None:
    for vm in ground.proxmox.vms:
        if vm.template and vm.name == "golden-1.2.3":
            vm.config["tags"] += f";{labels.REVOKED_TAG}"


def without_tags(ground: Ground) -> None:
    ground.proxmox.vm(ground.old).config["tags"] = labels.CLONE_TAG


def without_label(ground: Ground) -> None:
    ground.proxmox.vm(ground.old).config["description"] = "mine"


def failed_check(ground: Ground) -> None:
    say(ground, VERIFY=VERIFY | {"ok": False, "checks": [{"title": "Open ports", "result": "FAIL"}]})


def changed_files(ground: Ground) -> None:
    say(ground, AIDE={"ok": False, "time": "2026-01-05T04:00:00Z"})


def pending_restart(ground: Ground) -> None:
    say(ground, RESTART="*** System restart required ***")


@pytest.mark.parametrize(("arrange", "named", "since"), [
    (behind, f"the channel has {NEWER}", True), (revoked, "is revoked", True), (without_tags, "its tags lack", False),
    (without_label, "no label", False), (failed_check, "Open ports", True), (changed_files, "AIDE", True),
    (pending_restart, "needs a restart", False),
])  # fmt: skip
def test_what_is_a_difference(ground: Ground, arrange: Any, named: str, since: bool) -> None:  # noqa: FBT001
    arrange(ground)
    [fact] = seen(ground)
    [difference] = fact.differences
    assert named in difference.what
    assert bool(difference.since) == since
    assert fleet.attention([fact]) == [fact]


def test_a_silent_agent_is_a_problem_and_a_stopped_machine_is_not(ground: Ground) -> None:
    vm = ground.proxmox.vm(ground.old)
    vm.agent = None
    [fact] = seen(ground)
    assert "guest agent" in fact.problem
    vm.status = "stopped"
    [fact] = seen(ground)
    assert (fact.problem, fact.healthy) == ("", None)


def test_a_machine_that_is_kept_needs_no_attention(ground: Ground) -> None:
    ground.replace()
    new, old = seen(ground, "candidate")
    assert (new.kept, new.template, new.data_gib) == (False, NEWER, 40)
    assert (old.kept, old.status, old.data_gib) == (True, "stopped", 0)
    assert old not in fleet.attention([new, old])


def test_results_that_are_damaged_are_not_known(ground: Ground) -> None:
    files = ground.proxmox.vm(ground.old).agent["files"]
    files |= {fleet.VERIFY: "[", fleet.AIDE: "[]", "/var/backups/golden/last.json": "{}"}
    [fact] = seen(ground)
    assert (fact.healthy, fact.backup, fact.differences) == (None, "", [])
    assert fleet.not_after("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----") == ""


def test_the_commands(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_spec(tmp_path, ground.field.bench.settings)
    monkeypatch.setenv("GOLDSMITH_PVE_TOKEN", f"{OPERATOR.identity}={OPERATOR.secret}")
    wall = tmp_path / "wall.html"
    words = ["--project", str(tmp_path)]
    assert main.main(["fleet", *words, "--html", str(wall)]) == 0
    shown = capsys.readouterr().out
    assert f"web1 pve1/{ground.old}" in shown
    assert "golden-1.2.3" in wall.read_text()
    assert "<script" not in wall.read_text()
    assert main.main(["fleet", *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["name"] == "web1"
    assert main.main(["drift", *words, "--machines"]) == 0
    assert "1 machines are as they should be" in capsys.readouterr().out
    changed_files(ground)
    assert main.main(["drift", *words, "--machines", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["machines"][0]["differences"][0]["since"] == "2026-01-05T04:00:00Z"
    assert command.CHANNEL == "stable"


def test_a_machine_without_a_web_server_has_no_certificate(field: Field) -> None:
    field.without_web_server()
    ground = prepare(field)
    say(ground, VERIFY=VERIFY)
    assert health.CERTIFICATE not in ground.proxmox.vm(ground.old).agent["files"]
    [fact] = seen(ground, channel="candidate")
    assert (fact.problem, fact.healthy, fact.certificate_until) == ("", True, "")


def test_names_of_machines_are_escaped(ground: Ground) -> None:
    [fact] = seen(ground)
    fact.name = "<img>"
    assert "<img>" not in page.page("golden", [fact], time="now")


def test_the_replace_command(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_spec(tmp_path, ground.field.bench.settings)
    monkeypatch.setenv("GOLDSMITH_PVE_TOKEN_REPLACER", f"{OPERATOR.identity}={OPERATOR.secret}")
    words = ["--project", str(tmp_path), "--cache", str(tmp_path / "cache"), "--timeout", str(PATIENCE_SECONDS)]
    assert main.main(["replace", "web1", "--to", "1.3.0", "--json", *words]) == 0
    [fact] = json.loads(capsys.readouterr().out)
    assert (fact["template"], fact["kept_vmid"], fact["changed"]) == (NEWER, ground.old, True)
    assert main.main(["replace", "--tag", "team-a", "--to", "1.3.0", *words]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main.main(["replace", "web1", "--undo", *words]) == 0
    assert f"web1 is VM {ground.old}" in capsys.readouterr().out
    assert main.main(["replace", "--clean", *words]) == 0
    assert "nothing to remove" in capsys.readouterr().out
    for wrong in ([], ["web1", "--all"], ["--all", "--undo"], ["--keep-old", "-1", "x"]):
        assert main.main(["replace", *wrong, *words]) == 2
        assert "nothing was changed" in capsys.readouterr().err
