"""Finds artifacts by directory, name, version or digest, in the order in which they were made; and disks in the cache."""

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

    A version is one of the project's spec, if that has it.
    Raises SpecError when there is none, or when a version has several.
    """
    if (Path(word) / artifact.MANIFEST).is_file():
        return artifact.load(Path(word).resolve())
    root, name = project.artifacts, profiles.name_of(project.spec)
    here = list(artifact.everything(root))
    of_version = [one for one in here if one.manifest.version == word.removeprefix("v")]
    for fitting in (
        [one for one in here if one.path.name == word],
        [one for one in here if len(word) >= 6 and one.manifest.image.sha256.startswith(word)],
        [one for one in of_version if one.manifest.name == name],
        of_version,
    ):
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise SpecError(
                f"{word} names {len(fitting)} artifacts", details="\n".join(one.path.name for one in fitting),
                hint="write one of these names",
            )  # fmt: skip
    names = "\n".join(one.path.name for one in here)
    raise SpecError(
        f"there is no artifact {word}", details=f"in {root}:\n{names}" if names else f"{root} holds none",
        hint="name a directory, a name, a version, or the first digits of a digest",
    )  # fmt: skip


def earlier(root: Path, name: str, sha256: str) -> list[Artifact]:
    """Return the artifacts called ``name`` made before the one with this digest; all if that is not here."""
    line = [one for one in artifact.everything(root) if one.manifest.name == name]
    digests = [one.manifest.image.sha256 for one in line]
    return line[: digests.index(sha256)] if sha256 in digests else line


def previous(before: list[Artifact], version: str) -> Artifact | None:
    """Return what a release is compared with: the last of another version, else the last one; None for the first."""
    others = [one for one in before if one.manifest.version != version]
    fitting = others or before
    return fitting[-1] if fitting else None


def find_image(project: Project, cache: Path, *, directory: Path | None, unverified: bool) -> Path:
    """Return the sealed disk of an artifact (the newest of the spec without a directory), or the cache's newest disk."""
    if unverified:
        return newest_result(cache, "disk") / IMAGE
    return (artifact.load(directory) if directory else newest(project)).image


def newest_result(cache: Path, stage: str) -> Path:
    """Return the directory of the newest result of a stage, verified or not; raise SpecError when there is none."""
    found = sorted((cache / "stages" / stage).glob(f"*/{RECORD}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise SpecError(f"the cache holds no {stage}", hint="build one: nox -s build")
    return found[-1].parent
