"""The jobs of docs/ci are run: their shell scripts, Goldsmith with nox, a real git; forges and slow programs are fakes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from build.artifact import artifact
from build.core import files, run
from build.packages import lock as locks
from build.packages.lock import Archive
from build.packages.resolve import NETBOOT
from tests.interruption.test_line import Line, built, line, mirror
from tests.unit import ci_files
from tests.unit.helpers import ROOT, make_deb, write_lock

__all__ = ["built", "line", "mirror"]
JOB_SECONDS = 180
# nox -s VERB -- WORDS: what the session would run, without a separate environment; that of the tests is first in its path.
NOX = """#!/bin/sh
[ "$1" = -s ] || exit 64
verb=$2; shift 2
[ "$1" = -- ] && shift
echo "$verb $*" >>{notes}
[ "$verb" = tests ] && exit 0
PYTHONPATH={root} exec {python} -P -m tests.interruption.goldsmith "$verb" --no-install --project "$PWD" --cache {cache} "$@"
"""
APT = """#!/bin/sh
case "$*" in
"install --yes "*) echo "$@" >>{notes} ;;
update*)
    [ -n "$APT_CONFIG" ] || exit 0
    lists=$(dirname "$APT_CONFIG")/lists
    mkdir -p "$lists"
    echo 'Date: {date}' >"$lists/x_InRelease"
    ;;
