"""Faults of releases: a power cut at every call, two at once at every call, nodes down, rights, manual changes."""

from __future__ import annotations

import copy
import dataclasses
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from build.core.errors import GoldsmithError, SpecError, StepFailed
from build.proxmox import client
from build.release import channels, rebuild
from build.release import state as release_state
from build.release.ledger import LedgerError
from build.release.operation import Outcome
from tests.contract.releasing import FIRST, SECOND, THIRD, Desk, on
from tests.contract.shipping import Bench


class PowerCut(BaseException):
    """The process was killed: no code of Goldsmith catches it."""


@pytest.fixture
def desk(bench: Bench) -> Desk:
    """Two nodes with versions 1.2.3, 1.3.0 and 1.4.0; stable points at 1.2.3."""
    bench.with_nodes("pve1", "pve2")
    made = Desk(bench)
    made.publish(FIRST, SECOND, THIRD)
    made.promote(FIRST)
    return made


@dataclasses.dataclass
class Moment:
    """The cluster and the ledger as they were."""

    desk: Desk
    machines: list[tuple[Any, dict[str, Any]]]
    ledger: bytes

    @classmethod
    def of(cls, desk: Desk) -> Moment:
        machines = [(vm, copy.deepcopy(vm.config)) for vm in desk.bench.proxmox.vms]
        return cls(desk, machines, desk.book.path.read_bytes())

    def again(self) -> None:
        self.desk.bench.proxmox.vms[:] = [vm for vm, _ in self.machines]
        for vm, config in self.machines:
            vm.config, vm.lock = copy.deepcopy(config), None
        self.desk.book.path.write_bytes(self.ledger)
        self.desk.book.withdraw()


@contextmanager
def every_call(
    monkeypatch: pytest.MonkeyPatch, before: Callable[[str], None], after: Callable[[str], None] = lambda _method: None
) -> Iterator[None]:
    """Do something before and after each call to the API, whatever thread makes it."""
    call = client.Api._call

    def watched(self: client.Api, method: str, *arguments: Any, **named: Any) -> Any:
        before(method)
        answer = call(self, method, *arguments, **named)
        after(method)
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(client.Api, "_call", watched)
        yield


@contextmanager
def cut_before(monkeypatch: pytest.MonkeyPatch, at: int) -> Iterator[None]:
    """Cut the power before a call is sent; no call of any thread is sent after that."""
    count, lock = [0], threading.Lock()

    def tick(_method: str) -> None:
        with lock:
            count[0] += 1
            if count[0] >= at:
                raise PowerCut

    with every_call(monkeypatch, tick):
        yield


@contextmanager
def cut_after(monkeypatch: pytest.MonkeyPatch, at: int) -> Iterator[None]:
    """Cut the power when a change was carried out, before the answer is read; nothing is sent after that."""
    count, lock = [0], threading.Lock()

    def alive(_method: str) -> None:
        with lock:
            if count[0] >= at:
                raise PowerCut

    def tick(method: str) -> None:
        with lock:
            count[0] += method != "get"
        alive(method)

    with every_call(monkeypatch, alive, tick):
        yield


def calls_of(desk: Desk, work: Callable[[], object]) -> tuple[int, int]:
    """Return how many calls some work makes, and how many of them change something."""
    desk.bench.proxmox.calls.clear()
    work()
    calls = desk.bench.proxmox.calls
    return calls.total(), sum(count for (method, _), count in calls.items() if method != "GET")


def require_consistent(desk: Desk, version: str) -> None:
    """Check that pointer, ledger and mirror agree."""
    assert desk.tagged("stable") == on(version)
    ledger = desk.book.read()
    state = release_state.fold(ledger.entries)
    assert (state.current("stable").version, state.open) == (version, {})
    assert desk.book.proposed() is None
    told = desk.drift()
    assert [(one.changes, one.problem) for one in told] == [([], "")] * len(told)
    with client.Api(desk.bench.settings, desk.bench.token) as api:
        mirrored = channels.mirrored(channels.look(api, "golden"))
    channels.require_up_to_date(ledger, mirrored, "here")
    assert mirrored[-1].number == ledger.head


