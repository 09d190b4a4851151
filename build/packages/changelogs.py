"""Changelogs of changed packages, from the .deb files in the cache, because the image has no documentation files.

Binary packages of one source share a changelog; it is shown with the first of them.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from build.core import log
from build.core.errors import StepFailed
from build.packages import deb, debian_changelog
from build.packages.apt import Store
from build.packages.debian_changelog import BINARY_ONLY
from build.packages.lock import Entry, Lock

NAMES = ("changelog.Debian.gz", "changelog.Debian.amd64.gz", "changelog.gz")
ABSENT = "its changelog is not available: the cache no longer has its .deb, and the image has no changelogs"
LONGEST = 240


@dataclass
class Changelogs:
    """The changelogs of the packages of a lock; each text is read once, when it is needed."""

    lock: Lock
    store: Store
    _texts: dict[str, str] = field(default_factory=dict)
    _shown_with: dict[str, str] = field(default_factory=dict)

    def entries(self, package: str, before: str, after: str) -> list[debian_changelog.Entry] | None:
        """Return the entries of a package since a version, the newest first; None when its changelog is not available.

        The binary's version may differ from its source's, which the changelog uses: then only the newest entry is
        returned.
        """
        text = self._text(package)
        if not text:
            return None
        first = next(debian_changelog.parse(text), None)
        if first is None:
            return None
        if first.version != BINARY_ONLY.sub("", after):
            return [first]
        return debian_changelog.since(text, before)

    def explain(self, package: str, before: str, after: str) -> tuple[str, ...]:
        """Return the lines that a comparison shows beside a package whose version changed."""
        if not before or not after:
            return ()
        source = self.source(package)
        first = self._shown_with.setdefault(f"{source} {before} {after}", package)
        if first != package:
            return (f"of the same source as {first}",)
        entries = self.entries(package, before, after)
        if entries is None:
            return (ABSENT,)
        return tuple(
            f"{entry.version} ({entry.suites}): {_short(line)}" for entry in entries for line in entry.lines
        ) or ("rebuilt, its source did not change",)  # fmt: skip

    def source(self, package: str) -> str:
        """Return the name of the source package, from its path in the archive; empty when it is not in the lock."""
        entry = self._entries.get(package)
        return entry.path.split("/")[-2] if entry else ""

    @cached_property
    def _entries(self) -> Mapping[str, Entry]:
        return {entry.package: entry for entry in self.lock.entries}

    def _text(self, package: str) -> str:
        if package not in self._texts:
            self._texts[package] = self._read(package, hops=2)
        return self._texts[package]

    def _read(self, package: str, *, hops: int) -> str:
        """Read a changelog from a .deb; a package's documentation may be a link to that of another package."""
        entry = self._entries.get(package)
        path = self.store.path(entry) if entry else None
        if path is None or not path.is_file() or hops < 0:
            return ""
        directory = f"usr/share/doc/{package}"
        texts, links = _pick(path, [directory, *(f"{directory}/{name}" for name in NAMES)])
        if directory in links:
            return self._read(Path(links[directory]).name, hops=hops - 1)
        # The order of NAMES: the file of a rebuild comes after the source's, since it has only the entry of the rebuild.
        for name in NAMES:
            if text := texts.get(f"{directory}/{name}"):
                return gzip.decompress(text).decode("utf-8", errors="replace")
            if target := links.get(f"{directory}/{name}"):
                other = Path(target).parent.name
                return self._read(other, hops=hops - 1) if other and other != package else ""
        return ""


def _pick(path: Path, names: Iterable[str]) -> tuple[dict[str, bytes], dict[str, str]]:
    try:
        return deb.pick(path, frozenset(names))
    except (StepFailed, EOFError, OSError) as error:
        log.warn(f"{path.name}: {error}: it is skipped")
        return {}, {}


def _short(line: str) -> str:
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
