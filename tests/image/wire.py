"""Raw requests that no HTTP library would send, all at once, from inside the clone."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from testinfra.host import Host

from .remote import until


@dataclass(frozen=True)
class Reply:
    """All data received on one connection until it was closed or idle for a time."""

    error: str
    text: str
    closed: bool

    @property
    def statuses(self) -> list[int]:
        """The status of each response on the connection."""
        return [int(code) for code in re.findall(r"^HTTP/1\.[01] (\d{3})", self.text, re.MULTILINE)]

    def header(self, name: str) -> list[str]:
        """Return every value of a header of the first response."""
        head = self.text.split("\r\n\r\n", 1)[0]
        return re.findall(rf"^{re.escape(name)}: (.*?)\r?$", head, re.MULTILINE | re.IGNORECASE)


def wire(data: str, *, name: str = "", **changes: object) -> dict[str, object]:
    """Return one connection for :func:`send`: TLS to ``name`` if it is given, else plain HTTP.

    Keys: ``source`` (the client's address), ``certificate`` (a file on the clone with a client's certificate and key).
    """
    return {"data": data, "name": name, "source": "127.0.0.1", "certificate": ""} | changes


CLIENT = r"""
import concurrent.futures, json, os, socket, ssl, sys

PACE = int(os.environ["PACE"])
# Timeouts in seconds for the first byte of a response, and between its bytes.
FIRST, SILENCE = 10 * PACE, max(4, PACE / 2)

def talk(one):
    error, parts, closed = "", [], False
    try:
        port = 443 if one["name"] else 80
        connection = socket.create_connection(("127.0.0.1", port), timeout=20 * PACE, source_address=(one["source"], 0))
        if one["name"]:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            if one["certificate"]:
                context.load_cert_chain(one["certificate"])
            connection = context.wrap_socket(connection, server_hostname=one["name"])
        connection.sendall(one["data"].encode("latin-1"))
        connection.settimeout(FIRST)
        while True:
            part = connection.recv(65536)
            if not part:
                closed = True
                break
            parts.append(part)
            connection.settimeout(SILENCE)
    except TimeoutError:
        pass
    except OSError as failure:
        closed, error = True, type(failure).__name__
    return {"error": error, "text": b"".join(parts).decode("latin-1"), "closed": closed}

# The web server's timeout for a handshake is 10 s, and a slow machine cannot do many of them in that time.
with concurrent.futures.ThreadPoolExecutor(max(2, 16 // PACE)) as pool:
    print(json.dumps(list(pool.map(talk, json.loads(sys.argv[1])))))
"""


def send(host: Host, connections: Mapping[str, Mapping[str, object]]) -> dict[str, Reply]:
    """Open the connections, several at a time; return the replies by name."""
    output = host.check_output("python3 -c %s %s", CLIENT, json.dumps(list(connections.values())))
    found = json.loads(output.splitlines()[-1])
    return {name: Reply(**one) for name, one in zip(connections, found, strict=True)}


def reloading(command: str) -> str:
    """Return a command that reloads nginx, and waits for the last worker of the previous configuration."""
    return (
        f"main=$(systemctl show -p MainPID --value nginx); old=$(pgrep -P $main); {command}; status=$?; "
        # A failed command has not reloaded nginx, and the workers stay.
        + until('test $status -ne 0 || ! pgrep -P $main | grep -qxF "$old"', 20, pause=0.2)
        + "; (exit $status)"
    )
