"""Release notes are generated from the differences, and from the changelogs in the cached packages."""

from __future__ import annotations

import gzip
import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from build.cli import main
from build.core import run
from build.packages import debian_changelog, lock
from build.packages.apt import Store
from build.packages.changelogs import ABSENT, Changelogs
from build.packages.lock import Archive, Entry
from tests.unit.artifacts import image, make_side, manifest, parts, store
from tests.unit.helpers import make_lock

CHANGELOG = """openssl (3.5.7-1~deb13u3) trixie-security; urgency=medium

  * CVE-2026-1111 ("Buffer overread")
    in a second line, CVE-2026-2222
  * Not about security

 -- Test <test@example.org>  Mon, 02 Nov 2026 10:00:00 +0000

openssl (3.5.6-1) trixie; urgency=medium

  [ Another ]
  * New upstream version, fixes CVE-2025-9999

 -- Test <test@example.org>  Mon, 02 Feb 2026 10:00:00 +0000
"""


# --- Debian's changelogs and versions ---------------------------------------------------------------------------------


def test_entries_are_read_with_their_lines_and_vulnerabilities() -> None:
    first, second = debian_changelog.parse(CHANGELOG)
    assert (first.source, first.version, first.suites) == ("openssl", "3.5.7-1~deb13u3", "trixie-security")
    assert first.lines == ('CVE-2026-1111 ("Buffer overread") in a second line, CVE-2026-2222', "Not about security")
    assert first.cves == ("CVE-2026-1111", "CVE-2026-2222")
    assert second.lines == ("[ Another ]", "New upstream version, fixes CVE-2025-9999")


@pytest.mark.parametrize(
    ("since", "found"),
    [
        ("3.5.6-1", ["3.5.7-1~deb13u3"]), ("3.5.7-1~deb13u3", []), ("3.5.7-1~deb13u3+b1", []), ("9", []),
        ("3.5.6-1~x", ["3.5.7-1~deb13u3", "3.5.6-1"]),
    ],
)  # fmt: skip
def test_only_what_is_newer_is_told(since: str, found: list[str]) -> None:
    assert [entry.version for entry in debian_changelog.since(CHANGELOG, since)] == found


# --- the packages of the cache ----------------------------------------------------------------------------------------


def put(tmp_path: Path, package: str, version: str, files: dict[str, bytes | str], *, source: str = "") -> Entry:
    """Make a .deb whose documentation is ``files`` (text: the target of a link), put it into the store, and lock it."""
    tree = tmp_path / f"{package}-tree"
    shutil.rmtree(tree, ignore_errors=True)
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        f"Package: {package}\nVersion: {version}\nArchitecture: amd64\nMaintainer: N <n@example.org>\nDescription: x\n"
    )
    for name, content in files.items():
        path = tree / "usr" / "share" / "doc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.symlink_to(content)
        else:
            path.write_bytes(content)
    made = tmp_path / "made.deb"
    run.run(["dpkg-deb", "-Zxz", "--root-owner-group", "--build", tree, made], timeout=60)
    data = made.read_bytes()
    place = f"pool/main/x/{source or package}/{package}_{version.rpartition(':')[2]}_amd64.deb"
    entry = Entry(package, version, Archive.DEBIAN, place, len(data), hashlib.sha256(data).hexdigest())
    target = Store(tmp_path / "cache" / "files").path(entry)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
    return entry


def packed(text: str = CHANGELOG) -> bytes:
    return gzip.compress(text.encode())


def changelogs(tmp_path: Path, *entries: Entry) -> Changelogs:
    return Changelogs(make_lock(*entries), Store(tmp_path / "cache" / "files"))


NEW = "3.5.7-1~deb13u3"


def test_a_changelog_is_read_out_of_the_package(tmp_path: Path) -> None:
    entry = put(tmp_path, "openssl", NEW, {"openssl/changelog.Debian.gz": packed(), "openssl/changelog.gz": packed("x")})
    assert changelogs(tmp_path, entry).explain("openssl", "3.5.6-1", NEW) == (
        f'{NEW} (trixie-security): CVE-2026-1111 ("Buffer overread") in a second line, CVE-2026-2222',
        f"{NEW} (trixie-security): Not about security",
    )


def test_packages_of_one_source_are_told_once(tmp_path: Path) -> None:
    one = put(tmp_path, "openssl", NEW, {"openssl/changelog.Debian.gz": packed()})
    other = put(tmp_path, "libssl3", NEW, {"libssl3/changelog.Debian.gz": packed()}, source="openssl")
    told = changelogs(tmp_path, one, other)
    assert "CVE-2026-1111" in told.explain("libssl3", "3.5.6-1", NEW)[0]
    assert told.explain("openssl", "3.5.6-1", NEW) == ("of the same source as libssl3",)
    assert "CVE-2026-1111" in told.explain("libssl3", "3.5.6-1", NEW)[0], "a second query returns the same"


