"""Two concurrent promotions, on two hosts with a ledger each: the channel has one version, and the ledgers agree."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from build.core.errors import GoldsmithError
from build.release import rebuild
from build.release import state as release_state
from tests.contract.interleaving import Fault, Scene, both, ending, faults, runs, searching
from tests.contract.releasing import FIRST, SECOND, THIRD, Desk, on
from tests.contract.shipping import Bench

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_no_patience")]
# The calls that a promotion makes on two nodes, and a few more.
CALLS = 40
FAULTS = ("lost", "refused", "killed", "interrupted")
CODES = (None, 0, 1, 3, 130)


@pytest.fixture
def desk(bench: Bench) -> Desk:
    bench.with_nodes("pve1", "pve2")
    made = Desk(bench)
    made.publish(FIRST, SECOND, THIRD)
    made.promote(FIRST)
    return made


def test_two_promotions(desk: Desk) -> None:
    other = desk.another("there", "Joe <joe@example.org>")
    scene, ledger = Scene(desk.bench.proxmox), desk.book.path.read_bytes()

    @searching
    @given(runs(), st.sampled_from([SECOND, THIRD]), faults(CALLS, *FAULTS))
    def holds(order: list[int], theirs: str, fault: dict[int, Fault]) -> None:
        scene.again()
        for one in (desk, other):
            one.book.path.write_bytes(ledger)
            one.book.withdraw()
        ends = both(lambda: desk.promote(SECOND), lambda: other.promote(theirs), order, fault)
        assert all(end.code in CODES for end in ends), [end.error for end in ends]
        if not fault:
            assert any(end.error is None for end in ends), [end.error for end in ends]
        goal = complete(desk, SECOND)
        assert desk.tagged("stable") == on(goal)
        for one in (desk, other):
            one.do(rebuild.rebuild)
            entries = one.book.read().entries
            state = release_state.fold(entries)
            assert (state.current("stable").version, state.open) == (goal, {}), [entry.version for entry in entries]
        assert desk.book.read().entries[-1].hash == other.book.read().entries[-1].hash
        assert all(vm.lock is None for vm in desk.bench.proxmox.vms)

    holds()


def complete(desk: Desk, version: str) -> str:
    """Follow the messages until nothing is unfinished; return the version that the channel points at."""
    text: Any = ""
    for _ in range(4):
        end = ending(lambda goal=version: desk.promote(goal))  # type: ignore[misc]
        if end.error is None:
            return version
        assert isinstance(end.error, GoldsmithError), end.error
        text = end.error.render()
        if "--rebuild" in text:
            desk.do(rebuild.rebuild)
        else:
            # The other host's promotion is not finished: the command in the message finishes it.
            assert THIRD in text, text
            version = THIRD
    pytest.fail(f"{version} cannot be promoted: {text}")
