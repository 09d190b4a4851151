"""What Git knows of the checkout: the commit that a release tag stands on, whether it is checked out clean, who works."""

from __future__ import annotations

import re
from pathlib import Path

from build import git
from build.errors import SpecError

TAG = re.compile(r"v(?P<version>\d+\.\d+\.\d+(-[A-Za-z0-9.]+)?)")


def version_of(tag: str) -> str:
    """Return the version that a release tag names; raise SpecError when it is no such tag."""
    found = TAG.fullmatch(tag)
    if not found:
        raise SpecError(f"--tag: {tag!r} is no tag of a release", hint="write v and the version, such as v1.4.0")
    return found["version"]


def commit_of(root: Path, tag: str) -> str:
    """Return the commit that a tag stands on, 40 hexadecimal digits; raise SpecError when there is none."""
    found = git.ask(root, "rev-parse", "--verify", "--quiet", f"refs/tags/{tag}^{{commit}}")
    if not found:
        raise SpecError(
            f"this checkout has no tag {tag}", hint="git fetch --tags; or run this in the checkout that has the tag"
        )
    return found


def head(root: Path) -> str:
    """Return the commit that is checked out; empty outside of Git."""
    return git.ask(root, "rev-parse", "--verify", "--quiet", "HEAD") or ""


def clean(root: Path, ledger: Path) -> bool:
    """Say whether the files of the checkout are those of its commit, and no others are there.

    The ledger, whose path is relative to the checkout, grows with every release and shapes no image.
    """
    beside = ledger.parent / f".{ledger.name}.*"
    leave_out = [f":(exclude){ledger}*", f":(exclude,glob){beside}"]
    return git.ask(root, "status", "--porcelain", "--untracked-files=all", "--", ".", *leave_out) == ""


def who(root: Path) -> str:
    """Return who works here, by the settings of Git: ``Name <mail>``, what there is of it, or nothing."""
    name, mail = (git.ask(root, "config", "--get", key) or "" for key in ("user.name", "user.email"))
    return f"{name} <{mail}>".strip() if mail else name
