"""The locked set of a build: the committed one while it is valid, else a new one, which is kept for the next build."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from build.core.errors import SpecError, StepFailed
from build.packages import apt
from build.packages import lock as locks
from build.packages.apt import MirrorChanging, MirrorUnreachable, Store
from build.packages.lock import Entry
from build.packages.resolve import MODULES, NETBOOT, LockResolver, Settled, write_each
from tests.fakes import Fakes
from tests.unit.helpers import DATE, Mirror, write_lock

FAKE_APT = """#!/bin/sh
echo "$@" >>{notes}
home=$(dirname "$APT_CONFIG")
case "$*" in
*update*)
    if [ -s {broken} ]; then cat {broken} >&2; exit 100; fi
    mkdir -p "$home/lists" && echo 'Date: Fri, 20 Nov 2026 02:11:10 UTC' >"$home/lists/x_InRelease" ;;
*) cat {answer} ;;
esac
"""


@dataclass
class Place:
    """A mirror, a committed lock, and a fake apt whose output is set by the test."""

    mirror: Mirror
    fakes: Fakes
    root: Path

    @property
    def resolver(self) -> LockResolver:
        return LockResolver(self.mirror.mirrors, Store(self.root / "cache" / "files"), self.root / "cache", "trixie")

    @property
    def lock(self) -> Path:
        return self.root / "rootfs.lock"

    def apt_answers(self, *entries: Entry) -> None:
        """Let apt resolve to these files."""
        lines = [
            f"'{self.mirror.mirrors.base(one.archive)}/{one.path}' {one.filename} {one.size} SHA256:{one.sha256}\n"
            for one in entries
        ]
        (self.root / "answer").write_text("".join(lines))

    def lists_fail(self, text: str) -> None:
        """Let apt fail to fetch the lists with this report; an empty one ends that."""
        (self.root / "broken").write_text(text)

    def asked(self) -> list[str]:
        """Return the commands of apt-get, without updates."""
        return [line for line in self._notes() if "update" not in line.split()]

    def updates(self) -> int:
        """Return how often the lists were fetched."""
        return len(self._notes()) - len(self.asked())

    def _notes(self) -> list[str]:
        notes = self.root / "notes"
        return notes.read_text().splitlines() if notes.exists() else []


@pytest.fixture
def place(tmp_path: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setattr(apt, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(apt, "SYNC_PAUSES", (0.0, 0.0))
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    helper = tmp_path / "apt-helper"
    helper.write_text(f'#!/bin/sh\nexec {apt.HELPER} -o Acquire::http::Proxy::127.0.0.1=DIRECT "$@"\n')
    helper.chmod(0o755)
    monkeypatch.setattr(apt, "HELPER", helper)
    program = fakes.directory / "apt-get"
    program.write_text(FAKE_APT.format(notes=tmp_path / "notes", answer=tmp_path / "answer", broken=tmp_path / "broken"))
    program.chmod(0o755)
    (tmp_path / "archive").mkdir()
    with Mirror(tmp_path / "archive") as mirror:
        yield Place(mirror, fakes, tmp_path)


def settle(place: Place, *, request: str = "a-question", locked: bool = False) -> tuple[locks.Lock, tuple[str, ...]]:
    settled = place.resolver.settle_rootfs(place.lock, request, ("nginx",), locked=locked)
    assert settled.refreshed is bool(settled.changes)
    return settled.lock, settled.changes


# --- the package set --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("locked", [False, True])
def test_the_committed_lock_is_used_while_it_is_complete(place: Place, *, locked: bool) -> None:
    write_lock(place.lock, place.mirror.add("nginx", b"one"), place.mirror.add("apt", b"two"))
    lock, changes = settle(place, locked=locked)
    assert (lock, changes) == (locks.parse(place.lock), ())
    assert place.resolver.store.missing(lock.entries) == ()
    assert place.asked() == [], "apt is not asked for what is known"


def test_a_set_whose_file_is_gone_is_resolved_anew(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    old, kept = place.mirror.add("nginx", b"old", version="1.26.3-3"), place.mirror.add("apt", b"apt")
    write_lock(place.lock, old, kept)
    committed = place.lock.read_text()
    place.mirror.path(old).unlink()
    new = place.mirror.add("nginx", b"new", version="1.26.3-4")
    place.apt_answers(new, kept)
    lock, changes = settle(place)
    assert changes == ("nginx 1.26.3-3 -> 1.26.3-4",)
    assert lock.entries == (kept, new)
    assert (lock.date, lock.request) == (DATE, "a-question")
    assert place.resolver.store.missing(lock.entries) == ()
    assert place.lock.read_text() == committed, "a build never writes into the checkout"
    said = capsys.readouterr().err
    assert (
        "warning: the archive no longer has 1 of the 2 files in rootfs.lock: a new set is resolved "
        "(--locked makes this an error)\n"
    ) in said
    assert "nginx 1.26.3-3 -> 1.26.3-4\n" in said


def test_the_next_build_takes_the_same_refreshed_set(place: Place) -> None:
    old = place.mirror.add("nginx", b"old", version="1")
    write_lock(place.lock, old)
    place.mirror.path(old).unlink()
    place.apt_answers(place.mirror.add("nginx", b"new", version="2"))
    first = settle(place)
    place.apt_answers(place.mirror.add("nginx", b"newest", version="3"))
    assert settle(place) == first
    assert len(place.asked()) == 1
    chosen = place.resolver.choose(place.lock, "a-question", locked=False)
    assert chosen is not None
    assert (chosen.lock, chosen.changes) == first


def test_a_refreshed_set_whose_file_is_gone_is_resolved_once_more(place: Place) -> None:
    old = place.mirror.add("nginx", b"old", version="1")
    write_lock(place.lock, old)
    place.mirror.path(old).unlink()
    second = place.mirror.add("nginx", b"second", version="2")
    place.apt_answers(second)
    settle(place)
    place.mirror.path(second).unlink()
    place.resolver.store.path(second).unlink()
    place.apt_answers(place.mirror.add("nginx", b"third", version="3"))
    assert settle(place)[1] == ("nginx 1 -> 3",)


def test_a_new_committed_lock_or_another_mirror_forgets_the_refreshed_set(place: Place, tmp_path: Path) -> None:
    old = place.mirror.add("nginx", b"old", version="1")
    write_lock(place.lock, old)
    place.mirror.path(old).unlink()
    place.apt_answers(place.mirror.add("nginx", b"new", version="2"))
    settle(place)
    elsewhere = LockResolver(apt.Mirrors("http://other.example", "x"), place.resolver.store, place.resolver.cache, "trixie")
    assert elsewhere.choose(place.lock, "a-question", locked=False) is not None
    assert not elsewhere.choose(place.lock, "a-question", locked=False).refreshed  # type: ignore[union-attr]
    write_lock(place.lock, place.mirror.add("nginx", b"committed again", version="1.5"))
    assert settle(place)[1] == ()


def test_locked_makes_a_missing_file_an_error(place: Place) -> None:
    gone = [place.mirror.add(f"p{number:02}", b"%d" % number) for number in range(17)]
    write_lock(place.lock, place.mirror.add("nginx", b"x"), *gone)
    for one in gone:
        place.mirror.path(one).unlink()
    with pytest.raises(SpecError) as caught:
        settle(place, locked=True)
    error = caught.value
    assert error.brief == "the archive no longer has 17 of the 18 files in rootfs.lock"
    assert error.details.splitlines() == [*(f"p{number:02}_1.0-1_amd64.deb" for number in range(15)), "…"]
    assert error.hint == (
        "run nox -s lock, check and commit the changes; or build without --locked; or set a snapshot archive"
    )
    assert (error.exit_code, place.asked()) == (2, [])


def test_locked_never_takes_a_refreshed_set(place: Place) -> None:
    old = place.mirror.add("nginx", b"old", version="1")
    write_lock(place.lock, old)
    place.mirror.path(old).unlink()
    place.apt_answers(place.mirror.add("nginx", b"new", version="2"))
    settle(place)
    with pytest.raises(SpecError, match=r"no longer has 1 of the 1 files in rootfs\.lock"):
        settle(place, locked=True)
    place.mirror.add("nginx", b"old", version="1")
    lock, changes = settle(place, locked=True)
    assert (lock, changes) == (locks.parse(place.lock), ())


def test_locked_refuses_a_lock_of_another_question_even_when_a_set_was_refreshed(place: Place) -> None:
    same = place.mirror.add("nginx", b"x")
    write_lock(place.lock, same)
    place.apt_answers(same)
    settle(place, request="another")
    assert place.resolver.choose(place.lock, "another", locked=True) is None
    with pytest.raises(SpecError, match=r"rootfs\.lock was resolved for another list of packages"):
        settle(place, request="another", locked=True)


def test_another_question_is_resolved_or_refused(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    same = place.mirror.add("nginx", b"x")
    write_lock(place.lock, same)
    reason = "rootfs.lock was resolved for another list of packages than that of the spec"
    with pytest.raises(SpecError) as caught:
        settle(place, request="another", locked=True)
    assert (caught.value.brief, caught.value.details) == (reason, "")
    place.apt_answers(same)
    lock, changes = settle(place, request="another")
    assert (lock.request, changes) == ("another", ("request",))
    assert reason in capsys.readouterr().err
    assert place.resolver.choose(place.lock, "a third", locked=False) is None


def test_many_changes_are_counted(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    write_lock(place.lock, place.mirror.add("a", b"a"))
    place.apt_answers(*(place.mirror.add(f"p{number:02}", b"%d" % number) for number in range(20)))
    settle(place, request="another")
    said = capsys.readouterr().err
    assert len(re.findall(r"p\d\d \(new\) -> ", said)) == 14
    assert "… and 6 more\n" in said


def test_a_mirror_that_lacks_its_own_newest_files_is_refused(place: Place) -> None:
    write_lock(place.lock, place.mirror.add("a", b"a"))
    half = place.mirror.add("nginx", b"x")
    place.mirror.path(half).unlink()
    place.apt_answers(half)
    with pytest.raises(StepFailed) as caught:
        settle(place, request="another")
    assert caught.value.render() == (
        f"the mirror lacks 1 files of its newest package set\n    nginx_1.0-1_amd64.deb\n  -> {apt.SYNC_HINT}"
    )
    assert not list((place.root / "cache").glob("locks/*")), "a set with a hole is not kept"
    assert not list((place.root / "cache" / "apt").glob(".scratch-*"))


# --- a mirror in the middle of its sync -------------------------------------------------------------------------------

INDEX = "dists/trixie/main/binary-amd64/Packages.xz"
OUT_OF_STEP = (
    f"E: Failed to fetch http://mirror.example/debian/{INDEX}  File has unexpected size (54284 != 53936). "
    "Mirror sync in progress? [IP: 192.0.2.80 80]\n   Hashes of expected file:\n    - Filesize:53936 [weak]\n"
)
BRIEF = f"the mirror is being updated: {INDEX} differs from its Release file"
UNREACHABLE = "E: Failed to fetch http://mirror.example/debian/dists/trixie/InRelease  Could not resolve 'mirror.example'\n"


def freshen(place: Place) -> Settled:
    return place.resolver.freshen_rootfs(place.lock, "a-question", ("nginx",))


def test_a_fresh_set_is_kept_and_taken_by_the_next_builds(place: Place) -> None:
    """The committed set is complete, and is not used."""
    write_lock(place.lock, place.mirror.add("nginx", b"old", version="1"))
    place.apt_answers(place.mirror.add("nginx", b"new", version="2"))
    fresh = freshen(place)
    assert fresh.changes == ("nginx 1 -> 2",)
    assert place.resolver.choose(place.lock, "a-question", locked=False) == fresh
    assert settle(place) == (fresh.lock, fresh.changes)
    assert place.resolver.choose(place.lock, "a-question", locked=True) == Settled(locks.parse(place.lock))


def test_a_fresh_set_of_the_same_files_is_the_one_that_is_there(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its date is unchanged: a build from it is the same build."""
    old = place.mirror.add("nginx", b"old", version="1")
    write_lock(place.lock, old)
    place.apt_answers(place.mirror.add("nginx", b"new", version="2"))
    first = freshen(place)
    monkeypatch.setattr(apt.PrivateApt, "date", lambda _self: 1800000000.0)
    assert freshen(place) == first
    place.apt_answers(old)
    assert freshen(place) == Settled(locks.parse(place.lock))
    assert place.resolver.choose(place.lock, "a-question", locked=False) == Settled(locks.parse(place.lock))


