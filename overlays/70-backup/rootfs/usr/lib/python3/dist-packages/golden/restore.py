"""Restoring a backup: read to its end first, filled in beside what is there, compared, and only then put in its place.

Until the application is stopped, nothing of it is touched. The database changes its name and the media directory its
place in one step each; when the application is not healthy afterwards, both go back. A database server has no application:
its clients are disconnected for the moment of the change, and the backup must have no media.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from golden import archive as archive_format
from golden import clients, signature
from golden.backup import SUFFIX, checksum_of, decrypting, made_at
from golden.core import CHECK_FAILED, Problem
from golden.postgres import APPLICATION, Server, compatible, differences, installed_version

FRESH, OLD = "app_restored", "app_before_restore"
# A database with open connections cannot be renamed.
DISCONNECT = "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE datname LIKE 'app%';"
AT_FDCWD, RENAME_EXCHANGE = -100, 2


class Into:
    """A sink that restores: the dump into a stream of pg_restore, the media into an empty directory."""

    def __init__(self, dump: IO[bytes], media: Path) -> None:
        self._dump, self._media = dump, media

    def dump(self, piece: bytes) -> None:
        """Hand the piece to pg_restore."""
        self._dump.write(piece)

    def directory(self, path: str, mode: int) -> None:  # noqa: ARG002 (modes are the image's, not the archive's)
        """Make a directory."""
        (self._media / path).mkdir(mode=0o700)

    def file(self, path: str, mode: int, content: Iterator[bytes]) -> None:  # noqa: ARG002 (as above)
        """Write a file that is not there yet."""
        descriptor = os.open(self._media / path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            for data in content:
                out.write(data)


@dataclass(frozen=True)
class Source:
    """A backup that was verified: its file, the key to it, and the SHA-256 that everything read later is compared with."""

    archive: Path
    identity: Path | bytes
    checksum: str


def source(archive: Path, identity: Path | bytes, *, signers: Sequence[str] | None) -> Source:
    """Verify that one of the ``signers``, or this machine, has signed a backup; None: no signature is needed.

    Raises Problem (CHECK_FAILED) for a backup without a signature, or with one of an unknown signer.
    """
    checksum = checksum_of(archive)
    if signers is not None:
        signature.verify(archive, checksum, [*signers, signature.signer()])
    return Source(archive, identity, checksum)


def check(backup: Source) -> dict[str, Any]:
    """Decrypt and read a whole backup; return its manifest. Nothing is written anywhere.

    Raises Problem (CHECK_FAILED) for a wrong key, a changed byte, a missing end, or a backup of a newer server.
    """
    with decrypting(backup.archive, backup.identity, checksum=backup.checksum) as stream:
        manifest = archive_format.read(stream, archive_format.Nowhere())
    not_renamed(backup.archive, manifest)
    compatible(manifest["versions"]["postgresql"], installed_version())
    return manifest


def not_renamed(archive: Path, manifest: Mapping[str, Any]) -> None:
    """Raise Problem (CHECK_FAILED) for a backup whose name is that of another time or machine.

    Who can write to the store could give an old backup, which is signed too, the name of the newest. A name of another
    form does not contain it, and is accepted.
    """
    try:
        named = made_at(archive).isoformat(timespec="seconds")
    except ValueError:
        return
    host = archive.name.removesuffix(SUFFIX).partition("-")[2]
    if (named, host) != (manifest["made"], manifest["host"]):
        raise Problem(
            f"{archive} has the name of a backup of {named} on {host}, and holds one of {manifest['made']} on "
            f"{manifest['host']}", hint="if you want that one, give it its own name, and find out who renamed it",
            code=CHECK_FAILED,
        )  # fmt: skip


def fill(backup: Source, *, server: Server, database: str, media: Path) -> list[str]:
    """Restore a backup into an empty database and an empty directory; return what differs from its manifest."""
    content = decrypting(backup.archive, backup.identity, checksum=backup.checksum)
    with server.restoring(database) as dump, content as stream:
        manifest = archive_format.read(stream, Into(dump, media))
    found = differences(manifest["database"]["tables"], server.tables(database))
    measured = archive_format.measure(media)
    expected = {key: manifest["media"][key] for key in measured}
    return found + ([] if measured == expected else [f"media: {expected} in the backup, {measured} restored"])


def restore(backup: Source) -> dict[str, Any]:
    """Replace database and media by those of a backup. Raises Problem, and then all is as it was."""
    manifest = check(backup)
    application = clients.application()
    if application is None:
        clients.require_no_media(manifest["media"]["files"])
    started = time.monotonic()
    server = Server()
    with _scratch(server, manifest, application) as media:
        found = fill(backup, server=server, database=FRESH, media=media)
        if found:
            raise Problem(f"what was restored differs: {found[0]} ({len(found)} differences)", code=CHECK_FAILED)
        if application:
            application.adopt(media)
        os.sync()
        downtime = _swap(server, application)
    tables = manifest["database"]["tables"]
    return {
        "archive": str(backup.archive), "made": manifest["made"], "host": manifest["host"],
        "tables": {name: table["rows"] for name, table in tables.items()}, "rows": sum(t["rows"] for t in tables.values()),
        "media_files": manifest["media"]["files"], "rto_seconds": round(time.monotonic() - started, 1),
        "downtime_seconds": downtime,
    }  # fmt: skip


@contextmanager
def _scratch(server: Server, manifest: dict[str, Any], application: clients.Application | None) -> Iterator[Path]:
    """Provide the empty database, and yield an empty directory; what is not used, or was replaced, is removed at the end."""
    media = application.FRESH if application else clients.NO_MEDIA
    _clear(server, media)
    room = shutil.disk_usage(media.parent).free
    if manifest["media"]["bytes"] > room:
        raise Problem(f"{media.parent} has {room} bytes left, and the media need {manifest['media']['bytes']}")
    try:
        server.make(FRESH)
        media.mkdir(mode=0o700)
        yield media
    finally:
        _clear(server, media)


def _clear(server: Server, media: Path) -> None:
    for name in (FRESH, OLD):
        server.drop(name)
    shutil.rmtree(media, ignore_errors=True)


def _swap(server: Server, application: clients.Application | None) -> float:
    """Put the restored in place, with the application stopped; return the seconds without it. Goes back on failure."""
    newer = application is not None and application.newer(server, APPLICATION, FRESH)
    stopped = time.monotonic()
    if application:
        application.stop()
    try:
        with _exchanged(server, application):
            if application:
                application.bring_up(newer=newer)
    except BaseException:
        if application:
            application.start()
        raise
    return round(time.monotonic() - stopped, 1)


@contextmanager
def _exchanged(server: Server, application: clients.Application | None) -> Iterator[None]:
    """Put database and media in place; undo that when the block fails."""
    had = server.exists(APPLICATION)
    _rename(server, [(APPLICATION, OLD)] if had else [], (FRESH, APPLICATION))
    try:
        with _exchanged_media(application):
            yield
    except BaseException:
        _rename(server, [(APPLICATION, FRESH)], *([(OLD, APPLICATION)] if had else []))
        raise


@contextmanager
def _exchanged_media(application: clients.Application | None) -> Iterator[None]:
    """Put the media in place, if there is an application; undo that when the block fails."""
    if application is None:
        yield
        return
    had = application.MEDIA.is_dir()
    exchange(application.FRESH, application.MEDIA)
    try:
        yield
    except BaseException:
        _back(application.MEDIA, application.FRESH, exchanged=had)
        raise


def _back(place: Path, fresh: Path, *, exchanged: bool) -> None:
    if exchanged:
        exchange(fresh, place)
    else:
        place.rename(fresh)


def _rename(server: Server, first: list[tuple[str, str]], *then: tuple[str, str]) -> None:
    """Rename databases, all or none."""
    renames = [f"ALTER DATABASE {old} RENAME TO {new};" for old, new in (*first, *then)]
    server.administer("\n".join([DISCONNECT, "BEGIN;", *renames, "COMMIT;"]))


def exchange(one: Path, other: Path) -> None:
    """Let two directories change places in one step; without the second, give its name to the first."""
    if not other.exists():
        one.rename(other)
        return
    library = ctypes.CDLL(None, use_errno=True)
    if library.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) != 0:
        number = ctypes.get_errno()
        raise Problem(f"{one} and {other} cannot change places: {os.strerror(number)}")
