"""Two hosts that create the same object at once, with seeded delays of every answer: one object, no leftovers."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any

import pytest

from build.clone import clone
from build.clone import machine as clone_machine
from build.core.errors import GoldsmithError, SpecError
from build.proxmox import claim, client, labels, roles, vms
from build.publish import heartbeat, publish
from build.spec.cluster import Role
from tests.contract.cloning import OPERATOR, Field, Guests
from tests.contract.conftest import TOKEN
from tests.contract.shipping import NAME, Bench, make_artifact
from tests.fakes.proxmox import Proxmox
from tests.patience import PATIENCE_SECONDS

SEEDS = range(6)
SCALE, JITTER_SECONDS = 0.02, 2.0


@pytest.fixture
def proxmox_class() -> type[Proxmox]:
    return Guests


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(client, "FIRST_WAIT_SECONDS", 0.02)


def at_once(proxmox: Proxmox, seed: int, work: Callable[[], Any]) -> list[Any]:
    """Do the work twice at the same time; every answer is late by chance. Return results, or errors in their place."""
    proxmox._random.seed(seed)
    proxmox.time_scale = SCALE
    proxmox.slow_network(0.1, JITTER_SECONDS)
    proxmox.durations |= {"qmcreate": 5.0, "qmclone": 5.0}

    def one(_number: int) -> Any:
        try:
            return work()
        except GoldsmithError as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        results = list(pool.map(one, range(2)))
    proxmox.slow_network(0.0)
    proxmox.time_scale = 0.0
    return results


@pytest.mark.parametrize("seed", SEEDS)
def test_two_operators_make_one_machine_of_one_name(field: Field, seed: int) -> None:
    for grant in roles.grants(Role.OPERATOR, field.bench.settings, major=9):
        field.proxmox.entitle(OPERATOR.identity, grant.path, *grant.privileges)
    results = at_once(field.proxmox, seed, lambda: field.clone(wait=False))
    made = [result for result in results if isinstance(result, clone.Made)]
    errors = [result for result in results if isinstance(result, GoldsmithError)]
    assert made, errors
    assert all(error.exit_code == 1 and "web1" in error.brief for error in errors), errors
    [machine] = [vm for vm in field.proxmox.vms if vm.name == "web1"]
    assert {result.machine.vmid for result in made} == {machine.vmid}
    assert sorted(vm.vmid for vm in field.proxmox.vms) == [machine.vmid, 9000]
    assert {volume["vmid"] for volume in field.proxmox.storages["local-lvm"]["volumes"].values()} == {machine.vmid, 9000}
    # The same words again: it is there.
    assert field.clone(wait=False).outcome is clone.Outcome.THERE


def test_a_machine_that_a_killed_run_began_is_not_made_twice(field: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its clone is not visible until it is complete, while the next run makes another one."""
    for grant in roles.grants(Role.OPERATOR, field.bench.settings, major=9):
        field.proxmox.entitle(OPERATOR.identity, grant.path, *grant.privileges)

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    # 8 s: on a loaded host the next run begins seconds later.
    field.proxmox.time_scale, field.proxmox.durations["qmclone"] = 0.01, 800.0
    with monkeypatch.context() as patch:
        patch.setattr(clone_machine, "_wait", killed)
        patch.setattr(vms.Undo, "run", lambda _self: [])
        with pytest.raises(KeyboardInterrupt):
            field.clone(wait=False)
    field.proxmox.durations["qmclone"] = 0.0
    with pytest.raises(claim.ConcurrentRun, match="web1"):
        field.clone(wait=False)
    assert sorted(vm.name for vm in field.proxmox.vms) == [NAME, "web1"]
    assert field.clone(wait=False).outcome is clone.Outcome.CONTINUED
    assert sorted(vm.name for vm in field.proxmox.vms) == [NAME, "web1"]


def test_a_name_that_stands_for_two_machines_is_told(field: Field) -> None:
    for vmid in (200, 201):
        field.proxmox.add_vm(vmid, "web1")
    with pytest.raises(SpecError, match="2 VMs are named web1: pve1/200, pve1/201"):
        field.clone(wait=False)


