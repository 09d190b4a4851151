"""Whether the application answers, asked as a client would: over TLS, through the web server, by its name."""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from pathlib import Path

NAMES = Path("/run/golden/names")
ADDRESS = ("127.0.0.1", 443)
PATH = "/health"
ONE_ANSWER_SECONDS = 10.0
PAUSE_SECONDS = 0.5


def wait_healthy(seconds: float = 90.0) -> str:
    """Wait until ``/health`` answers 200; return nothing then, and what was seen last when it does not in time."""
    deadline = time.monotonic() + seconds
    while last := _ask():
        if time.monotonic() > deadline:
            return last
        time.sleep(PAUSE_SECONDS)
    return ""


def _ask() -> str:
    """Ask once; return nothing for 200, else what came instead."""
    try:
        name = NAMES.read_text().split()[0]
        plain = socket.create_connection(ADDRESS, timeout=ONE_ANSWER_SECONDS)
        with plain, _context().wrap_socket(plain, server_hostname=name) as connection:
            connection.sendall(f"GET {PATH} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            body = answer.read(200).decode(errors="replace").splitlines()
    except (OSError, IndexError, http.client.HTTPException) as error:
        return f"{PATH}: {type(error).__name__}: {error}"
    return "" if answer.status == http.client.OK else f"{PATH}: {answer.status} {' '.join(body[:1])}"


def _context() -> ssl.SSLContext:
    # The question is whether this machine's application answers; its certificate has a check of its own.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
