"""Access to Debian's archive with apt: the host's mirror, a private apt for one release, and files by hash.

The private apt has its own configuration, lists and an empty package database, so that the host's packages and
settings have no effect. Signatures are checked against Debian's keyring; a file is stored only if its SHA-256 is the one
in signed metadata, or in a lock written from signed metadata.
"""

from __future__ import annotations

import os
import re
import shutil
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TypeVar

from build.core import files, log, run
from build.core.errors import CommandFailed, HostError, StepFailed
from build.packages.lock import Archive, Entry

T = TypeVar("T")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
HELPER = Path("/usr/lib/apt/apt-helper")
UPDATE_SECONDS = 300
# The limit for the check of pending updates in a build. A mirror that works sends all lists in a few seconds.
QUICK_SECONDS = 30
QUICK_OPTIONS = tuple(
    word for option in ("Retries=0", "http::Timeout=10", "https::Timeout=10") for word in ("-o", f"Acquire::{option}")
)
# A mirror in the middle of its sync: seconds to wait before each further try.
SYNC_PAUSES = (2.0, 8.0, 20.0)
RESOLVE_SECONDS = 120
DOWNLOAD_SECONDS = 1800
FILES_PER_CALL = 150
POLL_SECONDS = 0.5
LISTS_LOCK = ".lists.lock"
# Components of the release. The installer's udebs have a separate index, which is used only for the installer: a mirror
# may lack it, or only this index may be outdated. Updates and security updates have packages in "main" only.
MAIN = "main"
WITH_UDEBS = "main main/debian-installer"
SYNC_HINT = "try again in an hour, or use another mirror: --mirror http://…/debian"
# The messages of apt (2.6 and 3.0) about an index that differs from the signed Release file, and an unreachable mirror.
OUT_OF_STEP = re.compile(r"Failed to fetch \S+?/(?P<file>dists/\S+)\s+(?:File has unexpected size|Hash Sum mismatch|404\s)")
NO_ANSWER = re.compile(
    r"Failed to fetch \S+\s+(?P<why>Could not connect|Unable to connect|Could not resolve|Temporary failure resolving"
    r"|Connection (?:failed|timed out)|Could not wait for server)(?P<rest>.*)"
)
MIRROR_HINT = "set them: --mirror http://…/debian --security-mirror http://…/debian-security"


class MirrorError(StepFailed):
    """The mirror does not have all files of the newest set at present; an older set may still be complete."""


class MirrorChanging(MirrorError):
    """The mirror is in the middle of its sync: its indexes or files do not match each other."""


class MirrorUnreachable(MirrorError):
    """The mirror does not answer."""


@dataclass(frozen=True)
class Mirrors:
    """Base URLs of the two archives, without a slash at the end, and of a snapshot archive if one is set."""

    debian: str
    security: str
    snapshot: str = ""

    def base(self, archive: Archive) -> str:
        return self.security if archive is Archive.SECURITY else self.debian


def host_mirrors() -> Mirrors:
    """Return the mirrors that apt on this host uses.

    Raises HostError when the host's apt has no Debian archive (another distribution, or ``apt-get update`` never ran).
    """
    run.which("apt-get", reason="find the Debian mirror that this host uses")
    done = run.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)\t$(ORIGIN)\t$(LABEL)", "Created-By: Packages"],
        timeout=run.LOCAL_SECONDS,
    )  # fmt: skip
    addresses: dict[str, str] = {}
    for line in done.stdout.splitlines():
        address, origin, label = line.split("\t")
        if origin == "Debian" and label in ("Debian", "Debian-Security"):
            addresses.setdefault(label, address.rstrip("/"))
    if "Debian" not in addresses:
        raise HostError("the host's apt has no Debian mirror", hint=f"apt-get update   (as root), or {MIRROR_HINT}")
    if "Debian-Security" not in addresses:
        raise HostError("the host's apt has no Debian security mirror", hint=f"apt-get update   (as root), or {MIRROR_HINT}")
    return Mirrors(addresses["Debian"], addresses["Debian-Security"])


