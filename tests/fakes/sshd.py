"""A node's SSH server on the loopback interface: real SSH and SFTP, in a directory, with the few commands that we send."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paramiko

HOST = "127.0.0.1"
Command = Callable[[list[str]], tuple[int, str]]


class _Files(paramiko.SFTPServerInterface):  # type: ignore[misc]
    """The node's files, below a directory."""

    def __init__(self, server: Any, *_: Any, **__: Any) -> None:
        super().__init__(server)
        self.root: Path = server.root

    def _real(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def stat(self, path: str) -> Any:
        try:
            return paramiko.SFTPAttributes.from_stat(self._real(path).stat())
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno)

    def open(self, path: str, flags: int, _attr: Any) -> Any:
        real = self._real(path)
        real.parent.mkdir(parents=True, exist_ok=True)
        handle = paramiko.SFTPHandle(flags)
        handle.filename = str(real)
        handle.writefile = handle.readfile = os.fdopen(os.open(real, flags | os.O_CREAT, 0o600), "r+b")
        return handle


class _Session(paramiko.ServerInterface):  # type: ignore[misc]
    """One login: whoever shows the right key is let in."""

    def __init__(self, node: Node) -> None:
        self.node, self.root = node, node.root

    def check_auth_publickey(self, username: str, key: Any) -> int:
        good = username == "root" and key.get_base64() == self.node.user_key
        return int(paramiko.AUTH_SUCCESSFUL if good else paramiko.AUTH_FAILED)

    def get_allowed_auths(self, _username: str) -> str:
        return "publickey"

    def check_channel_request(self, _kind: str, _number: int) -> int:
        return int(paramiko.OPEN_SUCCEEDED)

    def check_channel_exec_request(self, channel: Any, command: bytes) -> bool:
        # The client gets the acceptance of the command only after this returns: an answer must not be sent before it.
        threading.Timer(0.1, self._run, args=(channel, shlex.split(command.decode()))).start()
        return True

    def _run(self, channel: Any, argv: list[str]) -> None:
        status, text = self.node.run(argv)
        # A client that has gone away is no matter.
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            (channel.sendall if status == 0 else channel.sendall_stderr)(text.encode())
            channel.send_exit_status(status)
            channel.close()


class Node:
    """A node: ``commands`` answers what ``run`` does not know; ``calls`` is what was sent."""

    def __init__(self, root: Path, user_key: str, commands: Command) -> None:
        self.root, self.user_key, self.commands = root, user_key, commands
        self.calls: list[list[str]] = []
        self.host_key = paramiko.ECDSAKey.generate()
        self._socket = socket.create_server((HOST, 0))
        self.port = int(self._socket.getsockname()[1])
        self._transports: list[Any] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            transport = paramiko.Transport(connection)
            self._transports.append(transport)
            transport.add_server_key(self.host_key)
            transport.set_subsystem_handler("sftp", paramiko.SFTPServer, _Files)
            try:
                transport.start_server(server=_Session(self))
            except (paramiko.SSHException, EOFError, OSError):
                transport.close()

    def run(self, argv: list[str]) -> tuple[int, str]:
        """Do what a node's shell would."""
        self.calls.append(argv)
        paths = [self.root / word.lstrip("/") for word in argv[1:] if word.startswith("/")]
        match argv[0]:
            case "sha256sum":
                return 0, f"{hashlib.sha256(paths[0].read_bytes()).hexdigest()}  {argv[1]}\n"
            case "mv":
                paths[0].rename(paths[1])
                return 0, ""
            case "rm":
                for path in paths:
                    path.unlink(missing_ok=True)
                return 0, ""
        return self.commands(argv)

    def close(self) -> None:
        self._socket.close()
        for transport in self._transports:
            transport.close()
