"""Progress output and logging: steps with durations; a live bar on a terminal, plain lines elsewhere.

Diagnostics go to standard error, so that standard output stays free for results. The entry point chooses the form by
:func:`configure`.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TextIO

PLAIN_INTERVAL_SECONDS = 30.0
BAR_CELLS = 24


@dataclass
class _Sink:
    """Where lines go, and the one live line at the bottom of a terminal."""

    stream: TextIO | None = None
    json_lines: bool = False
    verbose: bool = False
    depth: int = 0
    live: str = ""
    lock: threading.RLock = field(default_factory=threading.RLock)

    def out(self) -> TextIO:
        return self.stream or sys.stderr

    def is_terminal(self) -> bool:
        return not self.json_lines and self.out().isatty()

    def line(self, kind: str, text: str, **facts: object) -> None:
        with self.lock:
            if self.json_lines:
                event = {"time": round(time.time(), 3), "kind": kind, "text": text, **facts}
                print(json.dumps(event, ensure_ascii=False), file=self.out(), flush=True)
                return
            live = self.live
            self.erase()
            print("  " * self.depth + text, file=self.out(), flush=True)
            if live:
                self.draw(live)

    def erase(self) -> None:
        if self.live:
            print("\r\x1b[2K", end="", file=self.out(), flush=True)
            self.live = ""

    def draw(self, text: str) -> None:
        self.erase()
        print(text, end="", file=self.out(), flush=True)
        self.live = text


_sink = _Sink()


def configure(*, json_lines: bool = False, verbose: bool = False, stream: TextIO | None = None) -> None:
    """Choose the form of the log: text for people, or one JSON object a line for programs."""
    _sink.json_lines = json_lines
    _sink.verbose = verbose
    _sink.stream = stream


def info(text: str) -> None:
    """Log a message."""
    _sink.line("info", text)


def warn(text: str) -> None:
    """Log a warning."""
    _sink.line("warning", f"warning: {text}")


def error(text: str) -> None:
    """Log an error at the left margin; the first line starts with "error:"."""
    _sink.depth = 0
    _sink.line("error", f"error: {text}")


def debug(text: str) -> None:
    """Log a message only with ``--verbose`` or as JSON lines."""
    if _sink.verbose or _sink.json_lines:
        _sink.line("debug", text)


def seconds(value: float) -> str:
    """Return a duration for people: ``7.2 s``, ``3 min 05 s``."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s"


@contextmanager
def step(doing: str, *, done: str = "") -> Iterator[None]:
    """Log the start of a step, indent its messages, and log its end with its duration.

    ``done`` is logged only on success. After an exception the step is logged as stopped.
    """
    started = time.monotonic()
    _sink.line("begin", f"• {doing}")
    _sink.depth += 1
    outcome = "stopped"
    try:
        yield
        outcome = done or "done"
    finally:
        elapsed = time.monotonic() - started
        if outcome == "stopped":
            _sink.line("stopped", f"[{doing} stopped after {seconds(elapsed)}]", seconds=round(elapsed, 2))
        else:
            _sink.line("end", f"{outcome} ({seconds(elapsed)})", seconds=round(elapsed, 2))
        # log.error() inside the step has set the depth to 0.
        _sink.depth = max(_sink.depth - 1, 0)


class Progress:
    """A live bar on a terminal; elsewhere a plain line whenever the text changes, and every 30 s.

    ``expected`` is the expected duration in seconds (from the last run), or 0 when there is none.
    """

    def __init__(self, label: str, expected: float = 0.0) -> None:
        self.label = label
        self.expected = expected
        self.started = time.monotonic()
        self._logged = ""
        self._logged_at = 0.0

    def update(self, text: str, fraction: float | None = None) -> None:
        """Show ``text`` and how far the work is: ``fraction`` in 0..1, else elapsed over expected time."""
        elapsed = time.monotonic() - self.started
        if fraction is None and self.expected > 0:
            fraction = min(elapsed / self.expected, 0.99)
        if _sink.is_terminal():
            with _sink.lock:
                _sink.draw(self._bar(text, fraction, elapsed)[:150])
            return
        if text != self._logged or elapsed - self._logged_at >= PLAIN_INTERVAL_SECONDS:
            self._logged, self._logged_at = text, elapsed
            percent = "" if fraction is None else f"{100 * fraction:3.0f} % "
            _sink.line("progress", f"{self.label}: {percent}{text} ({self._clock(elapsed)})")

    def finish(self) -> None:
        """Remove the live line."""
        with _sink.lock:
            _sink.erase()

    def _clock(self, elapsed: float) -> str:
        return f"{seconds(elapsed)} of about {seconds(self.expected)}" if self.expected else seconds(elapsed)

    def _bar(self, text: str, fraction: float | None, elapsed: float) -> str:
        if fraction is None:
            return f"{'  ' * _sink.depth}{self.label} … {text}  {self._clock(elapsed)}"
        full = round(fraction * BAR_CELLS)
        bar = "█" * full + "░" * (BAR_CELLS - full)
        return f"{'  ' * _sink.depth}{self.label} {bar} {100 * fraction:3.0f} %  {text}  {self._clock(elapsed)}"
