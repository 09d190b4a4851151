"""Commands on the machine under test: the same environment over each kind of connection, and the machine's pace.

Over SSH as the administrator with sudo, or into a container by its namespaces: each command runs as root with umask 022, in
``/``, with a fixed PATH and locale, and with ``PACE`` in its environment. PACE is a whole number, at least 1: how many times
slower the machine does a fixed piece of work than a dedicated processor would. It is measured once. Every time limit of a
test is the number of seconds that a machine at full speed may take, times PACE: ``seconds(host, 5)`` here, ``5 * PACE`` in
programs that run on the machine.

One connection serves all commands of a test run. A login, a session and sudo take a second on an emulated machine; a shell
started by a running program takes a twentieth of that.
"""

from __future__ import annotations

import base64
import json
import shlex
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from testinfra.backend import base as testinfra_base
from testinfra.host import Host

# The environment of every command. HOME and the names are those of the user that it runs as. The last one is the time in
# seconds that systemctl waits for a busy service manager; the default is 25 s.
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "HOME": "/root", "USER": "root", "LOGNAME": "root", "SHELL": "/bin/sh",
    "SYSTEMD_BUS_TIMEOUT": "900",
}  # fmt: skip
# Starting a Python with its TLS module takes 0.05 s on a 2.6 GHz EPYC; twice that is still full speed.
REFERENCE_SECONDS = 0.1
# A machine that is even slower has a defect, which a test must report instead of waiting.
SLOWEST = 60
MEASURE = f"""
import subprocess, sys, time
begun = time.monotonic()
subprocess.run([sys.executable, "-I", "-c", "import json, ssl"], check=True, stdin=subprocess.DEVNULL)
pace = min({SLOWEST}, max(1, round((time.monotonic() - begun) / {REFERENCE_SECONDS})))
"""
# Runs on the machine as root: prints the pace, then reads commands, one JSON string per line, and prints the exit status
# and both outputs of each.
AGENT = (
    MEASURE
    + r"""
import base64, json, os
os.environ["PACE"] = str(pace)
os.umask(0o022)
print(pace, flush=True)
for line in sys.stdin:
    done = subprocess.run(["/bin/sh", "-c", json.loads(line)], stdin=subprocess.DEVNULL, capture_output=True)
    status = done.returncode if done.returncode >= 0 else 128 - done.returncode
    print(json.dumps([status, *(base64.b64encode(text).decode() for text in (done.stdout, done.stderr))]), flush=True)
"""
)
POLL_SECONDS = 0.2
# How many times longer a wait lasts at most: the host of a container may boot two emulated clones meanwhile, which the pace
# that was measured before does not show.
BUSY_HOST = 6

_paces: dict[str, int] = {}


def seconds(host: Host, at_full_speed: float) -> float:
    """Return the time limit on the machine for work that takes at most ``at_full_speed`` seconds at full speed."""
    return at_full_speed * pace(host)


def pace(host: Host) -> int:
    """Return how many times slower the machine is than a dedicated processor: at least 1, measured once."""
    return int(host.backend.pace)


def tries(limit: float, pause: float) -> str:
    """Return the list of a shell loop that waits ``pause`` seconds a round, ``limit`` seconds in all at full speed."""
    return f"$(seq $(({max(1, round(limit / pause))} * PACE)))"


def until(condition: str, limit: float, *, pause: float = 0.1) -> str:
    """Return a shell command that waits until ``condition`` holds.

    It waits ``limit`` seconds at most on a machine at full speed, and BUSY_HOST times as long if its host does other work.
    """
    return f"for try in {tries(limit * BUSY_HOST, pause)}; do {condition} && break; sleep {pause}; done"


