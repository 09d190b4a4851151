"""Pending updates: what apt would install in place of what a lock names. Looks, and writes no lock.

An update is a security update when Debian's security archive has a version of the package that is newer than the locked
one, wherever apt would take the newest from: a point release carries older fixes into the main archive.

A build looks with fresh lists when something is built. What was found is kept in the cache for KEPT_HOURS, so that a plan
and an unchanged build show it without network.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from build.core import files, json_text, log
from build.core.errors import GoldsmithError, StepFailed
from build.core.units import stamp_now, stamp_of
from build.packages import resolve, versions
from build.packages.apt import MAIN, WITH_UDEBS, MirrorError, Mirrors, MirrorUnreachable, PrivateApt, private_apt
from build.packages.lock import Entry, Lock

KEPT_HOURS = 6
NOT_KEPT = f"not in the last {KEPT_HOURS} hours (a build that makes something looks, and nox -s lock -- --check)"
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
    # When the lists were fetched.
    looked_at: str = ""

    @property
    def security(self) -> tuple[Update, ...]:
        return tuple(update for update in self.updates if update.security)

    @property
    def other(self) -> tuple[Update, ...]:
        return tuple(update for update in self.updates if not update.security)


@dataclass(frozen=True)
class PendingUpdates:
    """What a build knows of pending updates: of each set, or for what ``reason`` nothing was looked at."""

    looked: bool
    reason: str | None = None
    sets: tuple[Looked, ...] | None = None


@dataclass(frozen=True)
class Question:
    """A package lock, and what the spec asks for: the digest of the question and the packages."""

    lock: Lock
    request: str
    packages: tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """Where to look: the directory of the private apts, and the archive. ``quick``: a look that may fail, and soon."""

    parent: Path
    mirrors: Mirrors
    release: str
    quick: bool = False


@dataclass(frozen=True)
class _Look:
    """How one set is looked at: its indexes, and the newest set by them."""

    place: Place
    set: str
    lock: Lock
    request: str
    components: str
    newest: Callable[[PrivateApt], Iterable[Entry]]

    @property
    def note(self) -> str:
        return "" if self.lock.request == self.request else OTHER_QUESTION

    def now(self) -> Looked:
        """Return what is pending by fresh lists; raise StepFailed when they cannot be read or resolved. Keeps the result."""
        place = self.place
        with private_apt(place.parent, place.mirrors, place.release, components=self.components, quick=place.quick) as apt:
            found = _differences(apt, self.lock.entries, self.newest(apt))
            looked = Looked(self.set, self.lock.date, stamp_of(apt.date()), found, self.note, looked_at=stamp_now())
        return self._keep(looked)

    def last(self) -> Looked | None:
        """Return what the last look found, or why it failed, without network; None when none was within KEPT_HOURS."""
        if not self._kept.is_file() or not _is_recent(self._kept):
            return None
        facts = json_text.parse(self._kept.read_text(encoding="utf-8"))
        return Looked(**{**facts, "updates": tuple(Update(**update) for update in facts["updates"])})

    def failed(self, error: StepFailed) -> Looked:
        """Return that the set was not looked at, and why; keep that for plans, unless they have something better."""
        looked, last = self.without(error), self.last()
        return looked if last and not last.problem else self._keep(looked)

    def _keep(self, looked: Looked) -> Looked:
        for older in self.place.parent.glob(f"{self._prefix}*"):
            if not _is_recent(older):
                older.unlink(missing_ok=True)
        files.write_json(self._kept, asdict(looked))
        return looked

    def without(self, error: StepFailed) -> Looked:
        """Return that the set was not looked at, and why."""
        # The brief of a mirror's error names the index; what apt reports beside it is for those who can act on it.
        parts = (error.brief,) if isinstance(error, MirrorError) else (error.brief, " ".join(error.details.split()))
        return Looked(self.set, self.lock.date, note=self.note, problem=": ".join(filter(None, parts)))

    @property
    def _prefix(self) -> str:
        return f"updates-{self.set}-"

    @property
    def _kept(self) -> Path:
        place = self.place
        question = [self.lock.render(""), self.request, place.mirrors.debian, place.mirrors.security]
        return place.parent / f"{self._prefix}{files.digest(question)[:16]}.json"


def _is_recent(path: Path) -> bool:
    return 0 <= time.time() - path.stat().st_mtime < KEPT_HOURS * 3600


def _rootfs(place: Place, question: Question) -> _Look:
    return _Look(place, "rootfs", question.lock, question.request, MAIN, lambda apt: apt.resolve(question.packages))


def _installer(place: Place, lock: Lock) -> _Look:
    return _Look(place, "installer", lock, lock.request, WITH_UDEBS, lambda apt: resolve.newest_installer(apt, lock).entries)


def look_rootfs(place: Place, question: Question) -> Looked:
    """Compare the lock of the root file system with what apt resolves now; nothing is fetched but lists."""
    return _look(_rootfs(place, question))


def look_installer(place: Place, lock: Lock) -> Looked:
    """Compare the lock of the installer with the newest set of the same make-up."""
    return _look(_installer(place, lock))


def _look(look: _Look) -> Looked:
    """Look at one set; one that cannot be read or resolved does not hide the other."""
    try:
        return look.now()
    except StepFailed as error:
        return look.failed(error)


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
    """Return True if a change is a security update; a package that is new in the set is one when it comes from there."""
    return any(versions.newer(version, locked) for version in fixes) if locked else candidate in fixes


def at_build(place: Place, question: Question, installer: Lock) -> PendingUpdates:
    """Return what the manifest says of pending updates, by fresh lists; a build never fails for it.

    Nothing was looked at when the mirror cannot be reached. For a set that cannot be looked at now the last look within
    KEPT_HOURS is returned, if there was one.
    """
    try:
        with log.step("Looking for pending updates", done="looked"):
            looks = (_rootfs(place, question), _installer(place, installer))
            return _pending([_now_or_last(look) for look in looks])
    except GoldsmithError as error:
        known = at_plan(place, question, installer)
        return known if known.looked else PendingUpdates(looked=False, reason=error.brief)


def _now_or_last(look: _Look) -> Looked:
    """Look at one set; raise MirrorUnreachable, which the other set would only wait for again."""
    try:
        return look.now()
    except MirrorUnreachable:
        raise
    except StepFailed as error:
        failed, last = look.failed(error), look.last()
        return last or failed


def at_plan(place: Place, question: Question, installer: Lock) -> PendingUpdates:
    """Return the same by the last look at exactly these locks, without network and without starting a program."""
    looks = (_rootfs(place, question), _installer(place, installer))
    return _pending([look.last() or look.without(StepFailed(NOT_KEPT)) for look in looks])


def _pending(looked: Sequence[Looked]) -> PendingUpdates:
    problems = {one.problem for one in looked}
    if len(problems) == 1 and (reason := problems.pop()):
        return PendingUpdates(looked=False, reason=reason)
    return PendingUpdates(looked=True, sets=tuple(looked))


def facts(looked: Iterable[Looked]) -> list[dict[str, Any]]:
    """Return the sets as plain data."""
    return [asdict(one) for one in looked]
