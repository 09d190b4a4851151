"""Pending updates, by the real apt and an archive of our own: what is a security update, what is not known, exit codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from build import apt, base, cli, report, updates
from build import lock as locks
from build import spec as specs
from build.errors import StepFailed
from build.layers import load_stack
from build.lock import Archive, Entry
from build.locksmith import NETBOOT
from build.project import Project
from build.updates import Looked, Question, Update
from tests.unit.archives import Lists, lists
from tests.unit.helpers import DATE, make_checkout, write_lock

KERNEL = "6.12.95+deb13"
USING = "Built-Using: linux (= 6.12.95-1)\n"


@dataclass
class Place:
    """A checkout whose locks are up to date with an archive, until a test publishes more."""

    project: Project
    cache: Path
    lists: Lists
    request: str
    rootfs: list[Entry]

    def lock(self, *entries: Entry, request: str = "") -> None:
        write_lock(self.project.rootfs_lock, *self.rootfs, *entries, request=request or self.request)

    def words(self, *more: str) -> list[str]:
        mirrors = self.lists.mirror.mirrors
        return [
            "lock", "--check", "--no-install", "--project", str(self.project.root), "--cache", str(self.cache),
            "--mirror", mirrors.debian, "--security-mirror", mirrors.security, *more,
        ]  # fmt: skip

    def check(self, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, str]:
        self.lists.publish()
        capsys.readouterr()
        code = cli.main(self.words(*more))
        return code, capsys.readouterr().out

    def at_build(self) -> dict[str, Any]:
        spec = specs.load(self.project.spec)
        packages = base.requested_packages(spec, load_stack(self.project.overlays, spec))
        question = Question(locks.parse(self.project.rootfs_lock), self.request, packages)
        installer = locks.parse(self.project.installer_lock)
        return updates.at_build(self.cache / "apt", self.lists.mirror.mirrors, question, installer)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    project = make_checkout(tmp_path / "checkout")
    with lists(tmp_path, monkeypatch) as archive:
        spec = specs.load(project.spec)
        stack = load_stack(project.overlays, spec)
        known = [locked("base-files", "13.8")]
        known += [archive.add(name, "1.0-1") for name in base.requested_packages(spec, stack) if name != "nginx"]
        installer = [
            archive.add(NETBOOT, "20250803", fields=USING),
            archive.add(f"ata-modules-{KERNEL}-amd64-di", "6.12.95-1", udeb=True),
        ]
        write_lock(project.installer_lock, *installer)
        place = Place(project, tmp_path / "cache", archive, base.request_digest(spec, stack), known)
        yield place


def locked(package: str, version: str, *, archive: Archive = Archive.DEBIAN) -> Entry:
    """Return the entry of a file that an archive of :class:`Lists` has, or had."""
    return Lists.entry(package, version, archive=archive)


def test_a_lock_that_is_the_newest_has_nothing_pending(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.lock(place.lists.add("nginx", "1.26.3-3"))
    code, said = place.check(capsys)
    assert code == 0
    assert said.splitlines() == [
        f"{name}: 0 pending security updates; locked as of {DATE}, the archive as of {DATE}"
        for name in ("rootfs", "installer")
    ]


def test_a_newer_version_in_the_security_archive_is_pending(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.lock(place.lists.add("nginx", "1.26.3-3"))
    place.lists.add("nginx", "1.26.3-3+deb13u1", archive=Archive.SECURITY)
    before = place.project.rootfs_lock.read_bytes()
    code, said = place.check(capsys)
    assert code == 3
    assert said.splitlines()[:2] == [
        f"rootfs: 1 pending security update; locked as of {DATE}, the archive as of {DATE}",
        "  security  nginx  1.26.3-3 -> 1.26.3-3+deb13u1",
    ]
    assert said.endswith("-> nox -s lock, look at the changes, commit them\n")
    assert place.project.rootfs_lock.read_bytes() == before
    assert not (place.cache / "files").exists(), "looking fetches no package"


def test_a_fix_that_a_point_release_took_over_is_still_a_security_update(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.lock(locked("nginx", "1.26.3-3"))
    place.lists.add("nginx", "1.26.3-3+deb13u1", archive=Archive.SECURITY)
    place.lists.add("nginx", "1.26.3-3+deb13u2")
    code, said = place.check(capsys)
    assert (code, "  security  nginx  1.26.3-3 -> 1.26.3-3+deb13u2\n" in said) == (3, True)


def test_what_the_lock_has_already_is_not_pending(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """The security archive keeps a fix that is locked; a later change of the main archive is another matter."""
    place.lock(locked("nginx", "1.26.3-3+deb13u1", archive=Archive.SECURITY))
    place.lists.add("nginx", "1.26.3-3+deb13u1", archive=Archive.SECURITY)
    place.lists.add("nginx", "1.26.3-4")
    code, said = place.check(capsys)
    assert (code, "  other     nginx  1.26.3-3+deb13u1 -> 1.26.3-4\n" in said) == (0, True)


def test_strict_counts_every_update(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.lock(locked("nginx", "1.26.3-3"))
    place.lists.add("nginx", "1.26.3-4")
    assert place.check(capsys)[0] == 0
    assert place.check(capsys, "--strict")[0] == 3


def test_a_package_that_is_new_in_the_set_is_one_when_it_comes_from_there(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a kernel of a new name does, for which the old one goes."""
    place.lock(locked("nginx", "1"), locked("linux-1", "1-1"))
    place.lists.add("nginx", "2", archive=Archive.SECURITY, fields="Depends: linux-2, libfree\n")
    place.lists.add("linux-2", "2-1", archive=Archive.SECURITY)
    place.lists.add("libfree", "7")
    code, said = place.check(capsys, "rootfs")
    assert code == 3
    assert said.splitlines()[1:5] == [
        "  security  linux-2  (new) -> 2-1",
        "  security  nginx  1 -> 2",
        "  other     libfree  (new) -> 7",
        "  other     linux-1  1-1 -> (gone)",
    ]


