"""Channels on a fake cluster: promote, roll back, revoke, restore; gates, ledger, mirror, order of the changes, cost."""

from __future__ import annotations

import dataclasses
import json
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from build.clone import template
from build.core.errors import SpecError, StepFailed, VerificationFailed
from build.proxmox import labels, roles
from build.release import mirror, promote
from build.release import rebuild as release_rebuild
from build.release.entry import Action, Phase
from build.release.ledger import LedgerError
from build.release.operation import Outcome
from build.spec.cluster import Role
from build.spec.release_policy import Policy
from tests.contract.cloning import OPERATOR, REQUEST
from tests.contract.conftest import TOKEN
from tests.contract.releasing import BEGIN, FIRST, SECOND, THIRD, Clock, Desk, forget, on
from tests.contract.shipping import Bench


@pytest.fixture
def desk(bench: Bench) -> Desk:
    """Two nodes, with versions 1.2.3 and 1.3.0 published on both."""
    bench.with_nodes("pve1", "pve2")
    made = Desk(bench)
    made.publish(FIRST, SECOND)
    bench.proxmox.calls.clear()
    return made


def actions(desk: Desk) -> list[tuple[Action, Phase, str]]:
    return [(one.action, one.phase, one.version) for one in desk.book.read().entries]


# --- promote ----------------------------------------------------------------------------------------------------------


def test_a_promotion_points_the_channel_on_every_node(desk: Desk) -> None:
    report = desk.promote(FIRST, reason="first of all")
    assert (report.outcome, report.subject.version, report.before.version) == (Outcome.DONE, FIRST, "")
    assert desk.tagged("stable") == on(FIRST)
    assert desk.tagged("candidate") == sorted([*on(FIRST), *on(SECOND)])
    assert actions(desk) == [(Action.PROMOTE, Phase.INTENT, FIRST), (Action.PROMOTE, Phase.DONE, FIRST)]
    done = desk.book.read().entries[-1]
    assert (done.who, done.reason, done.channel, done.before) == ("Jane <jane@example.org>", "first of all", "stable", "")
    assert all(one.changes == [] and one.problem == "" for one in desk.drift())


def test_the_next_one_takes_its_place(desk: Desk) -> None:
    desk.promote(FIRST)
    report = desk.promote(SECOND)
    assert report.before.version == FIRST
    assert desk.tagged("stable") == on(SECOND)
    assert all(one.changes == [] for one in desk.drift())


def test_the_same_again_changes_nothing(desk: Desk) -> None:
    desk.promote(FIRST)
    before, inventory = desk.book.path.read_bytes(), desk.bench.proxmox.inventory()
    desk.bench.proxmox.calls.clear()
    assert desk.promote(FIRST).outcome is Outcome.THERE
    assert (desk.book.path.read_bytes(), desk.bench.proxmox.inventory()) == (before, inventory)
    assert {method for method, _ in desk.bench.proxmox.calls} == {"GET"}


def test_a_dry_run_changes_nothing(desk: Desk) -> None:
    assert desk.promote(FIRST, dry_run=True).outcome is Outcome.PLANNED
    assert desk.tagged("stable") == []
    assert not desk.book.exists()
    assert {method for method, _ in desk.bench.proxmox.calls} == {"GET"}


def test_readers_never_see_none(desk: Desk) -> None:
    """The new template has the tag before the old one loses it, seen after every change."""
    desk.promote(FIRST)
    seen: list[set[str]] = []
    desk.bench.proxmox.on_request = lambda _request: seen.append({one.split()[0] for one in desk.tagged("stable")})
    desk.promote(SECOND)
    assert seen
    assert all(nodes == {"pve1", "pve2"} for nodes in seen)


