"""Requests to this machine's web server over the loopback interface, and checks of the responses.

As a program: takes a list of requests as JSON, prints the list of responses.
"""

from __future__ import annotations

import dataclasses
import http.client
import json
import re
import socket
import ssl
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAMES = Path("/run/golden/names")
SECONDS = 30


@dataclass(frozen=True)
class Answer:
    """One response; ``error`` is the reason if there is none."""

    error: str = ""
    status: int = 0
    headers: Sequence[Sequence[str]] = ()
    body: str = ""

    def values(self, name: str) -> list[str]:
        """Return every value of a header."""
        return [value for key, value in self.headers if key.lower() == name.lower()]


def browse(requests: Iterable[Mapping[str, Any]]) -> list[Answer]:
    """Send requests one after the other; keys: ``path``, ``tls``, ``host``, ``sni``, ``newest`` (of TLS), ``method``."""
    name = NAMES.read_text().split()[0]
    return [_send(name, request) for request in requests]


def _send(name: str, request: Mapping[str, Any]) -> Answer:
    tls = request.get("tls", True)
    try:
        plain = socket.create_connection(("127.0.0.1", 443 if tls else 80), timeout=SECONDS)
        with _wrap(plain, request.get("sni", name), request.get("newest", "")) if tls else plain as connection:
            lines = [f"{request.get('method', 'GET')} {request.get('path', '/')} HTTP/1.1", "Connection: close"]
            lines += [f"Host: {request.get('host', name)}"] if request.get("host", name) else []
            connection.sendall("\r\n".join([*lines, "", ""]).encode())
            response = http.client.HTTPResponse(connection, method=request.get("method", "GET"))
            response.begin()
            body = response.read().decode(errors="replace")
            return Answer("", response.status, tuple(response.getheaders()), body)
    except (OSError, http.client.HTTPException) as error:
        return Answer(f"{type(error).__name__}: {error}")


def _wrap(connection: socket.socket, name: str, newest: str) -> ssl.SSLSocket:
    # golden-certificate checks the certificate: the first one of a clone is self-signed.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if newest == "1.1":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.set_ciphers("ALL:@SECLEVEL=0")
    return context.wrap_socket(connection, server_hostname=name)


def judge(answer: Answer, wanted: Mapping[str, Any]) -> list[str]:
    """Return the problems of a response; without ``status`` in ``wanted`` there must be no response."""
    if "status" not in wanted:
        return [] if answer.error else [f"answered {answer.status}"]
    if answer.error:
        return [f"no answer ({answer.error})"]
    found = [f"answered {answer.status}, not {wanted['status']}"] if answer.status != wanted["status"] else []
    for name, pattern in wanted.get("headers", {}).items():
        values = answer.values(name)
        if len(values) != 1 or not re.search(pattern, values[0]):
            found.append(f"{name} is {' and '.join(values) or 'missing'}")
    found += [f"{name} is sent: {answer.values(name)[0]}" for name in wanted.get("no_headers", ()) if answer.values(name)]
    found += [f"Server contains a version: {value}" for value in answer.values("Server") if re.search(r"\d", value)]
    if "body" in wanted and not re.search(wanted["body"], answer.body):
        found.append(f"the body does not contain {wanted['body']}")
    return found


if __name__ == "__main__":
    print(json.dumps([dataclasses.asdict(answer) for answer in browse(json.loads(sys.argv[1]))]))
