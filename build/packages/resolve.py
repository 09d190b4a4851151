"""Chooses the locked set that a build uses, and resolves new ones.

The committed locks are used as long as they match the request of the spec and the archive still has their files. If not,
a new set is resolved from signed metadata, its differences are printed, and it is kept in the cache so that the next
build uses the same; with ``locked=True`` this is an error instead, for releases. A build with ``--fresh`` resolves new
sets first. Each set is resolved from its own indexes. When the mirror has no complete newest set at present, an older set
whose files are all in the cache or in the archive is used instead, with a warning.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from build.core import files, log, run
from build.core.errors import GoldsmithError, SpecError, StepFailed
from build.core.units import stamp_of
from build.packages import lock
from build.packages.apt import (
    MAIN,
    SYNC_HINT,
    WITH_UDEBS,
    MirrorChanging,
    MirrorError,
    Mirrors,
    MirrorUnreachable,
    PrivateApt,
    Store,
    patiently,
    private_apt,
)
from build.packages.lock import Entry, Lock

ROOTFS_TITLE = "Debian packages of the root file system. Written by `nox -s lock`; do not edit."
INSTALLER_TITLE = "Debian installer: netboot package (kernel, initrd) and udebs. Written by `nox -s lock`; do not edit."
NETBOOT = "debian-installer-13-netboot-amd64"
MODULES = re.compile(r"(?P<name>[a-z0-9-]+-modules)-(?P<kernel>[0-9][a-z0-9.+~]*(-[a-z0-9.]+)*)-amd64-di")
SHOWN_CHANGES = 15
HOLE_HINT = "keep the committed preseed/installer.lock and set a snapshot archive, or wait for the next point release"


@dataclass(frozen=True)
class Settled:
    """The set that a build uses: the lock, and its differences from the committed one (empty when it is that one)."""

    lock: Lock
    changes: tuple[str, ...] = ()

    @property
    def refreshed(self) -> bool:
        return bool(self.changes)


@dataclass(frozen=True)
class LockResolver:
    """Chooses and resolves locks on one host, with its mirrors, its store of files, and its cache of refreshed locks."""

    mirrors: Mirrors
    store: Store
    cache: Path
    release: str

    def choose(self, path: Path, request: str, *, locked: bool) -> Settled | None:
        """Return the set without access to the archive: the committed lock, or the one that an earlier build refreshed.

        With ``locked`` only the committed one. None when neither matches the request.
        """
        committed = lock.parse(path)
        kept = self._kept(path, request)
        if kept.is_file() and not locked:
            refreshed = lock.parse(kept)
            return Settled(refreshed, tuple(lock.compare(committed.entries, refreshed.entries)) or ("request",))
        return Settled(committed) if committed.request == request else None

    def settle_rootfs(self, path: Path, request: str, packages: tuple[str, ...], *, locked: bool) -> Settled:
        """Return a package set of which every file is in the store; the rules are in the module's docstring."""
        return self._settle(path, request, lambda: self.resolve_rootfs(request, packages), locked=locked)

    def settle_installer(self, path: Path, *, locked: bool) -> Settled:
        """Return an installer set of which every file is in the store."""
        committed = lock.parse(path)
        return self._settle(path, committed.request, lambda: self.resolve_installer(committed), locked=locked)

    def _settle(self, path: Path, request: str, resolve: Callable[[], Lock], *, locked: bool) -> Settled:
        chosen = self.choose(path, request, locked=locked)
        gone = self.store.fetch(chosen.lock.entries, self.mirrors) if chosen else ()
        if chosen and not gone:
            return chosen
        reason = _reason(path, chosen, gone)
        if locked:
            raise SpecError(
                reason, details=_names(gone),
                hint="run nox -s lock, check and commit the changes; or build without --locked; or set a snapshot archive",
            )  # fmt: skip
        log.warn(f"{reason}: a new set is resolved (--locked makes this an error)")
        try:
            return self._refresh(path, request, resolve)
        except MirrorError as error:
            return self._complete(path, request, error)

    def freshen_rootfs(self, path: Path, request: str, packages: tuple[str, ...]) -> Settled:
        """Resolve the newest package set, and keep it for this build and the next ones instead of the committed one.

        Raises MirrorUnreachable when the mirror does not answer, and the errors of :meth:`resolve_rootfs` when no older
        set is complete.
        """
        return self._freshen(path, request, lambda: self.resolve_rootfs(request, packages))

    def freshen_installer(self, path: Path) -> Settled:
        """Do the same for the installer set."""
        committed = lock.parse(path)
        return self._freshen(path, committed.request, lambda: self.resolve_installer(committed))

    def _freshen(self, path: Path, request: str, resolve: Callable[[], Lock]) -> Settled:
        try:
            return self._refresh(path, request, resolve)
        except MirrorUnreachable:
            raise
        except MirrorError as error:
            return self._complete(path, request, error)

    def _refresh(self, path: Path, request: str, resolve: Callable[[], Lock]) -> Settled:
        fresh, committed, kept = resolve(), lock.parse(path), self._kept(path, request)
        if (committed.request, committed.entries) == (request, fresh.entries):
            # The committed set is the newest one: the build keeps its date.
            kept.unlink(missing_ok=True)
            return Settled(committed)
        if kept.is_file() and lock.parse(kept).entries == fresh.entries:
            fresh = lock.parse(kept)
        changes = lock.compare(committed.entries, fresh.entries)
        for line in changes[:SHOWN_CHANGES]:
            log.info(f"  {line}")
        if len(changes) > SHOWN_CHANGES:
            log.info(f"  … and {len(changes) - SHOWN_CHANGES} more")
        files.write_atomic(kept, fresh.render(f"Refreshed by a build from {path.name}."))
        return Settled(fresh, tuple(changes) or ("request",))

    def _complete(self, path: Path, request: str, error: MirrorError) -> Settled:
        """Return the newest older set that matches the request and has all its files; raise ``error`` when there is none."""
        for older in dict.fromkeys(self.choose(path, request, locked=locked) for locked in (False, True)):
            if older and not self.store.fetch(older.lock.entries, self.mirrors):
                name = "the set of an earlier build" if older.refreshed else path.name
                log.warn(f"{error.brief}: {name} is used instead, which is complete (archive as of {older.lock.date})")
                return older
        raise error

    def _kept(self, path: Path, request: str) -> Path:
        base = files.digest([files.sha256_file(path), request, self.mirrors.debian])[:16]
        return self.cache / "locks" / f"{path.name}.{base}"

    def resolve_rootfs(self, request: str, packages: tuple[str, ...]) -> Lock:
        """Resolve the packages with fresh lists, security updates included, and fetch them.

        Raises MirrorError when the lists cannot be read, or a file is missing; StepFailed when apt cannot resolve them.
        """
        with self._apt(MAIN) as apt:
            fresh = Lock(self.release, stamp_of(apt.date()), request, apt.resolve(packages))
        self._demand(fresh, "package set")
        return fresh

    def resolve_installer(self, old: Lock) -> Lock:
        """Resolve the newest installer set of the same composition with fresh lists, and fetch it.

        Raises MirrorError when the lists cannot be read, or the set is incomplete.
        """
        with self._apt(WITH_UDEBS) as apt:
            fresh = newest_installer(apt, old)
        self._demand(fresh, "installer set")
        return fresh

    def _apt(self, components: str) -> AbstractContextManager[PrivateApt]:
        return private_apt(self.cache / "apt", self.mirrors, self.release, components=components)

    def _demand(self, fresh: Lock, what: str) -> None:
        """Fetch every file of a new set; raise MirrorChanging when the mirror still lacks some after several attempts."""

        def fetch() -> None:
            if gone := self.store.fetch(fresh.entries, self.mirrors):
                raise MirrorChanging(
                    f"the mirror lacks {len(gone)} files of its newest {what}", details=_names(gone), hint=SYNC_HINT
                )

        patiently(fetch)


