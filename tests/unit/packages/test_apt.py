"""The client of the archive, against a real server: it fetches the files of the lock, or reports an error."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from build.core import run
from build.core.errors import CommandFailed, HostError, StepFailed
from build.packages import apt
from build.packages.apt import MirrorChanging, Mirrors, MirrorUnreachable, PrivateApt, Store
from build.packages.lock import Archive, Entry
from tests.fakes import Fakes
from tests.patience import PATIENCE_SECONDS
from tests.unit.archives import Lists, lists
from tests.unit.helpers import Mirror, entry


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """An archive, and an apt-helper that connects directly, whatever proxy is configured for this host's apt."""
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    helper = tmp_path / "apt-helper"
    helper.write_text(f'#!/bin/sh\nexec {apt.HELPER} -o Acquire::http::Proxy::127.0.0.1=DIRECT "$@"\n')
    helper.chmod(0o755)
    monkeypatch.setattr(apt, "HELPER", helper)
    monkeypatch.setattr(apt, "POLL_SECONDS", 0.02)
    (tmp_path / "archive").mkdir()
    with Mirror(tmp_path / "archive") as started:
        yield started


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "files")


def held(store: Store) -> list[str]:
    """Return the names of all files in the store's directory, without its internal hidden files."""
    return sorted(path.name for path in store.root.rglob("*") if path.is_file() and path.name != ".scratch.lock")


# --- the host's mirrors -----------------------------------------------------------------------------------------------

TARGETS = (
    "http://mirror.example/debian/\tDebian\tDebian\n"
    "http://mirror.example/debian/\tDebian\tDebian\n"
    "http://backports.example/debian/\tDebian\tDebian Backports\n"
    "http://other.example/debian/\tDebian\tDebian\n"
    "http://security.example/debian-security/\tDebian\tDebian-Security\n"
    "https://packages.example/\tSomebody\tDebian\n"
)
MORE = "or set them: --mirror http://…/debian --security-mirror http://…/debian-security"


def test_the_mirrors_are_those_of_the_hosts_apt(only_fakes: Fakes) -> None:
    fake = only_fakes.command("apt-get", stdout=TARGETS)
    assert apt.host_mirrors() == Mirrors("http://mirror.example/debian", "http://security.example/debian-security")
    assert fake.calls()[0].argv[:2] == ["indextargets", "--format"]


@pytest.mark.parametrize(
    ("output", "brief"),
    [
        ("", "the host's apt has no Debian mirror"),
        ("http://x.example/ubuntu/\tUbuntu\tUbuntu\n", "the host's apt has no Debian mirror"),
        ("http://x.example/debian/\tDebian\tDebian\n", "the host's apt has no Debian security mirror"),
    ],
)
def test_a_host_without_a_mirror_is_told_what_to_do(only_fakes: Fakes, output: str, brief: str) -> None:
    only_fakes.command("apt-get", stdout=output)
    with pytest.raises(HostError) as caught:
        apt.host_mirrors()
    assert (caught.value.brief, caught.value.hint) == (brief, f"apt-get update   (as root), {MORE}")


def test_a_host_without_apt_is_told_so(only_fakes: Fakes) -> None:
    with pytest.raises(HostError, match="apt-get is not installed; it is needed to find the Debian mirror"):
        apt.host_mirrors()


# --- the store of files -----------------------------------------------------------------------------------------------


def test_good_files_are_fetched_once(mirror: Mirror, store: Store) -> None:
    wanted = [
        mirror.add("nginx", b"nginx's bytes", version="1:1.26.3-3+deb13u1"),
        mirror.add("openssl", b"openssl's bytes", archive=Archive.SECURITY),
    ]
    assert store.fetch(wanted, mirror.mirrors) == ()
    assert [store.path(one).read_bytes() for one in wanted] == [b"nginx's bytes", b"openssl's bytes"]
    assert held(store) == sorted(one.sha256 for one in wanted)
    asked = len(mirror.requests)
    assert asked == 2
    assert store.fetch(wanted, mirror.mirrors) == ()
    assert len(mirror.requests) == asked, "what is here is not asked for again"


def test_a_file_that_is_gone_is_reported_and_the_others_come(mirror: Mirror, store: Store) -> None:
    there, gone = mirror.add("there", b"there"), mirror.add("gone", b"gone")
    mirror.path(gone).unlink()
    assert store.fetch([gone, there], mirror.mirrors) == (gone,)
    assert store.holds(there)
    assert held(store) == [there.sha256]


@pytest.mark.parametrize("content", [b"another body, longer", b"wrongbyte", b""])
def test_a_file_with_another_hash_never_gets_in(mirror: Mirror, store: Store, content: bytes) -> None:
    other = mirror.add("other", b"rightbyte")
    mirror.path(other).write_bytes(content)
    assert store.fetch([other], mirror.mirrors) == (other,)
    assert held(store) == []


