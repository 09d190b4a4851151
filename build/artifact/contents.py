"""Reads the parts of an artifact: manifest, inventory, files, test results; of a stored one, or of one being assembled."""

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
    """One of the two artifacts: its manifest, and its files by name (None: it has no such file)."""

    manifest: Manifest
    read: Read

    @property
    def name(self) -> str:
        return artifact.name_of(self.manifest.name, self.manifest.version, self.manifest.image.sha256)

    @cached_property
    def inventory(self) -> Inventory | None:
        """Its inventory; None when the artifact is older than inventories. Raises StepFailed when it is damaged."""
        text = self.read(inventory.FILE)
        return None if text is None else inventory.parse(text)

    @cached_property
    def paths(self) -> Mapping[str, tuple[str, ...]] | None:
        """Every path of the root file system with its columns."""
        text = self.read(artifact.TREE)
        return None if text is None else columns_of(text)

    @cached_property
    def results(self) -> Mapping[str, str] | None:
        """The worst result of each test, wherever it ran: two builds may test it on different clones."""
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
    # The last column, which may be a link's target, has whatever is left: no path is lost for a tab in it.
    rows = (line.split("\t", len(COLUMNS)) for line in tree.splitlines() if line.startswith("/"))
    return {path: tuple(columns) for path, *columns in rows if len(columns) == len(COLUMNS)}


def side_of(found: Artifact) -> Side:
    """Return a committed artifact as a side."""

    def read(name: str) -> str | None:
        path = found.path / name
        return path.read_text(encoding="utf-8") if path.is_file() else None

    return Side(found.manifest, read)


def side_of_parts(manifest: Manifest, contents: Mapping[str, Path | str]) -> Side:
    """Return an artifact that is being put together as a side."""

    def read(name: str) -> str | None:
        part = contents.get(name)
        return part.read_text(encoding="utf-8") if isinstance(part, Path) else part

    return Side(manifest, read)