class PrivateApt:
    """A separate apt for one release: resolves packages to archive files, without any effect on the host's apt."""

    def __init__(self, home: Path, mirrors: Mirrors, release: str, *, components: str = MAIN) -> None:
        self.home = home
        self.mirrors = mirrors
        self.release = release
        self.components = components

    def environment(self) -> dict[str, str]:
        """Return the variables that make an apt command use this apt."""
        return {"APT_CONFIG": str(self.home / "apt.conf")}

    def set_up(self, *, quick: bool = False) -> None:
        """Write the configuration and fetch the signed lists of packages.

        Lists that are in place are only fetched again when the archive has newer ones. A mirror in the middle of its sync
        is tried again after each of SYNC_PAUSES. ``quick``: only one attempt, of at most QUICK_SECONDS.

        Raises MirrorChanging, MirrorUnreachable, or CommandFailed with the messages of apt.
        """
        self.configure()
        if quick:
            self._update(QUICK_OPTIONS, QUICK_SECONDS)
        else:
            patiently(lambda: self._update((), UPDATE_SECONDS))

    def _update(self, options: Sequence[str], seconds: float) -> None:
        command = ["apt-get", *options, "update", "--error-on=any", "-qq"]
        try:
            run.run(
                command, timeout=seconds, env=self.environment(), hint="check that the mirror is reachable: apt-get update"
            )
        except CommandFailed as error:
            raise _mirror_error(error, seconds) or error from error

    def configure(self) -> None:
        """Write the configuration; :meth:`set_up` fetches the lists."""
        if not KEYRING.exists():
            raise HostError(
                f"{KEYRING} is missing; it is needed to check Debian's signatures",
                hint="apt-get install --yes debian-archive-keyring   (as root)",
            )
        for name in ("etc/apt.conf.d", "etc/preferences.d", "lists/partial", "cache/archives/partial"):
            (self.home / name).mkdir(parents=True, exist_ok=True)
        (self.home / "status").touch()
        (self.home / "apt.conf").write_text(
            f'Dir "{self.home}/";\nDir::State "{self.home}/";\nDir::State::lists "{self.home}/lists/";\n'
            f'Dir::State::status "{self.home}/status";\nDir::Cache "{self.home}/cache/";\nDir::Etc "{self.home}/etc/";\n'
            'APT::Architecture "amd64";\nAPT::Architectures { "amd64"; };\nAPT::Install-Recommends "false";\n'
            'APT::Sandbox::User "";\nAcquire::Languages "none";\nAcquire::Retries "3";\nAcquire::ForceHash "SHA256";\n'
        )
        (self.home / "etc" / "sources.list").write_text(sources(self.mirrors, self.release, components=self.components))

    def resolve(self, packages: Sequence[str]) -> tuple[Entry, ...]:
        """Return every file that is needed to install ``packages`` on an empty system, dependencies included.

        Raises StepFailed with the packages when they cannot be installed together.
        """
        command = ["apt-get", "install", "--print-uris", "-qq", "--yes", "--no-install-recommends", "?essential", *packages]
        return self._uris(command, "resolve the packages")

    def locate(self, packages: Sequence[str]) -> tuple[Entry, ...]:
        """Return the newest file of each of ``packages`` (udebs too), without dependencies."""
        return self._uris(["apt-get", "download", "--print-uris", "-qq", *packages], "locate the installer's files")

    def names(self, pattern: str) -> list[str]:
        """Return the names of the packages in the archive that match the whole regular expression ``pattern``."""
        done = run.run(["apt-cache", "pkgnames"], timeout=RESOLVE_SECONDS, env=self.environment())
        return sorted(name for name in done.stdout.split() if re.fullmatch(pattern, name))

    def security_versions(self, packages: Sequence[str]) -> dict[str, set[str]]:
        """Return the versions of each of ``packages`` in the security archive; packages that it does not have are left out.

        The format is that of ``apt-cache madison``: package | version | archive suite/component ….
        """
        if not packages:
            return {}
        done = run.run(["apt-cache", "madison", *packages], timeout=RESOLVE_SECONDS, env=self.environment())
        versions: dict[str, set[str]] = {}
        for line in done.stdout.splitlines():
            package, version, origin = (part.strip() for part in line.split("|", 2))
            if origin.split()[0].rstrip("/") == self.mirrors.security:
                versions.setdefault(package, set()).add(version)
        return versions

    def _uris(self, command: list[str], purpose: str) -> tuple[Entry, ...]:
        try:
            done = run.run(command, timeout=RESOLVE_SECONDS, env=self.environment())
        except CommandFailed as error:
            raise StepFailed(
                f"apt cannot {purpose}",
                details=error.details,
                hint="check the package names in golden.yaml and overlays/*/layer.yaml",
            ) from error
        return tuple(sorted(self._entry(line) for line in done.stdout.splitlines() if line.startswith("'")))

    def _entry(self, line: str) -> Entry:
        address, filename, size, checksum = line.rsplit(" ", 3)
        address = address.strip("'")
        for archive in Archive:
            base = self.mirrors.base(archive) + "/"
            if address.startswith(base):
                package, version, _ = urllib.parse.unquote(filename).rsplit("_", 2)
                path = urllib.parse.unquote(address.removeprefix(base))
                return Entry(package, version, archive, path, int(size), checksum.removeprefix("SHA256:"))
        raise StepFailed(f"apt listed a file of an unknown archive: {address}")

    def date(self) -> float:
        """Return the newest date of the signed lists, in seconds since 1970."""
        dates = [
            parsedate_to_datetime(line.split(":", 1)[1].strip()).timestamp()
            for release in (self.home / "lists").glob("*Release")
            for line in release.read_text(errors="replace").splitlines()
            if line.startswith("Date:")
        ]
        if not dates:
            raise StepFailed("the archive's lists have no date", hint="check that the mirror is complete: apt-get update")
        return max(dates)


