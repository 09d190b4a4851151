"""Requests without a break while something happens on the clone: what "no request is lost" is measured with.

The generator runs on the clone, so that nothing but the web server's own path is measured. Each thread comes from an
address of its own: the limits for one address are not what is asked for here.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from testinfra.host import Host

# Seconds of load before the action and after it.
BEFORE, AFTER = 1.0, 2.0


@dataclass(frozen=True)
class Load:
    """What the requests met, and what the action said. ``agent`` is what the access log knows these requests by."""

    agent: str
    requests: int
    errors: tuple[str, ...]
    statuses: dict[str, int]
    slowest: float
    action_status: int
    action_output: str
    action_seconds: float
    certificates: tuple[str, ...]

    @property
    def bad(self) -> int:
        """How many requests had no answer, or none that is 200."""
        return self.requests - self.statuses.get("200", 0)


# Runs on the clone: argv is a JSON object. A new connection for every second request; the others go over one that is
# kept, and that the server may close between requests: then the request is sent once more, as every browser does.
GENERATOR = r"""
import hashlib, http.client, json, socket, ssl, subprocess, sys, threading, time

options = json.loads(sys.argv[1])
stop = threading.Event()
lock = threading.Lock()
found = {"requests": 0, "errors": [], "statuses": {}, "slowest": 0.0, "certificates": []}

def connect(source):
    raw = socket.create_connection(("127.0.0.1", 443), timeout=options["timeout"], source_address=(source, 0))
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPConnection(options["name"])
    connection.sock = context.wrap_socket(raw, server_hostname=options["name"])
    serial = hashlib.sha256(connection.sock.getpeercert(binary_form=True)).hexdigest()
    with lock:
        if serial not in found["certificates"]:
            found["certificates"].append(serial)
    return connection

def ask(connection, path):
    connection.request("GET", path, headers={"User-Agent": options["agent"]})
    answer = connection.getresponse()
    answer.read()
    return answer.status, answer.will_close

def request(kept, source, path):
    if kept is not None:
        try:
            status, closing = ask(kept, path)
            kept.close()
            return status, None
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError, ssl.SSLEOFError):
            kept.close()
    connection = connect(source)
    status, closing = ask(connection, path)
    if closing:
        connection.close()
        return status, None
    return status, connection

def work(number):
    source, kept, turn = "127.0.1.%d" % (number + 1), None, number
    while not stop.is_set():
        path = options["paths"][turn % len(options["paths"])]
        turn += 1
        started, status, error = time.monotonic(), "", ""
        try:
            status, kept = request(kept, source, path)
        except (OSError, http.client.HTTPException) as failure:
            kept, error = None, "%s: %s" % (type(failure).__name__, failure)
        taken = time.monotonic() - started
        with lock:
            found["requests"] += 1
            found["slowest"] = max(found["slowest"], taken)
            if error:
                found["errors"].append(error)
            else:
                found["statuses"][str(status)] = found["statuses"].get(str(status), 0) + 1
        stop.wait(options["pause"])

threads = [threading.Thread(target=work, args=(number,)) for number in range(options["threads"])]
for thread in threads:
    thread.start()
time.sleep(options["before"])
began = time.monotonic()
done = subprocess.run(["/bin/sh", "-c", options["action"]], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                      stderr=subprocess.STDOUT, text=True)
took = time.monotonic() - began
time.sleep(options["after"])
stop.set()
for thread in threads:
    thread.join()
found.update(action_status=done.returncode, action_output=done.stdout, action_seconds=took)
print(json.dumps(found))
"""


def under_load(
    host: Host, name: str, action: str, *, paths: Sequence[str] = ("/health", "/"), threads: int = 4, pause: float = 0.02,
    before: float = BEFORE, after: float = AFTER, timeout: float = 60,
) -> Load:  # fmt: skip
    """Run a shell command on the clone while ``threads`` clients ask for ``paths`` in turn; return what they met."""
    options = {
        "name": name, "action": action, "paths": list(paths), "threads": threads, "pause": pause, "before": before,
        "after": after, "timeout": timeout, "agent": f"load-{secrets.token_hex(8)}",
    }  # fmt: skip
    output = host.check_output("python3 -c %s %s", GENERATOR, json.dumps(options))
    found = json.loads(output.splitlines()[-1])
    return Load(
        agent=str(options["agent"]), requests=found["requests"], errors=tuple(found["errors"]), statuses=found["statuses"],
        slowest=found["slowest"], action_status=found["action_status"], action_output=found["action_output"],
        action_seconds=found["action_seconds"], certificates=tuple(found["certificates"]),
    )  # fmt: skip