def test_a_client_that_does_not_check_is_checked(
    mirror: Mirror, store: Store, fakes: Fakes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The arguments of the client end with: ADDRESS FILE HASH."""
    wanted = entry("x", b"right")
    fake = fakes.command("apt-helper", write={"{8}": "wrong"})
    monkeypatch.setattr(apt, "HELPER", fake.path)
    assert store.fetch([wanted], mirror.mirrors) == (wanted,)
    assert held(store) == []
    warning = "warning: x_1.0-1_amd64.deb: the mirror sent a file with another hash; it is deleted"
    assert warning in capsys.readouterr().err


@pytest.mark.parametrize("damage", [b"rightbyt", b"wrongbyte", b""])
def test_a_damaged_file_in_the_store_is_fetched_again(
    mirror: Mirror, store: Store, damage: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = mirror.add("x", b"rightbyte")
    store.fetch([wanted], mirror.mirrors)
    store.path(wanted).write_bytes(damage)
    assert store.fetch([wanted], mirror.mirrors) == ()
    assert store.path(wanted).read_bytes() == b"rightbyte"
    said = capsys.readouterr().err
    assert "warning: x_1.0-1_amd64.deb in the cache is damaged; it is fetched again" in said


def test_a_file_that_left_the_mirror_comes_from_the_snapshot(mirror: Mirror, store: Store) -> None:
    gone = mirror.add("gone", b"gone")
    old = mirror.root / "snapshot" / gone.path
    old.parent.mkdir(parents=True)
    mirror.path(gone).rename(old)
    archives = Mirrors(mirror.mirrors.debian, mirror.mirrors.security, f"{mirror.address}/snapshot")
    assert store.fetch([gone], archives) == ()
    assert store.holds(gone)


def test_many_files_are_fetched_in_several_calls(mirror: Mirror, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apt, "FILES_PER_CALL", 2)
    wanted = [mirror.add(f"p{number}", b"%d" % number) for number in range(5)]
    assert store.fetch(wanted, mirror.mirrors) == ()
    assert len(held(store)) == 5


def test_a_mirror_that_does_not_answer_ends_in_time_and_what_came_is_kept(
    mirror: Mirror, store: Store, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apt, "DOWNLOAD_SECONDS", 0.3)
    came, late = entry("came", b"came"), entry("late", b"late")
    fake = fakes.command("apt-helper", write={"{8}": "came"}, stderr="Waiting for headers\n", sleep=300)
    monkeypatch.setattr(apt, "HELPER", fake.path)
    with pytest.raises(StepFailed) as caught:
        store.fetch([came, late], mirror.mirrors)
    assert caught.value.render() == (
        "the mirror did not send the files within 0.3 s\n    Waiting for headers\n"
        "  -> the received files are kept: run the same command again, or use another mirror"
    )
    assert held(store) == [came.sha256]


def test_nothing_is_asked_when_nothing_is_missing(store: Store, only_fakes: Fakes) -> None:
    assert store.fetch([], Mirrors("http://nowhere.invalid", "http://nowhere.invalid")) == ()


# --- the private apt --------------------------------------------------------------------------------------------------

MIRRORS = Mirrors("http://mirror.example/debian", "http://mirror.example/debian-security")
HASH = "SHA256:" + "ab" * 32
URIS = (
    "Reading package lists...\n"
    f"'http://mirror.example/debian/pool/main/n/nginx/nginx_1.26.3-3%2bdeb13u1_amd64.deb' "
    f"nginx_1.26.3-3+deb13u1_amd64.deb 608764 {HASH}\n"
    f"'http://mirror.example/debian-security/pool/updates/main/o/openssl/libssl3t64_3.5.1-1_amd64.deb' "
    f"libssl3t64_3.5.1-1_amd64.deb 2439740 {HASH}\n"
    f"'http://mirror.example/debian/pool/main/a/adduser/adduser_3.152_all.deb' adduser_1%3a3.152_all.deb 7 {HASH}\n"
)


@pytest.fixture
def private(tmp_path: Path) -> PrivateApt:
    return PrivateApt(tmp_path / "apt", MIRRORS, "trixie")


def test_resolving_asks_for_an_empty_system_and_reads_the_answer(private: PrivateApt, only_fakes: Fakes) -> None:
    fake = only_fakes.command("apt-get", stdout=URIS)
    assert private.resolve(["nginx", "apt"]) == (
        Entry("adduser", "1:3.152", Archive.DEBIAN, "pool/main/a/adduser/adduser_3.152_all.deb", 7, "ab" * 32),
        Entry(
            "libssl3t64", "3.5.1-1", Archive.SECURITY, "pool/updates/main/o/openssl/libssl3t64_3.5.1-1_amd64.deb",
            2439740, "ab" * 32,
        ),
        Entry(
            "nginx", "1.26.3-3+deb13u1", Archive.DEBIAN, "pool/main/n/nginx/nginx_1.26.3-3+deb13u1_amd64.deb",
            608764, "ab" * 32,
        ),
    )  # fmt: skip
    (call,) = fake.calls()
    assert {"install", "--print-uris", "--no-install-recommends", "?essential", "nginx", "apt"} <= set(call.argv)
    assert call.env["APT_CONFIG"] == str(private.home / "apt.conf")


def test_a_package_that_does_not_exist_is_named(private: PrivateApt, only_fakes: Fakes) -> None:
    only_fakes.command("apt-get", stderr="E: Unable to locate package ngnix\n", status=100)
    with pytest.raises(StepFailed) as caught:
        private.resolve(["ngnix"])
    assert caught.value.render() == (
        "apt cannot resolve the packages\n    E: Unable to locate package ngnix\n"
        "  -> check the package names in golden.yaml and overlays/*/layer.yaml"
    )


def test_a_file_of_a_foreign_archive_is_refused(private: PrivateApt, only_fakes: Fakes) -> None:
    only_fakes.command("apt-get", stdout=f"'http://mirror.example/debian-evil/pool/x_1_all.deb' x_1_all.deb 1 {HASH}\n")
    with pytest.raises(StepFailed, match="listed a file of an unknown archive"):
        private.locate(["x"])


def test_names_match_whole(private: PrivateApt, only_fakes: Fakes) -> None:
    only_fakes.command("apt-cache", stdout="ata-modules-6.12-di\nnginx\nxata-modules-6.12-di\n")
    assert private.names("ata-modules-[0-9.]+-di") == ["ata-modules-6.12-di"]


def test_the_date_is_that_of_the_newest_list(private: PrivateApt) -> None:
    lists = private.home / "lists"
    lists.mkdir(parents=True)
    (lists / "a_InRelease").write_text("Origin: Debian\nDate: Sat, 06 Sep 2025 11:03:58 UTC\nValid-Until: x\n")
    (lists / "b_InRelease").write_text("Date: Fri, 20 Nov 2026 02:11:10 UTC\n")
    (lists / "a_Packages").write_text("Date: Fri, 20 Nov 2037 02:11:10 UTC\n")
    assert private.date() == 1795140670.0


def test_lists_without_a_date_are_refused(private: PrivateApt) -> None:
    (private.home / "lists").mkdir(parents=True)
    with pytest.raises(StepFailed, match="the archive's lists have no date"):
        private.date()


@pytest.mark.req("R25", "R34")
def test_sources_are_bound_to_debians_keyring() -> None:
    lines = apt.sources(MIRRORS, "trixie", components="main main/debian-installer").splitlines()
    options = f"[arch=amd64 signed-by={apt.KEYRING}]"
    assert lines == [
        f"deb {options} http://mirror.example/debian trixie main main/debian-installer",
        f"deb {options} http://mirror.example/debian trixie-updates main",
        f"deb {options} http://mirror.example/debian-security trixie-security main",
    ]


def test_a_host_without_debians_keyring_is_told(
    private: PrivateApt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apt, "KEYRING", tmp_path / "absent.gpg")
    with pytest.raises(HostError) as caught:
        private.set_up()
    assert caught.value.hint == "apt-get install --yes debian-archive-keyring   (as root)"


def test_the_private_apt_reads_nothing_of_the_hosts(private: PrivateApt, fakes: Fakes) -> None:
    """The real apt-config prints how the real apt would use the configuration."""
    fakes.command("apt-get")
    private.set_up()
    said = run.run(["apt-config", "dump"], timeout=PATIENCE_SECONDS, env=private.environment()).stdout
    values = dict(line.rstrip(";").split(" ", 1) for line in said.splitlines() if " " in line)
    for key in ("Dir::State::lists", "Dir::State::status", "Dir::Cache", "Dir::Etc"):
        assert values[key].strip('"').startswith(str(private.home)), key
    assert values["APT::Install-Recommends"] == '"false"'
    assert values["Acquire::ForceHash"] == '"SHA256"'


# --- lists that cannot be read ----------------------------------------------------------------------------------------

UDEBS = "main/debian-installer"


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lists]:
    monkeypatch.setattr(apt, "SYNC_PAUSES", (0.0,))
    with lists(tmp_path, monkeypatch) as archive:
        archive.add("nginx", "1.0-1")
        archive.add("ata-modules", "1.0-1", udeb=True)
        archive.publish()
        yield archive


def read(archive: Lists, tmp_path: Path, components: str) -> None:
    with apt.private_apt(tmp_path / "apt", archive.mirror.mirrors, "trixie", components=components) as private:
        assert private.locate(["nginx"])


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    path.unlink()
    if how != "gone":
        path.write_bytes(content + b"\n" if how == "size" else content.replace(b"1.0-1", b"1.0-2"))


@pytest.mark.parametrize("how", ["size", "hash", "gone"])
@pytest.mark.parametrize("component", [apt.MAIN, UDEBS])
def test_an_index_that_is_out_of_step_is_named(
    published: Lists, tmp_path: Path, component: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the real apt, whose messages are recognised: another size, another hash, and no hash."""
    damage(published.index(component), how)
    file = f"dists/trixie/{component}/binary-amd64/Packages"
    with pytest.raises(MirrorChanging) as caught:
        read(published, tmp_path, apt.WITH_UDEBS)
    error = caught.value
    assert error.brief == f"the mirror is being updated: {file} differs from its Release file"
    assert (error.hint, error.exit_code) == (apt.SYNC_HINT, 1)
    assert f"/debian/{file} " in error.details
    assert capsys.readouterr().err.count(f"warning: {error.brief}; the next try is in 0 s\n") == 1
    assert not list((tmp_path / "apt").glob("lists-*")), "what was not read whole is not kept"


@pytest.mark.parametrize("how", ["size", "hash", "gone"])
def test_the_installers_index_stops_nobody_else(published: Lists, tmp_path: Path, how: str) -> None:
    damage(published.index(UDEBS), how)
    read(published, tmp_path, apt.MAIN)
    assert not [one for one in published.mirror.requests if "debian-installer" in one], "nor is it asked for"


def test_an_index_that_comes_right_is_read(published: Lists, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damage(published.index(), "gone")
    monkeypatch.setattr(apt, "_wait", lambda _seconds: published.publish())
    read(published, tmp_path, apt.MAIN)


def test_lists_that_were_kept_do_not_hide_a_mirror_out_of_step(published: Lists, tmp_path: Path) -> None:
    read(published, tmp_path, apt.MAIN)
    published.add("nginx", "2.0-1")
    published.publish()
    damage(published.index(), "gone")
    with pytest.raises(MirrorChanging):
        read(published, tmp_path, apt.MAIN)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("http://127.0.0.1:9", "Could not connect to 127.0.0.1:9 (127.0.0.1). - connect (111: Connection refused)"),
        ("http://mirror.invalid", "Could not resolve 'mirror.invalid'"),
    ],
)
def test_a_mirror_that_cannot_be_reached_is_no_mirror_out_of_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, why: str
) -> None:
    """With the real apt; without a network some resolvers only fail for now."""
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    mirrors = Mirrors(f"{address}/debian", f"{address}/debian-security")
    with pytest.raises(MirrorUnreachable) as caught, apt.private_apt(tmp_path, mirrors, "trixie", quick=True):
        pass
    assert caught.value.brief in (
        f"the mirror cannot be reached: {why}",
        "the mirror cannot be reached: Temporary failure resolving 'mirror.invalid'",
    )


