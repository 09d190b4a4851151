"""The commit of a checkout, and whether the files that a build reads differ from it, by the real git."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from build.core import run
from build.core.cache import Cache
from build.core.git import Checkout, checkout_of
from build.core.project import Project
from build.packages.apt import Mirrors
from build.pipeline import build
from tests.unit.helpers import make_checkout

IDENTITY = ("-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "init.defaultBranch=main")


def git(root: Path, *words: str) -> str:
    return run.run(["git", *IDENTITY, *words], cwd=root, timeout=60).stdout.strip()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    project = make_checkout(tmp_path / "checkout")
    git(project.root, "init", "--quiet")
    git(project.root, "add", "--all")
    git(project.root, "commit", "--quiet", "--message=x")
    return project.root


def test_a_clean_checkout_is_its_commit(root: Path) -> None:
    assert checkout_of(root) == Checkout(git(root, "rev-parse", "HEAD"), dirty=False)


@pytest.mark.parametrize(("path", "dirty"), [
    ("golden.yaml", True), ("tests/image/x.md", True), ("overlays/10-base/rootfs/etc/new", True), ("build/new.py", True),
    ("notes.txt", False), ("artifacts/x", False),
])  # fmt: skip
def test_a_changed_file_makes_it_dirty_and_a_new_one_where_builds_read(root: Path, path: str, *, dirty: bool) -> None:
    (root / path).parent.mkdir(exist_ok=True)
    (root / path).write_text("other")
    assert checkout_of(root).dirty is dirty


def test_outside_git_nothing_is_known(tmp_path: Path, root: Path) -> None:
    shutil.rmtree(root / ".git")
    assert checkout_of(root) == Checkout()
    # Inside another repository that knows nothing of it, too.
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "--message=x")
    assert checkout_of(root) == Checkout()


@pytest.mark.parametrize(("remote", "reported"), [
    ("https://user:secret@example.org/golden.git", "https://example.org/golden.git"),
    ("git@example.org:team/golden.git", "ssh://example.org/team/golden.git"),
    ("ssh://git@example.org:2222/golden.git", "ssh://example.org:2222/golden.git"),
    ("/srv/git/golden.git", ""), ("file:///srv/git/golden.git", ""), ("../golden", ""),
])  # fmt: skip
def test_a_remote_is_told_without_secrets_and_directories(root: Path, remote: str, reported: str) -> None:
    git(root, "remote", "add", "origin", remote)
    assert checkout_of(root).remote == reported


def test_the_commit_is_in_no_stage_key(root: Path, tmp_path: Path) -> None:
    mirrors = Mirrors("http://one.example/debian", "http://one.example/debian-security")
    options = build.Options(Project(root), Cache(tmp_path / "cache"), mirrors)
    before = build.gather(options, settle=False)
    git(root, "commit", "--quiet", "--allow-empty", "--message=y")
    after = build.gather(options, settle=False)
    assert before.inputs.checkout.commit != after.inputs.checkout.commit
    assert before.keys == after.keys
