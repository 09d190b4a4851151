"""Read-only Git queries: the commit and the changes of a checkout, release tags, the name of the user."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from build.core import run
from build.core.errors import HostError, SpecError

SECONDS = 60
# Untracked files in these directories shape an image too.
READ = ("build", "overlays", "packer", "preseed", "tests/image", "tests/audit")
TAG = re.compile(r"((?P<name>[a-z0-9-]+)-)?v(?P<version>\d+\.\d+\.\d+(-[A-Za-z0-9.]+)?)")


def argv(root: Path) -> list[str]:
    """Return the start of a Git command line, which also works if another user owns the checkout, as in a container."""
    return ["git", "-c", f"safe.directory={root}", "-C", str(root)]


def ask(root: Path, *arguments: str) -> str | None:
    """Return the output of a Git command without trailing white space; None if the command fails or Git is missing."""
    try:
        done = run.run([*argv(root), *arguments], timeout=SECONDS, check=False)
    except HostError:
        return None
    return done.stdout.rstrip() if done.returncode == 0 else None


@dataclass(frozen=True)
class Checkout:
    """Commit as 40 hexadecimal digits, empty outside git; ``remote``: where it was cloned from, without credentials."""

    commit: str = ""
    dirty: bool = False
    remote: str = ""


def checkout_of(root: Path) -> Checkout:
    """Return the state of the checkout; empty if it is not a Git checkout, or is only a directory of another repository."""
    if not ask(root, "ls-files", "--", "golden.yaml"):
        return Checkout()
    commit = ask(root, "rev-parse", "--verify", "--quiet", "HEAD") or ""
    changed = ask(root, "status", "--porcelain=v1", "--untracked-files=no", "--", ".")
    untracked = ask(root, "ls-files", "--others", "--exclude-standard", "--", *READ)
    remote = ask(root, "config", "--get", "remote.origin.url") or ""
    return Checkout(commit if re.fullmatch(r"[0-9a-f]{40}", commit) else "", bool(changed or untracked), _public(remote))


def _public(remote: str) -> str:
    """Return an address that may be recorded: without user and password; empty for a directory of this host."""
    if match := re.fullmatch(r"(https?|ssh|git)://(?:[^@/]*@)?([^/@]+/.+)", remote):
        return f"{match[1]}://{match[2]}"
    match = re.fullmatch(r"(?:[^@/]+@)?([A-Za-z0-9.-]+):([^/].*)", remote)
    return f"ssh://{match[1]}/{match[2]}" if match else ""


def version_of(tag: str, name: str) -> str:
    """Return the version in a release tag of the image ``name``; raise SpecError if it is not one of it."""
    match = TAG.fullmatch(tag)
    if not match or match["name"] not in (None, name):
        raise SpecError(
            f"--tag: {tag!r} is not a release tag of {name}",
            hint=f"write v and the version, such as v1.4.0, or {name}-v1.4.0 where profiles have different versions",
        )
    return match["version"]


def commit_of(root: Path, tag: str) -> str:
    """Return the commit of a tag as 40 hexadecimal digits; raise SpecError if the tag does not exist."""
    commit = ask(root, "rev-parse", "--verify", "--quiet", f"refs/tags/{tag}^{{commit}}")
    if not commit:
        raise SpecError(f"this checkout has no tag {tag}", hint="run git fetch --tags, or use the checkout that has the tag")
    return commit


def head(root: Path) -> str:
    """Return the commit that is checked out; empty outside of Git."""
    return ask(root, "rev-parse", "--verify", "--quiet", "HEAD") or ""


def is_clean(root: Path, ledger: Path) -> bool:
    """Return True if the checkout has no changed and no untracked files.

    The ledger, whose path is relative to the checkout, is left out: it grows with every release and shapes no image.
    """
    beside = ledger.parent / f".{ledger.name}.*"
    leave_out = [f":(exclude){ledger}*", f":(exclude,glob){beside}"]
    return ask(root, "status", "--porcelain", "--untracked-files=all", "--", ".", *leave_out) == ""


def user(root: Path) -> str:
    """Return the user from the settings of Git: ``Name <mail>``, only one of them, or an empty string."""
    name, mail = (ask(root, "config", "--get", key) or "" for key in ("user.name", "user.email"))
    return f"{name} <{mail}>".strip() if mail else name
