"""Which commit a checkout stands at, and whether what a build reads differs from it; asked of git, when there is git."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from build import git

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
    if not git.ask(root, "ls-files", "--", "golden.yaml"):
        return Checkout()
    commit = git.ask(root, "rev-parse", "--verify", "--quiet", "HEAD") or ""
    changed = git.ask(root, "status", "--porcelain=v1", "--untracked-files=no", "--", ".")
    unknown = git.ask(root, "ls-files", "--others", "--exclude-standard", "--", *READ)
    remote = git.ask(root, "config", "--get", "remote.origin.url") or ""
    return Checkout(commit if re.fullmatch(r"[0-9a-f]{40}", commit) else "", bool(changed or unknown), _public(remote))


def _public(remote: str) -> str:
    """Return an address that may be written down: no directory of this machine, and no user or password."""
    if found := re.fullmatch(r"(https?|ssh|git)://(?:[^@/]*@)?([^/@]+/.+)", remote):
        return f"{found[1]}://{found[2]}"
    found = re.fullmatch(r"(?:[^@/]+@)?([A-Za-z0-9.-]+):([^/].*)", remote)
    return f"ssh://{found[1]}/{found[2]}" if found else ""