*) cat {answers}/"$1" ;;
esac
"""
ARCHIVE_DATE = "Sat, 21 Nov 2026 02:11:10 UTC"
KERNEL = "6.12.95+deb13"
GH = """#!/bin/sh
echo "$@" >>{notes}
case "$2" in list) cat {open} ;; esac
"""


@dataclass
class Forge:
    """A checkout under git, its origin, and the machine that a forge's jobs run on."""

    line: Line
    name: str

    @property
    def root(self) -> Path:
        return self.line.root

    @property
    def checkout(self) -> Path:
        return self.line.project.root

    @property
    def store(self) -> Path:
        return self.root / "store"

    def noted(self, name: str) -> list[str]:
        path = self.root / f"{name}.notes"
        return path.read_text().splitlines() if path.exists() else []

    def write(self, name: str, text: str, **values: object) -> None:
        path = self.line.fakes.directory / name
        path.write_text(text.format(notes=self.root / f"{name}.notes", **values))
        path.chmod(0o755)

    def job(self, name: str, *, where: Path | None = None, **given: str) -> subprocess.CompletedProcess[str]:
        """Run a job as the forge would: bash with -e and pipefail, and the variables that its file sets."""
        job = ci_files.jobs(self.name)[name]
        mirrors = self.line.mirror.mirrors
        environment = {
            "PATH": os.environ["PATH"], "HOME": str(self.root), "GIT_CONFIG_NOSYSTEM": "1", "LC_ALL": "C.UTF-8",
            "GOLDSMITH_MIRROR": mirrors.debian, "GOLDSMITH_SECURITY_MIRROR": mirrors.security,
            "GITHUB_OUTPUT": str(self.root / "outputs"), "CI_PROJECT_DIR": str(self.checkout),
            **self.expand(job.environment), **given,
        }  # fmt: skip
        script = ci_files.scripts(self.root, job)
        return subprocess.run(
            ["bash", "-e", "-o", "pipefail", script], cwd=where or self.checkout, env=environment, check=False,
            capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=JOB_SECONDS,
        )  # fmt: skip

    def expand(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Return what the file sets, with the values that a forge would put in."""
        known = {
            "${{ vars.GOLDSMITH_ARTIFACTS || '/srv/goldsmith/artifacts' }}": str(self.store),
            "/srv/goldsmith/artifacts": str(self.store),
            "${{ github.event.repository.default_branch }}": "main",
            "${{ github.token }}": "a-token",
            "$CI_PROJECT_DIR/.cache": str(self.root / "cache"),
            "$CI_PROJECT_DIR/.cache/pip": str(self.root / "cache" / "pip"),
        }
        return {name: known[value] for name, value in environment.items()}

    def git(self, *words: str | Path, where: Path | None = None) -> str:
        identity = ["-c", "user.name=A Test", "-c", "user.email=test@example.org"]
        home = {"HOME": str(self.root)}
        return run.run(["git", *identity, *words], cwd=where or self.checkout, timeout=60, env=home).stdout


@pytest.fixture(params=tuple(ci_files.FILES))
def forge(line: Line, request: pytest.FixtureRequest) -> Iterator[Forge]:
    """A forge whose machine never built anything: the results of the finished line are removed."""
    made = Forge(line, request.param)
    line.forget("base")
    values = {"python": sys.executable, "root": ROOT, "cache": line.cache, "answers": made.root, "date": ARCHIVE_DATE}
    made.write("nox", NOX, **values)
    made.write("apt-get", APT, **values)
    made.write("gh", GH, open=made.root / "open")
    (made.root / "open").write_text("0\n")
    (made.checkout / ".gitignore").write_text((ROOT / ".gitignore").read_text())
    made.git("init", "--quiet", "--initial-branch", "main")
    made.git("add", "--all")
    made.git("commit", "--quiet", "--message", "All of it")
    made.git("clone", "--quiet", "--bare", made.checkout, made.root / "origin.git")
    made.git("remote", "add", "origin", made.root / "origin.git")
    made.git("config", "receive.advertisePushOptions", "true", where=made.root / "origin.git")
    yield made
    files.remove_tree(made.store)


def newest(forge: Forge) -> str:
    """Let the archive have a newer nginx, with a fix of the security archive, and a newer part of the installer."""
    archive, root = forge.line.mirror, forge.root
    fixed = archive.add("nginx", make_deb(root, "nginx", version="2.0-1"), archive=Archive.SECURITY, version="2.0-1")
    module = f"ata-modules-{KERNEL}-amd64-di"
    installer = [archive.add(name, name.encode(), version="2") for name in (NETBOOT, "udeb", module)]
    # The question stays; the answer is new.
    committed = [archive.add(name, b"old", version="1") for name in (NETBOOT, "udeb", module)]
    write_lock(forge.line.project.installer_lock, *committed)
    forge.git("commit", "--quiet", "--all", "--message", "A whole installer")
    forge.git("push", "--quiet", "origin", "main")
    for name, entries in (("install", [fixed]), ("download", installer)):
        lines = [
            f"'{archive.mirrors.base(one.archive)}/{one.path}' {one.filename} {one.size} SHA256:{one.sha256}\n"
            for one in entries
        ]
        (root / name).write_text("".join(lines))
    names = f"{NETBOOT}\nudeb\n{module}\n"
    forge.line.fakes.command(
        "apt-cache", {"when": ["show"], "stdout": "Built-Using: linux (= 6.12.95-1)\n"},
        {"when": ["pkgnames"], "stdout": names},
        stdout=f"nginx | 2.0-1 | {archive.mirrors.security} trixie-security/main amd64 Packages\n",
    )  # fmt: skip
    return fixed.version


def test_the_tests_are_those_of_nox(forge: Forge) -> None:
    done = forge.job("tests")
    assert done.returncode == 0, done.stderr
    assert [words.split() for words in forge.noted("nox")] == [["tests"]]
    assert "nox python3-venv" in forge.noted("apt-get")[0]


def test_a_push_builds_an_artifact_that_outlives_the_checkout(forge: Forge) -> None:
    done = forge.job("build")
    assert done.returncode == 0, done.stderr
    (made,) = artifact.committed(forge.store)
    assert artifact.check(made) == []
    result = sorted(path.name for path in (forge.checkout / "result").iterdir())
    assert result == ["SHA256SUMS", "manifest.json", "report.html"]
    told = forge.root / "outputs" if forge.name == "github" else forge.checkout / "build.env"
    assert told.read_text().lower() == f"artifact={made.name}\n"
    assert "artifacts" not in forge.git("status", "--porcelain"), "the link does not make the checkout dirty"


def test_a_build_that_fails_fails_the_job(forge: Forge) -> None:
    forge.line.image_test('def test_x():\n    """Fails."""\n    raise AssertionError\n')
    done = forge.job("build")
    assert done.returncode == 3, done.stderr
    assert artifact.committed(forge.store) == []
    assert not (forge.checkout / "result").exists()


def test_pending_security_updates_fail_the_check(forge: Forge) -> None:
    newest(forge)
    done = forge.job("lock-check")
    assert done.returncode == 3, done.stderr
    assert "security  nginx  1.0-1 -> 2.0-1" in done.stdout


def test_every_night_fresh_locks_are_built_and_offered(forge: Forge) -> None:
    version = newest(forge)
    done = forge.job("nightly")
    assert done.returncode == 0, done.stderr
    (made,) = artifact.committed(forge.checkout / "artifacts")
    assert json.loads((made / "manifest.json").read_text())["packages"] == {"nginx": version}
    assert "nginx 1.0-1 -> 2.0-1" in (forge.checkout / "offer" / "changes.txt").read_text()
    other = offer(forge)
    changed = forge.git("diff", "--name-only", "main", "locks/nightly", where=forge.root / "origin.git").split()
    assert changed == ["overlays/rootfs.lock", "preseed/installer.lock"]
    assert locks.parse(other / "overlays" / "rootfs.lock").versions() == {"nginx": version}
    # The next night, while the change is still open.
    (forge.root / "open").write_text("1\n")
    files.remove_tree(other)
    offer(forge)
    if forge.name == "github":
        assert [words.split()[:2] for words in forge.noted("gh")] == [["pr", "list"], ["pr", "create"], ["pr", "list"]]
        assert "--base main --head locks/nightly" in forge.noted("gh")[1]


def offer(forge: Forge) -> Path:
    """Run the job that offers the change in a new clone, with what the nightly job handed on; return the clone."""
    clone = forge.root / "clone"
    forge.git("clone", "--quiet", forge.root / "origin.git", clone)
    (clone / "offer").symlink_to(forge.checkout / "offer")
    (clone / ".git" / "info" / "exclude").write_text("offer\n")
    done = forge.job(
        "offer", where=clone, CI_PROJECT_URL=(forge.root / "origin").as_uri(), CI_DEFAULT_BRANCH="main",
        GOLDSMITH_PUSH_TOKEN="a-secret",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "a-secret" not in done.stdout + done.stderr
    return clone


def test_the_offer_takes_lock_files_alone_out_of_the_patch(forge: Forge) -> None:
    newest(forge)
    assert forge.job("nightly").returncode == 0
    project = forge.line.project
    (project.overlays / "10-base" / "layer.yaml").write_text("about: something else\n")
    (forge.checkout / "offer" / "locks.patch").write_text(forge.git("diff", "--", "overlays", "preseed"))
    offer(forge)
    changed = forge.git("diff", "--name-only", "main", "locks/nightly", where=forge.root / "origin.git").split()
    assert changed == ["overlays/rootfs.lock", "preseed/installer.lock"]