@pytest.fixture
def quick_beats(quick_polls: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(heartbeat, "WATCH_SECONDS", 1.0)
    monkeypatch.setattr(heartbeat, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(heartbeat, "LOOK_SECONDS", 0.2)
    monkeypatch.setattr(heartbeat, "TRY_SECONDS", 0.2)


@pytest.mark.usefixtures("quick_beats")
def test_a_publisher_that_verifies_is_not_disturbed(bench: Bench) -> None:
    """A second host begins while the first one tests its clones: the second stops, the first one finishes."""
    artifact = make_artifact(bench.place)
    verifying, refused = threading.Event(), threading.Event()

    def verify(_subject: publish.Subject) -> None:
        verifying.set()
        assert refused.wait(PATIENCE_SECONDS)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(bench.publish, artifact, verifier=verify)
        assert verifying.wait(PATIENCE_SECONDS)
        with pytest.raises(claim.ConcurrentRun, match="another host is publishing the same image") as caught:
            bench.publish(artifact)
        assert caught.value.exit_code == 1
        refused.set()
        [template] = first.result(30)
    [vm] = bench.proxmox.vms
    assert (vm.vmid, bool(vm.template), vm.config["protection"]) == (template.vmid, True, "1")
    label = labels.parse(vm.config["description"])
    assert label is not None
    assert (label.state, label.beat) == (labels.State.TEMPLATE, 0)
    assert bench.publish(artifact)[0].outcome is publish.Outcome.THERE


def slow_clone(bench: Bench, subject: publish.Subject, seconds: float) -> Callable[[], None]:
    """Begin to clone what is being published, as the verifier does; return what waits for the end of it."""
    bench.proxmox.time_scale, bench.proxmox.durations["qmclone"] = 0.01, seconds * 100
    bench.proxmox.apitokens[OPERATOR.identity] = OPERATOR.secret
    api = client.Api(bench.settings, OPERATOR)
    upid = api.post(
        f"/nodes/{subject.node}/qemu/{subject.vmid}/clone", newid=subject.ids.take(), full=1,
        pool=bench.settings.pool, name=subject.label.clone_name("a"),
    )  # fmt: skip

    def wait() -> None:
        with api:
            api.wait(upid)
        bench.proxmox.time_scale = 0.0

    return wait


@pytest.mark.usefixtures("quick_beats")
def test_a_publisher_whose_clone_takes_long_is_not_disturbed(bench: Bench) -> None:
    """No heartbeat can be written while the VM is cloned, and another token's task is not visible: the lock shows it."""
    artifact = make_artifact(bench.place)
    verifying, refused = threading.Event(), threading.Event()

    def verify(subject: publish.Subject) -> None:
        wait = slow_clone(bench, subject, 2.5)
        verifying.set()
        wait()
        assert refused.wait(PATIENCE_SECONDS)
        with client.Api(bench.settings, OPERATOR) as api:
            vms.remove(api, subject.node, subject.vmid + 1)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(bench.publish, artifact, verifier=verify)
        assert verifying.wait(PATIENCE_SECONDS)
        with pytest.raises(claim.ConcurrentRun, match="another host is publishing the same image"):
            bench.publish(artifact)
        refused.set()
        [template] = first.result(30)
    assert [(vm.vmid, bool(vm.template)) for vm in bench.proxmox.vms] == [(template.vmid, True)]


@pytest.mark.usefixtures("quick_beats")
def test_a_clone_that_ends_after_its_run_was_killed_is_removed_too(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proxmox adds a clone to its pool last: until then the next run cannot see it."""
    for grant in roles.grants(Role.PUBLISHER, bench.settings, major=9):
        bench.proxmox.entitle(TOKEN.identity, grant.path, *grant.privileges)
    for grant in roles.grants(Role.VERIFIER, bench.settings, major=9):
        bench.proxmox.entitle(OPERATOR.identity, grant.path, *grant.privileges)
    artifact = make_artifact(bench.place)
    waits = []

    def killed(subject: publish.Subject) -> None:
        waits.append(slow_clone(bench, subject, 1.5))
        raise KeyboardInterrupt

    monkeypatch.setattr(vms.Undo, "run", lambda _self: [])
    with pytest.raises(KeyboardInterrupt):
        bench.publish(artifact, verifier=killed)
    monkeypatch.undo()
    for name, seconds in (("BEAT_SECONDS", 0.1), ("WATCH_SECONDS", 0.5), ("TRY_SECONDS", 0.1), ("POLL_SECONDS", 0.05)):
        monkeypatch.setattr(heartbeat, name, seconds)
    assert len(bench.proxmox.vms) == 2
    [template] = bench.publish(artifact)
    waits[0]()
    assert [(vm.vmid, bool(vm.template)) for vm in bench.proxmox.vms] == [(template.vmid, True)]


@pytest.mark.usefixtures("quick_beats")
def test_a_vm_without_a_heartbeat_is_replaced(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The VM of a killed run is removed, even if a task was still working on it."""
    artifact = make_artifact(bench.place)

    def killed(_subject: publish.Subject) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(vms.Undo, "run", lambda _self: [])
    with pytest.raises(KeyboardInterrupt):
        bench.publish(artifact, verifier=killed)
    monkeypatch.undo()
    [left] = bench.proxmox.vms
    monkeypatch.setattr(heartbeat, "WATCH_SECONDS", 0.3)
    [template] = bench.publish(artifact)
    assert template.outcome is publish.Outcome.PUBLISHED
    [vm] = bench.proxmox.vms
    assert (bool(vm.template), left.config["description"] == vm.config["description"]) == (True, False)


def test_releases_that_know_no_heartbeat_read_a_finished_label(bench: Bench) -> None:
    bench.publish()
    [vm] = bench.proxmox.vms
    assert '"beat"' not in vm.config["description"]


@pytest.mark.parametrize("seed", SEEDS)
def test_two_publishers_never_make_two_templates(bench: Bench, seed: int) -> None:
    for grant in roles.grants(Role.PUBLISHER, bench.settings, major=9):
        bench.proxmox.entitle(TOKEN.identity, grant.path, *grant.privileges)
    artifact = make_artifact(bench.place)
    at_once(bench.proxmox, seed, lambda: bench.publish(artifact))
    assert len([vm for vm in bench.proxmox.vms if vm.template]) <= 1
    # Whatever became of both: once more, alone, and it is there, with nothing left over.
    bench.publish(artifact)
    assert [(vm.name, bool(vm.template), vm.config["protection"]) for vm in bench.proxmox.vms] == [(NAME, True, "1")]
    assert bench.proxmox.media == {}
