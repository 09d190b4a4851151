"""Evidence of an incident: what runs, what is connected, what changed, and all logs, in one archive that only root reads.

Nothing secret is taken along: no environment of a process, no private key, no content of the database.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from golden import core

DIRECTORY = Path("/var/backups/golden-evidence")
SPARE_BYTES = 64 * 1024 * 1024
# The output of each is kept under the name; for a missing program there is a note instead. Layers add commands.
COMMANDS: dict[str, Sequence[str]] = {
    "connections": ["ss", "-anptue"],
    "processes": ["ps", "axwwo", "pid,ppid,user,lstart,stat,wchan,cgroup:60,args"],
    "addresses": ["ip", "-details", "address"],
    "routes": ["ip", "route", "show", "table", "all"],
    "neighbours": ["ip", "neighbour"],
    "packet-filter": ["nft", "list", "ruleset"],
    "sessions": ["loginctl", "list-sessions", "--no-pager"],
    "units": ["systemctl", "list-units", "--all", "--no-pager", "--full"],
    "unit-files": ["systemctl", "list-unit-files", "--no-pager"],
    "changed-units": ["systemd-delta", "--no-pager", "--type=overridden,extended,masked"],
    "timers": ["systemctl", "list-timers", "--all", "--no-pager"],
    "modules": ["lsmod"],
    "mounts": ["findmnt", "--all"],
    "journal-boots": ["journalctl", "--list-boots", "--no-pager"],
    "changed-files": [
        "find", "/etc", "/usr", "/opt", "/root", "/home", "/var/www", "/var/spool", "/tmp", "/var/tmp", "/dev/shm", "-xdev",
        "-newerct", "7 days ago", "-type", "f", "-printf", "%C+ %m %u:%g %s %p\n",
    ],
}  # fmt: skip
HASHED = (
    "/etc", "/usr/bin", "/usr/sbin", "/usr/lib/golden", "/usr/lib/python3/dist-packages/golden", "/usr/lib/systemd/system",
    "/opt/app", "/root", "/boot",
)  # fmt: skip
LOGS = Path("/var/log")
# Files of the layers with a table `commands`.
LISTS = Path("/usr/lib/golden/evidence.d")


def first_sight() -> str:
    """Return the connections as they are: the fence ends them."""
    return _said(COMMANDS["connections"])


def collect(*, reason: str, before: str, directory: Path = DIRECTORY) -> dict[str, Any]:
    """Write the archive and its hash; return where they are."""
    _need_room(directory)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{os.uname().nodename}"
    path = directory / f"{name}.tar.gz"
    started = {"host": os.uname().nodename, "time": name.partition("-")[0], "reason": reason, "kernel": list(os.uname())}
    members: dict[str, str] = {}
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=3) as archive:
            for inside, text in _texts(started, before):
                _add(archive, f"{name}/{inside}", text.encode(errors="replace"), members)
            _add_logs(archive, name, members)
            listed = "".join(f"{digest}  {inside}\n" for inside, digest in members.items())
            _add(archive, f"{name}/SHA256SUMS", listed.encode(), {})
        stream.flush()
        os.fsync(stream.fileno())
    digest = _digest(path)
    core.write_whole(path.with_name(f"{path.name}.sha256"), f"{digest}  {path.name}\n".encode())
    return {"archive": str(path), "sha256": digest, "members": len(members), "bytes": path.stat().st_size}


def _need_room(directory: Path) -> None:
    """Raise Problem if the logs, not compressed, would not fit: a full disk helps the intruder."""
    needed = sum(path.stat().st_size for path in LOGS.rglob("*") if path.is_file() and not path.is_symlink()) // 2
    place = next(one for one in (directory, *directory.parents) if one.is_dir())
    free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
    if free < needed + SPARE_BYTES:
        raise core.Problem(
            f"{directory} has room for {free >> 20} MiB, and the evidence may need {(needed + SPARE_BYTES) >> 20}",
            hint="mount another disk and name it with --directory",
        )


def _texts(started: dict[str, Any], before: str) -> Iterator[tuple[str, str]]:
    """Return what is not a file, the fleeting first."""
    yield "incident.json", json.dumps(started, indent=1)
    if before:
        yield "connections-before-the-fence.txt", before
    yield "open-files.txt", "".join(_open_files())
    yield "programs.txt", "".join(_programs())
    for name, argv in (COMMANDS | _listed()).items():
        yield f"{name}.txt", _said(argv)
    yield "hashes.txt", "".join(_hashes())


def _listed() -> dict[str, Sequence[str]]:
    """Return the commands that the layers list."""
    lists = [tomllib.loads(path.read_text(encoding="utf-8")) for path in sorted(LISTS.glob("*.toml"))]
    return {name: argv for one in lists for name, argv in one["commands"].items()}


def _said(argv: Sequence[str]) -> str:
    try:
        done = core.run(argv, check=False, timeout=300)
    except core.Problem as problem:
        return f"{problem}\n"
    return (done.stdout + done.stderr).decode(errors="replace")


def _processes() -> Iterator[Path]:
    return (path for path in sorted(Path("/proc").iterdir()) if path.name.isdigit())


def _open_files() -> Iterator[str]:
    """Return every open file of every process, as lsof would."""
    for process in _processes():
        try:
            yield from (f"{process.name} {link.name} {link.readlink()}\n" for link in (process / "fd").iterdir())
        except OSError:
            continue  # it has ended


def _programs() -> Iterator[str]:
    """Return every running program with its hash, read from memory's side: also if its file was deleted."""
    for process in _processes():
        try:
            target = (process / "exe").readlink()
            digest = _digest(process / "exe")
            words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue  # a thread of the kernel, or ended
        yield f"{process.name} {digest} {target} [{words}]\n"


def _hashes() -> Iterator[str]:
    for root in HASHED:
        for path in sorted(Path(root).rglob("*")):
            try:
                if path.is_file() and not path.is_symlink():
                    yield f"{_digest(path)}  {path}\n"
            except OSError as error:
                yield f"{error.strerror}  {path}\n"


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _add(archive: tarfile.TarFile, name: str, content: bytes, members: dict[str, str]) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = len(content), 0o600, int(time.time())
    archive.addfile(member, io.BytesIO(content))
    members[name] = hashlib.sha256(content).hexdigest()


def _add_logs(archive: tarfile.TarFile, name: str, members: dict[str, str]) -> None:
    """Add the logs as they are: the journal in its own form, which journalctl --directory reads."""
    core.run(["journalctl", "--sync"], check=False, timeout=60)
    for path in sorted(LOGS.rglob("*")):
        if not path.is_file() or path.is_symlink():
            continue
        inside = f"{name}{path}"
        with path.open("rb") as stream:
            member = archive.gettarinfo(arcname=inside, fileobj=stream)
            reader = _Hashing(stream)
            # A log that grows meanwhile: as long as it was when it was looked at.
            archive.addfile(member, reader)
            members[inside] = reader.sha256.hexdigest()


class _Hashing:
    """A file that is hashed while it is read."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self.stream, self.sha256 = stream, hashlib.sha256()

    def read(self, size: int = -1, /) -> bytes:
        """Return the next bytes."""
        block = self.stream.read(size)
        self.sha256.update(block)
        return block
