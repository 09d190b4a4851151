"""Backups: made as a stream, encrypted for a key that is not here, signed, whole or not there, and kept for a while.

A backup is ``/var/backups/golden/TIME-HOST.tar.age`` with ``.sha256`` and ``.sig`` beside it, and ``.sent`` when the
off-site target has it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import stat
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

from golden import archive as archive_format
from golden import clients, signature
from golden.core import CHECK_FAILED, USAGE, Problem, run, site, write_whole
from golden.postgres import APPLICATION, Server, Session, installed_version
from golden.stream import CHUNK, Meter, drain, program

DIRECTORY = Path("/var/backups/golden")
SUFFIX = ".tar.age"
STAMP = "%Y%m%dT%H%M%SZ"
RECIPIENT = r"age1[0-9a-z]{20,}"
HOW_TO_SET = (
    "make a key pair on another machine (age-keygen -o backup.key), put its public half into /etc/golden/site.yaml as\n"
    '      backup: {recipient: age1..., target: "", keep_days: 14}\n'
    "      and run: systemctl restart golden-site.service"
)  # fmt: skip


def settings() -> dict[str, Any]:
    """Return the site's ``backup`` settings. Raises Problem when there are none."""
    found = site().get("backup")
    if not found or not found.get("recipient"):
        raise Problem("no recipient for backups is set", hint=HOW_TO_SET)
    if not re.fullmatch(RECIPIENT, found["recipient"]):
        raise Problem(f"{found['recipient']!r} is no public key of age", hint=HOW_TO_SET)
    return dict(found)


def make(recipient: str, directory: Path, *, now: datetime | None = None) -> tuple[Path, dict[str, Any]]:
    """Make a backup in ``directory``; return its path and its manifest. When it fails, nothing is left."""
    now = now or datetime.now(UTC)
    host = re.sub(r"[^a-zA-Z0-9-]", "-", socket.gethostname()) or "clone"
    target = directory / f"{now.strftime(STAMP)}-{host}{SUFFIX}"
    if target.exists():
        raise Problem(f"{target} already exists", hint="wait a second")
    fresh = target.with_name(f".{target.name}.new")
    for left in directory.glob(f".*{SUFFIX}*.new"):
        left.unlink()
    try:
        with fresh.open("xb") as stream:
            fresh.chmod(0o600)
            manifest = _fill(stream, recipient, now=now, host=host)
            os.fsync(stream.fileno())
        with fresh.open("rb") as stream:
            checksum = hashlib.file_digest(stream, "sha256").hexdigest()
        write_whole(target.with_name(f"{target.name}.sha256"), f"{checksum}  {target.name}\n".encode())
        write_whole(target.with_name(f"{target.name}{signature.SUFFIX}"), signature.sign(checksum))
        fresh.replace(target)
    except OSError as error:
        raise Problem(f"{directory}: {error.strerror or error}", hint="is there room on the disk? df -h") from error
    finally:
        fresh.unlink(missing_ok=True)
    _sync_directory(directory)
    return target, manifest


def _fill(stream: IO[bytes], recipient: str, *, now: datetime, host: str) -> dict[str, Any]:
    application = clients.application()
    with encrypting(stream, recipient) as plain:
        archive = archive_format.Writer(plain)
        # One snapshot for rows, checksums and dump; media afterwards, because a file is there before its row.
        with Session(Server(), APPLICATION).open() as session:
            tables = session.tables()
            with session.dump() as dump:
                database = archive.add_dump(dump)
        manifest = {
            "format": archive_format.FORMAT,
            "made": now.isoformat(timespec="seconds"),
            "host": host,
            "versions": _versions(application.release() if application else ""),
            "database": {"name": APPLICATION, **database, "tables": tables},
            "media": archive.add_media(application.MEDIA if application else clients.NO_MEDIA),
        }
        archive.finish(manifest)
    return manifest


def _versions(release: str) -> dict[str, str]:
    age = run(["age", "--version"]).stdout.decode().strip()
    return {"postgresql": installed_version(), "age": age, "release": release}


@contextmanager
def encrypting(target: IO[bytes], recipient: str) -> Iterator[IO[bytes]]:
    """Yield a stream whose content goes, encrypted for ``recipient``, to ``target``."""
    with program(["age", "--encrypt", "--recipient", recipient], stdin=subprocess.PIPE, stdout=target) as process:
        assert process.stdin is not None
        yield process.stdin


