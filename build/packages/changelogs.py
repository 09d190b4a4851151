"""What the changelogs of changed packages say: from the .deb files of the cache, because the image keeps no documentation.

Binary packages of one source share a changelog; it is told with the first of them.
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
ABSENT = "its changelog is not here: the cache has no longer its .deb, and the image keeps none"
LONGEST = 240


@dataclass
class Changelogs:
    """The changelogs of the packages of a lock; texts are read once, when somebody asks."""

    lock: Lock
    store: Store
    _texts: dict[str, str] = field(default_factory=dict)
    _told: dict[str, str] = field(default_factory=dict)

    def entries(self, package: str, before: str, after: str) -> list[debian_changelog.Entry] | None:
        """Return what is new in a package since a version, the newest first; None when its changelog is not here.

        The binary's version may differ from its source's, which the changelog counts in: then the newest entry stands for
        all.
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
        """Return the lines that a comparison tells beside a package whose version changed."""
        if not before or not after:
            return ()
        source = self.source(package)
        teller = self._told.setdefault(f"{source} {before} {after}", package)
        if teller != package:
            return (f"of the same source as {teller}",)
        found = self.entries(package, before, after)
        if found is None:
            return (ABSENT,)
        return tuple(
            f"{entry.version} ({entry.suites}): {_short(line)}" for entry in found for line in entry.lines
        ) or ("rebuilt, its source did not change",)  # fmt: skip

    def source(self, package: str) -> str:
        """Return the name of the source package, by its place in the archive; empty when the lock has it not."""
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
        """Read a changelog out of a .deb; a package's documentation may be a link to another one's."""
        entry = self._entries.get(package)
        path = self.store.path(entry) if entry else None
        if path is None or not path.is_file() or hops < 0:
            return ""
        directory = f"usr/share/doc/{package}"
        found, links = _pick(path, [directory, *(f"{directory}/{name}" for name in NAMES)])
        if directory in links:
            return self._read(Path(links[directory]).name, hops=hops - 1)
        # A rebuild's own file comes first in the alphabet's order of NAMES, and holds no more than the rebuild.
        for name in NAMES:
            if text := found.get(f"{directory}/{name}"):
                return gzip.decompress(text).decode("utf-8", errors="replace")
            if target := links.get(f"{directory}/{name}"):
                other = Path(target).parent.name
                return self._read(other, hops=hops - 1) if other and other != package else ""
        return ""


def _pick(path: Path, names: Iterable[str]) -> tuple[dict[str, bytes], dict[str, str]]:
    try:
        return deb.pick(path, frozenset(names))
    except (StepFailed, EOFError, OSError) as error:
        log.warn(f"{path.name}: {error}: it is passed over")
        return {}, {}


def _short(line: str) -> str:
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