def require_visible(desk: Desk) -> None:
    """Check that every reader finds a version, and that drift reports an unfinished change, with and without the ledger."""
    assert {one.split()[0] for one in desk.tagged("stable")} == {"pve1", "pve2"}
    desk.book.read()
    if desk.tagged("stable") not in (on(FIRST), on(SECOND)):
        for ledger in (True, False):
            assert any(one.changes or one.problem for one in desk.drift(ledger=ledger))


@pytest.mark.slow
def test_a_power_cut_before_every_call_of_a_promotion(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    moment = Moment.of(desk)
    calls, _ = calls_of(desk, lambda: desk.promote(SECOND))
    assert calls > 20
    for at in range(1, calls + 1):
        moment.again()
        with cut_before(monkeypatch, at), pytest.raises(PowerCut):
            desk.promote(SECOND)
        require_visible(desk)
        desk.promote(SECOND)
        require_consistent(desk, SECOND)
        assert desk.book.read().head == 4


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["the same again", "rollback", "on another machine"])
def test_a_power_cut_after_every_change_of_a_promotion(desk: Desk, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    moment = Moment.of(desk)
    _, changes = calls_of(desk, lambda: desk.promote(SECOND))
    assert changes > 6
    # The other machine had the ledger as it was before.
    moment.again()
    other = desk.another("there", "Joe <joe@example.org>")
    before, partial = other.book.path.read_bytes(), 0
    for at in range(1, changes + 1):
        moment.again()
        with cut_after(monkeypatch, at), pytest.raises(PowerCut):
            desk.promote(SECOND)
        require_visible(desk)
        partial += desk.tagged("stable") not in (on(FIRST), on(SECOND))
        if ending == "the same again":
            desk.promote(SECOND)
            require_consistent(desk, SECOND)
            assert desk.book.read().head == 4
        elif ending == "rollback":
            desk.rollback()
            require_consistent(desk, FIRST)
        else:
            other.book.path.write_bytes(before)
            other.do(rebuild.rebuild)
            other.promote(SECOND)
            require_consistent(other, SECOND)
    # Several cuts have left something half done, or the loop has shown nothing.
    assert partial >= 2


def test_a_power_cut_after_every_change_of_a_revocation(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    moment = Moment.of(desk)
    _, changes = calls_of(desk, lambda: desk.revoke(SECOND))
    for at in range(1, changes + 1):
        moment.again()
        with cut_after(monkeypatch, at), pytest.raises(PowerCut):
            desk.revoke(SECOND)
        desk.revoke(SECOND)
        assert desk.tagged("revoked") == on(SECOND)
        require_consistent(desk, FIRST)


def test_a_cut_between_the_ledger_and_the_note_beside_it(desk: Desk) -> None:
    """The entry is in the ledger, and still proposed: it is not added twice."""
    last = desk.book.read().entries[-1]
    desk.book.propose(last)
    desk.promote(SECOND)
    require_consistent(desk, SECOND)
    assert desk.book.read().head == 4


# --- two at once ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("theirs", [THIRD, SECOND], ids=["another version", "the same version"])
def test_two_machines_promote_at_once(desk: Desk, monkeypatch: pytest.MonkeyPatch, theirs: str) -> None:
    """During one promotion the other runs completely, between any two calls: one succeeds, and the other reports it."""
    moment = Moment.of(desk)
    calls, _ = calls_of(desk, lambda: desk.promote(SECOND))
    moment.again()
    other = desk.another("there", "Joe <joe@example.org>")
    before = other.book.path.read_bytes()
    winners = []
    for at in range(1, calls + 1):
        moment.again()
        other.book.path.write_bytes(before)
        other.book.withdraw()
        results = at_once(desk, other, monkeypatch, at, theirs)
        winners.append(tuple(isinstance(one, GoldsmithError) for one in results))
        told = [one for one in results if isinstance(one, GoldsmithError)]
        if len(told) == 1:
            assert "Jane" in told[0].render() or "Joe" in told[0].render(), told[0].render()
            winner, version = (other, theirs) if winners[-1][0] else (desk, SECOND)
            require_consistent(winner, version)
        else:
            # Both have won only one after the other: the first was done, or the same was asked for twice.
            assert theirs == SECOND or at == calls
    assert {(True, False), (False, True)} <= set(winners)
    assert (True, True) not in winners


def at_once(desk: Desk, other: Desk, monkeypatch: pytest.MonkeyPatch, at: int, theirs: str) -> list[object]:
    """Return what became of both: a report, or an error."""
    turn, lock = iter(range(1, at + 1)), threading.Lock()
    results: list[object] = [None, None]

    def interrupt(_method: str) -> None:
        # Calls beyond that one are the other's own, or come after it.
        with lock:
            now = next(turn, None) == at
        if now:
            results[1] = outcome(lambda: other.promote(theirs))

    with every_call(monkeypatch, interrupt):
        results[0] = outcome(lambda: desk.promote(SECOND))
    return results


def outcome(work: Callable[[], object]) -> object:
    try:
        return work()
    except GoldsmithError as error:
        return error


def test_two_promotions_on_one_host_wait_for_each_other(desk: Desk) -> None:
    results: dict[str, object] = {}

    def one(version: str) -> None:
        results[version] = outcome(lambda: desk.promote(version))

    threads = [threading.Thread(target=one, args=(version,)) for version in (SECOND, THIRD)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not [one for one in results.values() if isinstance(one, GoldsmithError)]
    last = desk.book.read().entries[-1]
    assert {one.version for one in desk.book.read().entries[2:]} == {SECOND, THIRD}
    require_consistent(desk, last.version)


def test_another_channel_of_another_machine_goes_in_between(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """It writes to the ledger while this host moves tags: this host's entries follow, and nothing is lost."""
    desk.policy = dataclasses.replace(desk.policy, channels=("stable", "edge"))
    other = desk.another("there", "Joe <joe@example.org>")
    turns, begun = threading.Lock(), threading.Event()
    done: list[object] = []

    def interrupt(_method: str) -> None:
        with turns:
            if begun.is_set() or desk.tagged("stable") == on(FIRST):
                return
            begun.set()
        other.do(rebuild.rebuild)
        done.append(outcome(lambda: other.promote(THIRD, "edge")))

    with every_call(monkeypatch, interrupt):
        desk.promote(SECOND)
    assert [isinstance(one, GoldsmithError) for one in done] == [False]
    require_consistent(desk, SECOND)
    assert desk.tagged("edge") == on(THIRD)
    assert [one.channel for one in desk.book.read().entries] == ["stable", "stable", "stable", "edge", "edge", "stable"]


# --- nodes that are down, and what is missing -------------------------------------------------------------------------


@pytest.mark.parametrize("down", ["pve1", "pve2"])
def test_a_node_that_is_down(desk: Desk, down: str) -> None:
    up = {"pve1": "pve2", "pve2": "pve1"}[down]
    desk.bench.proxmox.set_node_offline(down)
    with pytest.raises(StepFailed, match=rf"promote of 1\.3\.0 in stable is not finished: missing is {down}") as caught:
        desk.promote(SECOND)
    assert caught.value.exit_code == 1
    assert "run the same command again" in caught.value.hint
    assert desk.tagged("stable") == sorted([*on(FIRST, down), *on(SECOND, up)])
    state = release_state.fold(desk.book.read().entries)
    assert state.open["stable"].version == SECOND
    assert any("not finished" in note for one in desk.drift() for note in one.notes)
    desk.bench.proxmox.set_node_offline(down, offline=False)
    assert [(one.name, len(one.changes)) for one in desk.drift() if one.changes] == [
        (f"golden-{version}", 1) for version in (FIRST, SECOND)
    ]
    assert desk.promote(SECOND).outcome is Outcome.FINISHED
    require_consistent(desk, SECOND)


def test_a_promotion_that_a_node_holds_up_is_taken_back(desk: Desk) -> None:
    desk.bench.proxmox.set_node_offline("pve2")
    with pytest.raises(StepFailed):
        desk.promote(SECOND)
    with pytest.raises(SpecError, match=r"promote of 1\.3\.0 that Jane .* is not finished") as caught:
        desk.promote(THIRD)
    assert "nox -s promote -- 1.3.0 stable" in caught.value.hint
    desk.bench.proxmox.set_node_offline("pve2", offline=False)
    assert desk.rollback().subject.version == FIRST
    require_consistent(desk, FIRST)


def test_a_node_that_never_comes_back_is_taken_out_of_golden_yaml(desk: Desk) -> None:
    desk.bench.proxmox.set_node_offline("pve2")
    with pytest.raises(StepFailed):
        desk.promote(SECOND)
    desk.bench.settings = dataclasses.replace(desk.bench.settings, nodes=("pve1",))
    assert desk.promote(SECOND).outcome is Outcome.FINISHED
    assert desk.tagged("stable") == sorted([*on(SECOND, "pve1"), *on(FIRST, "pve2")])
    assert release_state.fold(desk.book.read().entries).open == {}


def test_no_node_at_all(desk: Desk) -> None:
    for node in ("pve1", "pve2"):
        desk.bench.proxmox.set_node_offline(node)
    before = desk.book.path.read_bytes()
    with pytest.raises(StepFailed, match=r"no template of 1\.3\.0 can be read"):
        desk.promote(SECOND)
    assert desk.book.path.read_bytes() == before
    for node in ("pve1", "pve2"):
        desk.bench.proxmox.set_node_offline(node, offline=False)
    desk.promote(SECOND)
    require_consistent(desk, SECOND)


def test_a_template_that_was_deleted_by_hand(desk: Desk) -> None:
    desk.promote(SECOND)
    desk.bench.proxmox.vms.remove(desk.machine("pve2", FIRST))
    with pytest.raises(SpecError, match="is not published on pve2") as caught:
        desk.rollback()
    assert "removed by hand" in caught.value.details
    assert "nox -s publish" in caught.value.hint
    # Others go on.
    desk.promote(THIRD)
    require_consistent(desk, THIRD)
    desk.bench.proxmox.vms.remove(desk.machine("pve1", THIRD))
    desk.bench.proxmox.vms.remove(desk.machine("pve2", THIRD))
    notes = [note for one in desk.drift() for note in one.notes]
    assert any("stable points at 1.4.0, which has no template on pve1, pve2" in note for note in notes)
    desk.promote(SECOND)
    require_consistent(desk, SECOND)


def test_a_template_that_is_deleted_meanwhile(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    gone: list[object] = []
    turns = threading.Lock()

    def delete(_method: str) -> None:
        with turns:
            if not gone and desk.tagged("stable") == on(FIRST) and desk.book.read().head == 3:
                gone.append(desk.machine("pve2", SECOND))
                desk.bench.proxmox.vms.remove(gone[0])

    with every_call(monkeypatch, delete), pytest.raises(StepFailed, match="missing is pve2"):
        desk.promote(SECOND)
    assert gone
    assert {one.split()[0] for one in desk.tagged("stable")} == {"pve1", "pve2"}
    desk.bench.publish(desk.version(SECOND))
    assert desk.promote(SECOND).outcome is Outcome.FINISHED
    require_consistent(desk, SECOND)


# --- rights, tickets, the network -------------------------------------------------------------------------------------


def refused(desk: Desk, status: int, text: str) -> None:
    path = f"/nodes/pve2/qemu/{desk.machine('pve2', SECOND).vmid}/config"
    desk.bench.proxmox.fail("PUT", path, status, text)


@pytest.mark.parametrize(
    ("status", "text", "words"),
    [
        (403, "Permission check failed (/vms/9001, VM.Config.Options)", "VM.Config.Options on /vms/9001"),
        (500, "VM is locked (backup)", "VM is locked"), (500, "cluster not ready - no quorum?", "no quorum"),
    ],
)  # fmt: skip
def test_a_change_that_is_refused(desk: Desk, status: int, text: str, words: str) -> None:
    refused(desk, status, text)
    with pytest.raises(StepFailed, match="missing is pve2") as caught:
        desk.promote(SECOND)
    assert words in caught.value.details
    # The old one keeps the tag everywhere: what is refused on one node may be refused on all.
    assert set(on(FIRST)) <= set(desk.tagged("stable"))
    desk.bench.proxmox.failures.clear()
    desk.promote(SECOND)
    require_consistent(desk, SECOND)


def test_a_ticket_that_expires_meanwhile(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = dict(desk.bench.proxmox.apitokens)

    def expire(_method: str) -> None:
        if desk.book.read().head == 3:
            desk.bench.proxmox.apitokens.clear()

    with every_call(monkeypatch, expire), pytest.raises(GoldsmithError, match="does not accept the token"):
        desk.promote(SECOND)
    desk.bench.proxmox.apitokens.update(tokens)
    assert set(on(FIRST)) <= set(desk.tagged("stable"))
    desk.promote(SECOND)
    require_consistent(desk, SECOND)


def test_answers_that_are_lost(desk: Desk) -> None:
    for vm in desk.bench.proxmox.vms:
        desk.bench.proxmox.lost_answers.add(("PUT", f"/nodes/{vm.node}/qemu/{vm.vmid}/config"))
    desk.promote(SECOND)
    require_consistent(desk, SECOND)
    assert desk.book.read().head == 4


def test_somebody_changes_a_template_meanwhile(desk: Desk) -> None:
    """The other user's change is kept, and the promotion's own change is computed again."""
    config, turns = desk.machine("pve1", SECOND).config, [2]

    def meddle(request: Any) -> None:
        if request.method == "PUT" and turns[0]:
            turns[0] -= 1
            config["tags"] += f";theirs{turns[0]}"

    desk.bench.proxmox.on_request = meddle
    desk.promote(SECOND)
    assert {"stable", "theirs0", "theirs1"} <= set(str(config["tags"]).split(";"))


@pytest.mark.parametrize(
    "words",
    [
        "checksum missmatch (file change by other user?)", "checksum mismatch (file change by other user?)",
        "detected modified configuration - file changed by other user? Try again.",
    ],
)  # fmt: skip
def test_every_wording_of_proxmox_for_a_digest_that_does_not_match(desk: Desk, words: str) -> None:
    path = f"/nodes/pve2/qemu/{desk.machine('pve2', SECOND).vmid}/config"
    desk.bench.proxmox.fail("PUT", path, 500, words, times=2)
    desk.promote(SECOND)
    require_consistent(desk, SECOND)


def test_a_ledger_that_was_edited_stops_everything(desk: Desk) -> None:
    desk.book.path.write_text(desk.book.path.read_text().replace("Jane", "Joe"))
    before = desk.bench.proxmox.inventory()
    for work in (
        lambda: desk.promote(SECOND), desk.rollback, lambda: desk.revoke(SECOND), lambda: desk.restore(SECOND), desk.prune,
        lambda: desk.bench.publish(desk.version(SECOND), book=desk.book),
    ):  # fmt: skip
        with pytest.raises(LedgerError, match="was modified or is damaged") as caught:
            work()
        assert "line 1: it was modified" in caught.value.details
    assert desk.bench.proxmox.inventory() == before