def test_only_channels_of_golden_yaml(desk: Desk) -> None:
    for name in ("edge", "candidate"):
        with pytest.raises(SpecError, match=f"no channel {name}"):
            desk.promote(FIRST, name)
    desk.policy = Policy(channels=("stable", "edge"))
    desk.promote(FIRST, "edge")
    desk.promote(SECOND, "stable")
    assert (desk.tagged("edge"), desk.tagged("stable")) == (on(FIRST), on(SECOND))
    assert all(one.changes == [] for one in desk.drift())


def test_an_unknown_version(desk: Desk) -> None:
    with pytest.raises(SpecError, match=r"no artifact of golden 9\.9\.9"):
        desk.promote("9.9.9")


def test_an_artifact_that_is_not_published(desk: Desk) -> None:
    desk.version(THIRD)
    with pytest.raises(SpecError, match="is not published") as caught:
        desk.promote(THIRD)
    assert "nox -s publish" in caught.value.hint


def test_a_version_that_one_node_lacks(desk: Desk) -> None:
    desk.bench.settings = dataclasses.replace(desk.bench.settings, nodes=("pve1",))
    desk.publish(THIRD)
    desk.bench.with_nodes("pve1", "pve2")
    with pytest.raises(SpecError, match="is not published on pve2"):
        desk.promote(THIRD)
    assert not desk.book.exists()


def test_one_template_is_enough_on_a_shared_storage(bench: Bench) -> None:
    bench.with_nodes("pve1", "pve2")
    bench.proxmox.storages["local-lvm"]["shared"] = 1
    desk = Desk(bench)
    desk.publish(FIRST)
    assert desk.promote(FIRST).places == ("pve1/9000",)


def test_an_artifact_that_was_changed(desk: Desk) -> None:
    found = desk.version(FIRST)
    found.image.chmod(0o644)
    found.image.write_bytes(b"other")
    with pytest.raises(VerificationFailed, match="does not verify"):
        desk.promote(FIRST)
    assert not desk.book.exists()


def test_an_artifact_that_failed_its_tests(bench: Bench) -> None:
    desk = Desk(bench)
    desk.publish(FIRST)
    found = desk.version(FIRST)
    failed = dataclasses.replace(found.manifest.verification, passed=1, failed=1)
    bad = dataclasses.replace(found, manifest=dataclasses.replace(found.manifest, verification=failed))
    with pytest.raises(VerificationFailed, match="does not verify"):
        desk.promote(FIRST, images=[bad])


def test_a_template_whose_label_and_tags_do_not_fit(desk: Desk) -> None:
    other = labels.parse(desk.machine("pve2", SECOND).config["description"])
    assert other is not None
    desk.machine("pve1", FIRST).config["description"] = other.describe()
    with pytest.raises(SpecError, match="is not as published"):
        desk.promote(FIRST)


# --- gates ------------------------------------------------------------------------------------------------------------


def test_soak(desk: Desk) -> None:
    desk.policy = Policy(soak_seconds=24 * 3600)
    label = labels.parse(desk.machine("pve1", FIRST).config["description"])
    assert label is not None
    from build.core.units import seconds_of  # noqa: PLC0415

    published = seconds_of(label.published)
    desk.clock = Clock(BEGIN + timedelta(seconds=published - BEGIN.timestamp() + 3600))
    with pytest.raises(VerificationFailed, match="1 of 1 gates") as caught:
        desk.promote(FIRST)
    assert "it has been a candidate for 1.0 h" in caught.value.details
    desk.clock.now += timedelta(days=1)
    assert desk.promote(FIRST).gates[0].passed


def test_a_clock_in_the_past_does_not_pass_the_soak(desk: Desk) -> None:
    desk.policy = Policy(soak_seconds=60)
    desk.clock = Clock(BEGIN - timedelta(days=3650))
    with pytest.raises(VerificationFailed) as caught:
        desk.promote(FIRST)
    assert "correct it" in caught.value.details


