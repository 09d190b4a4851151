"""Writes the web server's access log: whole lines from two named pipes, appended to one file.

The web server can write to the pipes and to no log file, so that a worker that was taken over cannot change recorded lines.
A line of the first pipe is always written. The second one has the requests that the web server answered by itself (files,
redirections, refusals), which are not limited in number: their lines are written while a budget lasts, which is a part of
the file system and is renewed in the course of a day. Beyond it they are counted, by second, network and status.

Reading goes on while the disk is slow or full, because a full pipe would make the web server wait.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path

LOG = Path("/var/log/nginx/access.log")
CHUNK = 1 << 20
# Bytes of lines that wait for the disk; what comes beyond them is lost, and counted.
WAITING = 64 << 20
# No line of nginx is as long: what has no end by then is given one.
LONGEST = 1 << 20
DAY = 86400.0
# The part of the file system that lines of the second pipe may fill in a day: logrotate keeps two days uncompressed.
SHARE = 8
# Networks that are counted one by one in a second; the others are counted together.
NETWORKS = 1000
# A line, as nginx/conf.d/10-logging.conf begins it. A client cannot forge the names, because its quotes are escaped.
_LINE = re.compile(rb'\{"ts":"([^"]*)","ip":"[^"]*","net":"([^"]*)".*?,"status":(\d+),"bytes":(\d+),')


class Lines:
    """Cuts a stream of bytes into whole lines."""

    def __init__(self) -> None:
        self._rest = b""

    def add(self, chunk: bytes) -> bytes:
        """Return the whole lines that end in ``chunk``; the beginning of the next one is kept."""
        whole, end, rest = (self._rest + chunk).rpartition(b"\n")
        if len(rest) > LONGEST:
            whole, end, rest = whole + end + rest, b"\n", b""
        self._rest = rest
        return whole + end


class Budget:
    """Bytes that may be written: ``size`` at first, renewed in the course of a day. ``now`` is in seconds."""

    def __init__(self, size: float, now: float) -> None:
        self._size, self._left, self._then = size, size, now

    def take(self, wanted: int, now: float) -> bool:
        """Take ``wanted`` bytes; return False when fewer are left."""
        self._left = min(self._size, self._left + (now - self._then) * self._size / DAY)
        self._then = now
        if wanted > self._left:
            return False
        self._left -= wanted
        return True


class Counts:
    """Requests beyond the budget, by network and status."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, int], list[int]] = {}
        self._when = ""

    def add(self, lines: bytes) -> None:
        """Count the lines."""
        for line in lines.splitlines():
            match = _LINE.match(line)
            self._when = match[1].decode() if match else self._when
            key = (match[2].decode(), int(match[3])) if match else ("", 0)
            if key not in self._found and len(self._found) >= NETWORKS:
                key = ("others", key[1])
            entry = self._found.setdefault(key, [0, 0])
            entry[0] += 1
            entry[1] += int(match[4]) if match else 0

    def take(self) -> bytes:
        """Return a line for each network and status, and begin again."""
        made = [
            json.dumps({"ts": self._when, "net": net, "status": status, "bytes": size, "requests": requests},
                       separators=(",", ":"))
            for (net, status), (requests, size) in self._found.items()
        ]  # fmt: skip
        self._found.clear()
        return "".join(f"{line}\n" for line in made).encode()


class LogFile:
    """Appends whole lines; opens the file again when it was renamed or removed (logrotate)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1
        self._torn = False

    def write(self, lines: bytes) -> None:
        """Append the lines. Raises OSError when not all of them were written."""
        self._follow()
        # A line that was cut off by a full disk is ended, so that the next one can be read.
        content = b"\n" + lines if self._torn else lines
        while content:
            done = os.write(self._descriptor, content)
            self._torn = content[done - 1 : done] != b"\n"
            content = content[done:]

    def _follow(self) -> None:
        try:
            there = self._path.stat()
        except FileNotFoundError:
            there = None
        if self._descriptor >= 0:
            mine = os.fstat(self._descriptor)
            if there and (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino):
                return
            os.close(self._descriptor)
            self._descriptor = -1
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor, self._torn = os.open(self._path, flags, 0o640), False


class Queue:
    """Lines between the pipes and the disk: bounded; adding to it never waits."""

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque()
        self._size = 0
        self._lost = 0
        self._changed = threading.Condition()

    def add(self, lines: bytes) -> None:
        """Add lines; those for which there is no room are counted as lost."""
        if not lines:
            return
        with self._changed:
            if self._size + len(lines) > WAITING:
                self._lost += lines.count(b"\n")
                return
            self._lines.append(lines)
            self._size += len(lines)
            self._changed.notify()

    def take(self) -> tuple[bytes, int]:
        """Wait for lines; return all of them, and the number of those that were lost."""
        with self._changed:
            while not self._lines:
                self._changed.wait()
            lines, lost = b"".join(self._lines), self._lost
            self._lines.clear()
            self._size = self._lost = 0
            return lines, lost


def write_all(queue: Queue, log: LogFile, *, rounds: int | None = None) -> None:
    """Write what is in the queue, ``rounds`` times (None: without an end). Lost lines are reported, once in a minute."""
    lost, reported = 0, -60.0
    while rounds is None or rounds > 0:
        rounds = None if rounds is None else rounds - 1
        lines, dropped = queue.take()
        reason = "the disk is too slow"
        try:
            log.write(lines)
        except OSError as error:
            dropped, reason = dropped + lines.count(b"\n"), str(error)
        lost += dropped
        if lost and time.monotonic() - reported >= 60:
            print(f"{lost} lines of the access log are lost: {reason}", file=sys.stderr, flush=True)
            lost, reported = 0, time.monotonic()


class Reader:
    """Reads the two pipes into the queue: ``always`` whole, ``budgeted`` while ``budget`` lasts."""

    def __init__(self, always: int, budgeted: int, *, budget: Budget, queue: Queue) -> None:
        self._budget, self._queue = budget, queue
        self._lines = {always: Lines(), budgeted: Lines()}
        self._budgeted = budgeted
        self._counts, self._second = Counts(), 0
        self._selector = selectors.DefaultSelector()
        for pipe in self._lines:
            os.set_blocking(pipe, False)
            self._selector.register(pipe, selectors.EVENT_READ)

    def read(self, timeout: float = 1.0) -> None:
        """Wait up to ``timeout`` seconds for either pipe, and take what it has."""
        for key, _events in self._selector.select(timeout):
            lines = self._lines[key.fd].add(os.read(key.fd, CHUNK))
            if key.fd != self._budgeted or self._budget.take(len(lines), time.monotonic()):
                self._queue.add(lines)
            else:
                self._counts.add(lines)
        if int(time.monotonic()) != self._second:
            self._second = int(time.monotonic())
            self._queue.add(self._counts.take())


def main() -> None:
    """Read the pipes that systemd opened (golden-access-log.socket), until the service is stopped."""
    os.umask(0o027)
    room = os.statvfs(LOG.parent)
    queue = Queue()
    reader = Reader(3, 4, budget=Budget(room.f_blocks * room.f_frsize / SHARE, time.monotonic()), queue=queue)
    log = LogFile(LOG)
    # The file is there before the first request, for those who wait for lines in it.
    with suppress(OSError):
        log.write(b"")
    threading.Thread(target=write_all, args=(queue, log), daemon=True).start()
    while True:
        reader.read()
