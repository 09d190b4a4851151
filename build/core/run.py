"""The only module that starts subprocesses: argv lists, a minimal environment, a time limit, and no orphaned children.

On an ordinary exit a child and all processes of its process group are killed and reaped. After a ``kill -9`` of
Goldsmith the kernel kills the child (``setpriv --pdeathsig``). A ``contained`` child is also process 1 of a separate
PID and mount namespace (``unshare --kill-child``), so that the kernel ends all its descendants and mounts with it.
"""

from __future__ import annotations

import atexit
import os
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from build.core.errors import CommandFailed, HostError, TimedOut

TERMINATE_GRACE_SECONDS = 10.0
TAIL_LINES = 25
# Apt, pip and Go need the proxies and certificate stores of the host; nothing else is inherited.
INHERITED = (
    "HOME", "USER", "TERM", "TMPDIR", "XDG_CACHE_HOME",
    "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "GIT_SSL_CAINFO",
    "PIP_CERT", "PIP_CONFIG_FILE", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_DEFAULT_TIMEOUT",
    "GOPROXY", "GONOSUMDB", "GOFLAGS", "GONOSUMCHECK", "GOSUMDB", "GOPATH", "GOMODCACHE", "GOCACHE",
)  # fmt: skip

Argv = Sequence[str | os.PathLike[str]]

# Each is called with the name of every program that is started (watched).
_watchers: list[Callable[[str], None]] = []

# Children whose process group was not killed yet. An interrupt can come between any two statements; children that are
# left then are ended at exit.
_unended: set[subprocess.Popen[bytes]] = set()

# Time limit for a program that needs neither network nor VM: it takes less than one second, but more on a host under load.
LOCAL_SECONDS = 120

# The kernel kills the child if its parent dies for any reason. util-linux is essential on Debian, so the path is valid
# for any PATH. The kernel does so only from the call on: a shell then checks that the parent is still Goldsmith, because
# a parent that was killed before the call would leave the child running.
PARENT_DEATH = ("/usr/bin/setpriv", "--pdeathsig", "KILL", "--", "/bin/sh", "-c", 'test "$PPID" = "$0" && exec "$@"')

# Debian packages of tools that are not named like their package.
PACKAGES = {
    "qemu-system-x86_64": "qemu-system-x86", "qemu-img": "qemu-utils",
    "mksquashfs": "squashfs-tools", "unsquashfs": "squashfs-tools",
    "grub-mkrescue": "grub-common", "grub-mkimage": "grub-common",
    "mcopy": "mtools", "mformat": "mtools", "mmd": "mtools",
    "apt-get": "apt", "apt-cache": "apt", "apt-helper": "apt",
    "ssh": "openssh-client", "ssh-keygen": "openssh-client",
    "unshare": "util-linux", "setpriv": "util-linux", "nsenter": "util-linux",
    "systemd-nspawn": "systemd-container", "debconf-set-selections": "debconf",
    "debugfs": "e2fsprogs", "sfdisk": "fdisk", "depmod": "kmod", "dpkg-deb": "dpkg", "go": "golang-go",
}  # fmt: skip


@dataclass(frozen=True)
class Done:
    """A finished command: exit status and output."""

    returncode: int
    stdout: str
    stderr: str


