"""Parses the output of the installer's two serial ports line by line: steps, questions, failures, panics, power-off.

An unattended installation has to be monitored: the installer waits indefinitely at a question, and QEMU cannot
distinguish a panicked kernel from a busy one. All code here only parses lines; it never waits or kills.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

# Lines kept to explain a failure. A question of the text frontend fills at most one screen.
CONTEXT_LINES = 15


class Kind(StrEnum):
    """The kind of an event. After any other than ``STEP`` and ``POWER_OFF`` the installation cannot succeed."""

    STEP = "step"
    POWER_OFF = "power off"
    QUESTION = "question"
    FAILED = "failed"
    PANIC = "panic"


@dataclass(frozen=True)
class Event:
    """An event: ``text`` is one line for the user, ``details`` the lines around it."""

    kind: Kind
    text: str
    details: str = ""


# Menu items of the installer, in their order, as text after "while".
FIRST_STEP = "starting the installer"
LAST_STEP = "finishing"
STEPS = {
    "cdrom-detect": "finding the installer ISO",
    "disk-detect": "finding the disk",
    "partman-base": "partitioning",
    "live-installer": "copying the root file system",
    "goldsmith-boot": "installing the boot loader",
    "finish-install": LAST_STEP,
}

# Kernel: panic() in kernel/panic.c; die() in arch/x86/kernel/dumpstack.c, after which the system is not reliable.
PANIC = re.compile(r"Kernel panic - not syncing: .*|(?:Oops|BUG|general protection fault|double fault).*: \S.* \[#\d+\].*")
POWER_OFF = re.compile(r"reboot: Power down")
# cdebconf's text frontend: a title is underlined, an error's begins with "!! ", a question ends with a prompt.
PROMPT = re.compile(r"\[Press enter to continue\]|^Prompt: .*> ?$|^Password: ?$|\[\w+\] ?> ?$")
UNDERLINE = re.compile(r"-{3,}")
ERROR_TITLE = re.compile(r"!! (?P<text>.*\S)")
STEP_FAILED_TITLE = "Installation step failed"

MENU_ITEM = re.compile(r"main-menu\[\d+\]: INFO: Menu item '(?P<item>[^']+)' selected")
# main-menu: an item's postinst ended with an error. finish-install and base-installer continue after a failed script,
# and only log it; the image is then not as specified.
ITEM_FAILED = re.compile(r"main-menu\[\d+\]: WARNING \*\*: (?P<text>Configuring '[^']+' failed.*)")
SCRIPT_FAILED = re.compile(r"(?:finish-install|base-installer|live-installer): (?P<text>(?:warning|error): .*)")
STAMP = re.compile(r"^[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d ")


class Console:
    """Recognises events in the lines of the console (the kernel's, and the text frontend's)."""

    def __init__(self) -> None:
        self._context: deque[str] = deque(maxlen=CONTEXT_LINES)
        self._title = ""

    def feed(self, line: str) -> Event | None:
        """Parse the next line (or the unfinished last one: prompts have no end of line); return its event."""
        text = line.strip()
        if not text:
            return None
        if UNDERLINE.fullmatch(text) and self._context:
            self._title = self._context[-1]
        self._context.append(text)
        if match := ERROR_TITLE.match(text):
            self._title = match["text"]
        details = "\n".join(self._context)
        if match := PANIC.search(text):
            return Event(Kind.PANIC, match[0], details)
        if POWER_OFF.search(text):
            return Event(Kind.POWER_OFF, "the VM powered off")
        if PROMPT.search(text):
            return self._question(text, details)
        return None

    def _question(self, text: str, details: str) -> Event:
        if STEP_FAILED_TITLE in self._title:
            return Event(Kind.FAILED, STEP_FAILED_TITLE, details)
        return Event(Kind.QUESTION, self._title or text, details)


class Syslog:
    """Recognises events in the lines of the installer's system log.

    ``strict``: a failed script fails the installation, even if the installer itself would continue.
    """

    def __init__(self, *, strict: bool = True) -> None:
        self._context: deque[str] = deque(maxlen=CONTEXT_LINES)
        self._failures = (ITEM_FAILED, SCRIPT_FAILED) if strict else (ITEM_FAILED,)

    def feed(self, line: str) -> Event | None:
        """Parse the next complete line; return its event."""
        text = STAMP.sub("", line.strip())
        if not text:
            return None
        self._context.append(text)
        details = "\n".join(self._context)
        if match := MENU_ITEM.search(text):
            return Event(Kind.STEP, STEPS.get(match["item"], match["item"]))
        for failure in self._failures:
            if match := failure.search(text):
                return Event(Kind.FAILED, match["text"], details)
        return None


class Growing:
    """A text file that another process writes: returns each line once. ``position`` is the number of bytes read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.position = 0
        self._rest = b""

    def lines(self) -> list[str]:
        """Return the lines that are complete since the last call."""
        try:
            with self._path.open("rb") as stream:
                stream.seek(self.position)
                data = stream.read()
        except FileNotFoundError:
            return []
        self.position += len(data)
        *complete, self._rest = (self._rest + data).split(b"\n")
        return [_text(line) for line in complete]

    @property
    def unfinished(self) -> str:
        """The start of a line that is not complete yet."""
        return _text(self._rest)


def _text(line: bytes) -> str:
    # Text before a carriage return was overwritten on the screen.
    return line.decode(errors="replace").rstrip("\r").rpartition("\r")[2]


class Watch:
    """Both logs of a running installation; ``strict`` as in Syslog."""

    def __init__(self, *, console: Path, syslog: Path, strict: bool = True) -> None:
        self._console, self._console_file = Console(), Growing(console)
        self._syslog, self._syslog_file = Syslog(strict=strict), Growing(syslog)
        self._asked = ""

    @property
    def heard(self) -> int:
        """The size of both logs in bytes, which shows progress."""
        return self._console_file.position + self._syslog_file.position

    def poll(self) -> Iterator[Event]:
        """Yield the new events, those of the system log first: it has the reason of a question on the console."""
        for line in self._syslog_file.lines():
            if event := self._syslog.feed(line):
                yield event
        for line in self._console_file.lines():
            if event := self._console.feed(line):
                yield event
        unfinished = self._console_file.unfinished
        if unfinished != self._asked and PROMPT.search(unfinished.strip()):
            self._asked = unfinished
            if event := self._console.feed(unfinished):
                yield event
