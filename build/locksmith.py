"""Decides which locked set a build takes, and makes new ones.

The committed locks are used as long as they answer what the spec asks and the archive still has their files. When not,
a new set is resolved from signed metadata, its differences are told, and it is kept in the cache so that the next
build takes the same; ``locked=True`` makes that an error instead, for releases.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from build import files, lock, log, run
from build.apt import Mirrors, PrivateApt, Store, private_apt
from build.errors import SpecError, StepFailed
from build.lock import Entry, Lock

ROOTFS_TITLE = "Debian packages of the root file system. Written by `nox -s lock`; do not edit."
INSTALLER_TITLE = "Debian installer: netboot package (kernel, initrd) and udebs. Written by `nox -s lock`; do not edit."
NETBOOT = "debian-installer-13-netboot-amd64"
MODULES = re.compile(r"(?P<name>[a-z0-9-]+-modules)-(?P<kernel>[0-9][a-z0-9.+~]*(-[a-z0-9.]+)*)-amd64-di")
SHOWN_CHANGES = 15
HOLE_HINT = "keep the committed preseed/installer.lock and set a snapshot archive, or wait for the next point release"


@dataclass(frozen=True)
class Settled:
    """The set a build takes: the lock, and how it differs from the committed one (empty when it is that)."""

    lock: Lock
    changes: tuple[str, ...] = ()

    @property
    def refreshed(self) -> bool:
        return bool(self.changes)


@dataclass(frozen=True)
class Locksmith:
    """Settles locks for one host: its mirrors, its store of files, its cache of refreshed locks."""

    mirrors: Mirrors
    store: Store
    cache: Path
    release: str

    def choose(self, path: Path, request: str, *, locked: bool) -> Settled | None:
        """Return the set without asking the archive: the committed lock, or the one a former build refreshed.

        With ``locked`` only the committed one. None when neither answers the request.
        """
        committed = lock.parse(path)
        kept = self._kept(path, request)
        if kept.is_file() and not locked:
            refreshed = lock.parse(kept)
            return Settled(refreshed, tuple(lock.compare(committed.entries, refreshed.entries)) or ("request",))
        return Settled(committed) if committed.request == request else None

    def settle_rootfs(self, path: Path, request: str, packages: tuple[str, ...], *, locked: bool) -> Settled:
        """Return a package set whose every file is in the store; see the module for the rule."""
        return self._settle(path, request, lambda apt: self.resolve_rootfs(apt, request, packages), locked=locked)

    def settle_installer(self, path: Path, *, locked: bool) -> Settled:
        """Return an installer set whose every file is in the store."""
        committed = lock.parse(path)
        return self._settle(
            path, committed.request, lambda apt: self.resolve_installer(apt, committed), locked=locked
        )

    def _settle(self, path: Path, request: str, resolve: Callable[[PrivateApt], Lock], *, locked: bool) -> Settled:
        chosen = self.choose(path, request, locked=locked)
        gone = self.store.fetch(chosen.lock.entries, self.mirrors) if chosen else ()
        if chosen and not gone:
            return chosen
        reason = _reason(path, chosen, gone)
        if locked:
            raise SpecError(
                reason, details=_names(gone),
                hint="nox -s lock, look at the changes, commit them; or build without --locked; or set a snapshot archive",
            )  # fmt: skip
        log.warn(f"{reason}: a new set is resolved (--locked makes this an error)")
        return self._refresh(path, request, resolve)

    def _refresh(self, path: Path, request: str, resolve: Callable[[PrivateApt], Lock]) -> Settled:
        with private_apt(self.cache / "apt", self.mirrors, self.release) as apt:
            fresh = resolve(apt)
        changes = lock.compare(lock.parse(path).entries, fresh.entries)
        for line in changes[:SHOWN_CHANGES]:
            log.info(f"  {line}")
        if len(changes) > SHOWN_CHANGES:
            log.info(f"  … and {len(changes) - SHOWN_CHANGES} more")
        files.write_atomic(self._kept(path, request), fresh.render(f"Refreshed by a build from {path.name}."))
        return Settled(fresh, tuple(changes) or ("request",))

    def _kept(self, path: Path, request: str) -> Path:
        base = files.digest([files.sha256_file(path), request, self.mirrors.debian])[:16]
        return self.cache / "locks" / f"{path.name}.{base}"

    def resolve_rootfs(self, apt: PrivateApt, request: str, packages: tuple[str, ...]) -> Lock:
        """Resolve the packages anew, security updates included, and fetch them; raise StepFailed when one is missing."""
        fresh = Lock(self.release, lock.iso(apt.date()), request, apt.resolve(packages))
        self._demand(fresh, "package set")
        return fresh

    def resolve_installer(self, apt: PrivateApt, old: Lock) -> Lock:
        """Resolve the newest installer set of the same make-up, and fetch it; raise StepFailed when it has a hole."""
        fresh = newest_installer(apt, old)
        self._demand(fresh, "installer set")
        return fresh

    def _demand(self, fresh: Lock, what: str) -> None:
        gone = self.store.fetch(fresh.entries, self.mirrors)
        if gone:
            raise StepFailed(
                f"the mirror lacks {len(gone)} files of its own newest {what}", details=_names(gone),
                hint="the mirror is incomplete or being updated: try again in an hour, or use another mirror",
            )  # fmt: skip


def newest_installer(apt: PrivateApt, old: Lock) -> Lock:
    """Return the newest installer set of the same make-up; raise StepFailed when it has a hole. Nothing is fetched.

    The kernel modules must be those of the netboot package's kernel, which it names in Built-Using.
    """
    kernel = _netboot_kernel(apt)
    names = []
    for entry in old.entries:
        match = MODULES.fullmatch(entry.package)
        names.append(f"{match['name']}-{kernel}-amd64-di" if match else entry.package)
    absent = sorted(set(names) - set(apt.names(".*")))
    if absent:
        raise StepFailed(
            f"the archive's newest installer set (kernel {kernel}) has a hole", details="\n".join(absent), hint=HOLE_HINT
        )
    return replace(old, date=lock.iso(apt.date()), entries=apt.locate(names))


def _netboot_kernel(apt: PrivateApt) -> str:
    shown = run.run(["apt-cache", "show", "--no-all-versions", NETBOOT], timeout=60, env=apt.environment()).stdout
    match = re.search(r"^Built-Using:.*[ ,]linux(?:-signed-amd64)? \(= ([0-9.]+)", shown, re.MULTILINE)
    if not match:
        raise StepFailed(f"{NETBOOT} does not say which kernel it was built with")
    kernels = {found["kernel"] for name in apt.names(MODULES.pattern) if (found := MODULES.fullmatch(name))}
    fitting = sorted(kernel for kernel in kernels if kernel.split("+")[0] == match[1])
    if not fitting:
        raise StepFailed(
            f"the archive has no kernel modules for the newest installer (kernel {match[1]})",
            details="it has: " + ", ".join(sorted(kernels)),
            hint=HOLE_HINT,
        )
    return fitting[-1]


def _reason(path: Path, chosen: Settled | None, gone: tuple[Entry, ...]) -> str:
    if chosen is None:
        return f"{path.name} answers another list of packages than the spec asks for"
    return f"the archive no longer has {len(gone)} of the {len(chosen.lock.entries)} files in {path.name}"


def _names(entries: tuple[Entry, ...]) -> str:
    shown = [entry.filename for entry in entries[:SHOWN_CHANGES]]
    return "\n".join([*shown, *(["…"] if len(entries) > SHOWN_CHANGES else [])])