def write_each(writers: Mapping[str, Callable[[], None]]) -> None:
    """Write each lock by its writer; a failure does not stop the others.

    With one writer its error is raised as it is; with several, StepFailed with those that failed, after all have run.
    """
    failed: dict[str, GoldsmithError] = {}
    for name, write in writers.items():
        try:
            write()
        except GoldsmithError as error:
            if len(writers) == 1:
                raise
            log.warn(f"the lock of {name} is not written: {error.brief}")
            failed[name] = error
    if failed:
        written = [name for name in writers if name not in failed]
        raise StepFailed(
            f"not written: the lock of {', '.join(failed)}; written: {', '.join(written) or 'none'}",
            details="\n".join(f"{name}: {error.render()}" for name, error in failed.items()),
            hint="what was written is complete; the other locks are as they were: try them again later",
        )


def newest_installer(apt: PrivateApt, old: Lock) -> Lock:
    """Return the newest installer set of the same make-up; raise MirrorError when it has a hole. Nothing is fetched.

    The kernel modules must be those of the netboot package's kernel, which it names in Built-Using.
    """
    kernel = _netboot_kernel(apt)
    names = []
    for entry in old.entries:
        match = MODULES.fullmatch(entry.package)
        names.append(f"{match['name']}-{kernel}-amd64-di" if match else entry.package)
    absent = sorted(set(names) - set(apt.names(".*")))
    if absent:
        raise MirrorError(
            f"the archive's newest installer set (kernel {kernel}) is incomplete", details="\n".join(absent), hint=HOLE_HINT
        )
    return replace(old, date=stamp_of(apt.date()), entries=apt.locate(names))


def _netboot_kernel(apt: PrivateApt) -> str:
    if NETBOOT not in apt.names(NETBOOT):
        raise MirrorError(f"the archive has no {NETBOOT}", hint=HOLE_HINT)
    query = ["apt-cache", "show", "--no-all-versions", NETBOOT]
    shown = run.run(query, timeout=run.LOCAL_SECONDS, env=apt.environment()).stdout
    match = re.search(r"^Built-Using:.*[ ,]linux(?:-signed-amd64)? \(= ([0-9.]+)", shown, re.MULTILINE)
    if not match:
        raise StepFailed(f"the control file of {NETBOOT} does not contain the kernel that it was built with")
    kernels = {parts["kernel"] for name in apt.names(MODULES.pattern) if (parts := MODULES.fullmatch(name))}
    matching = sorted(kernel for kernel in kernels if kernel.split("+")[0] == match[1])
    if not matching:
        raise MirrorError(
            f"the archive has no kernel modules for the newest installer (kernel {match[1]})",
            details="it has: " + ", ".join(sorted(kernels)),
            hint=HOLE_HINT,
        )
    return matching[-1]


def _reason(path: Path, chosen: Settled | None, gone: tuple[Entry, ...]) -> str:
    if chosen is None:
        return f"{path.name} was resolved for another list of packages than that of the spec"
    return f"the archive no longer has {len(gone)} of the {len(chosen.lock.entries)} files in {path.name}"


def _names(entries: tuple[Entry, ...]) -> str:
    shown = [entry.filename for entry in entries[:SHOWN_CHANGES]]
    return "\n".join([*shown, *(["…"] if len(entries) > SHOWN_CHANGES else [])])
