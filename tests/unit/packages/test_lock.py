"""Lock files are read as they were written; a damaged one is refused with file, line and hint."""

from __future__ import annotations

from pathlib import Path

import pytest

from build.core.errors import SpecError
from build.core.units import stamp_of
from build.packages import lock as locks
from build.packages.lock import Archive, Entry
from tests.unit.helpers import DATE, ROOT, entry, make_lock, write_lock

NEW = "\n  -> write it again: nox -s lock"
HEAD = f"# format: 1\n# release: trixie\n# date: {DATE}\n# request: abc\n"
GOOD = "a\t1.0\tdebian\tpool/main/a/a/a_1.0_amd64.deb\t1\t" + "0" * 64


def refused(tmp_path: Path, text: str) -> SpecError:
    path = tmp_path / "x.lock"
    path.write_text(text)
    with pytest.raises(SpecError) as caught:
        locks.parse(path)
    return caught.value


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    entries = (
        entry("zlib1g", b"z", archive=Archive.SECURITY),
        entry("adduser", b"a", version="1:3.152~deb13u1"),
    )
    written = make_lock(*entries)
    path = write_lock(tmp_path / "x.lock", *entries)
    assert locks.parse(path) == written


def test_the_text_is_stable_and_sorted() -> None:
    lock = make_lock(entry("b"), entry("a"))
    lines = lock.render("Title. Do not edit.").splitlines()
    assert lines[:5] == [
        "# Title. Do not edit.",
        "# format: 1",
        "# release: trixie",
        f"# date: {DATE}",
        "# request: a-question",
    ]
    assert [line.split("\t")[0] for line in lines[5:]] == ["a", "b"]
    assert make_lock(entry("a"), entry("b")).render("Title. Do not edit.") == lock.render("Title. Do not edit.")


def test_the_archives_date_is_the_builds_epoch() -> None:
    assert make_lock(entry("a")).epoch == 1795140670
    assert stamp_of(1795140670.9) == DATE


def test_versions_and_file_names() -> None:
    lock = make_lock(entry("a", version="1"), entry("b", version="2"))
    assert lock.versions() == {"a": "1", "b": "2"}
    assert lock.entries[0].filename == "a_1_amd64.deb"


def test_differences_are_told_for_people() -> None:
    old = [entry("gone"), entry("nginx", version="1.26.3-3"), entry("same")]
    new = [entry("nginx", version="1.26.3-4"), entry("same"), entry("added", version="2")]
    assert locks.compare(old, new) == [
        "added (new) -> 2",
        "gone 1.0-1 -> (gone)",
        "nginx 1.26.3-3 -> 1.26.3-4",
    ]
    assert locks.compare(new, new) == []


@pytest.mark.parametrize("path", [*ROOT.glob("overlays/*.lock"), *ROOT.glob("preseed/*.lock")], ids=lambda p: p.name)
def test_the_committed_locks_can_be_read(path: Path) -> None:
    lock = locks.parse(path)
    assert lock.release == "trixie"
    assert len({entry.filename for entry in lock.entries}) == len(lock.entries)


def test_a_missing_lock_is_told_with_its_remedy(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        locks.parse(tmp_path / "x.lock")
    assert caught.value.render() == f"{tmp_path}/x.lock does not exist\n  -> write it: nox -s lock"


def test_missing_headers_are_named(tmp_path: Path) -> None:
    error = refused(tmp_path, f"# format: 1\n# date: {DATE}\n{GOOD}\n")
    assert error.render() == f"{tmp_path}/x.lock is not a lock of format 1\n    missing: release, request{NEW}"


def test_another_format_is_refused(tmp_path: Path) -> None:
    error = refused(tmp_path, HEAD.replace("format: 1", "format: 2") + GOOD)
    assert error.render() == f"{tmp_path}/x.lock is not a lock of format 1{NEW}"


def test_a_lock_of_nothing_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, HEAD).render() == f"{tmp_path}/x.lock has no entries{NEW}"


@pytest.mark.parametrize("date", ["yesterday", "2026-11-20T02:11:10", "2026-13-20T02:11:10Z"])
def test_a_date_that_is_not_one_moment_is_refused(tmp_path: Path, date: str) -> None:
    error = refused(tmp_path, HEAD.replace(DATE, date) + GOOD)
    assert error.render() == f"{tmp_path}/x.lock: date: {date!r} is not an ISO 8601 time with a zone{NEW}"


DAMAGED = {
    "a field too few": GOOD.rsplit("\t", 1)[0],
    "a field too many": GOOD + "\tx",
    "a conflict marker": "<<<<<<< HEAD",
    "blanks for tabs": GOOD.replace("\t", "  "),
    "another archive": GOOD.replace("debian", "ubuntu"),
    "a size that is no number": GOOD.replace("\t1\t", "\t-1\t"),
    "a short hash": GOOD[:-1],
    "a hash in capitals": GOOD[:-1] + "A",
    "a path outside the pool": GOOD.replace("pool/", "dists/"),
    "a path that climbs": GOOD.replace("pool/main/a", "pool/../../etc"),
    "a path with a blank": GOOD.replace("main/a", "main/a b"),
}


@pytest.mark.parametrize("line", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_line_is_told_with_its_number(tmp_path: Path, line: str) -> None:
    error = refused(tmp_path, f"{HEAD}{GOOD}\n{line}\n")
    assert error.brief == (
        f"{tmp_path}/x.lock, line 6: {line!r} is not an entry (package, version, archive, path, bytes, SHA-256)"
    )
    assert (error.hint, error.exit_code) == ("write it again: nox -s lock", 2)


def test_an_entry_is_its_columns(tmp_path: Path) -> None:
    (tmp_path / "x.lock").write_text(f"{HEAD}\n# a comment about nothing\n{GOOD}\n")
    assert locks.parse(tmp_path / "x.lock").entries == (
        Entry("a", "1.0", Archive.DEBIAN, "pool/main/a/a/a_1.0_amd64.deb", 1, "0" * 64),
    )
