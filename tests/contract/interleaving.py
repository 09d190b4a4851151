"""Helpers of the property-based tests: two commands whose calls to the API alternate as an example defines, and faults.

A command is a function of a separate connection, as on a separate host. Each call of a command takes place when it is its
turn; a call may be refused, its answer may be lost, its process may be killed or interrupted there.
"""

from __future__ import annotations

import copy
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from build.clone import health, machine
from build.core.errors import EXIT_INTERRUPTED, GoldsmithError
from build.proxmox import claim, client, guest_agent
from build.publish import heartbeat
from build.replace import switch
from tests.fakes.proxmox import BROADCAST_SECONDS, Proxmox

# Examples of each property; a longer search: GOLDSMITH_EXAMPLES=500, which also takes new ones each time.
EXAMPLES = "GOLDSMITH_EXAMPLES"
FEW = 12
# How long a command waits for its turn while the other one makes no call, because it sleeps or has ended.
STALL_SECONDS = 0.1
JOIN_SECONDS = 120.0
# What a cluster knows; tests of machines add what is on their disks.
STATE = (
    "vms", "storages", "pools", "pool_info", "imported", "origins", "media", "tasks", "tasklog", "contents", "clashes",
)  # fmt: skip

searching = settings(
    max_examples=int(os.environ.get(EXAMPLES, FEW)), derandomize=EXAMPLES not in os.environ, database=None, deadline=None,
    suppress_health_check=list(HealthCheck), print_blob=True,
)  # fmt: skip


class Killed(BaseException):
    """The process was killed: none of its code runs afterwards."""


@dataclass(frozen=True)
class Fault:
    """What happens at a call of a command, counted from 1: ``lost``, ``refused``, ``killed`` or ``interrupted``."""

    kind: str
    at: int


@dataclass
class End:
    """How a command ended: its result, or its error."""

    result: Any = None
    error: BaseException | None = None

    @property
    def code(self) -> int | None:
        """The exit code; None for a process that was killed."""
        if isinstance(self.error, GoldsmithError):
            return self.error.exit_code
        if isinstance(self.error, KeyboardInterrupt):
            return EXIT_INTERRUPTED
        return None if isinstance(self.error, Killed) else 0


@dataclass
class Turns:
    """Whose call is next: command 0 makes the first number of calls, command 1 the second, and so on; then by turns."""

    runs: Sequence[int]
    faults: dict[int, Fault]
    calls: dict[int, int] = field(default_factory=lambda: {0: 0, 1: 0})
    ended: set[int] = field(default_factory=set)
    dead: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        chosen = [number % 2 for number, length in enumerate(self.runs) for _ in range(length)]
        self.order = itertools.chain(chosen, itertools.cycle((0, 1)))
        self.now = next(self.order)
        self.condition = threading.Condition()
        # One call at a time: the order is exactly that of the example.
        self.calling = threading.Lock()

    def take(self, who: int) -> None:
        """Return when it is this command's turn, or when the other one has made no call for a while."""
        with self.condition:
            while self.now != who and 1 - who not in self.ended:
                if not self.condition.wait(STALL_SECONDS):
                    break
            if self.now == who:
                self.now = next(self.order)
            self.calls[who] += 1
            self.condition.notify_all()

    def end(self, who: int) -> None:
        with self.condition:
            self.ended.add(who)
            self.condition.notify_all()

    def call(self, who: int, real: Callable[[], Any]) -> Any:
        """Make a call of a command, with its fault."""
        self.take(who)
        with self.calling:
            if who in self.dead:
                raise Killed
            fault = self.faults.get(who)
            if fault is None or fault.at != self.calls[who]:
                return real()
            if fault.kind == "refused":
                raise client.ApiError("Proxmox refused: it is only a test", status=500)
            real()
            if fault.kind == "killed":
                self.dead.add(who)
                raise Killed
            if fault.kind == "interrupted":
                raise KeyboardInterrupt
            raise client.ApiError("pve1 does not answer", status=0)


_command = threading.local()


