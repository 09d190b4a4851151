"""How two installed disks differ: what may (a table has the reasons), and what must not.

Content and identities are compared exactly: UUIDs, seeds and GUIDs are derived from what is installed, by
``build/media/disk_ids.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from build.core import run
from build.reproduce.disk_contents import Contents, Entry

COMPARE_SECONDS = 900
ABSENT = "absent"
_CLOCK = "the clock of the installation"
_SUMS = "a sum over fields that differ"
_COUNT = "counts what was written"
# Everything that two installations of the same inputs may differ in, all of it in superblocks, and why;
# docs/how-to/reproducing.md has the way to remove each.
SUPERBLOCK: Mapping[str, str] = {
    "Last mount time": _CLOCK, "Last write time": _CLOCK, "Lifetime writes": _COUNT, "Journal sequence": _COUNT,
    "Checksum": _SUMS, "Journal checksum": _SUMS,
    "Free blocks": "a file that was written in more pieces needs another block to list them",
}  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """One difference; ``allowed`` is the reason why it may be; empty when it must not."""

    where: str
    what: str
    expected: str
    found: str
    allowed: str = ""


@dataclass(frozen=True)
class Verdict:
    """How two disks differ, and the paths whose time, inode or blocks differ, which is no difference of content."""

    differences: tuple[Difference, ...]
    paths: int
    laid: Mapping[str, tuple[str, ...]]
    identical: bool

    @property
    def forbidden(self) -> tuple[Difference, ...]:
        return tuple(difference for difference in self.differences if not difference.allowed)

    def facts(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def identical(one: Path, other: Path) -> bool:
    """Return True if two images hold the same bits, whatever their formats."""
    done = run.run(["qemu-img", "compare", one, other], timeout=COMPARE_SECONDS, check=False)
    return done.returncode == 0


def compare(expected: Contents, found: Contents, *, same_bits: bool) -> Verdict:
    """Compare two disks; ``same_bits`` is the result of :func:`identical`."""
    differences = [*_paths(expected.paths, found.paths)]
    mounts = sorted(expected.file_systems.keys() | found.file_systems.keys())
    for mount in mounts:
        fields = (expected.file_systems.get(mount, {}), found.file_systems.get(mount, {}))
        differences += _flat(f"file system {mount}", *fields, allowed=SUPERBLOCK)
    differences += _flat("partition table", expected.table, found.table)
    differences += _flat("boot loader", expected.loader, found.loader)
    both = expected.paths.keys() & found.paths.keys()
    laid = {
        what: tuple(path for path in sorted(both) if getattr(expected.paths[path], what) != getattr(found.paths[path], what))
        for what in ("mtime", "inode", "blocks")
    }
    return Verdict(tuple(differences), len(expected.paths), laid, same_bits)


def _paths(expected: Mapping[str, Entry], found: Mapping[str, Entry]) -> Iterator[Difference]:
    for path in sorted(expected.keys() | found.keys()):
        then, now = expected.get(path), found.get(path)
        if then is None or now is None:
            kinds = (then.kind if then else ABSENT, now.kind if now else ABSENT)
            yield Difference(path, "kind", *kinds)
            continue
        for what in ("kind", "mode", "uid", "gid", "xattrs", "content"):
            if (a := getattr(then, what)) != (b := getattr(now, what)):
                yield Difference(path, what, _shown(what, a), _shown(what, b))


def _shown(what: str, value: object) -> str:
    return f"{value:04o}" if what == "mode" else str(value)


def _flat(
    where: str, expected: Mapping[str, str], found: Mapping[str, str], *, allowed: Mapping[str, str] | None = None
) -> Iterator[Difference]:
    for name in sorted(expected.keys() | found.keys()):
        then, now = expected.get(name, ABSENT), found.get(name, ABSENT)
        if then != now:
            yield Difference(where, name, then, now, (allowed or {}).get(name, ""))
