"""Sends raw bytes to a web server, and reports the reply: no HTTP library changes them.

A separate program, run where the server is reached. Standard input: JSON with address, port, name, tls, quiet, payloads
(base64). Standard output: JSON, for each payload what came back until the connection was closed or silent for ``quiet``
seconds, and when the last of it came. The payloads go out side by side; standard library only.
"""

from __future__ import annotations

import base64
import json
import socket
import ssl
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

AT_ONCE = 6
CONNECT_SECONDS = 60
MOST_BYTES = 1 << 20


def exchange(asked: dict[str, Any], payload: str) -> dict[str, Any]:
    """Send one payload on a separate connection."""
    received = bytearray()
    error = ""
    begun, last = time.monotonic(), 0.0
    try:
        with connect(asked) as connection:
            connection.settimeout(asked["quiet"])
            connection.sendall(base64.b64decode(payload))
            while len(received) < MOST_BYTES and (piece := connection.recv(65536)):
                received += piece
                last = time.monotonic() - begun
    except TimeoutError:
        error = "silence"
    except OSError as problem:
        error = f"{type(problem).__name__}: {problem}"
    return {"error": error, "data": base64.b64encode(received).decode(), "seconds": last}


def connect(asked: dict[str, Any]) -> socket.socket:
    """Open a connection; the certificate is not what is tested."""
    raw = socket.create_connection((asked["address"], asked["port"]), timeout=CONNECT_SECONDS)
    if not asked["tls"]:
        return raw
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        return context.wrap_socket(raw, server_hostname=asked["name"])
    except BaseException:
        raw.close()
        raise


def main() -> None:
    """Send what standard input asks for."""
    asked = json.load(sys.stdin)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        replies = list(pool.map(lambda payload: exchange(asked, payload), asked["payloads"]))
    json.dump(replies, sys.stdout)


if __name__ == "__main__":
    main()
