"""Passwords are hashed by all workers but one, so that a client that sends many of them cannot block /health.

scrypt keeps a processor busy for a quarter of a second. A worker takes a place before it hashes: a lock on a file,
which ends with its process. When no place is free the client gets a 503 at once.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from django.conf import settings
from django.contrib.auth.hashers import ScryptPasswordHasher


class NoPlace(Exception):
    """The maximum number of workers is hashing passwords."""


class BoundedScrypt(ScryptPasswordHasher):
    """Django's scrypt, limited by the number of places. Checking a password hashes it as well."""

    def encode(self, password: str, salt: str, n: int | None = None, r: int | None = None, p: int | None = None) -> str:
        """Return the encoded hash. Raises NoPlace."""
        with place(settings.HASHING_DIRECTORY, settings.HASHING_PLACES):
            return super().encode(password, salt, n, r, p)


@contextmanager
def place(directory: str, count: int) -> Iterator[None]:
    """Hold one of ``count`` places while the block runs; 0: there is no limit. Raises NoPlace when all are held."""
    if not count:
        yield
        return
    for number in range(count):
        with Path(directory, f"hashing-{number}").open("w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield
            return
    raise NoPlace