def test_audit_figures(desk: Desk) -> None:
    desk.publish(THIRD, audit={"cis.raw": {"value": 96.3, "shown": "96.3 %", "limit": ""}})
    desk.policy = Policy(at_least={"cis.raw": 97.0}, at_most={"exposure.nginx": 1.0})
    with pytest.raises(VerificationFailed, match="2 of 2 gates") as caught:
        desk.promote(THIRD)
    assert "cis.raw >= 97: it is 96.3" in caught.value.details
    assert "exposure.nginx <= 1: the artifact's manifest has no such metric" in caught.value.details
    desk.policy = Policy(at_least={"cis.raw": 96.0})
    desk.promote(THIRD)
    assert desk.tagged("stable") == on(THIRD)


def test_signatures_that_nobody_can_check_are_no_signatures(desk: Desk) -> None:
    desk.policy = Policy(signers=Path("docs/signers"), signatures=2)
    with pytest.raises(VerificationFailed) as caught:
        desk.promote(FIRST)
    assert "signatures cannot be checked on this host" in caught.value.details
    desk.signatures = lambda _artifact, _policy: ["jane", "jane"]
    with pytest.raises(VerificationFailed) as caught:
        desk.promote(FIRST)
    assert "2 signatures: signed by jane" in caught.value.details
    desk.signatures = lambda _artifact, _policy: ["jane", "joe"]
    assert desk.promote(FIRST).outcome is Outcome.DONE


# --- rollback ---------------------------------------------------------------------------------------------------------


def test_a_rollback_goes_back_one_by_one(desk: Desk) -> None:
    desk.publish(THIRD)
    for version in (FIRST, SECOND, THIRD):
        desk.promote(version)
    assert desk.rollback(reason="it leaks").subject.version == SECOND
    assert desk.tagged("stable") == on(SECOND)
    assert desk.rollback().subject.version == FIRST
    with pytest.raises(SpecError, match="stable has no earlier version to go back to"):
        desk.rollback()
    assert desk.tagged("stable") == on(FIRST)
    # And forward again, from there.
    desk.promote(THIRD)
    assert desk.rollback().subject.version == FIRST
    assert all(one.changes == [] for one in desk.drift())


def test_a_rollback_passes_over_what_is_revoked_and_needs_no_artifact(desk: Desk) -> None:
    desk.publish(THIRD)
    for version in (FIRST, SECOND, THIRD):
        desk.promote(version)
    desk.revoke(SECOND)
    forget(desk.bench.place / "artifacts")
    assert desk.rollback().subject.version == FIRST


def test_nothing_to_roll_back(desk: Desk) -> None:
    with pytest.raises(SpecError, match="no earlier version"):
        desk.rollback()


# --- revoke and restore -----------------------------------------------------------------------------------------------


def choose(desk: Desk, **changes: Any) -> template.Source:
    from build.proxmox import client, guest_list  # noqa: PLC0415

    request = dataclasses.replace(REQUEST, **changes)
    with client.Api(desk.bench.settings, OPERATOR) as api:
        guests = guest_list.listed(api)
        return template.source(api, template.choose(api, guests, request, "golden"), request)


def test_a_revoked_version_is_neither_promoted_nor_cloned_nor_published(desk: Desk) -> None:
    desk.revoke(SECOND, "CVE-2026-7: root for everybody")
    assert desk.tagged("revoked") == on(SECOND)
    with pytest.raises(SpecError, match=r"1\.3\.0 is revoked") as caught:
        desk.promote(SECOND)
    assert "root for everybody" in caught.value.details
    with pytest.raises(SpecError, match="CVE-2026-7: root for everybody"):
        choose(desk, template="golden-1.3.0")
    # The newest candidate is skipped; clones of it would be, too.
    assert choose(desk).label.version == FIRST
    with pytest.raises(SpecError, match="is revoked: CVE-2026-7: root for everybody"):
        desk.publish(SECOND)
    assert all(one.changes == [] for one in desk.drift())
    desk.restore(SECOND)
    assert desk.tagged("revoked") == []
    assert choose(desk).label.version == SECOND
    desk.publish(SECOND)
    desk.promote(SECOND)


