"""Reads the parts of an artifact, stored or being assembled: manifest, inventory, files, test results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from build.artifact import artifact
from build.artifact.artifact import Artifact
from build.artifact.manifest import Manifest
from build.core.junit import cases_of, worst
from build.verify import inventory
from build.verify.inventory import Inventory

# Columns of the list of files after the path (build/rootfs/rootfs.py).
COLUMNS = ("type", "mode", "owner", "bytes", "content")
Read = Callable[[str], str | None]


@dataclass(frozen=True)
class Side:
    """An artifact for reports and comparisons: its manifest, and a reader of its files (None: it has no such file)."""

    manifest: Manifest
    read: Read

    @property
    def name(self) -> str:
        return artifact.name_of(self.manifest.name, self.manifest.version, self.manifest.image.sha256)

    @cached_property
    def inventory(self) -> Inventory | None:
        """Its inventory; None when the artifact is too old to have one. Raises StepFailed when it is damaged."""
        text = self.read(inventory.FILE)
        return None if text is None else inventory.parse(text)

    @cached_property
    def paths(self) -> Mapping[str, tuple[str, ...]] | None:
        """Every path of the root file system with its columns."""
        text = self.read(artifact.TREE)
        return None if text is None else columns_of(text)

    @cached_property
    def results(self) -> Mapping[str, str] | None:
        """The worst result of each test on any clone: two builds may run it on different clones."""
        text = self.read(artifact.JUNIT)
        return None if text is None else worst((case.name, case.result) for case in cases_of(text))

    @cached_property
    def requirements(self) -> Mapping[str, str] | None:
        """The worst result of each requirement."""
        text = self.read(artifact.JUNIT)
        if text is None:
            return None
        return worst((name, case.result) for case in cases_of(text) for name in case.requirements.split())


def columns_of(tree: str) -> dict[str, tuple[str, ...]]:
    """Return the columns of each path, from the text of a list of files."""
    # The last column, which may be the target of a link, takes the rest of the line: it may contain tabs.
    rows = (line.split("\t", len(COLUMNS)) for line in tree.splitlines() if line.startswith("/"))
    return {path: tuple(columns) for path, *columns in rows if len(columns) == len(COLUMNS)}


def side_of(stored: Artifact) -> Side:
    """Return the reader of a committed artifact."""

    def read(name: str) -> str | None:
        path = stored.path / name
        return path.read_text(encoding="utf-8") if path.is_file() else None

    return Side(stored.manifest, read)


def side_of_parts(manifest: Manifest, contents: Mapping[str, Path | str]) -> Side:
    """Return the reader of an artifact that is being assembled."""

    def read(name: str) -> str | None:
        part = contents.get(name)
        return part.read_text(encoding="utf-8") if isinstance(part, Path) else part

    return Side(manifest, read)
