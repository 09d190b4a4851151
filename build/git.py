"""Questions to Git, where there is Git; nothing is changed by them."""

from __future__ import annotations

from pathlib import Path

from build import run
from build.errors import HostError

SECONDS = 60


def argv(root: Path) -> list[str]:
    """Return how a command to Git begins. A checkout may belong to another user, as in a container: nothing of it is run."""
    return ["git", "-c", f"safe.directory={root}", "-C", str(root)]


def ask(root: Path, *words: str) -> str | None:
    """Return what Git says, stripped at its end; None when it says no, or is not there."""
    try:
        done = run.run([*argv(root), *words], timeout=SECONDS, check=False)
    except HostError:
        return None
    return done.stdout.rstrip() if done.returncode == 0 else None
