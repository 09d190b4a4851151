"""The auditors' programs: locked Debian packages, fetched by hash, unpacked beside the image and never installed in it.

A clone gets them as one directory, which no path, library cache or package database of the clone knows: what is
measured is the image, not the image with its auditors. Two suites: the programs are Debian 13's, the CIS content for
Debian 13 is newer than Debian 13.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from build.core import files, log, run
from build.core.errors import StepFailed
from build.core.units import stamp_of
from build.packages import apt, lock, resolve

UNPACK_SECONDS = 300
LOCK_TITLE = "Packages of the auditors: written by `nox -s audit -- --lock`, fetched by hash for `nox -s audit`."
# testing's lists say that they are valid for a week; a mirror that stands still would stop the audit, and the worst
# that an old list can give is an older auditor, which the lock names.
_UNDATED = 'Acquire::Check-Valid-Until "false";\n'
HOME = "/opt/audit"
DATASTREAM = "usr/share/xml/scap/ssg/content/ssg-debian13-ds.xml"
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"
CHECKER = "usr/lib/python3/dist-packages/kernel_hardening_checker/__init__.py"
LIBRARIES = "usr/lib/x86_64-linux-gnu"


@dataclass(frozen=True)
class Suite:
    """One release, the packages taken from it, and whether what they depend on comes along."""

    release: str
    packages: tuple[str, ...]
    closure: bool

    def path(self, directory: Path) -> Path:
        return directory / f"{self.release}.lock"


# Those that run on the clone bring their libraries; testssl.sh is a script and runs on the host.
SUITES = (
    Suite("trixie", ("lynis", "openscap-scanner", "wrk"), closure=True),
    Suite("forky", ("kernel-hardening-checker", "ssg-debian"), closure=False),
)
SCRIPTS = ("testssl.sh",)
# What a clone needs for each auditor, below the unpacked tree.
PARTS = {
    "systemd": (),
    "cis": ("usr/bin/oscap", LIBRARIES, "usr/share/openscap", DATASTREAM),
    "lynis": ("usr/sbin/lynis", "usr/share/lynis", "etc/lynis"),
    "kernel": (),
    "ssh": (),
    "tls": (),
    "load": ("usr/bin/wrk", LIBRARIES),
}


def write_locks(directory: Path, *, store: apt.Store, mirrors: apt.Mirrors, scratch: Path, image: Iterable[str]) -> None:
    """Resolve the auditors' packages again and write each suite's lock; ``image`` names packages that every clone has.

    Raises StepFailed when a lock cannot be written; that of the other suite is written all the same.
    """
    present = set(image)

    def write(suite: Suite) -> None:
        home = scratch / suite.release
        (home / "etc" / "apt.conf.d").mkdir(parents=True)
        (home / "etc" / "apt.conf.d" / "undated").write_text(_UNDATED)
        archive = apt.PrivateApt(home, mirrors, suite.release)
        with log.step(f"Locking the auditors from {suite.release}"):
            archive.set_up()
            entries = archive.resolve(suite.packages) if suite.closure else archive.locate(suite.packages)
            if suite.closure:
                entries = (*(entry for entry in entries if entry.package not in present), *archive.locate(SCRIPTS))
        locked_suite = lock.Lock(suite.release, stamp_of(archive.date()), files.digest(suite.packages), tuple(entries))
        if gone := store.fetch(locked_suite.entries, mirrors):
            raise apt.MirrorChanging(
                f"the mirror lacks {len(gone)} files of the newest auditors ({suite.release})",
                details="\n".join(entry.filename for entry in gone), hint=apt.SYNC_HINT,
            )  # fmt: skip
        files.write_atomic(suite.path(directory), locked_suite.render(LOCK_TITLE))

    resolve.write_each({suite.release: partial(write, suite) for suite in SUITES})


@dataclass(frozen=True)
class Tools:
    """The unpacked auditors: ``root`` on the host, and the version of each package."""

    root: Path
    versions: dict[str, str]

    def program(self, path: str) -> Path:
        """Return a program or file of the tree; raise StepFailed when its package no longer has it."""
        file = self.root / path
        if not file.exists():
            raise StepFailed(f"the auditors' packages hold no {path}", hint="nox -s audit -- --lock, and look what changed")
        return file


def fetch(directory: Path, *, store: apt.Store, mirrors: apt.Mirrors, into: Path) -> Tools:
    """Fetch what the locks name and unpack it; raise StepFailed naming what no archive has."""
    versions: dict[str, str] = {}
    for suite in SUITES:
        locked = lock.parse(suite.path(directory))
        if gone := store.fetch(locked.entries, mirrors):
            raise StepFailed(
                f"no archive has these packages of the auditors ({suite.release})",
                details="\n".join(entry.filename for entry in gone),
                hint="lock newer ones: nox -s audit -- --lock; or name a snapshot archive: --snapshot",
            )
        for entry in locked.entries:
            run.run(["dpkg-deb", "--extract", store.path(entry), into], timeout=UNPACK_SECONDS)
        versions |= {name: version for name, version in locked.versions().items() if name in (*suite.packages, *SCRIPTS)}
    return Tools(into, versions)


def environment(home: str = HOME) -> str:
    """Return shell assignments with which the programs run out of their directory on a clone.

    The search path is audited too, so it is root's and not what a login without a terminal has.
    """
    share = f"{home}/usr/share/openscap"
    return (
        f"LD_LIBRARY_PATH={home}/{LIBRARIES} OSCAP_SCHEMA_PATH={share}/schemas OSCAP_XSLT_PATH={share}/xsl "
        f"OSCAP_CPE_PATH={share}/cpe {PATH} LC_ALL=C.UTF-8"
    )
