"""Requests to a machine from its clients' side: counted load, and single requests byte by byte."""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from build.core import run
from build.faults.machines import Endpoint
from tests.image import load as load_program

from . import wire as wire_program

WARM_REQUESTS = 12
WARM_SECONDS = 60.0
# Longer than the web server waits for the application: its timeout counts, not that of the client.
ANSWER_SECONDS = 60.0
# An emulated machine answers so much more slowly that the pace of a real one would only queue.
FULL_RATE, SLOW_RATE = 8.0, 3.0
# The pace of a machine with dedicated processors, on a host with other work.
FAST = 2
# All payloads of a test, several at a time; at full speed.
WIRE_SECONDS = 200


class Load:
    """Load that runs: its counters so far, and the wait for more."""

    def __init__(self, state: Path, process: run.Process, patience: float) -> None:
        self.state = state
        self.process = process
        self.patience = patience
        self.count: dict[str, Any] = {"sent": 0, "good": 0, "bad": 0}

    def look(self) -> dict[str, Any]:
        """Read the counters."""
        if self.state.exists():
            self.count = json.loads(self.state.read_text())
        return self.count

    def more(self, requests: int = WARM_REQUESTS) -> None:
        """Wait until so many more requests were answered well."""
        wanted = self.look()["good"] + requests
        deadline = time.monotonic() + self.patience
        while self.look()["good"] < wanted:
            if time.monotonic() > deadline or self.process.poll() is not None:
                pytest.fail(f"the web server no longer answers: {self.count}", pytrace=False)
            time.sleep(0.1)

    def lost(self, at_most: int = 0) -> None:
        """Fail when more requests than ``at_most`` were lost."""
        assert self.count["bad"] <= at_most, f"{self.count['bad']} of {self.count['sent']} lost: {self.count['failures']}"


@dataclass(frozen=True)
class Reply:
    """What came back on a connection until it was closed or silent."""

    error: str
    data: bytes
    # From the connection's beginning to the last byte that came.
    seconds: float

    @property
    def statuses(self) -> list[int]:
        """The status of every answer on the connection."""
        return [int(line.split(b" ", 2)[1]) for line in self.data.splitlines() if line.startswith(b"HTTP/1.")]

    @property
    def body(self) -> bytes:
        """The first answer's body, as it came."""
        return self.data.partition(b"\r\n\r\n")[2]


class Traffic:
    """Sends requests to a machine through its endpoint."""

    def __init__(self, endpoint: Endpoint, name: str, directory: Path, *, scale: float) -> None:
        self.endpoint, self.name, self.directory, self.scale = endpoint, name, directory, scale
        self.numbers = count()

    @contextmanager
    def load(
        self, paths: Sequence[str], *, note: Callable[[Load], None], clients: int = 4, rate: float = 0.0
    ) -> Iterator[Load]:
        """Keep load on the machine while the block runs; it has begun when the block is entered."""
        number = next(self.numbers)
        state, stop = self.directory / f"load{number}.json", self.directory / f"load{number}.stop"
        timeout = ANSWER_SECONDS * min(self.scale, 3.0)
        settings = {
            "address": self.endpoint.address, "port": self.endpoint.ports["https"], "name": self.name, "paths": list(paths),
            "state": str(state), "stop": str(stop), "clients": clients, "timeout": timeout,
            "rate": rate or (FULL_RATE if self.scale <= FAST else SLOW_RATE),
        }  # fmt: skip
        asked = self.directory / f"load{number}.settings"
        asked.write_text(json.dumps(settings))
        argv = [*self.endpoint.prefix, sys.executable, str(load_program.__file__), str(asked)]
        with run.spawn(argv, log=self.directory / f"load{number}.log", contained=False) as process:
            going = Load(state, process, WARM_SECONDS * self.scale)
            going.more()
            try:
                yield going
            finally:
                stop.touch()
                process.wait(timeout + 10)
                going.look()
                note(going)
        assert going.count.get("done"), f"the load did not end in order: {going.count}"

    def wire(self, payloads: Mapping[str, bytes], *, tls: bool = True, quiet: float = 0.0) -> dict[str, Reply]:
        """Send bytes, each on a separate connection; return the replies. ``quiet`` is how long silence may last."""
        asked = {
            "address": self.endpoint.address, "port": self.endpoint.ports["https" if tls else "http"], "name": self.name,
            "tls": tls,
            "quiet": quiet or min(3.0 * self.scale, 15.0),
            "payloads": [base64.b64encode(data).decode() for data in payloads.values()],
        }  # fmt: skip
        done = run.run(
            [*self.endpoint.prefix, sys.executable, str(wire_program.__file__)],
            stdin=json.dumps(asked).encode(),
            timeout=WIRE_SECONDS * self.scale,
        )
        replies = json.loads(done.stdout)
        return {
            name: Reply(one["error"], base64.b64decode(one["data"]), one["seconds"])
            for name, one in zip(payloads, replies, strict=True)
        }

    def get(self, path: str = "/health", *, host: str = "", headers: str = "", tls: bool = True) -> Reply:
        """Send one GET request; return what came back."""
        text = f"GET {path} HTTP/1.1\r\nHost: {host or self.name}\r\nConnection: close\r\n{headers}\r\n"
        return self.wire({"request": text.encode()}, tls=tls)["request"]
