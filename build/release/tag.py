"""Finds the artifact that was built from a release tag.

The manifest has the commit of the checkout and whether that checkout had changes. A rebuild of the same inputs reuses
the older artifact, which has an older commit: then the key of its inputs is compared, if the tag's commit is checked
out without changes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from build.artifact import artifact
from build.artifact.artifact import Artifact
from build.core import git
from build.core.errors import SpecError


def artifacts_of(
    root: Path, artifacts: Path, tag: str, *, name: str, ledger: Path, key: Callable[[], str]
) -> list[Artifact]:
    """Return the artifacts of the image ``name`` of a release tag, the oldest first; at least one.

    ``ledger``: its path in the checkout ``root``, which may differ from the commit; ``key``: computes the
    ``inputs.artifact_key`` that an artifact of this checkout would have. Raises SpecError if there is none.
    """
    version, commit = git.version_of(tag, name), git.commit_of(root, tag)
    known = [artifact.load(path) for path in artifact.committed(artifacts) if artifact.image_name(path) == name]
    named = [image for image in known if image.manifest.inputs.commit == commit]
    # Without the field ``dirty``, a clean checkout cannot be assumed.
    matching = [image for image in named if image.manifest.inputs.dirty is False]
    if not matching and git.head(root) == commit and git.is_clean(root, ledger):
        artifact_key = key()
        matching = [image for image in known if image.manifest.inputs.artifact_key == artifact_key]
    if not matching:
        changed = any(image.manifest.inputs.dirty for image in named)
        raise SpecError(
            f"there is no verified artifact of {name} of {tag} (commit {commit[:12]}) in {artifacts}",
            details="an artifact of that commit was built with uncommitted changes" if changed else "",
            hint=f"run git switch --detach {tag}, nox -s build and nox -s publish; then promote again",
        )
    if others := sorted({image.manifest.version for image in matching} - {version}):
        raise SpecError(
            f"{tag} is on commit {commit[:12]}, whose artifact is version {', '.join(others)}",
            details="\n".join(image.path.name for image in matching),
            hint=f"tag a commit whose spec has version {version}",
        )
    return matching
