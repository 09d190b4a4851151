"""What comparisons, notes and reports are made from: stored artifacts, the list of requirements, the cache's packages."""

from __future__ import annotations

from pathlib import Path

from build import artifact, compare, log, report, requirements, stored
from build import lock as locks
from build.apt import Store
from build.artifact import Artifact
from build.changelogs import Changelogs
from build.compare import Comparison, Side
from build.errors import GoldsmithError
from build.lock import Lock
from build.project import Project
from build.requirements import Requirement


class Desk:
    """The artifacts and texts of one checkout; ``cache`` is the cache's directory."""

    def __init__(self, project: Project, cache: Path) -> None:
        self.project = project
        self.store = Store(cache / "files")

    def find(self, word: str | None) -> Artifact:
        """Return the artifact that a word names, or the newest one. Raises SpecError when there is none."""
        return stored.find(self.project.artifacts, word) if word else artifact.newest(self.project.artifacts)

    def previous(self, side: Side) -> Artifact | None:
        """Return what a release is compared with, or None for the first."""
        return stored.previous(self._earlier(side), side.manifest["version"])

    def changelogs(self, found: Artifact) -> Changelogs:
        """Return the changelogs of an artifact's packages."""
        return Changelogs(locks.parse(found.path / artifact.ROOTFS_LOCK), self.store)

    def compare(self, before: Side, after: Side, told: Changelogs) -> Comparison:
        """Compare two artifacts; ``told`` are the changelogs of the second."""
        return compare.compare(before, after, requirements=self._requirements(), explain=told.explain)

    def report(self, side: Side, lock: Lock) -> str:
        """Return the report of an artifact, which may not be stored yet, with those that are stored now.

        An artifact before it that cannot be read is told, and is no reason to have no report.
        """
        earlier = self._earlier(side)
        before = stored.previous(earlier, side.manifest["version"])
        changes = None
        if before:
            try:
                changes = self.compare(compare.side_of(before), side, Changelogs(lock, self.store))
            except GoldsmithError as error:
                log.warn(f"the report compares nothing: {before.path.name}: {error.brief}")
        return report.render(
            side, earlier=[compare.side_of(one) for one in earlier], comparison=changes, requirements=self._requirements()
        )

    def _earlier(self, side: Side) -> list[Artifact]:
        return stored.earlier(self.project.artifacts, side.manifest["name"], side.manifest["image"]["sha256"])

    def _requirements(self) -> tuple[Requirement, ...]:
        path = self.project.root / requirements.LIST
        return requirements.load(path) if path.is_file() else ()
