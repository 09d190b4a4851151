"""Pending updates: what apt would install in place of what a lock names. Looks, and writes nothing.

An update is a security update when Debian's security archive has a version of the package that is newer than the locked
one, wherever apt would take the newest from: a point release carries older fixes into the main archive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from build import locksmith, versions
from build.apt import Mirrors, PrivateApt, kept_apt
from build.errors import GoldsmithError
from build.lock import Entry, Lock, iso

NO_LISTS = "no package lists were fetched here: nox -s lock -- --check looks, with network"
OTHER_QUESTION = "the lock answers another list of packages than the spec asks for: nox -s lock"


@dataclass(frozen=True, order=True)
class Update:
    """One package; ``locked`` is empty when the lock has none of it, ``candidate`` when the newest set has none."""

    package: str
    locked: str
    candidate: str
    security: bool


@dataclass(frozen=True)
class Looked:
    """What was found out about one locked set; with a ``problem`` it was not looked at, and nothing is known."""

    set: str
    locked_as_of: str
    archive_as_of: str = ""
    updates: tuple[Update, ...] = ()
    note: str = ""
    problem: str = ""

    @property
    def security(self) -> tuple[Update, ...]:
        return tuple(update for update in self.updates if update.security)

    @property
    def other(self) -> tuple[Update, ...]:
        return tuple(update for update in self.updates if not update.security)


@dataclass(frozen=True)
class Question:
    """A package lock, and what the spec asks for: the digest of the question and the packages."""

    lock: Lock
    request: str
    packages: tuple[str, ...]


def look_rootfs(apt: PrivateApt, question: Question) -> Looked:
    """Compare the lock of the root file system with what apt resolves now; nothing is fetched but lists."""
    note = "" if question.lock.request == question.request else OTHER_QUESTION
    return _look(apt, "rootfs", question.lock, lambda: apt.resolve(question.packages), note=note)


def look_installer(apt: PrivateApt, lock: Lock) -> Looked:
    """Compare the lock of the installer with the newest set of the same make-up."""
    return _look(apt, "installer", lock, lambda: locksmith.newest_installer(apt, lock).entries)


def _look(
    apt: PrivateApt, name: str, lock: Lock, resolve: Callable[[], Iterable[Entry]], *, note: str = ""
) -> Looked:
    """Look at one set; one that cannot be resolved does not hide the other."""
    try:
        return Looked(name, lock.date, iso(apt.date()), _differences(apt, lock.entries, resolve()), note)
    except GoldsmithError as error:
        return Looked(name, lock.date, note=note, problem=": ".join(filter(None, (error.brief, error.details))))


def _differences(apt: PrivateApt, old: Iterable[Entry], new: Iterable[Entry]) -> tuple[Update, ...]:
    before, after = {entry.package: entry for entry in old}, {entry.package: entry for entry in new}
    # By hash: the same file is the same package, however its version is written (an epoch is not part of a file's name).
    same = {name for name in before.keys() & after.keys() if before[name].sha256 == after[name].sha256}
    changed = sorted((before.keys() | after.keys()) - same)
    fixes = apt.security_versions([name for name in changed if name in after])
    found = []
    for name in changed:
        locked, candidate = (side[name].version if name in side else "" for side in (before, after))
        found.append(Update(name, locked, candidate, _is_fix(locked, candidate, fixes.get(name, set()))))
    return tuple(found)


def _is_fix(locked: str, candidate: str, fixes: set[str]) -> bool:
    """Say whether a change is a security update; a package that is new in the set is one when it comes from there."""
    return any(versions.newer(version, locked) for version in fixes) if locked else candidate in fixes


def at_build(parent: Path, mirrors: Mirrors, question: Question, installer: Lock) -> dict[str, Any]:
    """Return what the manifest says of pending updates (key ``updates``), from lists that were kept below ``parent``.

    ``{"looked": true, "sets": [...]}``, or ``{"looked": false, "reason": …}`` when there are no lists: a build whose
    files are all here asks no network for this, and never fails for it.
    """
    try:
        with kept_apt(parent, mirrors, question.lock.release) as apt:
            if apt is None:
                return {"looked": False, "reason": NO_LISTS}
            return {"looked": True, "sets": facts([look_rootfs(apt, question), look_installer(apt, installer)])}
    except GoldsmithError as error:
        return {"looked": False, "reason": error.brief}


def facts(looked: Iterable[Looked]) -> list[dict[str, Any]]:
    """Return the sets as plain data."""
    return [asdict(one) for one in looked]
