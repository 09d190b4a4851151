"""What the golden-* commands share: options, exit codes, the clone's site settings, whole files, one at a time.

A command is a function from parsed arguments to a result; ``run_command`` prints the result for people or as JSON, and
turns a Problem into its exit code. Python's standard library only.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn

# Exit codes of every command. CHECK_FAILED: the command itself worked, and what it looked at is not as it should be.
OK, FAILED, USAGE, CHECK_FAILED = 0, 1, 2, 3
# Written by golden-site.service from /etc/golden/site.yaml: every key is there, null where nothing was set.
SITE = Path("/run/golden/site.json")
# Root's alone (tmpfiles.d), unlike /run/lock, where any user can create a file with a lock's name.
LOCKS = Path("/run/golden-lock")
LOCK_POLL_SECONDS = 0.5
# Set by units: that an operator's command runs when a timer starts one is no failure, and no reason for an alert.
LOCK_SECONDS = "GOLDEN_LOCK_SECONDS"


class Problem(Exception):
    """Something a person must know: what is wrong, what to do (``hint``), and the command's exit code."""

    def __init__(self, brief: str, *, hint: str = "", code: int = FAILED) -> None:
        super().__init__(brief)
        self.brief, self.hint, self.code = brief, hint, code


def run_command(
    parser: argparse.ArgumentParser, action: Callable[[argparse.Namespace], Mapping[str, Any]],
    show: Callable[[Mapping[str, Any]], str],
) -> NoReturn:  # fmt: skip
    """Parse, act, print, exit. A result with ``"ok": False`` exits with CHECK_FAILED; ``show`` makes its text for people."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    arguments = parser.parse_args()
    try:
        result = dict(action(arguments))
    except Problem as problem:
        _complain(problem, as_json=arguments.json)
        sys.exit(problem.code)
    except KeyboardInterrupt:
        sys.exit(130)
    print(json.dumps(result, indent=1, sort_keys=True, default=str) if arguments.json else show(result))
    sys.exit(OK if result.get("ok", True) else CHECK_FAILED)


def _complain(problem: Problem, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"ok": False, "error": problem.brief, "hint": problem.hint}))
    print(f"error: {problem.brief}" + (f"\nhint: {problem.hint}" if problem.hint else ""), file=sys.stderr)


def need_root() -> None:
    """Raise Problem unless the command runs as root."""
    if os.geteuid() != 0:
        raise Problem("this needs root", hint="run it with sudo", code=USAGE)


def run(
    argv: Sequence[str | Path], *, timeout: float = 900, check: bool = True, stdin: bytes | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:  # fmt: skip
    """Run a program to its end (``timeout`` in seconds); raise Problem with its last words when it fails and ``check``.

    systemctl has as long for an answer of the service manager, which is slow on a machine under load (default: 25 s).
    """
    patience = {"SYSTEMD_BUS_TIMEOUT": f"{timeout:.0f}"}
    try:
        done = subprocess.run(
            list(map(str, argv)), input=stdin, stdin=None if stdin is not None else subprocess.DEVNULL, capture_output=True,
            timeout=timeout, check=False, env={**os.environ, **patience, **(env or {})},
        )  # fmt: skip
    except FileNotFoundError:
        raise Problem(f"{argv[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise Problem(f"{argv[0]} took more than {timeout:.0f} s") from None
    if check and done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-3:]
        raise Problem(f"{argv[0]} failed ({done.returncode}): {' / '.join(last)}")
    return done


def site() -> dict[str, Any]:
    """Return the clone's site settings. Raises Problem when they are not written yet."""
    try:
        found: dict[str, Any] = json.loads(SITE.read_text())
    except FileNotFoundError:
        raise Problem(f"{SITE} is not there", hint="systemctl --failed; journalctl -b -p err") from None
    return found


def pem_text(content: bytes) -> str:
    """Return the text of a PEM file with one line end, LF, whatever the system that wrote it uses.

    CRLF and CR, a byte order mark (UTF-8, UTF-16), blanks around lines, a last line without an end: all of them are
    refused or misread by one program or another that gets the file.
    """
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    text = content.decode(encoding, errors="replace").replace("\ufeff", "")
    # A file that ended without a line end, and another one behind it.
    text = re.sub(r"(-----END [A-Z0-9 ]+-----)(?=-----BEGIN)", r"\1\n", text)
    lines = [line.strip() for line in text.replace("\r", "\n").split("\n")]
    return "".join(f"{line}\n" for line in lines if line)


def pem_certificates(content: bytes) -> str:
    """Return the certificates of a PEM file, in the form that any program reads, and nothing else of it."""
    found = re.findall(r"-----BEGIN CERTIFICATE-----\n.+?-----END CERTIFICATE-----\n", pem_text(content), re.DOTALL)
    return "".join(found)


def read_regular(path: Path, *, limit: int) -> bytes:
    """Read a file from a directory that a service writes to: no link is followed, and a pipe is not waited for.

    Raises Problem when the file is missing, is not a regular file, or has more than ``limit`` bytes.
    """
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise Problem(f"{path} is not a regular file", hint="remove it")
            content = stream.read(limit + 1)
    except OSError as error:
        raise Problem(f"{path}: {error.strerror}") from None
    if len(content) > limit:
        raise Problem(f"{path} has more than {limit} bytes", hint="remove it")
    return content


def write_whole(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Replace a file: readers see the old content or the new, also after a power cut."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream:
        os.fchmod(stream.fileno(), mode)
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def replace_files(directory: Path, wanted: Mapping[str, bytes | None], *, mode: int) -> bool:
    """Write the files of a directory that differ from what is ``wanted``, and remove those without content.

    The directory is made for the first file. Returns True if anything was changed.
    """
    changed = False
    for name, content in wanted.items():
        path = directory / name
        found = path.read_bytes() if path.exists() else None
        if found == content:
            continue
        changed = True
        if content is None:
            path.unlink()
        else:
            directory.mkdir(mode=0o755, exist_ok=True)
            write_whole(path, content, mode=mode)
    return changed


@contextmanager
def only_one(name: str) -> Iterator[None]:
    """Hold a machine-wide lock.

    Raises Problem when another process holds it, or when others than root may write its place. A unit waits for the other
    process first: its environment has the seconds (GOLDEN_LOCK_SECONDS).
    """
    path = LOCKS / f"golden-{name}.lock"
    try:
        LOCKS.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = LOCKS.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise Problem(f"{LOCKS} is not a directory that its owner alone can write", hint="systemd-tmpfiles --create")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Problem(f"{path}: {error.strerror}", hint="remove what is in the place of the lock file") from error
    with os.fdopen(descriptor, "r+b", buffering=0) as stream:
        until, waits = time.monotonic() + float(os.environ.get(LOCK_SECONDS, "0")), False
        while not _locked(stream):
            if time.monotonic() >= until:
                raise Problem(f"another golden-{name} is running", hint="wait for it to end")
            if not waits:
                print(f"waiting for another golden-{name} to end", file=sys.stderr, flush=True)
            waits = True
            time.sleep(LOCK_POLL_SECONDS)
        yield


def _locked(stream: IO[bytes]) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
