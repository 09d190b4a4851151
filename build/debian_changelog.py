"""Debian's changelogs, read (deb-changelog(5)), and Debian's order of versions (deb-version(7))."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

HEADER = re.compile(r"(?P<source>\S+) \((?P<version>[^()\s]+)\)(?P<suites>[^;]*);")
CVE = re.compile(r"\bCVE-\d{4}-\d{4,}\b")
# What a rebuild without a change of the source appends to the version.
BINARY_ONLY = re.compile(r"\+b\d+$")


@dataclass(frozen=True)
class Entry:
    """One version of a changelog: its suites (such as ``trixie-security``) and what it says, one change a line."""

    source: str
    version: str
    suites: str
    lines: tuple[str, ...]

    @property
    def cves(self) -> tuple[str, ...]:
        """The numbers of the vulnerabilities that it names, in order."""
        return tuple(sorted(set(CVE.findall("\n".join(self.lines)))))


def parse(text: str) -> Iterator[Entry]:
    """Yield the entries of a changelog, the newest first."""
    head: re.Match[str] | None = None
    lines: list[str] = []
    for line in text.splitlines():
        if found := HEADER.match(line):
            head, lines = found, []
        elif head and line.startswith(" -- "):
            yield Entry(head["source"], head["version"], head["suites"].strip(), tuple(lines))
            head = None
        elif head and line.startswith("  ") and (words := line.strip()):
            # A change begins with a star; what follows without one continues it.
            if words[0] == "*" or not lines:
                lines.append(words.removeprefix("*").strip())
            else:
                lines[-1] = f"{lines[-1]} {words}".strip()


def since(text: str, version: str) -> list[Entry]:
    """Return the entries that are newer than ``version``, the newest first."""
    known = BINARY_ONLY.sub("", version)
    found = []
    for entry in parse(text):
        if compare(entry.version, known) <= 0:
            break
        found.append(entry)
    return found


def compare(one: str, other: str) -> int:
    """Return -1, 0 or 1: whether a version is older than, the same as, or newer than another."""
    epochs = [(int(version.partition(":")[0]), version.partition(":")[2]) if ":" in version else (0, version)
              for version in (one, other)]  # fmt: skip
    if epochs[0][0] != epochs[1][0]:
        return -1 if epochs[0][0] < epochs[1][0] else 1
    first, second = (version.rpartition("-") if "-" in version else (version, "", "") for _, version in epochs)
    return _compare_part(first[0], second[0]) or _compare_part(first[2], second[2])


def _compare_part(one: str, other: str) -> int:
    """Compare as dpkg does: runs of other characters and runs of digits in turn, each in its own order."""
    while one or other:
        (text, one), (text_other, other) = _split(r"[^0-9]*", one), _split(r"[^0-9]*", other)
        if (weight := _weights(text)) != (weight_other := _weights(text_other)):
            return -1 if weight < weight_other else 1
        (number, one), (number_other, other) = _split(r"[0-9]*", one), _split(r"[0-9]*", other)
        if int(number or 0) != int(number_other or 0):
            return -1 if int(number or 0) < int(number_other or 0) else 1
    return 0


def _split(pattern: str, text: str) -> tuple[str, str]:
    found = re.match(pattern, text)
    assert found is not None
    return found[0], text[found.end() :]


def _weights(text: str) -> list[int]:
    """Return the order of characters: a tilde before the end, the end before letters, letters before all others."""
    return [-1 if letter == "~" else ord(letter) if letter.isalpha() else ord(letter) + 256 for letter in text] + [0]