def _mirror_error(error: CommandFailed, seconds: float) -> MirrorError | None:
    """Return the problem of the mirror that made an update fail; None when the cause is another one."""
    if match := OUT_OF_STEP.search(error.details):
        brief = f"the mirror is being updated: {match['file']} differs from its Release file"
        return MirrorChanging(brief, details=error.details, hint=SYNC_HINT)
    if match := NO_ANSWER.search(error.details):
        reason = f"{match['why']}{match['rest']}".strip(" .:")
    elif error.returncode == -1:
        reason = f"no answer within {seconds:.0f} s"
    else:
        return None
    return MirrorUnreachable(f"the mirror cannot be reached: {reason}", details=error.details, hint=error.hint)


def patiently(attempt: Callable[[], T]) -> T:
    """Return the result of ``attempt``; while the mirror is in the middle of its sync, it is repeated after a pause."""
    for pause in SYNC_PAUSES:
        try:
            return attempt()
        except MirrorChanging as error:
            log.warn(f"{error.brief}; the next try is in {pause:.0f} s")
            _wait(pause)
    return attempt()


def _wait(seconds: float) -> None:
    time.sleep(seconds)


def sources(mirrors: Mirrors, release: str, *, components: str = MAIN) -> str:
    """Return the sources.list lines of a release, its updates and security updates, each limited to Debian's keyring."""
    options = f"[arch=amd64 signed-by={KEYRING}]"
    main = components.split(maxsplit=1)[0]
    return (
        f"deb {options} {mirrors.debian} {release} {components}\n"
        f"deb {options} {mirrors.debian} {release}-updates {main}\n"
        f"deb {options} {mirrors.security} {release}-security {main}\n"
    )


@contextmanager
def private_apt(
    parent: Path, mirrors: Mirrors, release: str, *, components: str = MAIN, quick: bool = False
) -> Iterator[PrivateApt]:
    """Yield a private apt with fresh lists of only these components; it is removed afterwards.

    Its lists are kept below ``parent``, so that next time only newer lists are fetched. ``quick``, and the errors:
    see :meth:`PrivateApt.set_up`.
    """
    kept = parent / f"lists-{files.digest([release, components, mirrors.debian, mirrors.security])[:16]}"
    with files.scratch(parent) as home:
        apt = PrivateApt(home, mirrors, release, components=components)
        with log.step("Reading Debian's signed package lists"):
            with files.lock(parent / LISTS_LOCK):
                if kept.is_dir():
                    shutil.copytree(kept, home / "lists")
            apt.set_up(quick=quick)
            _keep_lists(home / "lists", kept)
        yield apt


