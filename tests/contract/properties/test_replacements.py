"""Two concurrent replacements of one machine: one system serves, with the data; the same command finishes a killed run."""

from __future__ import annotations

import pytest
from hypothesis import given

from build.replace import record as records
from build.replace import replace as replacing
from tests.contract.cloning import Field
from tests.contract.interleaving import End, Fault, Scene, both, ending, faults, runs, searching
from tests.contract.replacing import NEWER, Ground, Machines, prepare
from tests.fakes.proxmox import Proxmox

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_no_patience")]
CALLS = 76
FAULTS = ("lost", "refused", "killed", "interrupted")


@pytest.fixture
def proxmox_class() -> type[Proxmox]:
    return Machines


@pytest.fixture
def ground(field: Field) -> Ground:
    return prepare(field)


def require_sound(ground: Ground) -> None:
    """Check what holds at every moment."""
    assert not ground.proxmox.clashes
    assert len(ground.data_on()) == 1
    assert ground.disk()["posts"] == 7
    assert len(ground.running()) <= 1, ground.running()


def finish(ground: Ground) -> End:
    """Run the command again until it succeeds: a run that was cut while it rolled back is rolled back first."""
    end = End()
    for _ in range(3):
        end = ending(ground.replace)
        if end.error is None:
            break
        assert isinstance(end.error, replacing.RolledBack), end.error
    assert end.error is None, end.error
    return end


def test_two_replacements(ground: Ground) -> None:
    scene = Scene(ground.proxmox)

    @searching
    @given(runs(), faults(CALLS, *FAULTS))
    def holds(order: list[int], fault: dict[int, Fault]) -> None:
        scene.again()
        ends = both(ground.replace, ground.replace, order, fault)
        assert all(end.code in (None, 0, 1, 2, 130) for end in ends), [end.error for end in ends]
        require_sound(ground)
        if not fault:
            assert any(end.error is None for end in ends), [end.error for end in ends]
        end = finish(ground)
        require_sound(ground)
        [(vmid, name)] = ground.running()
        assert (name, ground.data_on()) == ("web1", [vmid])
        assert "v1.3.0" in ground.proxmox.vm(vmid).config["tags"]
        assert end.result.template == NEWER
        others = [vm for vm in ground.proxmox.vms if not vm.template and vm.vmid != vmid]
        assert [vm.vmid for vm in others] == [ground.old], [(vm.vmid, vm.name) for vm in others]
        kept = records.parse(others[0].config["description"])
        assert kept is not None
        assert kept.phase is records.Phase.KEPT

    holds()
