"""Load on a clone's web server: HTTPS clients that count successful and failed requests, and measure their duration.

A separate program, so that it can run where the server is reachable: on the test host, or in a container's network.
``python3 load.py SETTINGS.json``; standard library only. Half of the clients keep their connections, half open one for
each request. Counters are written to the state file of the settings twice a second, until the stop file exists.

A request is bad if it has no complete response, or one with another status than 200. There is one exception, as in every
HTTP client (RFC 9112, 9.3.1): if the server closes a kept connection before it sends any part of the response, the request
is sent once more on a new connection, and it is counted as retried.
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
MOST_FAILURES = 12


@dataclass(frozen=True)
class Settings:
    """Where to send requests, how many, and the files to communicate through."""

    address: str
    port: int
    name: str
    paths: tuple[str, ...]
    state: str
    stop: str
    clients: int = 4
    # Requests per second of each client: in total they stay below the server's limit for one address.
    rate: float = 8.0
    # Seconds until the timeout of a request: depends on the speed of the machine under load.
    timeout: float = 30.0


@dataclass
class Count:
    """The results of the requests so far. Times are in seconds since the load started."""

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
        # The clone's certificate may be self-signed; only responses are counted.
        self.context.check_hostname = False
        self.context.verify_mode = ssl.CERT_NONE

    def run(self) -> None:
        """Send requests at an even pace until the stop file exists."""
        began = begun = time.monotonic()
        number = self.number
        while not os.path.exists(self.settings.stop):  # noqa: PTH110 (called thousands of times)
            self.one(self.settings.paths[number % len(self.settings.paths)], began)
            number += 1
            due = begun + (number - self.number) / self.settings.rate
            if due < time.monotonic():
                # Do not make up for a long wait: that would be a burst.
                begun += time.monotonic() - due
            else:
                time.sleep(due - time.monotonic())

    def one(self, path: str, begun: float) -> None:
        """Send one request and count its result."""
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
        """Return the status of the response (0: none), the problem, and whether the request was sent twice."""
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
        """Send a request and read the complete response; return its status."""
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
    """Write the counters to the state file, atomically."""
    count.seconds = round(time.monotonic() - begun, 2)
    counters: dict[str, Any] = asdict(count)
    ordered = sorted(counters.pop("latencies"))
    counters["median"] = round(ordered[len(ordered) // 2], 3) if ordered else 0.0
    counters["p99"] = round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], 3) if ordered else 0.0
    counters["longest"] = round(count.longest, 3)
    counters["failures"] = count.failures[:MOST_FAILURES]
    counters["done"] = done
    fresh = Path(f"{settings.state}.new")
    fresh.write_text(json.dumps(counters))
    fresh.replace(settings.state)


def main(path: str) -> None:
    """Run the load that the settings file describes."""
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
