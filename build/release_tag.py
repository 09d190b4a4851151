"""From a release tag to the artifact that was built from it.

The manifest names the commit of the checkout that it was built from, and whether that checkout was changed. A rebuild of
the same inputs finds the older artifact, which names an older commit: then the key of its inputs tells, as long as the tag's
commit is checked out as it was committed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from build import artifact, release_git
from build.artifact import Artifact
from build.errors import SpecError


def artifacts_of(root: Path, artifacts: Path, tag: str, *, ledger: Path, key: Callable[[], str]) -> list[Artifact]:
    """Return the artifacts that a release tag stands for, the oldest first; there is one at least.

    ``ledger``: its path in the checkout ``root``, which may differ from the commit; ``key``: computes what
    ``inputs.artifact_key`` of an artifact of this checkout would be. Raises SpecError that says what is missing.
    """
    version, commit = release_git.version_of(tag), release_git.commit_of(root, tag)
    known = [artifact.load(path) for path in artifact.committed(artifacts)]
    named = [one for one in known if one.manifest["inputs"].get("commit") == commit]
    # What nobody noted is not known to be clean.
    found = [one for one in named if one.manifest["inputs"].get("dirty") is False]
    if not found and release_git.head(root) == commit and release_git.clean(root, ledger):
        wanted = key()
        found = [one for one in known if one.manifest["inputs"].get("artifact_key") == wanted]
    if not found:
        changed = any(_dirty(one.manifest["inputs"]) for one in named)
        raise SpecError(
            f"there is no verified artifact of {tag} (commit {commit[:12]}) in {artifacts}",
            details="one was built from that commit with files that were changed, and not committed" if changed else "",
            hint=f"git switch --detach {tag}, nox -s build, nox -s publish; then promote again",
        )
    if others := sorted({str(one.manifest["version"]) for one in found} - {version}):
        raise SpecError(
            f"{tag} stands on commit {commit[:12]}, whose artifact is version {', '.join(others)}",
            details="\n".join(one.path.name for one in found),
            hint=f"version in golden.yaml has to be {version} on the commit that is tagged {tag}",
        )
    return found


def _dirty(inputs: Mapping[str, Any]) -> bool:
    return inputs.get("dirty") is True
