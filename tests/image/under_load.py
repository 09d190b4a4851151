"""Runs an action on the clone while its web server is under load, to test that no request is lost.

The clients of load.py run on the clone itself, so that only the web server and its backends are measured.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from testinfra.host import Host


@dataclass(frozen=True)
class Load:
    """The results of the requests, and the action's output. Every request has the query ``mark``, to find it in the logs."""

    mark: str
    sent: int
    good: int
    retried: int
    longest: float
    failures: tuple[str, ...]
    certificates: tuple[str, ...]
    status: int
    output: str

    @property
    def lost(self) -> int:
        """The number of requests without a response 200."""
        return self.sent - self.good


# Runs on the clone: argv is the program of the clients, and a JSON object. The action starts after the first responses.
RUNNER = r"""
import json, os, pathlib, subprocess, sys, tempfile, time

PACE = int(os.environ["PACE"])

program, options = sys.argv[1], json.loads(sys.argv[2])
with tempfile.TemporaryDirectory() as name:
    place = pathlib.Path(name)
    (place / "load.py").write_text(program)
    settings = {"address": "127.0.0.1", "port": 443, "state": name + "/state", "stop": name + "/stop",
                "timeout": 30 * PACE, **options["load"]}
    (place / "settings").write_text(json.dumps(settings))
    clients = subprocess.Popen([sys.executable, name + "/load.py", name + "/settings"])
    deadline = time.monotonic() + 20 * PACE
    while time.monotonic() < deadline:
        if (place / "state").exists() and json.loads((place / "state").read_text())["good"] >= settings["clients"]:
            break
        time.sleep(0.2)
    done = subprocess.run(["/bin/sh", "-c", options["action"]], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)
    time.sleep(options["after"])
    (place / "stop").touch()
    clients.wait()
    print(json.dumps({**json.loads((place / "state").read_text()), "status": done.returncode, "output": done.stdout}))
"""


def under_load(
    host: Host, name: str, action: str, *, paths: Sequence[str] = ("/health", "/"), clients: int = 4, after: float = 2.0
) -> Load:
    """Run a shell command on the clone while ``clients`` request ``paths`` in turn, and for ``after`` more seconds."""
    mark = f"mark={secrets.token_hex(8)}"
    load = {"name": name, "paths": [f"{path}?{mark}" for path in paths], "clients": clients}
    program = Path(__file__).with_name("load.py").read_text()
    options = json.dumps({"load": load, "action": action, "after": after})
    output = host.check_output("python3 -c %s %s %s", RUNNER, program, options)
    found = json.loads(output.splitlines()[-1])
    return Load(
        mark=mark, sent=found["sent"], good=found["good"], retried=found["retried"], longest=found["longest"],
        failures=tuple(found["failures"]), certificates=tuple(found["certificates"]), status=found["status"],
        output=found["output"],
    )  # fmt: skip
