"""Where backups go off this machine: over SSH to a host whose key is known, or by rclone.

A file has its final name at the target when all of it is there. Nothing is ever deleted there: whoever takes over this
machine must not reach its old backups.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from golden.backup import archives, files_of, sent
from golden.core import USAGE, Problem, run, write_whole

KEY = Path("/etc/golden/backup_key")
KNOWN_HOSTS = Path("/etc/golden/backup_known_hosts")
RCLONE_CONFIGURATION = Path("/etc/golden/rclone.conf")
SEND_SECONDS = 6 * 3600
CONNECT_SECONDS = 20
SCP = (
    r"scp://(?P<login>[A-Za-z0-9_.][A-Za-z0-9_.-]*@([A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\]))(:(?P<port>[0-9]{1,5}))?"
    r"(?P<path>/[A-Za-z0-9_.@+/-]*)"
)
RCLONE = r"rclone:(?P<remote>[A-Za-z0-9_][A-Za-z0-9_.-]*):(?P<path>[A-Za-z0-9_./-]*)"


@dataclass(frozen=True)
class Scp:
    """A directory of another machine."""

    login: str
    port: int
    path: str

    def argv(self) -> list[str]:
        """Return the argv that takes sftp's commands from standard input; an unknown host is refused, never asked about."""
        options = {
            "BatchMode": "yes", "IdentitiesOnly": "yes", "IdentityFile": KEY, "PreferredAuthentications": "publickey",
            "StrictHostKeyChecking": "yes", "UserKnownHostsFile": KNOWN_HOSTS, "GlobalKnownHostsFile": "/dev/null",
            "UpdateHostKeys": "no", "ConnectTimeout": CONNECT_SECONDS, "ServerAliveInterval": 15,
            "ClearAllForwardings": "yes", "LogLevel": "ERROR",
        }  # fmt: skip
        words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        return ["sftp", "-b", "-", "-P", str(self.port), *words, self.login]

    def send(self, archive: Path) -> None:
        """Copy the archive, its checksum and its signature there."""
        for path, what in ((KEY, "the key to log in with"), (KNOWN_HOSTS, "the host key of the target")):
            if not path.is_file():
                raise Problem(f"{path} is not there: {what}", hint=f"see docs: ssh-keygen -t ed25519 -f {KEY}; "
                              f"ssh-keyscan HOST >{KNOWN_HOSTS}, and compare it with the host's")  # fmt: skip
        directory = self.path.rstrip("/")
        commands = []
        for path in files_of(archive):
            fresh, final = f"{directory}/.{path.name}.part", f"{directory}/{path.name}"
            # A rename over a file that an interrupted run left there fails on some servers.
            commands += [f'put "{path}" "{fresh}"', f'-rm "{final}"', f'rename "{fresh}" "{final}"']
        run(self.argv(), stdin="\n".join([*commands, ""]).encode(), timeout=SEND_SECONDS)


@dataclass(frozen=True)
class Rclone:
    """A remote of rclone, as its configuration names it."""

    remote: str
    path: str

    def send(self, archive: Path) -> None:
        """Copy the archive, its checksum and its signature there; rclone names them when they are complete."""
        if shutil.which("rclone") is None:
            raise Problem("the target needs rclone, which is not installed",
                          hint=f"apt-get install rclone, and put its configuration into {RCLONE_CONFIGURATION}")  # fmt: skip
        for path in files_of(archive):
            place = "/".join(part for part in (self.path.rstrip("/"), path.name) if part)
            run(["rclone", "--config", RCLONE_CONFIGURATION, "--contimeout", f"{CONNECT_SECONDS}s", "--retries", "2",
                 "copyto", path, f"{self.remote}:{place}"], timeout=SEND_SECONDS)  # fmt: skip


def parse(target: str) -> Scp | Rclone:
    """Return the target that a setting names."""
    if found := re.fullmatch(SCP, target):
        return Scp(found["login"], int(found["port"] or 22), found["path"])
    if found := re.fullmatch(RCLONE, target):
        return Rclone(found["remote"], found["path"])
    raise Problem(f"{target!r} is no target for backups", code=USAGE,
                  hint="scp://user@host[:port]/path or rclone:remote:path")  # fmt: skip


def send_pending(directory: Path, target: str) -> list[str]:
    """Send every backup that the target does not have, the oldest first; return their names.

    Raises Problem at the first that cannot be sent: the next run begins there.
    """
    place = parse(target)
    names: list[str] = []
    waiting = [archive for archive in archives(directory) if sent(archive) != target]
    for archive in waiting:
        try:
            place.send(archive)
        except Problem as problem:
            left = len(waiting) - len(names)
            raise Problem(f"{target}: {problem.brief} ({left} not sent; they are kept and sent by the next run)",
                          hint=problem.hint, code=problem.code) from problem  # fmt: skip
        write_whole(archive.with_name(f"{archive.name}.sent"), f"{target}\n".encode())
        names.append(archive.name)
    return names
