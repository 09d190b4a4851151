"""The templates that prune keeps and removes, with reasons; interruptions and refusals; the number of calls."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

import pytest

from build.clone import clone
from build.core.errors import GoldsmithError, SpecError
from build.proxmox import client, roles
from build.release import mirror, rebuild
from build.release.entry import Action, Phase
from build.spec.cluster import Role
from build.spec.release_policy import Policy
from tests.contract.cloning import OPERATOR, REQUEST, Guests
from tests.contract.conftest import TOKEN
from tests.contract.release.test_releases_faults import Moment, PowerCut, calls_of, cut_after
from tests.contract.releasing import FIRST, SECOND, THIRD, Clock, Desk, on
from tests.contract.shipping import Bench
from tests.fakes.proxmox import Proxmox

LATER = timedelta(days=400)


@pytest.fixture
def proxmox_class() -> type[Proxmox]:
    return Guests


@pytest.fixture
def desk(bench: Bench) -> Desk:
    """Two nodes with versions 1.2.3, 1.3.0 and 1.4.0; it is long after."""
    bench.with_nodes("pve1", "pve2")
    made = Desk(bench)
    made.publish(FIRST, SECOND, THIRD)
    made.clock = Clock(made.clock.now + LATER)
    return made


def make_clone(desk: Desk, name: str, *, linked: bool, version: str = FIRST) -> clone.Made:
    with client.Api(desk.bench.settings, OPERATOR) as api:
        request = dataclasses.replace(
            REQUEST, name=name, template=f"golden-{version}", linked=linked, node="pve1", wait=False
        )  # fmt: skip
        return clone.clone(clone.Job(api, desk.bench.settings, request, "golden", "keeper"))


def kept(desk: Desk, version: str, node: str = "pve1", *, days: int = 30) -> str:
    """Return why a template would stay; empty when it would not."""
    wanted = (node, f"golden-{version}")
    [found] = [one for one in desk.prune(days=days).values() if (one.template.node, one.template.name) == wanted]
    assert found.reason
    return found.reason if found.keep else ""


def templates(desk: Desk) -> list[str]:
    return sorted(f"{vm.node} {vm.name}" for vm in desk.bench.proxmox.vms if vm.template)


def test_without_apply_nothing_is_removed(desk: Desk) -> None:
    before = desk.bench.proxmox.inventory()
    desk.bench.proxmox.calls.clear()
    verdicts = desk.prune()
    assert {name.split()[1]: one.keep for name, one in verdicts.items()} == {
        "golden-1.2.3": False, "golden-1.3.0": False, "golden-1.4.0": True,
    }  # fmt: skip
    assert [one.reason for one in verdicts.values() if one.keep] == ["it is the newest candidate"] * 2
    assert {one.reason[:44] for one in verdicts.values() if not one.keep} == {"no channel, rollback, revocation or clone ne"}
    assert desk.bench.proxmox.inventory() == before
    assert {method for method, _ in desk.bench.proxmox.calls} == {"GET"}


def test_what_nobody_needs_is_removed(desk: Desk) -> None:
    desk.promote(SECOND)
    desk.clock.now += LATER
    verdicts = desk.prune(apply=True)
    assert sorted(name.split()[1] for name, one in verdicts.items() if one.removed) == ["golden-1.2.3"] * 2
    assert templates(desk) == sorted([*on(SECOND), *on(THIRD)])
    assert [(one.action, one.phase) for one in desk.book.read().entries][2:] == [
        (Action.PRUNE, Phase.INTENT), (Action.PRUNE, Phase.DONE),
    ]  # fmt: skip
    assert all(one.changes == [] and one.problem == "" for one in desk.drift())
    assert not [one for one in desk.prune(apply=True).values() if one.removed]
    assert desk.book.read().head == 4


def test_channels_and_rollback_targets_stay(desk: Desk) -> None:
    desk.policy = Policy(channels=("stable", "edge"))
    desk.promote(FIRST)
    desk.promote(SECOND)
    desk.clock.now += LATER
    assert kept(desk, SECOND) == "stable points at it"
    assert kept(desk, FIRST) == "a rollback of stable would go to it"
    desk.promote(THIRD)
    desk.clock.now += LATER
    assert kept(desk, FIRST) == ""
    assert kept(desk, SECOND) == "a rollback of stable would go to it"
    desk.promote(FIRST, "edge")
    desk.clock.now += LATER
    assert kept(desk, FIRST) == "edge points at it"


def test_a_tag_that_was_set_by_hand_is_a_pointer_too(desk: Desk) -> None:
    desk.machine("pve2", FIRST).config["tags"] += ";stable"
    assert (kept(desk, FIRST), kept(desk, FIRST, "pve2")) == ("", "stable points at it")


def test_what_is_unfinished_stays(desk: Desk) -> None:
    desk.promote(FIRST)
    desk.bench.proxmox.set_node_offline("pve2")
    with pytest.raises(GoldsmithError):
        desk.promote(SECOND)
    desk.clock.now += LATER
    assert kept(desk, SECOND) == "stable points at it"
    assert kept(desk, FIRST) == "stable points at it"
    assert "cannot be evaluated: node pve2 does not answer" in kept(desk, FIRST, "pve2")


def test_what_is_young_stays(desk: Desk) -> None:
    assert "it is younger than 9000 days" in kept(desk, FIRST, days=9000)
    # A clock that is wrong makes everything young.
    desk.clock = Clock(desk.clock.now - 20 * LATER)
    assert "it is younger than 30 days: published or moved 0 days ago" in kept(desk, FIRST)


def test_a_linked_clone_keeps_its_template(desk: Desk) -> None:
    make_clone(desk, "web1", linked=False)
    assert kept(desk, FIRST) == ""
    made = make_clone(desk, "web2", linked=True)
    assert kept(desk, FIRST) == f"linked clones read their disks from it: web2 (pve1/{made.machine.vmid})"


def test_a_linked_clone_by_other_means_keeps_it_too(desk: Desk) -> None:
    with client.Api(desk.bench.settings, OPERATOR) as api:
        vmid = desk.machine("pve1", FIRST).vmid
        api.wait(api.post(f"/nodes/pve1/qemu/{vmid}/clone", newid=300, name="byhand", full=0))
    assert "linked clones read their disks from it: byhand (pve1/300)" in kept(desk, FIRST)
    assert kept(desk, FIRST, "pve2") == ""
    desk.bench.proxmox.vm(300).config["tags"] = ""
    # Without Goldsmith's tags, the name of its volume shows it, where the storage has such names.
    volumes = desk.bench.proxmox.storages["local-lvm"]["volumes"]
    own = next(name for name in volumes if "vm-300-disk" in name)
    volumes[f"base-{vmid}-disk-1/{own}"] = volumes.pop(own)
    assert f"base-{vmid}-disk-1/vm-300-disk" in kept(desk, FIRST)


def test_a_clone_that_cannot_be_read_counts_as_linked(desk: Desk) -> None:
    made = make_clone(desk, "web1", linked=False)
    path = f"/nodes/pve1/qemu/{made.machine.vmid}/config"
    desk.bench.proxmox.fail("GET", path, 403, "Permission check failed (/vms/1, VM.Audit)")
    assert "linked clones" in kept(desk, FIRST)


def test_volumes_that_cannot_be_listed_stop_everything(desk: Desk) -> None:
    desk.bench.proxmox.fail("GET", "/storage/local-lvm/content", 403, "Permission check failed (/storage, Datastore.Audit)")
    with pytest.raises(GoldsmithError, match=r"Datastore\.Audit"):
        desk.prune(apply=True)
    assert len(templates(desk)) == 6


def test_a_revoked_version_stays_while_machines_of_it_are_left(desk: Desk) -> None:
    made = make_clone(desk, "web1", linked=False)
    desk.revoke(FIRST, "CVE-2026-9")
    desk.clock.now += LATER
    assert kept(desk, FIRST) == f"it is revoked, and still has clones: web1 (pve1/{made.machine.vmid})"
    desk.bench.proxmox.vms.remove(desk.bench.proxmox.vm(made.machine.vmid))
    assert kept(desk, FIRST) == ""


def test_the_record_of_a_revocation_outlives_its_template(desk: Desk) -> None:
    desk.revoke(FIRST, "CVE-2026-9")
    desk.clock.now += LATER
    desk.prune(apply=True)
    assert templates(desk) == on(THIRD)
    # Another machine that has no ledger still does not publish it.
    with pytest.raises(SpecError, match="is revoked: CVE-2026-9"):
        desk.publish(FIRST)
    desk.book.path.unlink()
    desk.do(rebuild.rebuild)
    with pytest.raises(SpecError, match="is revoked"):
        desk.bench.publish(desk.version(FIRST), book=desk.book)


def test_no_room_for_the_record(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.revoke(FIRST)
    desk.clock.now += LATER
    monkeypatch.setattr(mirror, "LONGEST", 1000)
    verdicts = desk.prune(apply=True)
    assert {one.problem for one in verdicts.values() if not one.keep} != {""}
    assert len(templates(desk)) == 6


def test_what_proxmox_refuses_is_protected_again_and_told(desk: Desk) -> None:
    vmid = desk.machine("pve2", FIRST).vmid
    desk.bench.proxmox.fail("DELETE", f"/nodes/pve2/qemu/{vmid}", 500, "base volume 'x' is still in use by linked cloned")
    verdicts = desk.prune(apply=True)
    [refused] = [one for one in verdicts.values() if one.problem]
    assert (refused.template.node, refused.removed) == ("pve2", False)
    assert "still in use by linked" in refused.problem
    assert int(desk.machine("pve2", FIRST).config["protection"]) == 1
    assert templates(desk) == sorted([*on(FIRST, "pve2"), *on(THIRD)])
    done = [one for one in desk.book.read().entries if one.version == FIRST][-1]
    assert "kept: Proxmox refused: base volume" in done.reason
    desk.bench.proxmox.failures.clear()
    desk.prune(apply=True)
    assert templates(desk) == on(THIRD)


def test_a_template_that_is_promoted_meanwhile_stays(desk: Desk) -> None:
    def promote_by_hand(request: object) -> None:
        if getattr(request, "method", "") == "PUT":
            config = desk.machine("pve1", FIRST).config
            if "stable" not in config["tags"]:
                config["tags"] += ";stable"

    desk.bench.proxmox.on_request = promote_by_hand
    verdicts = desk.prune(apply=True)
    assert "its tags were modified concurrently" in [one.problem for one in verdicts.values()]
    assert "pve1 golden-1.2.3" in templates(desk)


@pytest.mark.parametrize("version", ["8.4.1", "9.0.10"])
def test_the_rights_of_publisher_and_operator_are_enough(desk: Desk, version: str) -> None:
    desk.bench.proxmox.version = version
    for role, who in ((Role.PUBLISHER, TOKEN), (Role.OPERATOR, OPERATOR)):
        for grant in roles.grants(role, desk.bench.settings, major=int(version[0])):
            desk.bench.proxmox.entitle(who.identity, grant.path, *grant.privileges)
    made = make_clone(desk, "web1", linked=True)
    verdicts = desk.prune(apply=True)
    assert [one.problem for one in verdicts.values() if one.problem] == []
    # A machine may have moved since it was cloned: all nodes keep what it was made of.
    assert templates(desk) == sorted([*on(FIRST), *on(THIRD)])
    linked = [one.reason for one in verdicts.values() if one.keep and "linked" in one.reason]
    assert linked == [f"linked clones read their disks from it: web1 (pve1/{made.machine.vmid})"] * 2


def test_a_power_cut_after_every_change(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.promote(SECOND)
    desk.revoke(FIRST)
    desk.clock.now += LATER
    moment, volumes = Moment.of(desk), dict(desk.bench.proxmox.storages["local-lvm"]["volumes"])
    _, changes = calls_of(desk, lambda: desk.prune(apply=True))
    assert changes >= 7
    for at in range(1, changes + 1):
        moment.again()
        desk.bench.proxmox.storages["local-lvm"]["volumes"] = dict(volumes)
        with cut_after(monkeypatch, at), pytest.raises(PowerCut):
            desk.prune(apply=True)
        assert set(on(SECOND)) <= set(templates(desk))
        desk.prune(apply=True)
        assert templates(desk) == sorted([*on(SECOND), *on(THIRD)])
        assert all(one.changes == [] and one.problem == "" for one in desk.drift())
        with pytest.raises(SpecError, match="is revoked"):
            desk.publish(FIRST)


def test_a_node_that_is_down_keeps_its_templates(desk: Desk) -> None:
    desk.bench.proxmox.set_node_offline("pve2")
    desk.prune(apply=True)
    desk.bench.proxmox.set_node_offline("pve2", offline=False)
    assert templates(desk) == sorted([*on(FIRST, "pve2"), *on(SECOND, "pve2"), *on(THIRD)])
    desk.prune(apply=True)
    assert templates(desk) == on(THIRD)


def test_ten_thousand_guests_cost_no_more_calls(desk: Desk) -> None:
    desk.bench.proxmox.calls.clear()
    desk.prune()
    few = dict(desk.bench.proxmox.calls)
    for number in range(10_000):
        desk.bench.proxmox.add_vm(10_000 + number, f"guest-{number}", config={"tags": "golden-clone;v9.9.9"})
    desk.bench.proxmox.calls.clear()
    desk.prune()
    assert dict(desk.bench.proxmox.calls) == few
