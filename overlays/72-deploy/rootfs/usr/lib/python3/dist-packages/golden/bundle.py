"""Application bundles: checked as a whole before any of it is unpacked, and unpacked as nothing but plain files.

A bundle is a tar archive: ``manifest.json`` first (format, name, and size and SHA-256 of every other file), then
``requirements.lock``, ``code/...`` and ``wheels/...``. `nox -s bundle` makes one.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import os
import re
import stat
import tarfile
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from golden.core import CHECK_FAILED, USAGE, Problem
from golden.tar import plain

FORMAT = 1
MANIFEST, LOCK, CODE, WHEELS = "manifest.json", "requirements.lock", "code", "wheels"
ENTRY = f"{CODE}/manage.py"
NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")
# Any name that can be printed, in UTF-8 bytes: a project has blanks, colons, quotes and umlauts in the names of its files.
LONGEST_PART, LONGEST_NAME = 240, 1024
# Never in a bundle, whatever the project's ignore list takes in: secrets, and repositories with everything that ever was.
NEVER_TAKEN = r"\.(env(\..*)?|git|hg|svn|ssh|aws|gnupg|netrc|pgpass)"
DIGEST = re.compile(r"[0-9a-f]{64}")
LARGEST_BUNDLE = 2 << 30
LARGEST_FILE = 512 << 20
LARGEST_MANIFEST = 16 << 20
MOST_FILES = 50_000
CHUNK = 1 << 20
FETCH_SECONDS = 60.0
# Where golden-deploy-fetch.service leaves a bundle.
FETCHED = Path("/var/lib/golden-fetch/bundle")


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


def checked_address(address: str) -> str:
    """Return the address of a bundle. Raises Problem when it is none."""
    if not address.startswith("https://"):
        raise Problem(f"{address}: a bundle is a path or an https:// address", code=USAGE)
    return address


def fetch(url: str, target: Path) -> int:
    """Fetch a bundle over HTTPS, and return its size in bytes. It is trusted only by its hash. Raises Problem."""
    size = 0
    try:
        with urllib.request.urlopen(url, timeout=FETCH_SECONDS) as answer, target.open("wb") as stream:  # noqa: S310 (https)
            while data := answer.read(CHUNK):
                size += len(data)
                if size > LARGEST_BUNDLE:
                    raise Problem(f"{url} is larger than {LARGEST_BUNDLE} bytes")
                stream.write(data)
    except (OSError, http.client.HTTPException) as error:
        hint = "is the address right? the packet filter opens the port of application.bundle in /etc/golden/site.yaml"
        raise Problem(f"{url} cannot be fetched: {error}", hint=hint) from error
    return size


def read(path: Path, sha256: str) -> Bundle:
    """Check hash, names, kinds and sizes of a whole bundle. Nothing is written.

    Raises Problem (CHECK_FAILED) for anything that is not as it must be.
    """
    with _opened(path) as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != sha256:
            raise _refusal(f"{path} has the hash {found}, and {sha256} was asked for")
        # Hashed once more while it is read: whoever may write to the file could change it in between.
        stream.seek(0)
        hashed = _Hashed(stream)
        name, files = _checked(hashed)
        if hashed.finish() != sha256:
            raise _refusal(f"{path} changed while it was read")
    return Bundle(path, sha256, name, files)


def _opened(path: Path) -> io.BufferedReader:
    """Open a bundle, which has to be a regular file of bounded size."""
    try:
        # A link of the user who fetches leads nowhere.
        links = os.O_NOFOLLOW if path == FETCHED else 0
        stream = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | links), "rb")
    except OSError as error:
        raise Problem(f"{path}: {error.strerror}", code=USAGE) from error
    status = os.fstat(stream.fileno())
    if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST_BUNDLE:
        stream.close()
        raise Problem(f"{path} is not a regular file of at most {LARGEST_BUNDLE} bytes", code=USAGE)
    return stream


class _Hashed(io.BufferedIOBase):
    """A stream that is hashed while it is read."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self._stream, self._hash = stream, hashlib.sha256()

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes."""
        data = self._stream.read(size)
        self._hash.update(data)
        return data

    def finish(self) -> str:
        """Read to the end; return the SHA-256 of everything that was read."""
        while self.read(CHUNK):
            pass
        return self._hash.hexdigest()


def _checked(stream: _Hashed) -> tuple[str, dict[str, Any]]:
    """Compare every member with the manifest; return the application's name and the manifest's files."""
    with _members(stream) as members:
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
    return name, files


def unpack(bundle: Bundle, into: Path) -> None:
    """Write the files of a checked bundle into a directory that is empty; its owner alone can read them."""
    with _opened(bundle.path) as stream, _members(stream) as members:
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
    """Return the files below ``root`` that differ from the manifest."""
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
            _need(plain(member), f"{member.name!r} is not a plain file")
            _need(member.size <= LARGEST_FILE, f"{member.name!r} is larger than {LARGEST_FILE} bytes")
            _need(safe(member.name), f"{member.name!r} is not a name for a file of a bundle")
            yield member, self._content(member)

    def _content(self, member: tarfile.TarInfo) -> Iterator[bytes]:
        stream = self._tar.extractfile(member)
        assert stream is not None
        while data := stream.read(CHUNK):
            yield data


class _members:  # noqa: N801 (reads as a function)
    """Read a bundle from a stream; anything that tarfile cannot read is a refusal."""

    def __init__(self, stream: io.BufferedIOBase) -> None:
        self._stream = stream

    def __enter__(self) -> Iterator[tuple[tarfile.TarInfo, Iterator[bytes]]]:
        try:
            # Uncompressed only: a small file cannot become a large one.
            self._tar = tarfile.open(fileobj=self._stream, mode="r|")
        except (tarfile.TarError, OSError, ArithmeticError, LookupError, ValueError) as error:
            raise _refusal(f"it is no tar archive: {error}") from error
        return iter(_Members(self._tar))

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._tar.close()
        # Besides its own errors, tarfile has those of numbers and texts that it takes from headers as they are.
        if isinstance(error, (tarfile.TarError, ArithmeticError, LookupError, ValueError)):
            raise _refusal(str(error)) from error


def safe(name: str) -> bool:
    """Return True if a bundle may have a member with this name."""
    if name in (MANIFEST, LOCK):
        return True
    top, *rest = name.split("/")
    if top not in (CODE, WHEELS) or not rest or not name.isprintable() or "\\" in name:
        return False
    # Printable text has no surrogates: it can be encoded.
    return len(name.encode()) <= LONGEST_NAME and all(_safe_part(part) for part in rest)


def _safe_part(part: str) -> bool:
    return part not in ("", ".", "..") and len(part.encode()) <= LONGEST_PART and not re.fullmatch(NEVER_TAKEN, part)


def _manifest(members: Iterator[tuple[tarfile.TarInfo, Iterator[bytes]]]) -> tuple[str, dict[str, Any]]:
    member, content = next(members, (None, iter(())))
    _need(member is not None and member.name == MANIFEST, f"it does not begin with {MANIFEST}")
    assert member is not None
    _need(member.size <= LARGEST_MANIFEST, f"{MANIFEST} is too large")
    try:
        found = json.loads(b"".join(content))
        files, name, version = dict(found["files"]), str(found["name"]), found["format"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _refusal(f"{MANIFEST}: {type(error).__name__}: {error}") from error
    _need(version == FORMAT, f"it has format {version}, and this program reads {FORMAT}")
    _need(bool(NAME.fullmatch(name)), f"{name!r} is no name of an application")
    for needed in (ENTRY, LOCK):
        _need(needed in files, f"{needed} is missing")
    for path, facts in files.items():
        _need(safe(path), f"{path!r} is not a name for a file of a bundle")
        good = isinstance(facts, dict) and set(facts) == {"bytes", "sha256"} and path != MANIFEST
        _need(good, f"{MANIFEST} does not describe {path!r}")
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
