"""Artifacts by the words that people use for them, and in the order in which they were made."""

from __future__ import annotations

from pathlib import Path

from build import artifact
from build.artifact import Artifact
from build.errors import SpecError


def find(root: Path, word: str) -> Artifact:
    """Return the artifact that ``word`` names: a directory, a name in ``root``, the start of its digest, or a version.

    Raises SpecError when there is none, or when a version has several.
    """
    if (Path(word) / artifact.MANIFEST).is_file():
        return artifact.load(Path(word).resolve())
    here = list(artifact.everything(root))
    for fitting in (
        [one for one in here if one.path.name == word],
        [one for one in here if len(word) >= 6 and str(one.manifest["image"]["sha256"]).startswith(word)],
        [one for one in here if one.manifest["version"] == word.removeprefix("v")],
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
    line = [one for one in artifact.everything(root) if one.manifest["name"] == name]
    digests = [one.manifest["image"]["sha256"] for one in line]
    return line[: digests.index(sha256)] if sha256 in digests else line


def previous(before: list[Artifact], version: str) -> Artifact | None:
    """Return what a release is compared with: the last of another version, else the last one; None for the first."""
    others = [one for one in before if one.manifest["version"] != version]
    fitting = others or before
    return fitting[-1] if fitting else None
