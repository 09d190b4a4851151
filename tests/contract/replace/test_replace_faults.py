"""Replacements with a fault at every call: killed, interrupted, refused, or with a lost answer.

After each: no two machines ran with one address, the data disk is on one VM with its content, and either the old or the
new system serves. After a kill the same command finishes it, or ``--undo`` rolls it back.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import pytest

from build.clone import machine
from build.core.errors import GoldsmithError
from build.proxmox import client, vms
from build.replace import record as records
from build.replace import replace as replacing
from build.replace import switch
from tests.contract.cloning import OPERATOR, Field
from tests.contract.interleaving import EXAMPLES
from tests.contract.replacing import NEWER, Ground, Machines, prepare
from tests.fakes.proxmox import Proxmox


class Killed(BaseException):
    """The process was killed: none of its code runs afterwards."""


@pytest.fixture
def proxmox_class() -> type[Proxmox]:
    return Machines


@pytest.fixture
def ground(field: Field, monkeypatch: pytest.MonkeyPatch) -> Ground:
    monkeypatch.setattr(machine, "STARTED_SECONDS", 1.0)
    monkeypatch.setattr(switch, "SHUTDOWN_SECONDS", 2)
    monkeypatch.setattr(client, "READ_ATTEMPTS", 1)
    return prepare(field)


def require_sound(ground: Ground) -> None:
    """Check what is true after every interruption."""
    assert not ground.proxmox.clashes
    assert len(ground.data_on()) == 1
    assert ground.disk()["posts"] == 7


def require_served(ground: Ground) -> None:
    """Check that one machine of the name runs, with the data disk, and that nothing is under way."""
    require_sound(ground)
    running = ground.running()
    assert [name for _, name in running] == ["web1"]
    assert ground.data_on() == [running[0][0]]
    for vm in ground.proxmox.vms:
        found = records.parse(str(vm.config.get("description", "")))
        assert found is None or found.phase is records.Phase.KEPT
        assert not str(vm.name).endswith("-new")


def calls_of(ground: Ground, work: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> int:
    """Return the number of calls that change something, when nothing goes wrong."""
    seen = []
    real = client.Api._call

    def count(self: client.Api, method: str, path: str, parameters: Any, *, api: Any = None) -> Any:
        seen.append((method, path))
        return real(self, method, path, parameters, api=api)

    with monkeypatch.context() as patch:
        patch.setattr(client.Api, "_call", count)
        work()
    return len(seen)


def cut(monkeypatch: pytest.MonkeyPatch, at: int, error: Callable[[], BaseException], *, after: bool, dead: bool) -> None:
    """Raise ``error`` at the call with this number, before it or after Proxmox did it; ``dead``: at each later call too."""
    real, count, guard = client.Api._call, [0], threading.Lock()

    def call(self: client.Api, method: str, path: str, parameters: Any, *, api: Any = None) -> Any:
        with guard:
            count[0] += 1
            number = count[0]
        if number == at and after:
            real(self, method, path, parameters, api=api)
        if number == at or (dead and number > at):
            raise error()
        return real(self, method, path, parameters, api=api)

    monkeypatch.setattr(client.Api, "_call", call)


def lost() -> BaseException:
    return client.ApiError("pve1 does not answer", status=0)


def refused() -> BaseException:
    return client.ApiError("refused by the test", status=500)


# The numbers of calls that a replacement, and taking it back, make; test_the_table_reaches_the_last_call holds it to them.
CALLS, UNDO_CALLS = range(1, 85), range(1, 55)
# A kill and a lost answer are tried at every call; what takes the same ways as one of them at a third of the calls, another
# third for each kind. All calls: GOLDSMITH_EXAMPLES=1, as for the property-based tests.
SHARE, BLOCKS = 1 if EXAMPLES in os.environ else 3, 8


def tried(calls: range, block: int, *, begin: int = 0, step: int = 1) -> list[int]:
    """Return the numbers of the calls that a block of the tests tries; with ``step`` a share of them, from ``begin`` on."""
    return [number for number in calls if number % BLOCKS == block][begin % step :: step]


@pytest.mark.slow
@pytest.mark.parametrize("block", range(BLOCKS))
def test_killed_at_every_call(ground: Ground, block: int) -> None:
    """The process is killed when Proxmox has done a call, at each call in turn; the same command finishes it."""
    for number in tried(CALLS, block):
        with pytest.MonkeyPatch.context() as patch:
            cut(patch, number, Killed, after=True, dead=True)
            with suppress(Killed):
                ground.replace()
        require_sound(ground)
        if any(name != "web1" for _, name in ground.running()):
            pytest.fail(f"call {number}: {ground.running()}")
        try:
            ground.replace()
        except replacing.RolledBack:
            # It was killed while it rolled back.
            ground.replace()
        require_served(ground)
        assert ground.proxmox.vm(ground.running()[0][0]).config["tags"].find("v1.3.0") >= 0, number
        # Back to the beginning.
        ground.undo()
        require_served(ground)
        remove_kept(ground)


def remove_kept(ground: Ground) -> None:
    """Remove the machines that are kept, so that the next round begins as the first one."""
    with client.Api(ground.field.bench.settings, OPERATOR) as api:
        replacing.clean(ground.job(api), now=datetime.now(UTC) + timedelta(days=400))
    assert [vm.vmid for vm in ground.proxmox.vms if not vm.template] == [ground.old]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["refused", "lost", "interrupted"])
@pytest.mark.parametrize("block", range(BLOCKS))
def test_a_fault_at_every_call(ground: Ground, block: int, kind: str) -> None:
    """A call that is refused, or whose answer is lost, and Ctrl-C: the old system is back, or the new one serves."""
    error = {"refused": refused, "lost": lost, "interrupted": KeyboardInterrupt}[kind]
    begin, step = {"refused": (0, SHARE), "lost": (0, 1), "interrupted": (1, SHARE)}[kind]
    for number in tried(CALLS, block, begin=begin, step=step):
        with pytest.MonkeyPatch.context() as patch:
            cut(patch, number, error, after=kind == "lost", dead=False)
            try:
                ground.replace()
            except (GoldsmithError, KeyboardInterrupt):
                failed = True
            else:
                failed = False
        require_sound(ground)
        if failed:
            # The last steps may fail too: then the same command goes on.
            with suppress(replacing.RolledBack):
                ground.replace()
        require_served(ground)
        with suppress(GoldsmithError):
            ground.undo()
        require_served(ground)
        remove_kept(ground)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(BLOCKS))
def test_undo_that_is_killed_at_every_call(ground: Ground, block: int) -> None:
    for number in tried(UNDO_CALLS, block):
        ground.replace()
        with pytest.MonkeyPatch.context() as patch:
            cut(patch, number, Killed, after=True, dead=True)
            with suppress(Killed):
                ground.undo()
        require_sound(ground)
        with suppress(GoldsmithError):
            ground.undo()
        require_served(ground)
        assert ground.running() == [(ground.old, "web1")], number
        remove_kept(ground)


def test_the_table_reaches_the_last_call(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    made = calls_of(ground, ground.replace, monkeypatch)
    assert made <= CALLS[-1]
    undone = calls_of(ground, ground.undo, monkeypatch)
    assert undone <= UNDO_CALLS[-1]


@pytest.mark.slow
@pytest.mark.parametrize("block", range(BLOCKS))
def test_a_node_that_goes_down_at_every_call(ground: Ground, block: int) -> None:
    """Its machines are off when it comes back, and what starts at boot is started: never both systems."""
    real = client.Api._call
    for number in tried(CALLS, block, begin=2, step=SHARE):
        count = [0]

        def call(self: client.Api, *arguments: Any, count: list[int] = count, at: int = number, **named: Any) -> Any:
            count[0] += 1
            if count[0] == at:
                ground.proxmox.set_node_offline("pve1")
            return real(self, *arguments, **named)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(client.Api, "_call", call)
            failed: GoldsmithError | None = None
            try:
                ground.replace()
            except GoldsmithError as error:
                failed = error
        if count[0] >= number:
            assert failed is not None, number
            assert "pve1" in failed.render(), failed.render()
            ground.proxmox.set_node_offline("pve1", offline=False)
            ground.boot_again()
        require_sound(ground)
        finish(ground)
        require_served(ground)
        with suppress(GoldsmithError):
            ground.undo()
        require_served(ground)
        remove_kept(ground)


def finish(ground: Ground) -> None:
    """Run the command again until it succeeds: what was cut while it rolled back is rolled back first."""
    for _ in range(3):
        with suppress(replacing.RolledBack):
            assert ground.replace().template == NEWER
            return
    pytest.fail("the same command again does not finish it")


@pytest.mark.parametrize(("kind", "text"), [
    ("qmclone", "creating the new VM failed: .*clone failed: no space"),
    ("resize", "creating the new VM failed: .*lvextend failed"), ("qmmove", "moving the data disk failed: .*rename failed"),
    ("qmstart", "starting the new system failed: .*start failed: QEMU exited with code 1"),
])  # fmt: skip
def test_a_task_that_fails_is_taken_back(ground: Ground, kind: str, text: str) -> None:
    ground.proxmox.broken_tasks[kind] = [text.rpartition(".*")[2]]
    with pytest.raises(replacing.RolledBack, match=text):
        ground.replace()
    require_served(ground)
    assert ground.running() == [(ground.old, "web1")]
    assert ground.replace().template == NEWER


@pytest.fixture
def slow_move(ground: Ground) -> Iterator[Ground]:
    """A storage that takes its time to rename a volume."""
    ground.proxmox.time_scale, ground.proxmox.durations["qmmove"] = 0.05, 10.0
    yield ground
    ground.proxmox.time_scale = 0.0


def test_a_move_whose_answer_is_lost_is_waited_for(slow_move: Ground) -> None:
    """Seen on Proxmox VE 9.2: a second request is taken, and its task fails because of the first one."""
    slow_move.proxmox.lost_answers.add(("POST", "/move_disk"))
    assert slow_move.replace().template == NEWER
    require_served(slow_move)
    assert [task["exitstatus"] for task in slow_move.proxmox.tasklog if task["type"] == "qmmove"] == ["OK"]


def test_a_move_that_a_killed_run_has_begun_is_waited_for(slow_move: Ground) -> None:
    """The task holds the lock of both VMs: a record that was read before it ends has an old digest."""
    real, dead = client.Api._call, threading.Event()

    def call(self: client.Api, method: str, path: str, parameters: Any, *, api: Any = None) -> Any:
        if dead.is_set():
            raise Killed
        answer = real(self, method, path, parameters, api=api)
        if path.endswith("/move_disk"):
            dead.set()
            raise Killed
        return answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client.Api, "_call", call)
        with suppress(Killed):
            slow_move.replace()
    assert dead.is_set()
    assert slow_move.replace().template == NEWER
    require_served(slow_move)


def test_a_move_that_begins_after_its_lost_answer(slow_move: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """No task is listed yet, the request is sent again, and the task of the second one fails."""
    real = vms.settle_moves
    calls = count()

    def settle(*arguments: Any, **named: Any) -> None:
        # The second look comes too early.
        if next(calls) != 1:
            real(*arguments, **named)

    monkeypatch.setattr(vms, "settle_moves", settle)
    slow_move.proxmox.lost_answers.add(("POST", "/move_disk"))
    assert slow_move.replace().template == NEWER
    require_served(slow_move)


def test_a_start_that_is_interrupted_is_waited_for(ground: Ground) -> None:
    """Its task goes on, and the machine is off until it ends: only then it can be stopped, and its disk be moved back."""
    real = client.Api._call
    ground.proxmox.time_scale, ground.proxmox.durations["qmstart"] = 0.05, 20.0

    def call(self: client.Api, method: str, path: str, parameters: Any, *, api: Any = None) -> Any:
        answer = real(self, method, path, parameters, api=api)
        if path.endswith("/status/start") and f"/{ground.old}/" not in path:
            ground.proxmox.durations["qmstart"] = 0.0
            raise KeyboardInterrupt
        return answer

    with pytest.MonkeyPatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(client.Api, "_call", call)
        ground.replace()
    ground.proxmox.time_scale = 0.0
    require_served(ground)
    assert ground.running() == [(ground.old, "web1")]
    assert ground.replace().template == NEWER


def test_a_shutdown_that_did_not_arrive_is_sent_again(ground: Ground) -> None:
    """The old system is never switched off only because a request was lost."""
    real, arrives = client.Api._call, threading.Event()

    def call(self: client.Api, method: str, path: str, parameters: Any, *, api: Any = None) -> Any:
        if path.endswith("/status/shutdown") and not arrives.is_set():
            arrives.set()
            raise lost()
        return real(self, method, path, parameters, api=api)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client.Api, "_call", call)
        assert ground.replace().template == NEWER
    require_served(ground)
    assert "qmstop" not in {task["type"] for task in ground.proxmox.tasklog}


def test_a_shutdown_whose_answer_is_lost_is_waited_for(ground: Ground) -> None:
    ground.proxmox.time_scale, ground.proxmox.durations["qmshutdown"] = 0.05, 20.0
    ground.proxmox.lost_answers.add(("POST", "/status/shutdown"))
    assert ground.replace().template == NEWER
    ground.proxmox.time_scale = 0.0
    require_served(ground)
    assert "qmstop" not in {task["type"] for task in ground.proxmox.tasklog}


def test_a_storage_that_cannot_move_disks(ground: Ground) -> None:
    ground.proxmox.unmovable.add("local-lvm")
    with pytest.raises(replacing.RolledBack, match=r"moving the data disk failed: .*does not support moving"):
        ground.replace()
    assert ground.running() == [(ground.old, "web1")]
    require_served(ground)


def test_a_node_that_goes_down_and_comes_back(ground: Ground) -> None:
    def down(kind: str) -> None:
        if kind == "qmmove":
            ground.proxmox.set_node_offline("pve1")

    ground.proxmox.on_task = down
    with pytest.raises(GoldsmithError) as caught:
        ground.replace()
    assert "run the same command again" in caught.value.hint
    ground.proxmox.on_task = lambda _kind: None
    ground.proxmox.set_node_offline("pve1", offline=False)
    with suppress(replacing.RolledBack):
        ground.replace()
    require_served(ground)