@pytest.mark.parametrize("quick", [False, True])
def test_a_mirror_that_sends_nothing_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, quick: bool) -> None:
    monkeypatch.setattr(apt, "QUICK_SECONDS" if quick else "UPDATE_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        address = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        mirrors = Mirrors(f"{address}/debian", f"{address}/debian-security")
        with pytest.raises(MirrorUnreachable) as caught, apt.private_apt(tmp_path, mirrors, "trixie", quick=quick):
            pass
    assert caught.value.brief == "the mirror cannot be reached: no answer within 1 s"


@pytest.mark.parametrize("release", [None, "Origin: Debian\nSuite: stable\nCodename: trixie\nComponents: main\n"])
def test_an_archive_without_a_signature_is_refused(mirror: Mirror, tmp_path: Path, release: str | None) -> None:
    """With the real apt: an archive that does not exist, and one without a signature."""
    if release:
        for where in ("debian/dists/trixie", "debian/dists/trixie-updates", "debian-security/dists/trixie-security"):
            (mirror.root / where).mkdir(parents=True)
            (mirror.root / where / "Release").write_text(release)
    with pytest.raises(CommandFailed) as caught, apt.private_apt(tmp_path / "apt", mirror.mirrors, "trixie"):
        pass
    assert caught.value.hint == "check that the mirror is reachable: apt-get update"
    assert "is not signed" in caught.value.details if release else "does not have a Release file" in caught.value.details
    assert not list((tmp_path / "apt").glob(".scratch-*"))