def _keep_lists(lists: Path, kept: Path) -> None:
    """Keep the lists for the next private apt; they replace older ones."""
    with files.scratch(kept.parent) as hidden, files.lock(kept.parent / LISTS_LOCK):
        names = shutil.ignore_patterns("partial", "lock", "auxfiles")
        shutil.copytree(lists, hidden / "lists", copy_function=os.link, ignore=names)
        files.remove_tree(kept)
        (hidden / "lists").rename(kept)


@dataclass(frozen=True)
class Store:
    """Downloaded files, named by their hash; the hash of a file is checked at each use."""

    root: Path

    def path(self, entry: Entry) -> Path:
        return self.root / entry.sha256[:2] / entry.sha256

    def holds(self, entry: Entry) -> bool:
        """Return True if the file exists and has its hash; a damaged file is removed."""
        path = self.path(entry)
        if not path.is_file():
            return False
        if path.stat().st_size == entry.size and files.sha256_file(path) == entry.sha256:
            return True
        log.warn(f"{entry.filename} in the cache is damaged; it is fetched again")
        path.unlink()
        return False

    def missing(self, entries: Iterable[Entry]) -> tuple[Entry, ...]:
        return tuple(entry for entry in entries if not self.holds(entry))

    def fetch(self, entries: Iterable[Entry], mirrors: Mirrors) -> tuple[Entry, ...]:
        """Fetch the missing files from the mirror, then from the snapshot archive if one is set.

        Returns the entries that no archive has.
        """
        missing = self.missing(entries)
        for base in (mirrors, Mirrors(mirrors.snapshot, mirrors.snapshot)):
            if missing and base.debian:
                self._download(missing, base)
                missing = self.missing(missing)
        return missing

    def _download(self, entries: Sequence[Entry], mirrors: Mirrors) -> None:
        total = sum(entry.size for entry in entries)
        title = f"Fetching {len(entries)} files, {total / 1e6:.0f} MB"
        with log.step(title, done="fetched"), files.scratch(self.root) as scratch:
            progress = log.Progress("fetching")
            for begin in range(0, len(entries), FILES_PER_CALL):
                self._download_some(entries[begin : begin + FILES_PER_CALL], mirrors, scratch, progress, total)
            progress.finish()

    def _download_some(
        self, entries: Sequence[Entry], mirrors: Mirrors, scratch: Path, progress: log.Progress, total: int
    ) -> None:
        words = [str(HELPER), "-o", "APT::Sandbox::User=", "-o", "Acquire::Retries=3", "-q", "download-file"]
        for entry in entries:
            address = f"{mirrors.base(entry.archive)}/{urllib.parse.quote(entry.path)}"
            words += [address, str(scratch / entry.sha256), f"SHA256:{entry.sha256}"]
        # apt-helper fails if the archive no longer has one of the files, after it fetched the others: files that arrived
        # are kept, no matter how the download ends.
        try:
            with run.spawn(words, log=scratch / "apt.log", contained=False) as process:
                _await_download(process, scratch, progress, total)
        finally:
            log.debug(run.tail((scratch / "apt.log").read_text(errors="replace")))
            self._keep(entries, scratch)

    def _keep(self, entries: Sequence[Entry], scratch: Path) -> None:
        for entry in entries:
            path = scratch / entry.sha256
            if path.is_file() and files.sha256_file(path) == entry.sha256:
                target = self.path(entry)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.chmod(0o644)
                path.rename(target)
            elif path.is_file():
                log.warn(f"{entry.filename}: the mirror sent a file with another hash; it is deleted")


def _await_download(process: run.Process, scratch: Path, progress: log.Progress, total: int) -> None:
    deadline = time.monotonic() + DOWNLOAD_SECONDS
    while process.wait(POLL_SECONDS) is None:
        if time.monotonic() > deadline:
            raise StepFailed(
                f"the mirror did not send the files within {DOWNLOAD_SECONDS} s",
                details=run.tail((scratch / "apt.log").read_text(errors="replace")),
                hint="the received files are kept: run the same command again, or use another mirror",
            )
        received = sum(path.stat().st_size for path in scratch.glob("*") if path.is_file())
        progress.update(f"{total / 1e6:.0f} MB", min(received / max(total, 1), 1.0))