def test_a_revocation_that_was_taken_off_by_hand_still_holds(desk: Desk) -> None:
    desk.revoke(SECOND)
    for node in ("pve1", "pve2"):
        config = desk.machine(node, SECOND).config
        config["tags"] = config["tags"].replace(";revoked", "")
    assert desk.tagged("revoked") == []
    with pytest.raises(SpecError, match="is revoked"):
        choose(desk, template="golden-1.3.0")
    with pytest.raises(SpecError, match="is revoked"):
        desk.promote(SECOND)
    changed = {(seen.name, one.key) for seen in desk.drift() for one in seen.changes}
    assert changed == {("golden-1.3.0", "revoked")}


def test_a_template_that_missed_a_restoration_is_told_of_it(desk: Desk) -> None:
    desk.revoke(SECOND)
    config = desk.machine("pve1", SECOND).config
    before = config["description"]
    desk.restore(SECOND)
    config["description"] = before
    with pytest.raises(SpecError, match="is revoked"):
        choose(desk, template="golden-1.3.0", node="pve1")
    assert desk.restore(SECOND).outcome is Outcome.DONE
    assert choose(desk, template="golden-1.3.0", node="pve1").label.version == SECOND
    assert desk.restore(SECOND).outcome is Outcome.THERE


def test_what_a_channel_points_at_is_not_revoked(desk: Desk) -> None:
    desk.promote(FIRST)
    desk.promote(SECOND)
    with pytest.raises(SpecError, match="is used by stable") as caught:
        desk.revoke(SECOND)
    assert "nox -s rollback -- stable" in caught.value.hint
    desk.rollback()
    desk.revoke(SECOND)
    assert desk.revoke(SECOND).outcome is Outcome.THERE
    assert desk.tagged("stable") == on(FIRST)


def test_a_revoked_image_that_was_never_published(desk: Desk) -> None:
    desk.version(THIRD)
    desk.revoke(THIRD)
    with pytest.raises(SpecError, match="is revoked"):
        desk.bench.publish(desk.version(THIRD), book=desk.book)


# --- two versions at once ---------------------------------------------------------------------------------------------


def test_a_clone_that_sees_two_takes_what_the_ledger_says(desk: Desk) -> None:
    desk.promote(SECOND)
    desk.promote(FIRST)
    config = desk.machine("pve1", SECOND).config
    config["tags"] += ";stable"
    assert choose(desk, channel="stable").label.version == FIRST
    # Without a mirror, the newest.
    for vm in desk.bench.proxmox.vms:
        vm.config["description"] = mirror.without(vm.config["description"])
    assert choose(desk, channel="stable").label.version == SECOND


# --- the ledger and its mirror ----------------------------------------------------------------------------------------


def rebuild(desk: Desk) -> release_rebuild.Rebuilt:
    made: release_rebuild.Rebuilt = desk.do(release_rebuild.rebuild)
    return made


def test_the_ledger_is_made_anew_from_the_cluster(desk: Desk) -> None:
    desk.promote(FIRST)
    desk.promote(SECOND)
    desk.rollback()
    desk.revoke(SECOND)
    whole = desk.book.path.read_bytes()
    desk.book.path.unlink()
    with pytest.raises(LedgerError, match="ends with entry 0, and the cluster has entry 8") as caught:
        desk.promote(FIRST)
    assert "history -- --rebuild" in caught.value.hint
    made = rebuild(desk)
    assert (desk.book.path.read_bytes(), made.ledger.gaps, made.kept) == (whole, (), None)
    assert desk.promote(FIRST).outcome is Outcome.THERE