def test_a_mirror_in_its_sync_is_tried_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lock(place.lock, place.mirror.add("nginx", b"old", version="1"))
    place.apt_answers(place.mirror.add("nginx", b"new", version="2"))
    place.lists_fail(OUT_OF_STEP)
    waited = []

    def pause(seconds: float) -> None:
        waited.append(seconds)
        place.lists_fail("")

    monkeypatch.setattr(apt, "_wait", pause)
    monkeypatch.setattr(apt, "SYNC_PAUSES", (2.0, 8.0))
    assert freshen(place).changes == ("nginx 1 -> 2",)
    assert (waited, place.updates()) == ([2.0], 2)


def test_a_mirror_that_stays_out_of_step_leaves_the_committed_set(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    write_lock(place.lock, place.mirror.add("nginx", b"old", version="1"))
    place.lists_fail(OUT_OF_STEP)
    assert freshen(place) == Settled(locks.parse(place.lock))
    assert place.updates() == 1 + len(apt.SYNC_PAUSES)
    assert (
        f"warning: {BRIEF}: rootfs.lock is used instead, which is complete (archive as of {DATE})\n"
    ) in capsys.readouterr().err


def test_a_set_of_an_earlier_build_comes_before_the_committed_one(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    write_lock(place.lock, place.mirror.add("nginx", b"old", version="1"))
    second = place.mirror.add("nginx", b"new", version="2")
    place.apt_answers(second)
    first = freshen(place)
    place.lists_fail(OUT_OF_STEP)
    assert freshen(place) == first
    assert "the set of an earlier build is used" in capsys.readouterr().err
    place.mirror.path(second).unlink()
    place.resolver.store.path(second).unlink()
    assert settle(place) == (locks.parse(place.lock), ()), "and a set that lost a file is not used"


def test_a_mirror_that_stays_out_of_step_is_an_error_without_a_complete_set(place: Place) -> None:
    gone = place.mirror.add("nginx", b"old", version="1")
    write_lock(place.lock, gone)
    place.mirror.path(gone).unlink()
    place.lists_fail(OUT_OF_STEP)
    for attempt in (settle, freshen):
        with pytest.raises(MirrorChanging) as caught:
            attempt(place)
        assert (caught.value.brief, caught.value.hint) == (BRIEF, apt.SYNC_HINT)
        assert "File has unexpected size (54284 != 53936)" in caught.value.details
    before = place.updates()
    with pytest.raises(SpecError, match=r"no longer has 1 of the 1 files in rootfs\.lock"):
        settle(place, locked=True)
    assert place.updates() == before, "--locked resolves nothing"


def test_files_that_a_mirror_lacks_are_tried_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lock(place.lock, place.mirror.add("nginx", b"old", version="1"))
    late = place.mirror.add("nginx", b"new", version="2")
    content = place.mirror.path(late).read_bytes()
    place.mirror.path(late).unlink()
    place.apt_answers(late)
    monkeypatch.setattr(apt, "_wait", lambda _seconds: place.mirror.path(late).write_bytes(content))
    monkeypatch.setattr(apt, "SYNC_PAUSES", (2.0,))
    assert freshen(place).changes == ("nginx 1 -> 2",)


def test_a_mirror_that_does_not_answer_is_no_reason_to_build_from_old_packages(place: Place) -> None:
    """Newest packages were asked for."""
    write_lock(place.lock, place.mirror.add("nginx", b"old", version="1"))
    place.lists_fail(UNREACHABLE)
    with pytest.raises(MirrorUnreachable, match=r"the mirror cannot be reached: Could not resolve 'mirror\.example'"):
        freshen(place)
    assert place.updates() == 1, "apt itself has tried more than once"


def test_a_package_that_no_mirror_has_is_no_reason_to_build_without_it(place: Place) -> None:
    write_lock(place.lock, place.mirror.add("nginx", b"old", version="1"))
    program = place.fakes.directory / "apt-get"
    program.write_text(program.read_text().replace("*) cat", "*) exit 100; cat"))
    with pytest.raises(StepFailed, match="apt cannot resolve the packages"):
        freshen(place)


def test_each_set_reads_its_own_indexes(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    configure = apt.PrivateApt.configure

    def note(private: apt.PrivateApt) -> None:
        configure(private)
        read.append((private.home / "etc" / "sources.list").read_text())

    monkeypatch.setattr(apt.PrivateApt, "configure", note)
    place.apt_answers(place.mirror.add("nginx", b"x"))
    place.resolver.resolve_rootfs("a-question", ("nginx",))
    installer(place, names=[NETBOOT, "cdrom-detect", *modules(NEW)])
    place.resolver.resolve_installer(locks.parse(place.root / "installer.lock"))
    assert ["debian-installer" in text for text in read] == [False, True]


# --- several locks ----------------------------------------------------------------------------------------------------


def test_a_lock_that_cannot_be_written_costs_only_itself(capsys: pytest.CaptureFixture[str]) -> None:
    written = []

    def fail() -> None:
        raise MirrorChanging("no index", details="apt's words", hint=apt.SYNC_HINT)

    with pytest.raises(StepFailed) as caught:
        write_each({"one": lambda: written.append(1), "two": fail, "three": lambda: written.append(3)})
    assert written == [1, 3]
    assert caught.value.render() == (
        "not written: the lock of two; written: one, three\n"
        f"    two: no index\n        apt's words\n      -> {apt.SYNC_HINT}\n"
        "  -> what was written is complete; the other locks are as they were: try them again later"
    )
    assert "warning: the lock of two is not written: no index\n" in capsys.readouterr().err
    with pytest.raises(MirrorChanging, match="no index"):
        write_each({"two": fail})


# --- the installer set ------------------------------------------------------------------------------------------------

OLD, NEW = "6.12.94+deb13", "6.12.95+deb13"
# As Debian writes it: other packages have "linux" in their names too.
USING = "busybox (= 1:1.37), linux (= 6.12.95-1), syslinux (= 3:6.04), util-linux (= 2.41.5-0+deb13u1)"
HINT = "keep the committed preseed/installer.lock and set a snapshot archive, or wait for the next point release"


def modules(kernel: str) -> list[str]:
    return [f"{name}-modules-{kernel}-amd64-di" for name in ("ata", "scsi-core")]


def installer(place: Place, *, names: list[str], using: str = USING) -> LockResolver:
    """Commit an installer set of the old kernel whose files are gone, in an archive that has ``names``."""
    lock = place.root / "installer.lock"
    gone = [place.mirror.add(name, name.encode()) for name in (NETBOOT, "cdrom-detect", *modules(OLD))]
    write_lock(lock, *gone)
    for one in gone:
        place.mirror.path(one).unlink()
    show = f"Package: {NETBOOT}\nBuilt-Using: {using}\n" if using else f"Package: {NETBOOT}\n"
    place.fakes.command("apt-cache", {"when": ["show"], "stdout": show}, stdout="\n".join(names) + "\n")
    return place.resolver


def test_the_installer_follows_the_kernel_of_its_netboot_package(place: Place) -> None:
    names = [NETBOOT, "cdrom-detect", *modules(OLD), *modules(NEW)]
    resolver = installer(place, names=names)
    answer = [place.mirror.add(name, b"new " + name.encode()) for name in (NETBOOT, "cdrom-detect", *modules(NEW))]
    place.apt_answers(*answer)
    settled = resolver.settle_installer(place.root / "installer.lock", locked=False)
    assert settled.lock.entries == tuple(sorted(answer))
    (asked,) = place.asked()
    assert asked.split()[:3] == ["download", "--print-uris", "-qq"]
    assert sorted(asked.split()[3:]) == sorted([NETBOOT, "cdrom-detect", *modules(NEW)])
    assert f"ata-modules-{OLD}-amd64-di 1.0-1 -> (gone)" in settled.changes


def test_an_installer_set_with_a_hole_is_refused_with_the_missing_names(place: Place) -> None:
    names = [NETBOOT, modules(NEW)[0], *modules(OLD)]
    resolver = installer(place, names=names)
    with pytest.raises(StepFailed) as caught:
        resolver.settle_installer(place.root / "installer.lock", locked=False)
    assert caught.value.render() == (
        f"the archive's newest installer set (kernel {NEW}) is incomplete\n"
        f"    cdrom-detect\n    scsi-core-modules-{NEW}-amd64-di\n  -> {HINT}"
    )
    assert place.asked() == []


def test_a_hole_leaves_the_committed_installer_when_it_is_complete(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """Asked for the newest packages: those of the root file system come, and a warning."""
    resolver, lock = installer(place, names=[NETBOOT, "cdrom-detect", *modules(OLD)]), place.root / "installer.lock"
    for one in locks.parse(lock).entries:
        place.mirror.path(one).write_bytes(one.package.encode())
    assert resolver.freshen_installer(lock) == Settled(locks.parse(lock))
    warning = "warning: the archive has no kernel modules for the newest installer (kernel 6.12.95): installer.lock is used"
    assert warning in capsys.readouterr().err


def test_an_archive_without_modules_for_the_installers_kernel_is_refused(place: Place) -> None:
    resolver = installer(place, names=[NETBOOT, "cdrom-detect", *modules(OLD)])
    with pytest.raises(StepFailed) as caught:
        resolver.settle_installer(place.root / "installer.lock", locked=False)
    assert caught.value.render() == (
        f"the archive has no kernel modules for the newest installer (kernel 6.12.95)\n    it has: {OLD}\n  -> {HINT}"
    )


def test_a_netboot_package_that_does_not_tell_its_kernel_is_refused(place: Place) -> None:
    resolver = installer(place, names=[NETBOOT], using="")
    with pytest.raises(StepFailed, match=f"{NETBOOT} does not contain the kernel that it was built with"):
        resolver.settle_installer(place.root / "installer.lock", locked=False)


def test_a_locked_installer_set_that_is_gone_is_an_error(place: Place) -> None:
    resolver = installer(place, names=[NETBOOT])
    with pytest.raises(SpecError, match=r"no longer has 4 of the 4 files in installer\.lock"):
        resolver.settle_installer(place.root / "installer.lock", locked=True)


@pytest.mark.parametrize(
    ("package", "name", "kernel"),
    [
        ("ata-modules-6.12.94+deb13-amd64-di", "ata-modules", "6.12.94+deb13"),
        ("scsi-core-modules-6.12.94+deb13-cloud-amd64-di", "scsi-core-modules", "6.12.94+deb13-cloud"),
    ],
)
def test_names_of_modules_are_taken_apart(package: str, name: str, kernel: str) -> None:
    found = MODULES.fullmatch(package)
    assert found is not None
    assert (found["name"], found["kernel"]) == (name, kernel)


@pytest.mark.parametrize("package", ["cdrom-detect", "linux-image-6.12.94+deb13-amd64", "modules-amd64-di"])
def test_other_names_are_left_alone(package: str) -> None:
    assert MODULES.fullmatch(package) is None
