"""Files that are complete or absent: hashes, atomic writes, scratch directories, locks.

Incomplete files never have their final name: content is written to a hidden file beside it, flushed to the disk, and
renamed. The process that creates a scratch directory holds a lock on it. A scratch directory whose lock is free was
left by a crash, and the next run removes it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from build.core import log

CHUNK = 1 << 20
SCRATCH_PREFIX = ".scratch-"


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal, read in chunks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def canonical_json(value: Any) -> bytes:
    """Return ``value`` as canonical JSON: sorted keys, no white space, so that equal values have equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest(value: Any) -> str:
    """Return the SHA-256 of the canonical JSON of ``value`` as hexadecimal."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def write_atomic(path: Path, content: bytes | str, *, mode: int = 0o644) -> None:
    """Write a file atomically: after a crash at any moment, and for a reader, it has the old content or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    data = content.encode() if isinstance(content, str) else content
    descriptor = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        hidden.rename(path)
    except BaseException:
        hidden.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as readable JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def sync_directory(path: Path) -> None:
    """Flush a directory's entries, so that a rename in it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def lock(path: Path, *, waiting: str = "") -> Iterator[None]:
    """Hold an exclusive lock on ``path``; log ``waiting`` once if another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting:
                log.info(waiting)
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextmanager
def scratch(parent: Path, *, remove: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """Yield a new directory below ``parent`` that is removed afterwards; if this process is killed, by the next run.

    ``remove`` deletes files that this user has no permission to delete (files of mapped user ids); the default is an
    ordinary recursive removal.
    """
    parent.mkdir(parents=True, exist_ok=True)
    remover = remove or remove_tree
    path = parent / f"{SCRATCH_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
    # The outer lock makes creation and locking atomic: without it another process could remove the directory as stale.
    with lock(parent / ".scratch.lock"):
        remove_stale(parent, remove=remover)
        path.mkdir()
        descriptor = _lock_directory(path)
    try:
        yield path
    finally:
        try:
            if path.exists():
                remover(path)
        finally:
            # Last: while it is held, no other process removes the partly removed directory as stale.
            os.close(descriptor)


def outside_scratch(path: Path) -> Path:
    """Return the directory for files of ``path`` that are kept: the scratch directory's parent, or else that of ``path``."""
    scratches = [parent for parent in path.parents if parent.name.startswith(SCRATCH_PREFIX)]
    return scratches[-1].parent if scratches else path.parent


def _lock_directory(path: Path) -> int:
    """Lock the directory itself, which leaves no file in it, and return the descriptor that holds the lock.

    Raises FileNotFoundError if it does not exist, and BlockingIOError if another process holds the lock.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def remove_stale(parent: Path, *, remove: Callable[[Path], None] | None = None) -> None:
    """Remove scratch directories below ``parent`` that no process holds a lock on."""
    for path in parent.glob(f"{SCRATCH_PREFIX}*"):
        try:
            descriptor = _lock_directory(path)
        except (BlockingIOError, FileNotFoundError):
            continue
        try:
            # Its creator may have removed or renamed it just before it released the lock.
            if path.exists():
                log.debug(f"removing {path}, left by an interrupted run")
                (remove or remove_tree)(path)
        finally:
            os.close(descriptor)


def remove_tree(path: Path) -> None:
    """Remove a directory tree, including read-only directories."""

    def retry_writable(function: Callable[..., Any], name: str, _error: Any) -> None:
        Path(name).parent.chmod(0o700)
        function(name)

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, onerror=retry_writable)
    else:
        path.unlink(missing_ok=True)


def commit_directory(hidden: Path, final: Path) -> None:
    """Give a finished directory its final name in one step; flush it first. ``final`` must not exist."""
    for path in sorted(hidden.rglob("*")):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
    final.parent.mkdir(parents=True, exist_ok=True)
    hidden.rename(final)
    sync_directory(final.parent)