def checksum_of(archive: Path) -> str:
    """Return the SHA-256 of a backup. Raises Problem when it is not a file that can be read."""
    try:
        with os.fdopen(os.open(archive, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise Problem(f"{archive} is not a regular file", hint="golden-backup --list", code=USAGE)
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise Problem(f"{archive}: {error.strerror}", hint="golden-backup --list") from error


@contextmanager
def _fed(archive: Path, checksum: str) -> Iterator[int]:
    """Yield a descriptor from which the archive can be read once; raise Problem when it is not the one with ``checksum``.

    The file may be written by others, so that what was verified has to be compared with what is used.
    """
    reading, writing = os.pipe()
    meter = Meter()

    def feed() -> None:
        with suppress(OSError), os.fdopen(writing, "wb") as out, archive.open("rb") as stream:
            while data := stream.read(CHUNK):
                out.write(meter.add(data))

    thread = threading.Thread(target=feed, daemon=True)
    thread.start()
    try:
        yield reading
    finally:
        # Ends a thread that waits for a reader.
        os.close(reading)
        thread.join()
    if meter.facts()["sha256"] != checksum:
        raise Problem(f"{archive} changed while it was read", hint="nothing was changed; run it again", code=CHECK_FAILED)


@contextmanager
def decrypting(archive: Path, identity: Path | bytes, *, checksum: str) -> Iterator[IO[bytes]]:
    """Yield the content of an archive. ``identity`` is a key file, or the key itself, which then touches no disk.

    Raises Problem when the key is not the one, or the archive is not whole, untouched, and the one with ``checksum``.
    """
    key = "-" if isinstance(identity, bytes) else str(identity)
    stdin = subprocess.PIPE if isinstance(identity, bytes) else subprocess.DEVNULL
    with _fed(archive, checksum) as source, program(
        ["age", "--decrypt", "--identity", key, f"/dev/fd/{source}"], stdin=stdin, stdout=subprocess.PIPE, code=CHECK_FAILED,
        name=f"age on {archive}", pass_fds=[source],
    ) as process:  # fmt: skip
        if process.stdin is not None and isinstance(identity, bytes):
            process.stdin.write(identity)
            process.stdin.close()
        assert process.stdout is not None
        try:
            yield process.stdout
        except Problem:
            # What age has to say about a broken archive is the cause; the reader only saw the stream end.
            drain(process.stdout)
            if process.wait():
                raise BrokenPipeError from None
            raise


def archives(directory: Path = DIRECTORY) -> list[Path]:
    """Return the backups, the oldest first."""
    return sorted(directory.glob(f"[0-9]*{SUFFIX}"))


def files_of(archive: Path) -> tuple[Path, ...]:
    """Return an archive and what goes with it: its checksum and its signature."""
    return (archive, *(archive.with_name(f"{archive.name}{end}") for end in (".sha256", signature.SUFFIX)))


def sent(archive: Path) -> str:
    """Return the target that has the archive, or nothing."""
    marker = archive.with_name(f"{archive.name}.sent")
    return marker.read_text().strip() if marker.exists() else ""


def made_at(archive: Path) -> datetime:
    """Return when a backup was made, from its name."""
    return datetime.strptime(archive.name.split("-")[0], STAMP).replace(tzinfo=UTC)


def prune(directory: Path, *, keep_days: int, target: str, now: datetime | None = None) -> list[str]:
    """Remove backups older than ``keep_days``: never the newest, and none that ``target`` still waits for."""
    limit = (now or datetime.now(UTC)) - timedelta(days=keep_days)
    removed = []
    for archive in archives(directory)[:-1]:
        if made_at(archive) < limit and (not target or sent(archive) == target):
            for path in (*files_of(archive), archive.with_name(f"{archive.name}.sent")):
                path.unlink(missing_ok=True)
            removed.append(archive.name)
    return removed


def note(directory: Path, content: Mapping[str, Any]) -> None:
    """Write down what the last run did, for reports."""
    write_whole(directory / "last.json", json.dumps(content, indent=1, sort_keys=True).encode())


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