class Remote(testinfra_base.BaseBackend):  # type: ignore[misc]
    """A machine that is reached with ``way``: an argv to which a command for the machine is appended.

    ``shell``: the command is passed as one string for a shell, as with ssh. ``lasting``: one connection serves all commands;
    otherwise each command has one, for machines that a test disconnects or restarts. ``ready`` is a file that exists when
    the machine is ready.
    """

    NAME = "remote"

    def __init__(
        self, name: str, way: Sequence[str], *, shell: bool, lasting: bool = True, ready: Path | None = None
    ) -> None:
        super().__init__(name)
        self._way, self._shell, self._lasting, self._ready = way, shell, lasting, ready
        self._agent: Agent | None = None

    @property
    def pace(self) -> int:
        """How many times slower the machine is than a dedicated processor."""
        if self._lasting:
            return self._connection().pace
        # For machines of one kind on one host the pace is measured on the first, before its first test.
        kind = self._way[0]
        if kind not in _paces:
            done = self._local(["python3", "-I", "-c", f"{MEASURE}print(pace)"], {})
            if done.returncode != 0:
                raise RuntimeError(f"the pace of {self.hostname} cannot be measured: {done.stderr.decode(errors='replace')}")
            _paces[kind] = int(done.stdout)
        return _paces[kind]

    def run(self, command: str, *args: str, **_kwargs: Any) -> testinfra_base.CommandResult:
        """Run a shell command as root; raise RuntimeError when the machine cannot be reached."""
        text = self.quote(command, *args)
        if self._lasting:
            return self.result(*self._connection().run(text))
        words = ["/bin/sh", "-c", f"umask 022; {text}"]
        done = self._local(words, {"PACE": str(self.pace)})
        if self._shell and done.returncode == 255:
            raise RuntimeError(f"{self.hostname} cannot be reached: {done.stderr.decode(errors='replace').strip()}")
        return self.result(done.returncode, text.encode(), done.stdout, done.stderr)

    def _local(self, words: Sequence[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[bytes]:
        argv = self.argv(words, environment)
        return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False)

    def argv(self, words: Sequence[str], environment: Mapping[str, str]) -> list[str]:
        """Return the argv that runs a command on the machine as root, in the environment of every command."""
        given = [f"{name}={value}" for name, value in {**ENVIRONMENT, **environment}.items()]
        inside = [*(["sudo", "--non-interactive"] if self._shell else []), "env", "-i", "-C", "/", *given, *words]
        return [*self._way, shlex.join(inside)] if self._shell else [*self._way, *inside]

    def close(self) -> None:
        """End the connection, if there is one."""
        if self._agent is not None:
            self._agent.close()
            self._agent = None

    def _connection(self) -> Agent:
        if self._agent is None or not self._agent.alive:
            self.close()
            self.await_ready()
            self._agent = Agent(self.hostname, self.argv(["python3", "-I", "-u", "-c", AGENT], {}))
        return self._agent

    def await_ready(self) -> None:
        """Wait until the machine is ready. There is no timeout: the program that starts the tests stops them."""
        while self._ready is not None and not self._ready.exists():
            time.sleep(POLL_SECONDS)


class Agent:
    """A program on the machine that runs one command after the other."""

    def __init__(self, name: str, argv: Sequence[str]) -> None:
        self._name = name
        self._complaints: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the agent)
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._complaints)
        try:
            self.pace = int(self._answer("connecting"))
        except BaseException:
            self.close()
            raise

    @property
    def alive(self) -> bool:
        """Whether the next command can be sent."""
        return self._process.poll() is None

    def run(self, command: str) -> tuple[int, bytes, bytes, bytes]:
        """Run a shell command; return its exit status, itself, and what it wrote to both outputs."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        self._process.stdin.flush()
        status, output, errors = json.loads(self._answer(command))
        return int(status), command.encode(), base64.b64decode(output), base64.b64decode(errors)

    def close(self) -> None:
        """End the program: there are no more commands."""
        for stream in (self._process.stdin, self._process.stdout, self._complaints):
            assert stream is not None
            # A command for a machine that no longer exists is still in the buffer.
            with suppress(BrokenPipeError):
                stream.close()
        self._process.terminate()
        self._process.wait()

    def _answer(self, doing: str) -> bytes:
        assert self._process.stdout is not None
        line = bytes(self._process.stdout.readline())
        if not line:
            status = self._process.wait()
            self._complaints.seek(0)
            errors = self._complaints.read().decode(errors="replace").strip()
            raise RuntimeError(f"the connection to {self._name} ended with status {status} during {doing[:200]!r}: {errors}")
        return line
