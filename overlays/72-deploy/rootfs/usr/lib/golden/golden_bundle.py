"""Application bundles: checked as a whole before any of it is unpacked, and unpacked as nothing but plain files.

A bundle is a tar archive: ``manifest.json`` first (format, name, and size and SHA-256 of every other file), then
``requirements.lock``, ``code/...`` and ``wheels/...``. `python -m build bundle` makes one.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from golden import CHECK_FAILED, USAGE, Problem

FORMAT = 1
MANIFEST, LOCK, CODE, WHEELS = "manifest.json", "requirements.lock", "code", "wheels"
ENTRY = f"{CODE}/manage.py"
NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")
# Neither hidden files nor anything that a shell or a terminal would take for more than a name.
PART = re.compile(r"[A-Za-z0-9_@+=,()~\[\]-][A-Za-z0-9_.@+=,()~ \[\]-]{0,254}")
DIGEST = re.compile(r"[0-9a-f]{64}")
LARGEST_BUNDLE = 2 << 30
LARGEST_FILE = 512 << 20
LARGEST_MANIFEST = 16 << 20
MOST_FILES = 50_000
CHUNK = 1 << 20
FETCH_SECONDS = 60.0


@dataclass(frozen=True)
class Bundle:
    """A bundle whose hash is the one that was asked for."""

    path: Path
    sha256: str
    name: str
    files: Mapping[str, Mapping[str, Any]]

    @property
    def digest(self) -> str:
        """The name of its release."""
        return self.sha256[:12]


def checked_digest(given: str) -> str:
    """Return a SHA-256 in small letters. Raises Problem when it is none."""
    digest = given.strip().lower()
    if not DIGEST.fullmatch(digest):
        raise Problem(f"{given!r} is no SHA-256", hint="64 hexadecimal digits, from whoever made the bundle", code=USAGE)
    return digest


def fetch(url: str, target: Path) -> None:
    """Fetch a bundle over HTTPS. What it is worth is said by its hash."""
    if not url.startswith("https://"):
        raise Problem(f"{url}: a bundle is a path or an https:// address", code=USAGE)
    try:
        with urllib.request.urlopen(url, timeout=FETCH_SECONDS) as answer, target.open("wb") as stream:  # noqa: S310 (https)
            size = 0
            while data := answer.read(CHUNK):
                size += len(data)
                if size > LARGEST_BUNDLE:
                    raise Problem(f"{url} is larger than {LARGEST_BUNDLE} bytes")
                stream.write(data)
    except OSError as error:
        raise Problem(f"{url} cannot be fetched: {error}", hint="is the address right, and may root reach it?") from error


def read(path: Path, sha256: str) -> Bundle:
    """Check hash, names, kinds and sizes of a whole bundle. Nothing is written.

    Raises Problem (CHECK_FAILED) for anything that is not as it must be.
    """
    try:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise Problem(f"{path}: {error.strerror}", code=USAGE) from error
    if found != sha256:
        raise _refusal(f"{path} has the hash {found}, and {sha256} was asked for")
    with _members(path) as members:
        name, files = _manifest(members)
        seen = set()
        for member, content in members:
            _need(member.name in files, f"{member.name!r} is not in the manifest")
            _need(member.name not in seen, f"{member.name!r} is there twice")
            seen.add(member.name)
            lock = io.BytesIO() if member.name == LOCK else None
            _need(_measure(content, lock) == dict(files[member.name]), f"{member.name} is not what the manifest says")
            if lock:
                _check_lock(lock.getvalue())
        missing = sorted(set(files) - seen)
        _need(not missing, f"{', '.join(missing[:3])} in the manifest is not there")
    return Bundle(path, sha256, name, files)


def unpack(bundle: Bundle, into: Path) -> None:
    """Write the files of a checked bundle into a directory that is empty; its owner alone can read them."""
    with _members(bundle.path) as members:
        for member, content in members:
            if member.name == MANIFEST:
                continue
            # The file may have changed since it was checked.
            _need(member.name in bundle.files, f"{member.name!r} was not there before")
            target = into / member.name
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as out:
                facts = _measure(content, out)
            _need(facts == dict(bundle.files[member.name]), f"{member.name} changed while it was unpacked")


def changed(root: Path, files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the files below ``root`` that are not what the manifest says."""
    found = []
    for name, facts in files.items():
        try:
            with os.fdopen(os.open(root / name, os.O_RDONLY | os.O_NOFOLLOW), "rb") as stream:
                same = _measure(iter(lambda stream=stream: stream.read(CHUNK), b"")) == dict(facts)  # type: ignore[misc]
        except OSError:
            same = False
        if not same:
            found.append(name)
    return found