def test_documentation_may_be_a_link_to_another_package(tmp_path: Path) -> None:
    one = put(tmp_path, "openssl", NEW, {"openssl/changelog.Debian.gz": packed()})
    linked = put(tmp_path, "libssl3", NEW, {"libssl3": "openssl"}, source="openssl")
    own = put(tmp_path, "libssl-dev", NEW, {"libssl-dev/changelog.Debian.gz": "../openssl/changelog.Debian.gz"})
    told = changelogs(tmp_path, one, linked, own)
    for package in ("libssl3", "libssl-dev"):
        assert told.entries(package, "3.5.6-1", NEW) == [next(debian_changelog.parse(CHANGELOG))]


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    one, other = put(tmp_path, "a1", "1", {"a1": "b1"}), put(tmp_path, "b1", "1", {"b1": "a1"})
    assert changelogs(tmp_path, one, other).entries("a1", "0", "1") is None


def test_a_binary_with_versions_of_its_own_is_told_by_the_newest_entry(tmp_path: Path) -> None:
    entry = put(tmp_path, "login", "1:4.16-2", {"login/changelog.Debian.gz": packed()}, source="util-linux")
    found = changelogs(tmp_path, entry).entries("login", "1:4.16-1", "1:4.16-2")
    assert found is not None
    assert [one.version for one in found] == [NEW]


def test_a_rebuild_says_so_and_what_is_not_here_too(tmp_path: Path) -> None:
    entry = put(tmp_path, "openssl", f"{NEW}+b2", {"openssl/changelog.Debian.gz": packed()})
    told = changelogs(tmp_path, entry)
    assert told.explain("openssl", f"{NEW}+b1", f"{NEW}+b2") == ("rebuilt, its source did not change",)
    assert told.explain("stranger", "1", "2") == (ABSENT,)
    assert told.explain("openssl", "", NEW) == (), "what is new has no changes"


def test_a_damaged_package_is_passed_over_aloud(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = put(tmp_path, "openssl", NEW, {})
    Store(tmp_path / "cache" / "files").path(entry).write_bytes(b"no package")
    assert changelogs(tmp_path, entry).explain("openssl", "3.5.6-1", NEW) == (ABSENT,)
    assert "is not a Debian package" in capsys.readouterr().err


# --- the note ---------------------------------------------------------------------------------------------------------


def two(tmp_path: Path, **changes: Any) -> None:
    """Store two releases: of the second, openssl is newer, and something else differs."""
    entry = put(tmp_path, "openssl", NEW, {"openssl/changelog.Debian.gz": packed()})
    text = make_lock(entry).render("A lock.")
    old = manifest(image=image("1"), version="1.0.0", packages={"openssl": "3.5.6-1", "old_*pack*": "1"})
    store(tmp_path / "artifacts", old, age=9)
    new = {**manifest(image=image("2"), version="1.1.0", packages={"openssl": NEW}), **changes}
    store(tmp_path / "artifacts", new, parts(**{"rootfs.lock": text}))
    assert lock.parse(tmp_path / "artifacts" / "golden-1.1.0-222222222222" / "rootfs.lock").entries == (entry,)


def note(tmp_path: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main.main(["notes", "--project", str(tmp_path), "--cache", str(tmp_path / "cache"), *words]) == 0
    return capsys.readouterr().out


def test_the_note_tells_what_a_user_of_the_image_wants_to_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two(tmp_path)
    text = note(tmp_path, capsys, "1.1.0")
    for part in (
        "# golden 1.1.0\n", "Compared with `golden-1.0.0-111111111111`: packages: 1 removed, 1 changed",
        "It passed 2 tests on 2 clones; packages as of 2026-11-20.",
        f"## Security fixes, by Debian's changelogs\n\n- openssl 3.5.6-1 → {NEW}: CVE-2026-1111, CVE-2026-2222\n",
        f"- `openssl` 3.5.6-1 → {NEW}\n  - {NEW} (trixie-security): CVE-2026-1111", "- removed: `old_*pack*` 1\n",
        "| lynis.index | 91 (251 tests) | 91 (251 tests) | \\>= 90 |", "- image: 335.0 MB (was 335.0 MB)",
        "- first boot of a clone, tcg: 1 min 10 s (was 1 min 10 s)", f"`{'2' * 64}`",
        "cd artifacts/golden-1.1.0-222222222222 && sha256sum --check --strict SHA256SUMS",
    ):  # fmt: skip
        assert part in text, part
    assert "CVE-2025-9999" not in text, "it was fixed before"


def test_without_changelogs_the_note_says_which_are_not_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two(tmp_path)
    shutil.rmtree(tmp_path / "cache")
    text = note(tmp_path, capsys)
    assert "- No changelog is available for openssl." in text
    assert "CVE" not in text


def test_the_first_release_has_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store(tmp_path / "artifacts", manifest(audit={}))
    text = note(tmp_path, capsys)
    assert "The first release: there is no earlier artifact to compare it with." in text
    assert "No audit is recorded for this image." in text
    assert "## Packages" not in text


def test_a_release_that_is_the_same_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store(tmp_path / "artifacts", manifest(), age=5)
    assert "Nothing differs from `golden-1.2.3-abababababab`." in note(tmp_path, capsys, "1.2.3", "--since", "1.2.3")


def test_what_others_wrote_is_no_markdown() -> None:
    from build.report import release_notes  # noqa: PLC0415 (beside what it is about)

    assert release_notes._plain("a *b* [c](d) <e> `f` | g\n# h") == r"a \*b\* \[c\](d) \<e\> \`f\` \| g # h"
    assert make_side().name == "golden-1.2.3-abababababab"
