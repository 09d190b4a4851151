"""Talks to a guest's agent over its socket, and answers the requests of Proxmox's API.

The protocol is QEMU's (interop/qemu-ga-ref): one JSON object a line. Every conversation begins with
``guest-sync-delimited``: the rest of an answer to an earlier client ends at the byte 0xFF.
"""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from build.machines import vm

SENTINEL = b"\xff"
# PVE::QMPClient waits three seconds for a guest-ping. An emulated guest gets more, but the API's callers do not wait for
# ever: both together stay below the 30 seconds of a client.
PING_SECONDS = 3.0
COMMAND_SECONDS = 5.0
MOST_PATIENCE = 3.0
# PVE::API2::Qemu::Agent: the most of a file that file-read returns.
MOST_BYTES = 16 << 20
PIECE = 1 << 20
# Commands of the API that are the agent's own, with no more to them than a result.
PLAIN = frozenset({
    "fsfreeze-freeze", "fsfreeze-status", "fsfreeze-thaw", "fstrim", "get-fsinfo", "get-host-name", "get-memory-block-info",
    "get-memory-blocks", "get-osinfo", "get-time", "get-timezone", "get-users", "get-vcpus", "info",
    "network-get-interfaces", "ping", "shutdown",
})  # fmt: skip


class NoAnswer(Exception):
    """The guest agent does not answer: there is none, or it has not started yet."""


class Refused(Exception):
    """The agent answers with an error, which the text is."""


class Unsupported(Exception):
    """The lab does not pass this command on."""


class Agent:
    """The agent behind a socket; one conversation at a time. ``patience`` scales the time it gets."""

    def __init__(self, path: Path, *, patience: float = 1.0) -> None:
        self.path, self.patience = path, min(patience, MOST_PATIENCE)
        self._lock = threading.Lock()

    def ask(self, command: str, values: Mapping[str, Any]) -> Any:
        """Answer a command of Proxmox's API (``/agent/<command>``) with the guest's answer.

        Raises NoAnswer, Refused, or Unsupported.
        """
        if command in PLAIN:
            return {"result": self.call(f"guest-{command}")}
        handler = getattr(self, f"_{command.replace('-', '_')}", None)
        if handler is None:
            raise Unsupported(f"the lab does not pass {command} on to the guest")
        return handler(values)

    def call(self, name: str, **arguments: Any) -> Any:
        """Let the agent do one thing and return its result. Raises NoAnswer or Refused."""
        with self._conversation() as line:
            return line.do(name, arguments)

    def is_up(self) -> bool:
        """Return True if the guest answers."""
        try:
            self.call("guest-ping")
        except (NoAnswer, Refused):
            return False
        return True

    def shut_down(self) -> bool:
        """Ask the guest to power off; return True if its agent got the request."""
        try:
            self.call("guest-shutdown")
        except (NoAnswer, Refused):
            return False
        return True

    @contextlib.contextmanager
    def _conversation(self) -> Iterator[_Line]:
        try:
            with self._lock, socket.socket(socket.AF_UNIX) as connection, vm._directory(self.path.parent) as short:
                connection.settimeout(PING_SECONDS * self.patience)
                connection.connect(f"{short}/{self.path.name}")
                line = _Line(connection, self.patience)
                line.greet()
                yield line
        except (OSError, ValueError) as error:
            raise NoAnswer(str(error)) from error

    def _exec(self, values: Mapping[str, Any]) -> Any:
        path, *words = values["command"] if isinstance(values["command"], list) else [values["command"]]
        more = {"input-data": _encoded(values["input-data"])} if "input-data" in values else {}
        return self.call("guest-exec", path=path, arg=words, **{"capture-output": True}, **more)

    def _exec_status(self, values: Mapping[str, Any]) -> Any:
        answer = dict(self.call("guest-exec-status", pid=int(values["pid"])))
        for key in ("out-data", "err-data"):
            if key in answer:
                answer[key] = base64.b64decode(answer[key]).decode(errors="replace")
        return {key: int(value) if isinstance(value, bool) else value for key, value in answer.items()}

    def _file_read(self, values: Mapping[str, Any]) -> Any:
        content, ended = bytearray(), False
        with self._conversation() as line:
            handle = line.do("guest-file-open", {"path": values["file"], "mode": "r"})
            try:
                while len(content) < MOST_BYTES and not ended:
                    piece = line.do("guest-file-read", {"handle": handle, "count": PIECE})
                    content += base64.b64decode(piece["buf-b64"])
                    ended = bool(piece["eof"]) or not piece["count"]
            finally:
                line.do("guest-file-close", {"handle": handle})
        more = {} if ended else {"truncated": 1}
        return {"content": content.decode(errors="replace"), "bytes-read": len(content), **more}

    def _file_write(self, values: Mapping[str, Any]) -> None:
        encode = str(values.get("encode", "1")) not in ("0", "False")
        content = _encoded(values["content"]) if encode else str(values["content"])
        with self._conversation() as line:
            handle = line.do("guest-file-open", {"path": values["file"], "mode": "wb"})
            try:
                line.do("guest-file-write", {"handle": handle, "buf-b64": content})
            finally:
                line.do("guest-file-close", {"handle": handle})


class _Line:
    """One conversation: objects out, objects in."""

    def __init__(self, connection: socket.socket, patience: float) -> None:
        self._connection, self._patience = connection, patience
        self._buffer = b""

    def greet(self) -> None:
        """Agree on where the guest's answers to us begin."""
        number = secrets.randbelow(1 << 31)
        self._send({"execute": "guest-sync-delimited", "arguments": {"id": number}}, before=SENTINEL)
        deadline = time.monotonic() + PING_SECONDS * self._patience
        while True:
            self._until(SENTINEL, deadline)
            if json.loads(self._until(b"\n", deadline)).get("return") == number:
                return

    def do(self, name: str, arguments: Mapping[str, Any]) -> Any:
        """Send a command and return its result; some, such as a shutdown, have none."""
        self._send({"execute": name, **({"arguments": arguments} if arguments else {})})
        if name == "guest-shutdown":
            return None
        answer = json.loads(self._until(b"\n", time.monotonic() + COMMAND_SECONDS * self._patience))
        if "error" in answer:
            raise Refused(str(answer["error"].get("desc", answer["error"])))
        return answer["return"]

    def _send(self, request: Mapping[str, Any], *, before: bytes = b"") -> None:
        self._connection.settimeout(PING_SECONDS * self._patience)
        self._connection.sendall(before + json.dumps(request).encode() + b"\n")

    def _until(self, mark: bytes, deadline: float) -> bytes:
        while mark not in self._buffer:
            self._connection.settimeout(max(0.01, deadline - time.monotonic()))
            data = self._connection.recv(1 << 16)
            if not data:
                raise NoAnswer("the agent's line was closed")
            self._buffer += data
        found, _, self._buffer = self._buffer.partition(mark)
        return found


def _encoded(text: object) -> str:
    return base64.b64encode(str(text).encode()).decode()