def _check_lock(content: bytes) -> None:
    """Refuse a requirement without a hash here, where it costs nothing; pip would, too."""
    for line in content.decode(errors="replace").replace("\\\n", " ").splitlines():
        text = line.partition("#")[0].strip()
        _need(not text or "--hash=sha256:" in text, f"{LOCK}: {text!r} has no hash")


class _Members:
    """The regular files of a tar archive, one after the other, each with a reader of its content."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar

    def __iter__(self) -> Iterator[tuple[tarfile.TarInfo, Iterator[bytes]]]:
        for number, member in enumerate(self._tar):
            _need(number < MOST_FILES, f"more than {MOST_FILES} files")
            _need(member.isreg(), f"{member.name!r} is not a plain file")
            _need(member.size <= LARGEST_FILE, f"{member.name!r} is larger than {LARGEST_FILE} bytes")
            _need(safe(member.name), f"{member.name!r} is not a name for a file of a bundle")
            yield member, self._content(member)

    def _content(self, member: tarfile.TarInfo) -> Iterator[bytes]:
        stream = self._tar.extractfile(member)
        assert stream is not None
        while data := stream.read(CHUNK):
            yield data


class _members:  # noqa: N801 (reads as a function)
    """Open a bundle; anything that tarfile cannot read is a refusal."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Iterator[tuple[tarfile.TarInfo, Iterator[bytes]]]:
        try:
            # Uncompressed only: a small file cannot become a large one.
            self._tar = tarfile.open(self._path, mode="r:")
        except (tarfile.TarError, OSError) as error:
            raise _refusal(f"it is no tar archive: {error}") from error
        return iter(_Members(self._tar))

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._tar.close()
        if isinstance(error, tarfile.TarError):
            raise _refusal(str(error)) from error


def safe(name: str) -> bool:
    """Say whether a member's name is one that a bundle may have."""
    if name in (MANIFEST, LOCK):
        return True
    top, *rest = name.split("/")
    return top in (CODE, WHEELS) and bool(rest) and len(name) <= 1024 and all(PART.fullmatch(part) for part in rest)


def _manifest(members: Iterator[tuple[tarfile.TarInfo, Iterator[bytes]]]) -> tuple[str, dict[str, Any]]:
    member, content = next(members, (None, iter(())))
    _need(member is not None and member.name == MANIFEST, f"it does not begin with {MANIFEST}")
    assert member is not None
    _need(member.size <= LARGEST_MANIFEST, f"{MANIFEST} is too large")
    try:
        found = json.loads(b"".join(content))
        files, name, version = dict(found["files"]), str(found["name"]), found["format"]
    except (ValueError, TypeError, KeyError) as error:
        raise _refusal(f"{MANIFEST}: {type(error).__name__}: {error}") from error
    _need(version == FORMAT, f"it has format {version}, and this program reads {FORMAT}")
    _need(bool(NAME.fullmatch(name)), f"{name!r} is no name of an application")
    for needed in (ENTRY, LOCK):
        _need(needed in files, f"{needed} is missing")
    return name, files


def _measure(content: Iterator[bytes], out: IO[bytes] | None = None) -> dict[str, Any]:
    size, sha256 = 0, hashlib.sha256()
    for data in content:
        size += len(data)
        sha256.update(data)
        if out is not None:
            out.write(data)
    return {"bytes": size, "sha256": sha256.hexdigest()}


def _need(condition: bool, what: str) -> None:  # noqa: FBT001 (as assert has it)
    if not condition:
        raise _refusal(what)


def _refusal(what: str) -> Problem:
    return Problem(f"the bundle is refused: {what}", hint="nothing was changed", code=CHECK_FAILED)