class Process:
    """A running command; :func:`spawn` ends it."""

    def __init__(self, popen: subprocess.Popen[bytes], name: str) -> None:
        self._popen = popen
        self.name = name

    @property
    def pid(self) -> int:
        return self._popen.pid

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs."""
        return self.wait(0)

    def wait(self, timeout: float) -> int | None:
        """Wait up to ``timeout`` seconds; return the exit status, or None when it still runs."""
        if self._popen.returncode is None:
            try:
                self._popen.wait(timeout)
            except subprocess.TimeoutExpired:
                return None
            _kill_group(self._popen)
        return self._popen.returncode

    def terminate(self) -> None:
        """Send TERM to the process group, and kill it if it does not end within the grace period."""
        _end(self._popen)


def which(tool: str, *, reason: str) -> Path:
    """Return the path of ``tool``; raise HostError that names the apt package when it is missing."""
    path = shutil.which(tool, path=search_path())
    if path is None:
        raise HostError(
            f"{tool} is not installed; it is needed to {reason}",
            hint=f"apt-get install --yes {PACKAGES.get(tool, tool)}   (as root)",
        )
    return Path(path)


def search_path() -> str:
    """Return PATH with the administrator's directories, which an ordinary user's PATH lacks on Debian."""
    directories = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join([*directories, *(d for d in ("/usr/local/sbin", "/usr/sbin", "/sbin") if d not in directories)])


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a child: only the variables that it may need."""
    kept = {name: os.environ[name] for name in INHERITED if name in os.environ}
    fixed = {"PATH": search_path(), "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    return {**kept, **fixed, **(extra or {})}


def is_root() -> bool:
    """Return True if Goldsmith runs as root."""
    return os.geteuid() == 0


def dies_with(parent: int) -> tuple[str, ...]:
    """Return an argv prefix whose program is killed when the process ``parent``, which starts it, has ended."""
    return (*PARENT_DEATH, str(parent))


def contained_argv(argv: Argv) -> list[str]:
    """Wrap ``argv`` so that it and all its descendants are killed with Goldsmith, however it ends."""
    arguments = _words(argv)
    user = [] if is_root() else ["--user", "--map-current-user"]
    return [
        *dies_with(os.getpid()),
        "unshare", *user, "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--",
        *arguments,
    ]  # fmt: skip


@contextmanager
def watched(watcher: Callable[[str], None]) -> Iterator[None]:
    """Call ``watcher`` with the name (no directory) of every program that is started within the block, by any thread."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


def _start(
    argv: Argv, *, cwd: Path | None, env: Mapping[str, str] | None, contained: bool,
    stdin: int, stdout: int | IO[bytes], stderr: int | IO[bytes],
) -> subprocess.Popen[bytes]:  # fmt: skip
    arguments, variables = _words(argv), environment(env)
    # Checked first: inside a namespace a missing program would only be an exit status.
    if shutil.which(arguments[0], path=variables["PATH"]) is None:
        tool = Path(arguments[0]).name
        raise HostError(
            f"{tool} cannot be run: command not found",
            hint=f"apt-get install --yes {PACKAGES.get(tool, tool)}   (as root)",
        )
    for watcher in (*_watchers,):
        watcher(Path(arguments[0]).name)
    arguments = contained_argv(arguments) if contained else [*dies_with(os.getpid()), *arguments]
    with _interrupts_later() as came:
        # A new session: only Goldsmith receives Ctrl-C, and then ends its children in order.
        popen = subprocess.Popen(
            arguments, cwd=cwd, env=variables, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True
        )
        _unended.add(popen)
    if came:
        _end(popen)
        signal.raise_signal(came[0])
    return popen


@contextmanager
def _interrupts_later() -> Iterator[list[int]]:
    """Record an interrupt instead of raising it.

    An interrupt between the start of a child and its entry in ``_unended`` would leave the child running.
    """
    received: list[int] = []
    before = {}
    if threading.current_thread() is threading.main_thread():  # other threads receive no signals
        for signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if callable(signal.getsignal(signal_number)):
                before[signal_number] = signal.signal(signal_number, lambda number, _frame: received.append(number))
    try:
        yield received
    finally:
        for signal_number, handler in before.items():
            signal.signal(signal_number, handler)


def run(
    argv: Argv, *, timeout: float, cwd: Path | None = None, env: Mapping[str, str] | None = None,
    stdin: bytes | None = None, log: Path | None = None, check: bool = True, contained: bool = False, hint: str = "",
) -> Done:  # fmt: skip
    """Run a command until it ends and return its output.

    ``timeout`` is in seconds. With ``log``, standard output and error are appended to that file too. Raises
    CommandFailed (a StepFailed) with the last lines of output when ``check`` and the exit status is not 0, TimedOut (a
    CommandFailed) when the time is up; HostError when the program does not exist.
    """
    popen = _start(
        argv, cwd=cwd, env=env, contained=contained,
        stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        out, err = popen.communicate(stdin, timeout)
        _kill_group(popen)
    except subprocess.TimeoutExpired as error:
        _end(popen)
        late = _done(popen, error.stdout, error.stderr)
        _note(log, argv, late)
        raise TimedOut(
            f"{_name(argv)} did not finish within {timeout:.0f} s", returncode=-1,
            details=f"{shlex.join(_words(argv))}\n{tail(late.stderr.strip() or late.stdout)}".rstrip(), hint=hint,
        ) from error  # fmt: skip
    finally:
        _end(popen)
    done = _done(popen, out, err)
    _note(log, argv, done)
    if check and done.returncode != 0:
        raise CommandFailed(
            f"{_name(argv)} failed with status {done.returncode}", returncode=done.returncode,
            details=tail(done.stderr.strip() or done.stdout), hint=hint or (f"the whole output is in {log}" if log else ""),
        )  # fmt: skip
    return done


def attempt(argv: Argv, *, timeout: float) -> Done:
    """Run a command that may time out, such as an SSH login to a booting VM; the status is -1 on a timeout."""
    try:
        return run(argv, timeout=timeout, check=False)
    except TimedOut as error:
        return Done(error.returncode, "", error.brief)


def ending(name: str, status: int) -> str:
    """Return how the program ``name`` ended, for an error: with its exit status, or by which signal.

    A contained program that a signal ended has 128 and the signal's number for its status, as a shell's has.
    """
    number = -status if status < 0 else status - 128 if status > 128 else 0
    try:
        return f"{name} was ended by {signal.Signals(number).name}"
    except ValueError:
        return f"{name} ended with status {status}"


def _done(popen: subprocess.Popen[bytes], out: bytes | None, err: bytes | None) -> Done:
    return Done(popen.returncode, (out or b"").decode(errors="replace"), (err or b"").decode(errors="replace"))


def _note(log: Path | None, argv: Argv, done: Done) -> None:
    """Append a command and its output to the log, if there is one."""
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as stream:
            stream.write(f"$ {shlex.join(_words(argv))}\n{done.stdout}{done.stderr}")


@contextmanager
def spawn(
    argv: Argv, *, log: Path, cwd: Path | None = None, env: Mapping[str, str] | None = None, contained: bool = True
) -> Iterator[Process]:
    """Start a command in the background; it is ended and reaped when the block is left."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        popen = _start(argv, cwd=cwd, env=env, contained=contained, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)
    try:
        yield Process(popen, _name(argv))
    finally:
        _end(popen)


def attach(argv: Argv, *, env: Mapping[str, str] | None = None) -> int:
    """Run a command on the user's own terminal, without a time limit; return its exit status."""
    return subprocess.call(_words(argv), env=environment(env))


def pipe(producer: Argv, consumer: Argv, *, timeout: float, log: Path, contained: bool = False) -> None:
    """Run ``producer | consumer``; raise CommandFailed naming the one that failed."""
    with log.open("ab") as stream:
        first = _start(
            producer, cwd=None, env=None, contained=contained,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stream,
        )  # fmt: skip
        assert first.stdout is not None
        try:
            second = _start(
                consumer, cwd=None, env=None, contained=contained, stdin=first.stdout.fileno(), stdout=stream, stderr=stream
            )
        except BaseException:
            _end(first)
            raise
        first.stdout.close()
        deadline = time.monotonic() + timeout
        try:
            for popen, argv in ((second, consumer), (first, producer)):
                status = Process(popen, _name(argv)).wait(max(0.1, deadline - time.monotonic()))
                if status != 0:
                    problem = f"did not finish within {timeout:.0f} s" if status is None else f"failed with status {status}"
                    raise CommandFailed(
                        f"{_name(argv)} {problem}", returncode=-1 if status is None else status,
                        details=tail(log.read_text(errors="replace")), hint=f"the whole output is in {log}",
                    )  # fmt: skip
        finally:
            _end(second)
            _end(first)


def tail(text: str, lines: int = TAIL_LINES) -> str:
    """Return the last ``lines`` lines of ``text``."""
    return "\n".join(text.rstrip().splitlines()[-lines:])


def _words(argv: Argv) -> list[str]:
    return [os.fspath(argument) for argument in argv]


def _name(argv: Argv) -> str:
    return Path(os.fspath(argv[0])).name


def _end(popen: subprocess.Popen[bytes]) -> None:
    """End the process group of ``popen``: TERM, a grace period, KILL; always reaped. Safe to call twice."""
    if popen.returncode is None:
        _signal_group(popen, signal.SIGTERM)
        try:
            popen.wait(TERMINATE_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        finally:
            # Processes that ignore TERM, and children of a command that has ended. After a second Ctrl-C there is no
            # grace period, but they are killed all the same.
            _kill_group(popen)
            popen.wait()
    _kill_group(popen)
    for stream in (popen.stdout, popen.stderr, popen.stdin):
        if stream is not None:
            stream.close()


def _kill_group(popen: subprocess.Popen[bytes]) -> None:
    """Kill the process group of ``popen``, once: soon after it was reaped, its number may belong to another process."""
    if popen in _unended:
        _signal_group(popen, signal.SIGKILL)
        _unended.discard(popen)


def _signal_group(popen: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(popen.pid, number)


@atexit.register
def _end_all() -> None:
    for popen in list(_unended):
        _end(popen)