@contextmanager
def counted(turns: Turns) -> Iterator[None]:
    """Route every call of each command through ``turns``."""
    made, another, call = client.Api.__init__, client.Api.another, client.Api._call

    def begin(self: client.Api, *arguments: Any) -> None:
        made(self, *arguments)
        self.who = getattr(_command, "who", None)  # type: ignore[attr-defined]

    def begin_another(self: client.Api) -> client.Api:
        fresh = another(self)
        fresh.who = self.who  # type: ignore[attr-defined]
        return fresh

    def counted_call(self: client.Api, *arguments: Any, **named: Any) -> Any:
        who = self.who  # type: ignore[attr-defined]
        return call(self, *arguments, **named) if who is None else turns.call(who, lambda: call(self, *arguments, **named))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client.Api, "__init__", begin)
        patch.setattr(client.Api, "another", begin_another)
        patch.setattr(client.Api, "_call", counted_call)
        # A thread of a killed process ends without a word.
        patch.setattr(threading, "excepthook", lambda raised: None if raised.exc_type is Killed else report(raised))
        yield


def report(raised: Any) -> None:
    raise raised.exc_value


def ending(work: Callable[[], Any]) -> End:
    """Do the work of a command; return how it ended."""
    try:
        return End(work())
    except (GoldsmithError, KeyboardInterrupt, Killed) as error:
        return End(error=error)


def both(first: Callable[[], Any], second: Callable[[], Any], runs: Sequence[int], faults: dict[int, Fault]) -> list[End]:
    """Run two commands at once; return how each ended."""
    turns = Turns(runs, faults)
    ends: list[End | None] = [None, None]
    errors: list[BaseException] = []

    def run(who: int, work: Callable[[], Any]) -> None:
        _command.who = who
        try:
            ends[who] = ending(work)
        except BaseException as error:  # noqa: BLE001 (it is raised again by the test's thread)
            errors.append(error)
        finally:
            turns.end(who)

    with counted(turns):
        threads = [
            threading.Thread(target=run, args=(who, work), name=f"command {who}") for who, work in enumerate((first, second))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(JOIN_SECONDS)
    assert not any(thread.is_alive() for thread in threads), f"a command hangs: {turns.calls}"
    if errors:
        raise errors[0]
    return [end for end in ends if end is not None]


class Scene:
    """A cluster as it was when an example began."""

    def __init__(self, proxmox: Proxmox) -> None:
        self.proxmox = proxmox
        self.state = copy.deepcopy({name: getattr(proxmox, name) for name in STATE if hasattr(proxmox, name)})

    def again(self) -> None:
        """Restore the state of the cluster."""
        proxmox = self.proxmox
        for medium in set(proxmox.media.values()) - set(self.state["media"].values()):
            medium.path.unlink(missing_ok=True)
        for name, value in copy.deepcopy(self.state).items():
            setattr(proxmox, name, value)
        # The list of the cluster is sent at the first request, and is late from then on.
        proxmox._broadcast_at = -BROADCAST_SECONDS
        proxmox.calls.clear()
        proxmox.requests.clear()


def runs() -> st.SearchStrategy[list[int]]:
    """Return how many calls each command makes until it is the other's turn."""
    return st.lists(st.integers(1, 24), max_size=8)


def faults(calls: int, *kinds: str) -> st.SearchStrategy[dict[int, Fault]]:
    """Return no fault, or one of one of the commands, at one of its calls."""
    fault = st.builds(Fault, st.sampled_from(kinds), st.integers(1, calls))
    return st.dictionaries(st.integers(0, 1), fault, max_size=1)


@pytest.fixture
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Poll without waiting: the fake's tasks take no time."""
    for module, name, seconds in (
        (client, "FIRST_WAIT_SECONDS", 0.001), (client, "LONGEST_WAIT_SECONDS", 0.01), (client, "LOCK_POLL_SECONDS", 0.01),
        (claim, "POLL_SECONDS", 0.005), (claim, "WAIT_SECONDS", 30.0), (machine, "POLL_SECONDS", 0.005),
        (machine, "STARTED_SECONDS", 1.0), (health, "POLL_SECONDS", 0.005), (guest_agent, "POLL_SECONDS", 0.005),
        (switch, "SHUTDOWN_SECONDS", 2), (heartbeat, "BEAT_SECONDS", 0.1), (heartbeat, "WATCH_SECONDS", 0.6),
        (heartbeat, "POLL_SECONDS", 0.02), (heartbeat, "LOOK_SECONDS", 0.1), (heartbeat, "TRY_SECONDS", 0.1),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, seconds)