def test_what_is_missing_is_said(desk: Desk) -> None:
    desk.promote(FIRST)
    desk.promote(SECOND)
    before = desk.book.read()
    for vm in desk.bench.proxmox.vms:
        entries, _ = mirror.entries_of(vm.config["description"])
        kept = [one for one in entries if one.number not in (2, 3)]
        vm.config["description"] = mirror.with_entries(vm.config["description"], kept, "")
    desk.book.path.unlink()
    made = rebuild(desk)
    assert [str(one) for one in made.ledger.gaps] == ["entries 2 to 3"]
    assert [one.number for one in made.ledger.entries] == [1, 4]
    assert desk.book.read().head_hash == before.head_hash
    # The previous version that the missing entry recorded is known from the next entry.
    assert desk.rollback().subject.version == FIRST


@pytest.mark.parametrize("how", ["edited", "cut", "reordered", "rewritten"])
def test_a_ledger_that_was_edited_is_refused_and_mended(desk: Desk, how: str) -> None:
    desk.promote(FIRST)
    desk.promote(SECOND)
    whole = desk.book.path.read_text()
    lines = whole.splitlines(keepends=True)
    texts = {
        "edited": whole.replace("jane@", "joe@"), "cut": "".join(lines[:3]), "rewritten": rewritten(desk),
        "reordered": "".join([lines[1], lines[0], *lines[2:]]),
    }  # fmt: skip
    desk.book.path.write_text(texts[how])
    with pytest.raises(LedgerError) as caught:
        desk.promote(FIRST)
    assert caught.value.exit_code == 3
    assert desk.tagged("stable") == on(SECOND)
    [problem] = [one.problem for one in desk.drift() if one.problem]
    assert str(desk.book.path) in problem
    made = rebuild(desk)
    assert desk.book.path.read_text() == whole
    assert made.kept is not None
    assert made.kept.read_text() == texts[how]


def rewritten(desk: Desk) -> str:
    """Return a ledger forged by a user who knows how the hashes are computed."""
    from build.release.entry import NOTHING_BEFORE  # noqa: PLC0415

    lines, previous = [], NOTHING_BEFORE
    for one in desk.book.read().entries:
        lines.append(dataclasses.replace(one, who="Jim", previous=previous))
        previous = lines[-1].hash
    return "".join(one.line() for one in lines)


