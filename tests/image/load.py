"""Load on a clone's web server: HTTPS clients that count what was answered well, what was not, and how long it took.

A program of its own, so that it can run where the server is reached: on the test host, or in a container's network.
``python3 load.py SETTINGS.json``; standard library only. Half of the clients keep their connections, half open one for
each request. Counters go to the settings' state file twice a second, until the stop file is there.

A request is bad when it has no whole answer, or one with another status than 200. One exception, which every HTTP client
makes (RFC 9112, 9.3.1): a kept connection that the server closed before it said anything about the request is opened
anew, once, and the request counts as retried.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import socket
import ssl
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

TELL_SECONDS = 0.5
MOST_FAILURES_TOLD = 12


@dataclass(frozen=True)
class Settings:
    """Where to send requests, how many, and the files to talk through."""

    address: str
    port: int
    name: str
    paths: tuple[str, ...]
    state: str
    stop: str
    clients: int = 4
    # Requests a second of each client: all together stay below the limit that the server sets for one address.
    rate: float = 8.0
    # Seconds for one answer: the machine under load says how many.
    timeout: float = 30.0


@dataclass
class Count:
    """What came of the requests so far. Times are seconds since the load began."""

    sent: int = 0
    good: int = 0
    bad: int = 0
    retried: int = 0
    seconds: float = 0.0
    longest: float = 0.0
    latencies: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    certificates: list[str] = field(default_factory=list)


class Client(threading.Thread):
    """One client: a request, a pause, the next path."""

    def __init__(self, settings: Settings, number: int, count: Count, lock: threading.Lock) -> None:
        super().__init__(daemon=True)
        self.settings = settings
        self.number = number
        self.keep = number % 2 == 0
        self.count = count
        self.lock = lock
        self.connection: http.client.HTTPSConnection | None = None
        self.answering = False
        self.context = ssl.create_default_context()
        # The clone's certificate may sign itself; what is counted is answers.
        self.context.check_hostname = False
        self.context.verify_mode = ssl.CERT_NONE

    def run(self) -> None:
        """Send requests at an even pace until the stop file is there."""
        began = begun = time.monotonic()
        number = self.number
        while not os.path.exists(self.settings.stop):  # noqa: PTH110 (asked thousands of times)
            self.one(self.settings.paths[number % len(self.settings.paths)], began)
            number += 1
            due = begun + (number - self.number) / self.settings.rate
            if due < time.monotonic():
                # After a long wait the rest is not made up for: that would be a burst.
                begun += time.monotonic() - due
            else:
                time.sleep(due - time.monotonic())

    def one(self, path: str, begun: float) -> None:
        """Send one request and count what came of it."""
        started = time.monotonic()
        status, problem, retried = self.ask(path)
        took = time.monotonic() - started
        if status != 200 or not self.keep:
            self.drop()
        with self.lock:
            self.count.sent += 1
            self.count.retried += retried
            self.count.longest = max(self.count.longest, took)
            if status == 200:
                self.count.good += 1
                self.count.latencies.append(took)
            else:
                self.count.bad += 1
                self.count.failures.append(f"{started - begun:.2f} s: {path}: {problem} after {took:.2f} s")

    def ask(self, path: str) -> tuple[int, str, bool]:
        """Return the status of the answer (0: there is none), what is wrong with it, and whether it was asked twice."""
        retried = False
        while True:
            kept = self.connection is not None
            self.answering = False
            try:
                status = self.exchange(path)
            except (OSError, http.client.HTTPException) as error:
                self.drop()
                closed = isinstance(error, ConnectionError | ssl.SSLEOFError) and not self.answering
                if kept and closed and not retried:
                    retried = True
                    continue
                return 0, f"{type(error).__name__}: {error}", retried
            return status, f"status {status}", retried

    def exchange(self, path: str) -> int:
        """Send a request and read the whole answer; return its status."""
        if self.connection is None:
            self.connection = self.connect()
        headers = {"Host": self.settings.name, "Connection": "keep-alive" if self.keep else "close"}
        self.connection.request("GET", path, headers=headers)
        answer = self.connection.getresponse()
        self.answering = True
        answer.read()
        if answer.will_close:
            self.drop()
        return answer.status

    def connect(self) -> http.client.HTTPSConnection:
        """Open a connection that names the server in the handshake, and note the certificate it shows."""
        raw = socket.create_connection((self.settings.address, self.settings.port), timeout=self.settings.timeout)
        try:
            wrapped = self.context.wrap_socket(raw, server_hostname=self.settings.name)
        except BaseException:
            raw.close()
            raise
        shown = hashlib.sha256(wrapped.getpeercert(binary_form=True) or b"").hexdigest()[:16]
        with self.lock:
            if shown not in self.count.certificates:
                self.count.certificates.append(shown)
        connection = http.client.HTTPSConnection(self.settings.name, self.settings.port, timeout=self.settings.timeout)
        connection.sock = wrapped
        return connection

    def drop(self) -> None:
        """Close the connection, if there is one."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None


def tell(settings: Settings, count: Count, *, begun: float, done: bool) -> None:
    """Write the counters, whole."""
    count.seconds = round(time.monotonic() - begun, 2)
    told: dict[str, Any] = asdict(count)
    ordered = sorted(told.pop("latencies"))
    told["median"] = round(ordered[len(ordered) // 2], 3) if ordered else 0.0
    told["p99"] = round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], 3) if ordered else 0.0
    told["longest"] = round(count.longest, 3)
    told["failures"] = count.failures[:MOST_FAILURES_TOLD]
    told["done"] = done
    fresh = Path(f"{settings.state}.new")
    fresh.write_text(json.dumps(told))
    fresh.replace(settings.state)


def main(path: str) -> None:
    """Run the load that the settings file asks for."""
    read = json.loads(Path(path).read_text())
    settings = Settings(**{**read, "paths": tuple(read["paths"])})
    count, lock, begun = Count(), threading.Lock(), time.monotonic()
    clients = [Client(settings, number, count, lock) for number in range(settings.clients)]
    for client in clients:
        client.start()
    while any(client.is_alive() for client in clients):
        clients[0].join(TELL_SECONDS)
        with lock:
            tell(settings, count, begun=begun, done=False)
    tell(settings, count, begun=begun, done=True)


if __name__ == "__main__":
    main(sys.argv[1])
