"""Concurrent runs that create the same object: random orders of their steps, by seeds, on a model of the cluster."""

from __future__ import annotations

import random
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import pytest

from build.core.errors import StepFailed
from build.proxmox import claim

NAME, TAG = "web1", "golden-clone"


@dataclass
class Cluster:
    """Guests by number. A run is a generator: each step is one call that the cluster answers at once."""

    guests: dict[int, dict[str, Any]] = field(default_factory=dict)
    outcomes: dict[int, str] = field(default_factory=dict)

    def run(self, vmid: int) -> Generator[None, None, None]:
        self.guests[vmid] = {"vmid": vmid, "name": NAME, "tags": "golden;v1.2.3"}
        yield
        while True:
            # A look that waits is one step, and the next look another.
            try:
                claim.require(NAME, vmid, TAG, lambda: list(self.guests.values()), wait=self._next_step)
            except claim.ConcurrentRun:
                yield
                del self.guests[vmid]
                self.outcomes[vmid] = "gave up"
                return
            except _Again:
                yield
                continue
            break
        yield
        self.guests[vmid]["tags"] = TAG
        self.outcomes[vmid] = "won"

    @staticmethod
    def _next_step(_seconds: float) -> None:
        raise _Again


class _Again(Exception):
    """The run waits: others take their steps."""


@pytest.mark.parametrize("runs", [2, 3, 5])
def test_exactly_one_wins_in_whatever_order_the_steps_come(runs: int) -> None:
    for seed in range(2000):
        chance, cluster = random.Random(seed), Cluster()
        numbers = chance.sample(range(100, 200), runs)
        going = [cluster.run(vmid) for vmid in numbers]
        for _ in range(1000):
            if not going:
                break
            step = chance.choice(going)
            if next(step, StopIteration) is StopIteration:
                going.remove(step)
        assert not going, f"seed {seed}: a run neither wins nor gives up"
        assert sorted(cluster.outcomes.values()) == ["gave up"] * (runs - 1) + ["won"], f"seed {seed}"
        [winner] = cluster.guests
        assert cluster.outcomes[winner] == "won"


def test_a_rival_that_died_is_named_when_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "WAIT_SECONDS", 0.0)
    rival = {"vmid": 101, "name": NAME, "tags": ""}
    with pytest.raises(StepFailed, match="VM 101") as caught:
        claim.require(NAME, 100, TAG, lambda: [rival, {"vmid": 100, "name": NAME}], wait=lambda _seconds: None)
    assert not isinstance(caught.value, claim.ConcurrentRun)
    assert "qm destroy 101" in caught.value.hint
