"""Finds artifacts by directory, name, version or digest, ordered by creation time; and disks in the cache."""

from __future__ import annotations

from pathlib import Path

from build.artifact import artifact
from build.artifact.artifact import Artifact
from build.core.cache import RECORD
from build.core.errors import SpecError
from build.core.project import Project
from build.machines.disk_image import IMAGE
from build.spec import profiles


def newest(project: Project) -> Artifact:
    """Return the newest artifact of the project's spec; raise SpecError when there is none."""
    return artifact.newest(project.artifacts, profiles.name_of(project.spec))


def find(project: Project, word: str) -> Artifact:
    """Return the artifact that ``word`` names: a directory, a name in artifacts/, the start of its digest, or a version.

    A version selects the artifact of the project's spec if there is one.
    Raises SpecError when no artifact or more than one matches.
    """
    if (Path(word) / artifact.MANIFEST).is_file():
        return artifact.load(Path(word).resolve())
    root, name = project.artifacts, profiles.name_of(project.spec)
    entries = list(artifact.everything(root))
    of_version = [entry for entry in entries if entry.manifest.version == word.removeprefix("v")]
    for matches in (
        [entry for entry in entries if entry.path.name == word],
        [entry for entry in entries if len(word) >= 6 and entry.manifest.image.sha256.startswith(word)],
        [entry for entry in of_version if entry.manifest.name == name],
        of_version,
    ):
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise SpecError(
                f"{word} matches {len(matches)} artifacts", details="\n".join(entry.path.name for entry in matches),
                hint="use one of these names",
            )  # fmt: skip
    names = "\n".join(entry.path.name for entry in entries)
    raise SpecError(
        f"there is no artifact {word}", details=f"in {root}:\n{names}" if names else f"{root} has none",
        hint="use a directory, a name, a version, or the first 6 or more digits of a digest",
    )  # fmt: skip


def earlier(root: Path, name: str, sha256: str) -> list[Artifact]:
    """Return the artifacts called ``name`` made before the one with this digest; all of them if there is none with it."""
    artifacts = [entry for entry in artifact.everything(root) if entry.manifest.name == name]
    digests = [entry.manifest.image.sha256 for entry in artifacts]
    return artifacts[: digests.index(sha256)] if sha256 in digests else artifacts


def previous(before: list[Artifact], version: str) -> Artifact | None:
    """Return the artifact to compare a release with: the last of another version, else the last; None if there is none."""
    others = [entry for entry in before if entry.manifest.version != version]
    candidates = others or before
    return candidates[-1] if candidates else None


def find_image(project: Project, cache: Path, *, directory: Path | None, unverified: bool) -> Path:
    """Return the pristine disk of an artifact (by default the newest of the spec), or the newest disk in the cache."""
    if unverified:
        return newest_result(cache, "disk") / IMAGE
    return (artifact.load(directory) if directory else newest(project)).image


def newest_result(cache: Path, stage: str) -> Path:
    """Return the directory of the newest result of a stage, verified or not; raise SpecError when there is none."""
    records = sorted((cache / "stages" / stage).glob(f"*/{RECORD}"), key=lambda path: path.stat().st_mtime)
    if not records:
        raise SpecError(f"the cache has no result of stage {stage}", hint="build one: nox -s build")
    return records[-1].parent
