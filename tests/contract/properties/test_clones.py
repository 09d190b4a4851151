"""Two concurrent commands of operators, in any order of their calls, with a fault at any call: one VM, no leftovers."""

from __future__ import annotations

import pytest
from hypothesis import example, given

from build.core.errors import GoldsmithError
from build.drift import drift
from build.proxmox import client, roles
from build.proxmox.labels import CloneState, parse_clone
from build.spec.cluster import Role
from tests.contract.cloning import OPERATOR, Field, Guests
from tests.contract.interleaving import Fault, Scene, both, ending, faults, runs, searching
from tests.contract.shipping import NAME
from tests.fakes.proxmox import Proxmox

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_no_patience")]
# The calls that a clone makes with this request, and a few more.
CALLS = 30
FAULTS = ("lost", "refused", "killed", "interrupted")


@pytest.fixture
def proxmox_class() -> type[Proxmox]:
    return Guests


@pytest.fixture
def scene(field: Field) -> Scene:
    for grant in roles.grants(Role.OPERATOR, field.bench.settings, major=9):
        field.proxmox.entitle(OPERATOR.identity, grant.path, *grant.privileges)
    return Scene(field.proxmox)


def require_one_machine(field: Field) -> None:
    """Check that there is the template, one finished machine, and nothing else."""
    assert sorted(vm.name for vm in field.proxmox.vms) == [NAME, "web1"]
    [vm] = [vm for vm in field.proxmox.vms if vm.name == "web1"]
    label = parse_clone(vm.config["description"])
    assert label is not None
    assert label.state is CloneState.MADE
    assert (vm.status, vm.lock) == ("running", None)
    volumes = field.proxmox.storages["local-lvm"]["volumes"]
    assert {volume["vmid"] for volume in volumes.values()} == {vm.vmid, 9000}
    assert len([volume for volume in volumes.values() if volume["vmid"] == vm.vmid]) == 3
    assert field.proxmox.pools["golden-clones"] == {vm.vmid}


def finish(field: Field) -> None:
    """Run the command again until it succeeds: at most twice, because the first may yield to the clone of a killed run."""
    end = ending(lambda: field.clone(wait=False))
    if isinstance(end.error, GoldsmithError):
        assert end.code == 1, end.error.render()
        end = ending(lambda: field.clone(wait=False))
    assert end.error is None, end.error


def test_two_clones_of_one_name(field: Field, scene: Scene) -> None:
    @searching
    @example([19, 9], {0: Fault("refused", 15)})
    @example([1, 4], {0: Fault("refused", 11)})
    @given(runs(), faults(CALLS, *FAULTS))
    def holds(order: list[int], fault: dict[int, Fault]) -> None:
        scene.again()
        ends = both(lambda: field.clone(wait=False), lambda: field.clone(wait=False), order, fault)
        made = {end.result.machine.vmid for end in ends if end.error is None}
        assert len(made) <= 1, made
        assert all(end.code in (None, 0, 1, 130) for end in ends), [end.error for end in ends]
        if not fault:
            assert made, [end.error for end in ends]
            assert all("web1" in str(end.error) for end in ends if end.error), [end.error for end in ends]
        if made:
            assert {vm.vmid for vm in field.proxmox.vms if vm.name == "web1"} >= made
        finish(field)
        require_one_machine(field)

    holds()


def test_a_clone_beside_drift(field: Field, scene: Scene) -> None:
    def look() -> list[drift.TemplateReport]:
        with client.Api(field.bench.settings, OPERATOR) as api:
            artifacts = field.bench.place / "artifacts"
            return drift.drift(drift.Job(api=api, settings=field.bench.settings, product="golden", artifacts=artifacts))

    @searching
    @given(runs(), faults(CALLS, *FAULTS))
    def holds(order: list[int], fault: dict[int, Fault]) -> None:
        scene.again()
        cloned, looked = both(lambda: field.clone(wait=False), look, order, fault)
        if 0 not in fault:
            assert cloned.error is None, cloned.error
        if 1 not in fault:
            assert looked.error is None, looked.error
            assert all("cloned by other means" not in note for report in looked.result for note in report.notes)
            templates = [report for report in looked.result if report.is_template]
            assert [(report.name, report.changes, report.problem) for report in templates] == [(NAME, [], "")]
        finish(field)
        require_one_machine(field)

    holds()
