"""The journal of a machine since a moment, and the wait for a line that informs the administrator."""

from __future__ import annotations

import shlex
from collections.abc import Callable

import pytest
from testinfra.host import Host

from tests.image.remote import until

EXPECT_SECONDS = 20
LONGEST_LINE = 300


class Journal:
    """What was logged since the object was made, or since :meth:`mark`."""

    def __init__(self, host: Host, found: Callable[[str], None]) -> None:
        self.host = host
        self.found = found
        self.cursor = ""
        self.mark()

    def mark(self) -> None:
        """Let the journal begin now."""
        said = self.host.check_output("journalctl --sync; journalctl --lines 0 --show-cursor --quiet")
        self.cursor = said.rpartition("cursor: ")[2].strip()

    def expect(self, pattern: str, *, unit: str = "", seconds: float = EXPECT_SECONDS) -> str:
        """Return the first line that matches the extended regular expression; wait for it, and fail without it."""
        where = f"--unit {shlex.quote(unit)} " if unit else ""
        command = (
            f"journalctl --quiet --output short-iso {where}--after-cursor {shlex.quote(self.cursor)} "
            f"| grep --extended-regexp --max-count 1 -- {shlex.quote(pattern)} && exit 0"
        )
        said = self.host.run(until(command, seconds, pause=1) + "; exit 1")
        if said.rc != 0:
            about = f" of {unit}" if unit else ""
            last = self.host.run(f"journalctl --quiet {where}--after-cursor {shlex.quote(self.cursor)} | tail -n 25").stdout
            pytest.fail(f"the journal{about} has no line {pattern!r}; its last lines:\n{last}", pytrace=False)
        line = str(said.stdout).strip().splitlines()[0][:LONGEST_LINE]
        self.found(line)
        return line

    def text(self, *, unit: str = "") -> str:
        """Return everything that was logged."""
        where = f"--unit {shlex.quote(unit)} " if unit else ""
        return str(
            self.host.check_output(f"journalctl --quiet --output cat {where}--after-cursor {shlex.quote(self.cursor)} || :")
        )


class AccessLog:
    """What nginx wrote to its access log since the object was made; rsyslog writes it within a second or so."""

    PATH = "/var/log/nginx/access.log"

    def __init__(self, host: Host, found: Callable[[str], None]) -> None:
        self.host = host
        self.found = found
        self.begin = int(host.check_output(f"stat --format %s {self.PATH} 2>/dev/null || echo 0"))

    def _search(self, pattern: str) -> str:
        return f"tail --bytes +{self.begin + 1} {self.PATH} | grep --extended-regexp --max-count 1 -- {shlex.quote(pattern)}"

    def expect(self, pattern: str, *, seconds: float = EXPECT_SECONDS) -> str:
        """Return the first line that matches the extended regular expression; wait for it, and fail without it."""
        said = self.host.run(until(f"{self._search(pattern)} && exit 0", seconds, pause=1) + "; exit 1")
        if said.rc != 0:
            pytest.fail(f"{self.PATH} has no line {pattern!r}", pytrace=False)
        line = str(said.stdout).strip()[:LONGEST_LINE]
        self.found(line)
        return line

    def never(self, pattern: str) -> None:
        """Fail when a line matches."""
        said = self.host.run(self._search(pattern))
        assert said.rc != 0, said.stdout