def test_the_same_file_is_no_update_however_its_version_is_written(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    newest = place.lists.add("nginx", "2:1.0-1")
    place.lock(Entry("nginx", "1.0-1", newest.archive, newest.path, newest.size, newest.sha256))
    assert "pending security updates;" in place.check(capsys, "rootfs")[1]


def test_a_stale_lock_is_said(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.lock(place.lists.add("nginx", "1"), request="another-question")
    code, said = place.check(capsys, "rootfs")
    assert (code, f"  note: {updates.OTHER_QUESTION}\n" in said) == (0, True)
    assert place.check(capsys, "rootfs", "--strict")[0] == 3


def test_a_set_that_cannot_be_resolved_does_not_hide_the_other(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """The archive has no nginx at all: the root file system is not looked at, and that is no success."""
    place.lock(locked("nginx", "1"))
    code, said = place.check(capsys)
    assert code == 1
    first, *rest = said.splitlines()
    assert first.startswith("rootfs: not looked at: apt cannot resolve the packages: ")
    assert rest[-1].startswith("installer: 0 pending security updates; ")


def test_json_tells_the_same(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.lock(place.lists.add("nginx", "1"))
    place.lists.add("nginx", "2", archive=Archive.SECURITY)
    code, said = place.check(capsys, "--json")
    facts = json.loads(said)
    assert (code, facts["security"], facts["other"]) == (3, 1, 0)
    assert [(one["set"], one["problem"]) for one in facts["sets"]] == [("rootfs", ""), ("installer", "")]
    assert facts["sets"][0]["updates"] == [{"package": "nginx", "locked": "1", "candidate": "2", "security": True}]


@pytest.mark.parametrize(
    ("words", "brief"),
    [
        (["lock", "--strict"], "--strict is an option of --check"),
        (["lock", "--check", "wheels"], "apt knows nothing of wheels"),
    ],
)
def test_options_that_do_not_fit_are_refused(capsys: pytest.CaptureFixture[str], words: list[str], brief: str) -> None:
    assert cli.main(words) == 2
    assert brief in capsys.readouterr().err


# --- at build time ----------------------------------------------------------------------------------------------------


def test_without_lists_a_build_says_that_nobody_looked(place: Place) -> None:
    place.lock(locked("nginx", "1"))
    told = place.at_build()
    assert told == {"looked": False, "reason": updates.NO_LISTS}
    assert report.pending({"updates": told}) == f"not looked at: {updates.NO_LISTS}"
    assert place.lists.mirror.requests == [], "a build asks no network for this"


def test_with_lists_that_were_kept_a_build_tells_what_is_pending(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.lock(place.lists.add("nginx", "1"))
    place.lists.add("nginx", "2", archive=Archive.SECURITY)
    place.check(capsys)
    place.lists.mirror.requests.clear()
    told = place.at_build()
    assert place.lists.mirror.requests == []
    assert told["looked"] is True
    assert [one["set"] for one in told["sets"]] == ["rootfs", "installer"]
    assert report.pending({"updates": told}) == (
        f"rootfs: 1 security (nginx 2), 0 other, archive as of {DATE}; "
        f"installer: 0 security, 0 other, archive as of {DATE}"
    )


def test_the_newest_lists_take_the_place_of_the_older(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.lock(place.lists.add("nginx", "1"))
    place.check(capsys)
    place.lists.add("nginx", "2", archive=Archive.SECURITY)
    place.check(capsys)
    assert place.at_build()["sets"][0]["updates"][0]["candidate"] == "2"
    kept = [path.name for path in (place.cache / "apt").iterdir() if not path.name.startswith(".")]
    assert len(kept) == 1


def test_lists_of_another_mirror_are_not_taken(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.lock(place.lists.add("nginx", "1"))
    place.check(capsys)
    with apt.kept_apt(place.cache / "apt", apt.Mirrors("http://other.example", "x"), "trixie") as found:
        assert found is None


def test_a_look_that_fails_never_fails_a_build(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_words: object) -> None:
        raise StepFailed("the cache is damaged")

    monkeypatch.setattr(updates, "kept_apt", fail)
    place.lock(locked("nginx", "1"))
    assert place.at_build() == {"looked": False, "reason": "the cache is damaged"}


def test_a_report_says_when_a_set_was_not_looked_at() -> None:
    other = Update("a", "1", "2", security=False)
    sets = updates.facts([Looked("rootfs", "then", problem="no"), Looked("installer", "then", "now", (other,))])
    assert report.pending({"updates": {"looked": True, "sets": sets}}) == (
        "rootfs: not looked at: no; installer: 0 security, 1 other, archive as of now"
    )
    assert report.pending({}) == "not looked at: the manifest does not say"
