"""Programs that data flows through: started, fed or read as a stream, and reaped whatever happens."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from golden.core import FAILED, Problem

CHUNK = 4 << 20
# How long a program may take to end after its pipe broke.
ENDING_SECONDS = 5.0


class Meter:
    """Counts and hashes what passes through it."""

    def __init__(self) -> None:
        self.bytes = 0
        self._hash = hashlib.sha256()

    def add(self, data: bytes) -> bytes:
        """Take note of ``data``, and return it."""
        self.bytes += len(data)
        self._hash.update(data)
        return data

    def facts(self) -> dict[str, Any]:
        """Return size and hash as the manifest has them."""
        return {"bytes": self.bytes, "sha256": self._hash.hexdigest()}


def as_user(user: str, argv: Sequence[str | Path]) -> list[str]:
    """Return the argv that runs a program as a system user, with its group: peer authentication looks at the user."""
    drop = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--"] if os.geteuid() == 0 else []
    return [*drop, *map(str, argv)]


@contextmanager
def program(
    argv: Sequence[str | Path], *, stdin: IO[bytes] | int = subprocess.DEVNULL, stdout: IO[bytes] | int = subprocess.DEVNULL,
    code: int = FAILED, name: str = "", pass_fds: Sequence[int] = (),
) -> Iterator[subprocess.Popen[bytes]]:  # fmt: skip
    """Run a program beside the block; at its end the program has ended too.

    Raises Problem (exit code ``code``) with the program's last words when it fails, also when the block failed only
    because the program was gone. A block that fails by itself kills the program.
    """
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                list(map(str, argv)), stdin=stdin, stdout=stdout, stderr=errors, pass_fds=tuple(pass_fds)
            )
        except FileNotFoundError:
            raise Problem(f"{argv[0]} is not installed") from None
        try:
            yield process
            _close(process)
        except BrokenPipeError:
            if not _ended(process):
                # It was another program's pipe.
                process.kill()
                raise
        except BaseException:
            process.kill()
            raise
        finally:
            _close(process)
            status = process.wait()
        if status:
            errors.seek(0)
            last = errors.read().decode(errors="replace").strip().splitlines()[-3:]
            raise Problem(f"{name or argv[0]} failed ({status}): {' / '.join(last)}", code=code)


def _ended(process: subprocess.Popen[bytes]) -> bool:
    """Return True if a program whose pipe broke has failed; it may take a moment to end."""
    try:
        return process.wait(timeout=ENDING_SECONDS) != 0
    except subprocess.TimeoutExpired:
        return False


def _close(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            try:
                stream.close()
            except BrokenPipeError:
                continue


def drain(stream: IO[bytes]) -> None:
    """Read a stream to its end."""
    while stream.read(CHUNK):
        pass
