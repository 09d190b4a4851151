"""Which commit a checkout stands at, and whether what a build reads differs from it; asked of git, when there is git."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from build import run

SECONDS = 60
# What no commit knows of shapes an image too, when it lies where a build reads.
READ = ("build", "overlays", "packer", "preseed", "tests/image", "tests/peers")


@dataclass(frozen=True)
class Checkout:
    """Commit as 40 hexadecimal digits, empty outside git; ``remote``: where it was cloned from, without credentials."""

    commit: str = ""
    dirty: bool = False
    remote: str = ""


def look(root: Path) -> Checkout:
    """Return what git says of the checkout; nothing when it is none, or lies by chance inside another repository."""
    if shutil.which("git", path=run.search_path()) is None or not _git(root, "ls-files", "--", "golden.yaml"):
        return Checkout()
    commit = _git(root, "rev-parse", "--verify", "--quiet", "HEAD")
    changed = _git(root, "status", "--porcelain=v1", "--untracked-files=no", "--", ".")
    unknown = _git(root, "ls-files", "--others", "--exclude-standard", "--", *READ)
    remote = _git(root, "config", "--get", "remote.origin.url")
    return Checkout(commit if re.fullmatch(r"[0-9a-f]{40}", commit) else "", bool(changed or unknown), _public(remote))


def _git(root: Path, *words: str) -> str:
    """Return what git answers, stripped at the end; empty when it refuses."""
    argv = ["git", "-c", f"safe.directory={root}", *words]
    done = run.run(argv, cwd=root, timeout=SECONDS, check=False)
    return done.stdout.rstrip() if done.returncode == 0 else ""


def _public(remote: str) -> str:
    """Return an address that may be written down: no directory of this machine, and no user or password."""
    if found := re.fullmatch(r"(https?|ssh|git)://(?:[^@/]*@)?([^/@]+/.+)", remote):
        return f"{found[1]}://{found[2]}"
    found = re.fullmatch(r"(?:[^@/]+@)?([A-Za-z0-9.-]+):([^/].*)", remote)
    return f"ssh://{found[1]}/{found[2]}" if found else ""
