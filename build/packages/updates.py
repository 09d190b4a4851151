"""Pending updates: the packages that apt would install instead of the locked ones. No lock is written.

An update is a security update when Debian's security archive has a version of the package that is newer than the locked
one, even if apt would install another version from the main archive: a point release adds older fixes there.

A build checks with fresh lists when a stage is built. The result is kept in the cache for KEPT_HOURS, so that a plan
and an unchanged build can show it without network access.
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
NOT_KEPT = f"not checked in the last {KEPT_HOURS} hours (a build of changed stages checks, and nox -s lock -- --check)"
OTHER_REQUEST = "the lock was resolved for another list of packages than that of the spec: nox -s lock"


@dataclass(frozen=True, order=True)
class Update:
    """One package; ``locked`` is empty if it is not in the lock, ``candidate`` if it is not in the newest set."""

    package: str
    locked: str
    candidate: str
    security: bool


@dataclass(frozen=True)
class Looked:
    """The result of the check of one locked set; if there is a ``problem``, the set could not be checked."""

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
    """The pending updates of each set at a build, or the ``reason`` why they were not checked."""

    looked: bool
    reason: str | None = None
    sets: tuple[Looked, ...] | None = None


@dataclass(frozen=True)
class Question:
    """A package lock, and the request of the spec: its digest and the packages."""

    lock: Lock
    request: str
    packages: tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """Where to check: the directory of the private apts, and the archive. ``quick``: with a short time limit."""

    parent: Path
    mirrors: Mirrors
    release: str
    quick: bool = False


@dataclass(frozen=True)
class _Look:
    """How to check one set: its indexes, and the newest set according to them."""

    place: Place
    set: str
    lock: Lock
    request: str
    components: str
    newest: Callable[[PrivateApt], Iterable[Entry]]

    @property
    def note(self) -> str:
        return "" if self.lock.request == self.request else OTHER_REQUEST

    def now(self) -> Looked:
        """Check with fresh lists and keep the result; raise StepFailed when they cannot be read or resolved."""
        place = self.place
        with private_apt(place.parent, place.mirrors, place.release, components=self.components, quick=place.quick) as apt:
            differences = _differences(apt, self.lock.entries, self.newest(apt))
            looked = Looked(self.set, self.lock.date, stamp_of(apt.date()), differences, self.note, looked_at=stamp_now())
        return self._keep(looked)

    def last(self) -> Looked | None:
        """Return the result of the last check, failed or not, without network; None when it is older than KEPT_HOURS."""
        if not self._kept.is_file() or not _is_recent(self._kept):
            return None
        facts = json_text.parse(self._kept.read_text(encoding="utf-8"))
        return Looked(**{**facts, "updates": tuple(Update(**update) for update in facts["updates"])})

    def failed(self, error: StepFailed) -> Looked:
        """Return the failed check; keep it for plans, unless the kept result is a successful one."""
        looked, last = self.without(error), self.last()
        return looked if last and not last.problem else self._keep(looked)

    def _keep(self, looked: Looked) -> Looked:
        for older in self.place.parent.glob(f"{self._prefix}*"):
            if not _is_recent(older):
                older.unlink(missing_ok=True)
        files.write_json(self._kept, asdict(looked))
        return looked

    def without(self, error: StepFailed) -> Looked:
        """Return the failed check."""
        # The brief of a mirror's error contains the index; apt's messages are useful only for the mirror's operator.
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
    """Compare the lock of the root file system with what apt resolves now; only lists are fetched."""
    return _look(_rootfs(place, question))


def look_installer(place: Place, lock: Lock) -> Looked:
    """Compare the lock of the installer with the newest set of the same composition."""
    return _look(_installer(place, lock))


def _look(look: _Look) -> Looked:
    """Check one set; a failure is returned, so that the other set is still checked."""
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
    pending = []
    for name in changed:
        locked, candidate = (side[name].version if name in side else "" for side in (before, after))
        pending.append(Update(name, locked, candidate, _is_fix(locked, candidate, fixes.get(name, set()))))
    return tuple(pending)


def _is_fix(locked: str, candidate: str, fixes: set[str]) -> bool:
    """Return True if a change is a security update; for a package that is new in the set: if it is from that archive."""
    return any(versions.newer(version, locked) for version in fixes) if locked else candidate in fixes


def at_build(place: Place, question: Question, installer: Lock) -> PendingUpdates:
    """Return the manifest's record of pending updates, from fresh lists; errors do not make the build fail.

    If the mirror cannot be reached, nothing is checked. For a set that cannot be checked now, the last result within
    KEPT_HOURS is returned, if there is one.
    """
    try:
        with log.step("Checking for pending updates", done="checked"):
            looks = (_rootfs(place, question), _installer(place, installer))
            return _pending([_now_or_last(look) for look in looks])
    except GoldsmithError as error:
        known = at_plan(place, question, installer)
        return known if known.looked else PendingUpdates(looked=False, reason=error.brief)


def _now_or_last(look: _Look) -> Looked:
    """Check one set; raise MirrorUnreachable, because the check of the other set would only wait again."""
    try:
        return look.now()
    except MirrorUnreachable:
        raise
    except StepFailed as error:
        failed, last = look.failed(error), look.last()
        return last or failed


def at_plan(place: Place, question: Question, installer: Lock) -> PendingUpdates:
    """Return the same from the last check of exactly these locks, without network and without starting a program."""
    looks = (_rootfs(place, question), _installer(place, installer))
    return _pending([look.last() or look.without(StepFailed(NOT_KEPT)) for look in looks])


def _pending(results: Sequence[Looked]) -> PendingUpdates:
    problems = {result.problem for result in results}
    if len(problems) == 1 and (reason := problems.pop()):
        return PendingUpdates(looked=False, reason=reason)
    return PendingUpdates(looked=True, sets=tuple(results))


def facts(results: Iterable[Looked]) -> list[dict[str, Any]]:
    """Return the sets as plain data."""
    return [asdict(result) for result in results]
