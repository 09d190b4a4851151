"""Facts from a clone, gathered in one round trip: a command over SSH to an emulated machine costs a second."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from testinfra.host import Host

# ASCII unit separator: no command's output contains it.
MARK = "\x1f"


@dataclass(frozen=True)
class Fact:
    """The result of a command: its exit status and its output, both streams together, without the last newline."""

    status: int
    text: str

    @property
    def lines(self) -> list[str]:
        """The lines of the output that are not empty."""
        return [line for line in self.text.splitlines() if line.strip()]

    @property
    def words(self) -> list[str]:
        """The words of the output."""
        return self.text.split()


def gather(host: Host, commands: Mapping[str, str]) -> dict[str, Fact]:
    """Run shell commands on the clone as root, each in a separate shell; return their results by name."""
    script = "".join(f"( {command}\n) </dev/null 2>&1; printf '{MARK}%s{MARK}' $?\n" for command in commands.values())
    parts = host.check_output("LC_ALL=C sh -c %s", script).split(MARK)
    outputs, statuses = parts[0:-1:2], parts[1::2]
    return {
        name: Fact(int(status), output.strip("\n")) for name, output, status in zip(commands, outputs, statuses, strict=True)
    }


def properties(fact: Fact) -> dict[str, str]:
    """Return the lines NAME=VALUE of a fact as a mapping."""
    return dict(line.split("=", 1) for line in fact.lines if "=" in line)


@dataclass(frozen=True)
class Answer:
    """The web server's response to one request; ``error`` is the reason if there is none."""

    error: str
    status: int
    headers: list[tuple[str, str]]
    body: str

    def header(self, name: str) -> list[str]:
        """Return every value of a header."""
        return [value for key, value in self.headers if key.lower() == name.lower()]


def ask(server_name: str, path: str, **changes: object) -> dict[str, object]:
    """Return a request for :func:`browse`: HTTPS to ``server_name``, with the keys in ``changes`` replaced.

    Keys: ``tls`` (bool), ``sni`` (str), ``host`` (str; empty: no Host header), ``path``, ``method``, ``newest_tls``
    ("1.1" to offer nothing newer), ``socket`` (a UNIX socket instead of the web server), ``headers`` (mapping).
    """
    request: dict[str, object] = {
        "tls": True, "sni": server_name, "host": server_name, "path": path, "method": "GET", "newest_tls": "",
        "socket": "", "headers": {},
    }  # fmt: skip
    return request | changes


# Runs on the clone. The certificate is verified against the clone's own, for the name in the request.
BROWSER = r"""
import http.client, json, os, socket, ssl, sys

LIMIT = 20 * int(os.environ["PACE"])

def send(request):
    if request["socket"]:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(LIMIT)
        connection.connect(request["socket"])
    else:
        connection = socket.create_connection(("127.0.0.1", 443 if request["tls"] else 80), timeout=LIMIT)
        if request["tls"]:
            context = ssl.create_default_context(cafile="/etc/ssl/certs/app.pem")
            if request["newest_tls"] == "1.1":
                context.minimum_version = ssl.TLSVersion.TLSv1
                context.maximum_version = ssl.TLSVersion.TLSv1_1
                context.set_ciphers("ALL:@SECLEVEL=0")
            connection = context.wrap_socket(connection, server_hostname=request["sni"])
    lines = ["%s %s HTTP/1.1" % (request["method"], request["path"]), "Connection: close"]
    if request["host"]:
        lines.append("Host: " + request["host"])
    lines += ["%s: %s" % item for item in request["headers"].items()]
    connection.sendall("\r\n".join(lines + ["", ""]).encode())
    response = http.client.HTTPResponse(connection, method=request["method"])
    response.begin()
    body = response.read().decode("utf-8", "replace")
    return {"error": "", "status": response.status, "headers": response.getheaders(), "body": body}

answers = []
for request in json.loads(sys.argv[1]):
    try:
        answers.append(send(request))
    except (OSError, http.client.HTTPException) as error:
        answers.append({"error": type(error).__name__, "status": 0, "headers": [], "body": str(error)})
print(json.dumps(answers))
"""


def browse(host: Host, requests: Mapping[str, Mapping[str, object]]) -> dict[str, Answer]:
    """Send requests from inside the clone, one after the other; return the responses by the names of the requests."""
    output = host.check_output("python3 -c %s %s", BROWSER, json.dumps(list(requests.values())))
    found: Sequence[dict[str, Any]] = json.loads(output.splitlines()[-1])
    return {
        name: Answer(one["error"], one["status"], [(key, value) for key, value in one["headers"]], one["body"])
        for name, one in zip(requests, found, strict=True)
    }
