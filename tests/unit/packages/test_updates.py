"""Pending updates, with the real apt and a local archive: security updates, unknown results, exit codes."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from build.cli import main
from build.core import run
from build.core.errors import HostError
from build.core.project import Project
from build.packages import apt, updates
from build.packages import lock as locks
from build.packages.lock import Archive, Entry
from build.packages.resolve import NETBOOT
from build.packages.updates import Looked, Question, Update
from build.report import report
from build.spec import golden_yaml as specs
from build.spec import layers
from build.spec.layers import load_stack
from tests.unit.archives import Lists, lists
from tests.unit.helpers import DATE, make_checkout, write_lock

KERNEL = "6.12.95+deb13"
USING = "Built-Using: linux (= 6.12.95-1)\n"

Look = Callable[[updates.Place, Question, locks.Lock], updates.PendingUpdates]
UDEBS = "main/debian-installer"
OUT_OF_STEP = f"the mirror is being updated: dists/trixie/{UDEBS}/binary-amd64/Packages differs from its Release file"


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
        code = main.main(self.words(*more))
        return code, capsys.readouterr().out

    def at_build(self, look: Look = updates.at_build, mirrors: apt.Mirrors | None = None) -> updates.PendingUpdates:
        spec = specs.load(self.project.spec)
        packages = layers.requested_packages(spec, load_stack(self.project.overlays, spec))
        question = Question(locks.parse(self.project.rootfs_lock), self.request, packages)
        installer = locks.parse(self.project.installer_lock)
        where = updates.Place(self.cache / "apt", mirrors or self.lists.mirror.mirrors, "trixie", quick=True)
        return look(where, question, installer)

    def at_plan(self) -> updates.PendingUpdates:
        """Return what a plan shows; it uses no network and starts no program."""
        before = list(self.lists.mirror.requests)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run, "_start", lambda *_words, **_options: pytest.fail("a plan starts no program"))
            found = self.at_build(updates.at_plan)
        assert self.lists.mirror.requests == before
        return found


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    project = make_checkout(tmp_path / "checkout")
    monkeypatch.setattr(apt, "SYNC_PAUSES", (0.0, 0.0))
    with lists(tmp_path, monkeypatch) as archive:
        spec = specs.load(project.spec)
        stack = load_stack(project.overlays, spec)
        known = [locked("base-files", "13.8")]
        known += [archive.add(name, "1.0-1") for name in layers.requested_packages(spec, stack) if name != "nginx"]
        installer = [
            archive.add(NETBOOT, "20250803", fields=USING),
            archive.add(f"ata-modules-{KERNEL}-amd64-di", "6.12.95-1", udeb=True),
        ]
        write_lock(project.installer_lock, *installer)
        place = Place(project, tmp_path / "cache", archive, layers.request_digest(spec, stack), known)
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
    assert (code, f"  note: {updates.OTHER_REQUEST}\n" in said) == (0, True)
    assert place.check(capsys, "rootfs", "--strict")[0] == 3


def test_a_set_that_cannot_be_resolved_does_not_hide_the_other(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """The archive has no nginx at all: the root file system is not looked at, and that is no success."""
    place.lock(locked("nginx", "1"))
    code, said = place.check(capsys)
    assert code == 1
    first, *rest = said.splitlines()
    assert first.startswith("rootfs: not checked: apt cannot resolve the packages: ")
    assert rest[-1].startswith("installer: 0 pending security updates; ")


@pytest.mark.parametrize("rootfs", ["1", "0.9"])
def test_an_index_that_is_out_of_step_costs_only_its_own_set(
    place: Place, capsys: pytest.CaptureFixture[str], rootfs: str
) -> None:
    """The mirror is tried again, and named; a pending security update still is exit code 3."""
    place.lock(locked("nginx", rootfs))
    place.lists.add("nginx", "1", archive=Archive.SECURITY)
    place.lists.publish()
    place.lists.index(UDEBS).write_bytes(place.lists.index(UDEBS).read_bytes() + b"\n")
    capsys.readouterr()
    code = main.main(place.words())
    out, err = capsys.readouterr()
    assert code == (1 if rootfs == "1" else 3)
    pending = "0 pending security updates" if rootfs == "1" else "1 pending security update"
    assert out.startswith(f"rootfs: {pending}; locked as of ")
    assert f"installer: not checked: {OUT_OF_STEP}\n" in out
    assert err.count(f"warning: {OUT_OF_STEP}; the next try is in 0 s\n") == len(apt.SYNC_PAUSES)


def test_a_lock_that_cannot_be_refreshed_leaves_the_other_refreshed(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.lock(locked("nginx", "1"))
    newer = place.lists.add("nginx", "2", archive=Archive.SECURITY)
    for one in (*place.rootfs, newer):
        path = place.lists.mirror.path(one)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"{one.package} {one.version}".encode())
    place.lists.publish()
    place.lists.index(UDEBS).write_bytes(b"of another day")
    installer = place.project.installer_lock.read_bytes()
    capsys.readouterr()
    words = [word for word in place.words("rootfs", "installer") if word != "--check"]
    assert main.main(words) == 1
    err = capsys.readouterr().err
    assert "rootfs.lock: " in err
    assert "  nginx 1 -> 2\n" in err
    assert f"error: not written: the lock of installer; written: rootfs\n    installer: {OUT_OF_STEP}\n" in err
    assert locks.parse(place.project.rootfs_lock).versions()["nginx"] == "2"
    assert place.project.installer_lock.read_bytes() == installer


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
    assert main.main(words) == 2
    assert brief in capsys.readouterr().err


# --- at build time ----------------------------------------------------------------------------------------------------


def test_a_build_looks_with_the_newest_lists(place: Place) -> None:
    place.lock(place.lists.add("nginx", "1"))
    place.lists.add("nginx", "2", archive=Archive.SECURITY)
    place.lists.publish()
    told = place.at_build()
    assert told.looked is True
    assert [one.set for one in told.sets or ()] == ["rootfs", "installer"]
    assert report.pending(told) == (
        f"rootfs: 1 security (nginx 2), 0 other, archive as of {DATE}; installer: 0 security, 0 other, archive as of {DATE}"
    )
    assert not (place.cache / "files").exists(), "looking fetches no package"


def test_lists_that_did_not_change_are_not_sent_again(place: Place) -> None:
    place.lock(place.lists.add("nginx", "1"))
    place.lists.publish()
    first = place.at_build()
    place.lists.mirror.requests.clear()
    second = place.at_build()
    told = []
    for found in (first, second):
        rootfs, installer = found.sets or ()
        assert rootfs.looked_at <= installer.looked_at
        told.append([replace(one, looked_at="") for one in (rootfs, installer)])
    assert told[0] == told[1]
    sent = [one for one in place.lists.mirror.requests if "Packages" in one and " 200 " in one]
    assert sent == []


def test_a_look_after_new_lists_were_published_sees_them(place: Place) -> None:
    place.lock(place.lists.add("nginx", "1"))
    place.lists.publish()
    assert (place.at_build().sets or ())[0].updates == ()
    place.lists.add("nginx", "2", archive=Archive.SECURITY)
    place.lists.publish()
    assert (place.at_build().sets or ())[0].updates[0].candidate == "2"
    assert len(list((place.cache / "apt").glob("lists-*"))) == 2, "those of the two sets, the newest only"


def test_an_index_that_is_out_of_step_is_named_at_once(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """A build does not wait for the mirror, and reports the updates of the other set."""
    place.lock(place.lists.add("nginx", "1"))
    place.lists.publish()
    place.lists.index(UDEBS).unlink()
    found = report.pending(place.at_build())
    assert found == f"rootfs: 0 security, 0 other, archive as of {DATE}; installer: not checked: {OUT_OF_STEP}"
    assert "the next try" not in capsys.readouterr().err
    assert report.pending(place.at_plan()) == found
    place.lists.publish()
    known = report.pending(place.at_build())
    assert known.endswith(f"; installer: 0 security, 0 other, archive as of {DATE}")
    place.lists.index(UDEBS).unlink()
    for kept in (place.cache / "apt").glob("lists-*"):
        shutil.rmtree(kept)
    assert report.pending(place.at_build()) == known, "the last successful result is reported"
    assert report.pending(place.at_plan()) == known


NOWHERE = apt.Mirrors("http://127.0.0.1:9/debian", "http://127.0.0.1:9/debian-security")


def test_a_build_without_network_says_so(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.lock(locked("nginx", "1"))
    found = place.at_build(mirrors=NOWHERE)
    assert (found.looked, (found.reason or "")[:42]) == (False, "the mirror cannot be reached: Could not co")
    assert report.pending(found).startswith("not checked: the mirror cannot be reached: ")
    assert capsys.readouterr().err.count("• Reading Debian's signed package lists\n") == 1, "one wait is enough"


def test_a_mirror_that_says_nothing_is_not_waited_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apt, "QUICK_SECONDS", 1)
    place.lock(locked("nginx", "1"))
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        address = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        found = place.at_build(mirrors=apt.Mirrors(f"{address}/debian", f"{address}/debian-security"))
    assert found == updates.PendingUpdates(looked=False, reason="the mirror cannot be reached: no answer within 1 s")


def test_without_network_the_last_look_is_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.lock(place.lists.add("nginx", "1"))
    place.lists.publish()
    known = place.at_build()

    def fail(*_words: object, **_options: object) -> None:
        raise apt.MirrorUnreachable("the mirror cannot be reached")

    monkeypatch.setattr(updates, "private_apt", fail)
    assert place.at_build() == known


# --- in a plan --------------------------------------------------------------------------------------------------------


def test_a_plan_shows_what_the_last_look_found(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """The result of a build, or of ``lock --check``, for these locks."""
    place.lock(place.lists.add("nginx", "1"))
    place.lists.add("nginx", "2", archive=Archive.SECURITY)
    assert place.at_plan() == updates.PendingUpdates(looked=False, reason=updates.NOT_KEPT)
    place.check(capsys, "rootfs")
    assert report.pending(place.at_plan()) == (
        f"rootfs: 1 security (nginx 2), 0 other, archive as of {DATE}; installer: not checked: {updates.NOT_KEPT}"
    )
    place.check(capsys)
    assert report.pending(place.at_plan()).endswith(f"; installer: 0 security, 0 other, archive as of {DATE}")


@pytest.mark.parametrize("change", ["lock", "request", "old", "future"])
def test_a_plan_shows_nothing_of_other_locks_and_of_yesterday(place: Place, change: str) -> None:
    place.lock(place.lists.add("nginx", "1"))
    place.lists.publish()
    place.at_build()
    assert place.at_plan().looked is True
    if change == "lock":
        place.lock(locked("nginx", "0.9"))
    elif change == "request":
        place.request = "another-question"
    else:
        seconds = (updates.KEPT_HOURS * 3600 + 5) * (-1 if change == "old" else 1)
        for path in (place.cache / "apt").glob("updates-*.json"):
            os.utime(path, (time.time() + seconds,) * 2)
    known = place.at_plan()
    problem = known.sets[0].problem if known.sets else known.reason
    assert problem == updates.NOT_KEPT


def test_looks_of_yesterday_are_removed(place: Place) -> None:
    place.lock(place.lists.add("nginx", "1"))
    place.lists.publish()
    place.at_build()
    (older,) = (place.cache / "apt").glob("updates-rootfs-*.json")
    os.utime(older, (0, 0))
    place.lock(locked("nginx", "0.9"))
    place.at_build()
    (newer,) = (place.cache / "apt").glob("updates-rootfs-*.json")
    assert newer != older


def test_a_look_that_fails_never_fails_a_build(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_words: object, **_options: object) -> None:
        raise HostError("the keyring is missing")

    monkeypatch.setattr(updates, "private_apt", fail)
    place.lock(locked("nginx", "1"))
    assert place.at_build() == updates.PendingUpdates(looked=False, reason="the keyring is missing")


def test_a_report_says_when_a_set_was_not_looked_at() -> None:
    other = Update("a", "1", "2", security=False)
    looked = (Looked("rootfs", "then", problem="no"), Looked("installer", "then", "now", (other,)))
    assert report.pending(updates.PendingUpdates(looked=True, sets=looked)) == (
        "rootfs: not checked: no; installer: 0 security, 1 other, archive as of now"
    )
    assert report.pending(None) == "not checked: the manifest has no record of it"
