"""What the installer's two serial ports say, understood line by line: steps, questions, failures, panics, the end.

An installation that nobody watches has to be watched by a program: the installer waits for ever at a question, and a
kernel that panicked looks to QEMU like a busy one. Everything here is a function of lines; nothing waits or kills.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

# Lines kept to explain a failure. A question of the text frontend fills a screen at most.
CONTEXT_LINES = 15


class Kind(StrEnum):
    """What happened. ``STEP`` and ``POWER_OFF`` are good; after any other the installation cannot succeed."""

    STEP = "step"
    POWER_OFF = "power off"
    QUESTION = "question"
    FAILED = "failed"
    PANIC = "panic"


@dataclass(frozen=True)
class Event:
    """Something that happened: ``text`` in one line for people, ``details`` the lines around it."""

    kind: Kind
    text: str
    details: str = ""


# Menu items of the installer, in their order, in words. "While ..." goes before them.
FIRST_STEP = "starting the installer"
LAST_STEP = "finishing"
STEPS = {
    "cdrom-detect": "finding the medium",
    "disk-detect": "finding the disk",
    "partman-base": "partitioning",
    "live-installer": "copying the root file system",
    "goldsmith-boot": "installing the boot loader",
    "finish-install": LAST_STEP,
}

# Kernel: panic() in kernel/panic.c; die() in arch/x86/kernel/dumpstack.c, after which nothing can be trusted.
PANIC = re.compile(r"Kernel panic - not syncing: .*|(?:Oops|BUG|general protection fault|double fault).*: \S.* \[#\d+\].*")
POWER_OFF = re.compile(r"reboot: Power down")
# cdebconf's text frontend: a title is underlined, an error's begins with "!! ", a question ends with a prompt.
PROMPT = re.compile(r"\[Press enter to continue\]|^Prompt: .*> ?$|^Password: ?$|\[\w+\] ?> ?$")
UNDERLINE = re.compile(r"-{3,}")
ERROR_TITLE = re.compile(r"!! (?P<text>.*\S)")
STEP_FAILED_TITLE = "Installation step failed"

MENU_ITEM = re.compile(r"main-menu\[\d+\]: INFO: Menu item '(?P<item>[^']+)' selected")
# main-menu: an item's postinst ended with an error. finish-install and base-installer go on after a failed script, and
# only say so; an image in which one failed is not the one that was asked for.
ITEM_FAILED = re.compile(r"main-menu\[\d+\]: WARNING \*\*: (?P<text>Configuring '[^']+' failed.*)")
SCRIPT_FAILED = re.compile(r"(?:finish-install|base-installer|live-installer): (?P<text>(?:warning|error): .*)")
STAMP = re.compile(r"^[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d ")


class Console:
    """Recognises events in the lines of the console (the kernel's, and the text frontend's)."""

    def __init__(self) -> None:
        self._context: deque[str] = deque(maxlen=CONTEXT_LINES)
        self._title = ""

    def feed(self, line: str) -> Event | None:
        """Take the next line (or the unfinished last one: prompts have no end of line); return what it means."""
        text = line.strip()
        if not text:
            return None
        if UNDERLINE.fullmatch(text) and self._context:
            self._title = self._context[-1]
        self._context.append(text)
        if found := ERROR_TITLE.match(text):
            self._title = found["text"]
        details = "\n".join(self._context)
        if found := PANIC.search(text):
            return Event(Kind.PANIC, found[0], details)
        if POWER_OFF.search(text):
            return Event(Kind.POWER_OFF, "the machine powered itself off")
        if PROMPT.search(text):
            return self._question(text, details)
        return None

    def _question(self, text: str, details: str) -> Event:
        if STEP_FAILED_TITLE in self._title:
            return Event(Kind.FAILED, STEP_FAILED_TITLE, details)
        return Event(Kind.QUESTION, self._title or text, details)


class Syslog:
    """Recognises events in the lines of the installer's system log.

    ``strict``: a script that the installer itself would go on after has failed the installation.
    """

    def __init__(self, *, strict: bool = True) -> None:
        self._context: deque[str] = deque(maxlen=CONTEXT_LINES)
        self._failures = (ITEM_FAILED, SCRIPT_FAILED) if strict else (ITEM_FAILED,)

    def feed(self, line: str) -> Event | None:
        """Take the next whole line; return what it means."""
        text = STAMP.sub("", line.strip())
        if not text:
            return None
        self._context.append(text)
        details = "\n".join(self._context)
        if found := MENU_ITEM.search(text):
            return Event(Kind.STEP, STEPS.get(found["item"], found["item"]))
        for failure in self._failures:
            if found := failure.search(text):
                return Event(Kind.FAILED, found["text"], details)
        return None


class Growing:
    """A text file that somebody else is writing: hands out each line once. ``position`` counts its bytes so far."""

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
        *whole, self._rest = (self._rest + data).split(b"\n")
        return [_text(line) for line in whole]

    @property
    def unfinished(self) -> str:
        """The beginning of a line that is not complete yet."""
        return _text(self._rest)


def _text(line: bytes) -> str:
    # What a carriage return wrote over is not on the screen any more.
    return line.decode(errors="replace").rstrip("\r").rpartition("\r")[2]


class Watch:
    """Both logs of a running installation; ``strict`` as in Syslog."""

    def __init__(self, *, console: Path, syslog: Path, strict: bool = True) -> None:
        self._console, self._console_file = Console(), Growing(console)
        self._syslog, self._syslog_file = Syslog(strict=strict), Growing(syslog)
        self._asked = ""

    @property
    def heard(self) -> int:
        """How many bytes both logs have so far: a sign of life."""
        return self._console_file.position + self._syslog_file.position

    def poll(self) -> Iterator[Event]:
        """Yield what happened since the last call, the system log's first: it says why the console asks."""
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
