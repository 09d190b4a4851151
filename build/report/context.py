"""Loads the data for comparisons, release notes and reports: artifacts, requirements, changelogs from the cache."""

from __future__ import annotations

from pathlib import Path

from build.artifact import artifact, contents, find
from build.artifact.artifact import Artifact
from build.artifact.contents import Side
from build.core import log
from build.core.errors import GoldsmithError
from build.core.project import Project
from build.packages import lock as locks
from build.packages.apt import Store
from build.packages.changelogs import Changelogs
from build.packages.lock import Lock
from build.report import applicability, compare, report, requirements
from build.report.compare import Comparison
from build.report.requirements import Requirement


class ReportContext:
    """The artifacts and texts of one checkout; ``cache`` is the cache's directory."""

    def __init__(self, project: Project, cache: Path) -> None:
        self.project = project
        self.store = Store(cache / "files")

    def find(self, word: str | None) -> Artifact:
        """Return the artifact that ``word`` selects, by default the newest. Raises SpecError when there is none."""
        return find.find(self.project, word) if word else find.newest(self.project)

    def previous(self, side: Side) -> Artifact | None:
        """Return the artifact that a release is compared with, or None for the first."""
        return find.previous(self._earlier(side), side.manifest.version)

    def changelogs(self, found: Artifact) -> Changelogs:
        """Return the changelogs of an artifact's packages."""
        return Changelogs(locks.parse(found.path / artifact.ROOTFS_LOCK), self.store)

    def compare(self, before: Side, after: Side, changelogs: Changelogs) -> Comparison:
        """Compare two artifacts; ``changelogs`` are those of the second."""
        return compare.compare(before, after, requirements=self._requirements(), explain=changelogs.explain)

    def report(self, side: Side, lock: Lock) -> str:
        """Return the report of an artifact, which may not be stored yet; it is compared with the stored ones.

        If the earlier artifact cannot be read, a warning is printed, and the report has no comparison.
        """
        earlier = self._earlier(side)
        before = find.previous(earlier, side.manifest.version)
        changes = None
        if before:
            try:
                changes = self.compare(contents.side_of(before), side, Changelogs(lock, self.store))
            except GoldsmithError as error:
                log.warn(f"the report has no comparison: {before.path.name}: {error.brief}")
        return report.render(
            side, earlier=[contents.side_of(entry) for entry in earlier], comparison=changes,
            requirements=self._requirements(), absent=self._absent(side),
        )  # fmt: skip

    def _earlier(self, side: Side) -> list[Artifact]:
        return find.earlier(self.project.artifacts, side.manifest.name, side.manifest.image.sha256)

    def _absent(self, side: Side) -> dict[str, str]:
        layers = (side.manifest.inputs.spec or {}).get("layers")
        return applicability.absent(self.project.root, layers) if layers and self.project.overlays.is_dir() else {}

    def _requirements(self) -> tuple[Requirement, ...]:
        path = self.project.root / requirements.LIST
        return requirements.load(path) if path.is_file() else ()
