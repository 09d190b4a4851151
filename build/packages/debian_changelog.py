"""Reads the changelogs of Debian packages (deb-changelog(5))."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from build.packages import versions

HEADER = re.compile(r"(?P<source>\S+) \((?P<version>[^()\s]+)\)(?P<suites>[^;]*);")
CVE = re.compile(r"\bCVE-\d{4}-\d{4,}\b")
# The suffix that a rebuild without a change of the source adds to the version.
BINARY_ONLY = re.compile(r"\+b\d+$")


@dataclass(frozen=True)
class Entry:
    """One version of a changelog: its suites (such as ``trixie-security``) and its changes, one per line."""

    source: str
    version: str
    suites: str
    lines: tuple[str, ...]

    @property
    def cves(self) -> tuple[str, ...]:
        """The CVE numbers in it, in order."""
        return tuple(sorted(set(CVE.findall("\n".join(self.lines)))))


def parse(text: str) -> Iterator[Entry]:
    """Yield the entries of a changelog, the newest first."""
    head: re.Match[str] | None = None
    lines: list[str] = []
    for line in text.splitlines():
        if match := HEADER.match(line):
            head, lines = match, []
        elif head and line.startswith(" -- "):
            yield Entry(head["source"], head["version"], head["suites"].strip(), tuple(lines))
            head = None
        elif head and line.startswith("  ") and (words := line.strip()):
            # A change begins with a star; lines without one continue it.
            if words[0] == "*" or not lines:
                lines.append(words.removeprefix("*").strip())
            else:
                lines[-1] = f"{lines[-1]} {words}".strip()


def since(text: str, version: str) -> list[Entry]:
    """Return the entries that are newer than ``version``, the newest first."""
    known = BINARY_ONLY.sub("", version)
    entries = []
    for entry in parse(text):
        if versions.compare(entry.version, known) <= 0:
            break
        entries.append(entry)
    return entries