def test_a_mirror_that_was_edited_is_passed_over_and_told(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.promote(FIRST)
    config = desk.machine("pve1", FIRST).config
    config["description"] = config["description"].replace("Jane", "Joe")
    desk.promote(SECOND)
    assert "it was modified: its content does not match its hash" in capsys.readouterr().err
    config["description"] = config["description"].replace("Jane", "Joe")
    assert any("it was modified" in note for one in desk.drift() for note in one.notes)


def test_the_mirror_stays_within_the_descriptions_limit(desk: Desk) -> None:
    for turn in range(12):
        desk.promote((FIRST, SECOND)[turn % 2], reason=f"turn {turn} " + "ü" * 250)
    for vm in desk.bench.proxmox.vms:
        assert len(vm.config["description"].encode()) <= mirror.LONGEST
        entries, problems = mirror.entries_of(vm.config["description"])
        assert len(entries) > 3
        assert problems == []
    assert desk.book.read().head == 24
    assert all(one.changes == [] for one in desk.drift())
    desk.book.path.unlink()
    assert rebuild(desk).ledger.head == 24


def test_a_clock_that_went_back_is_told_and_does_not_break_the_order(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.promote(FIRST)
    desk.clock = Clock(BEGIN - timedelta(days=400))
    desk.promote(SECOND)
    assert "the clock of this host is at 2025-" in capsys.readouterr().err
    times = [one.time for one in desk.book.read().entries]
    assert times == sorted(times)


# --- two machines -----------------------------------------------------------------------------------------------------


def test_a_ledger_that_is_behind_is_not_forked(desk: Desk) -> None:
    desk.promote(FIRST)
    other = desk.another("there", "Joe <joe@example.org>")
    desk.promote(SECOND)
    before = desk.bench.proxmox.inventory()
    with pytest.raises(LedgerError, match="ends with entry 2, and the cluster has entry 4"):
        other.rollback()
    assert desk.bench.proxmox.inventory() == before
    rebuild(other)
    assert other.rollback().subject.version == FIRST
    # And now this one is behind.
    with pytest.raises(LedgerError, match="written by another host"):
        desk.promote(SECOND)


# --- roles and cost ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["8.4.1", "9.0.10"])
def test_the_publishers_rights_are_enough(desk: Desk, version: str) -> None:
    desk.bench.proxmox.version = version
    for role, who in ((Role.PUBLISHER, TOKEN), (Role.OPERATOR, OPERATOR)):
        for grant in roles.grants(role, desk.bench.settings, major=int(version[0])):
            desk.bench.proxmox.entitle(who.identity, grant.path, *grant.privileges)
    desk.promote(FIRST)
    desk.promote(SECOND)
    desk.rollback()
    desk.revoke(SECOND)
    desk.restore(SECOND)
    assert [one.keep for one in desk.prune(days=0).values()] == [True, True, True, True]


def test_ten_thousand_guests_cost_no_more_calls(desk: Desk) -> None:
    desk.promote(FIRST)
    desk.bench.proxmox.calls.clear()
    desk.promote(SECOND)
    few = dict(desk.bench.proxmox.calls)
    desk.promote(FIRST)
    for number in range(10_000):
        desk.bench.proxmox.add_vm(10_000 + number, f"guest-{number}", config={"tags": "golden-clone;v1.2.3"})
    desk.bench.proxmox.calls.clear()
    desk.promote(SECOND)
    assert dict(desk.bench.proxmox.calls) == few
    # One list to decide by, one more before it is written that all is done.
    assert few["GET", "/cluster/resources"] == 2
    assert max(count for (method, _), count in few.items() if method == "PUT") <= 4
    assert max(few.values()) <= 8


def test_thirty_two_nodes(bench: Bench) -> None:
    bench.with_nodes(*(f"pve{number}" for number in range(1, 33)))
    desk = Desk(bench)
    desk.publish(FIRST, SECOND)
    desk.promote(FIRST)
    bench.proxmox.calls.clear()
    desk.promote(SECOND)
    assert len(desk.tagged("stable")) == 32
    assert bench.proxmox.calls.total() <= 10 * 64


def test_the_ledger_is_lines_of_json_with_nothing_of_this_machine(desk: Desk) -> None:
    desk.promote(FIRST)
    text = desk.book.path.read_text()
    assert [json.loads(line)["number"] for line in text.splitlines()] == [1, 2]
    assert str(desk.bench.place) not in text
    assert TOKEN.secret not in text


def test_a_foreign_tag_stays(desk: Desk) -> None:
    config = desk.machine("pve1", FIRST).config
    config["tags"] += ";backup-me"
    desk.promote(FIRST)
    assert "backup-me" in labels.split_tags(config["tags"])


@pytest.mark.parametrize("decides", [True, False])
def test_a_template_that_changes_again_and_again(desk: Desk, *, decides: bool) -> None:
    """The first by number decides the order: without it nothing begins. Another one is missing, and the channel stays."""
    ours = sorted((desk.machine(node, FIRST) for node in ("pve1", "pve2")), key=lambda one: int(one.vmid))
    victim = ours[0] if decides else ours[1]
    turns = threading.Lock()

    def meddle(request: Any) -> None:
        if request.method == "PUT":
            with turns:
                victim.config["meddled"] = str(int(victim.config.get("meddled", 0)) + 1)

    desk.bench.proxmox.on_request = meddle
    with pytest.raises(StepFailed) as caught:
        desk.do(lambda job: promote.promote(job, FIRST, "stable"))
    if not decides:
        assert f"missing is {victim.node}" in caught.value.brief
    assert "was modified concurrently" in (caught.value.brief if decides else caught.value.details)
    assert "stable" not in labels.split_tags(victim.config["tags"])
