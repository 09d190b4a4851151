"""Whether the application answers, asked as a client would: over TLS, through the web server, by its name.

A release that does not serve yet is asked at the socket of its server (``server``), as the web server would ask it.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

NAMES = Path("/run/golden/names")
ADDRESS = ("127.0.0.1", 443)
# The socket that leads to the web server, for a unit without network; empty where there is one.
WEB_SERVER = "GOLDEN_WEB_SERVER"
# What the release that serves declares (golden/grants.py); without it the path that every application has.
CONTRACT, PATH = Path("/opt/app/current/grants/contract.json"), "/health"
ONE_ANSWER_SECONDS = 10.0
PAUSE_SECONDS = 0.5
# What the web server adds to a request (snippets/application.conf of the layer 50-nginx).
FROM_WEB_SERVER = "X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: https\r\n"


def wait_healthy(seconds: float = 90.0, path: str = "", server: Path | None = None) -> str:
    """Wait until the health check answers 200; return nothing then, and what was seen last when it does not in time.

    Without ``path`` it is that of the release that serves.
    """
    deadline, path = time.monotonic() + seconds, path or declared_path()
    while last := _ask(path, server):
        if time.monotonic() > deadline:
            return last
        time.sleep(PAUSE_SECONDS)
    return ""


def page_problem(path: str = "/", server: Path | None = None) -> str:
    """Return what is wrong with a page of the application; nothing when it is not an error of the server.

    An application need not have the page (404), nor show it to everybody (403, or the way to a log-in).
    """
    status, text = _status(path, server)
    return text if status == 0 or status >= http.client.INTERNAL_SERVER_ERROR else ""


def declared_path(contract: Path = CONTRACT) -> str:
    """Return the path of the health check of the release that serves."""
    try:
        return str(json.loads(contract.read_bytes())["health"]["path"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return PATH


def missing_page(paths: Iterable[str], server: Path | None = None) -> str:
    """Return which of the pages does not answer with 200 or a redirect, and what it answers; nothing when all do."""
    for path in paths:
        status, text = _status(path, server)
        if not http.client.OK <= status < http.client.BAD_REQUEST:
            return text
    return ""


def _ask(path: str, server: Path | None = None) -> str:
    """Ask for the health once; return nothing for 200, else what came instead."""
    status, text = _status(path, server)
    return "" if status == http.client.OK else text


def _status(path: str, server: Path | None = None) -> tuple[int, str]:
    """Return the status of a page (0: there is no answer) and, in one line, what came."""
    try:
        status, body = fetch(path, limit=200, server=server)
    except (OSError, IndexError, http.client.HTTPException) as error:
        return 0, f"{path}: {type(error).__name__}: {error}"
    return status, f"{path}: {status} {' '.join(body.decode(errors='replace').splitlines()[:1])}"


def fetch(path: str, *, limit: int, server: Path | None = None) -> tuple[int, bytes]:
    """Return the status of an answer and at most ``limit`` bytes of its body. Raises OSError or HTTPException."""
    name = NAMES.read_text().split()[0]
    more = FROM_WEB_SERVER if server else ""
    with _connected(name, server) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {name}\r\n{more}Connection: close\r\n\r\n".encode())
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        return answer.status, answer.read(limit)


@contextmanager
def _connected(name: str, server: Path | None) -> Iterator[socket.socket]:
    """Connect to the web server over TLS, or to the socket of an application server."""
    if server:
        with _local(str(server)) as connection:
            yield connection
        return
    way = os.environ.get(WEB_SERVER)
    plain = _local(way) if way else socket.create_connection(ADDRESS, timeout=ONE_ANSWER_SECONDS)
    with plain, _context().wrap_socket(plain, server_hostname=name) as connection:
        yield connection


def _local(path: str) -> socket.socket:
    """Return a connection to a UNIX socket."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(ONE_ANSWER_SECONDS)
        connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection


def _context() -> ssl.SSLContext:
    # This checks whether this machine's application answers; its certificate is checked separately.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
