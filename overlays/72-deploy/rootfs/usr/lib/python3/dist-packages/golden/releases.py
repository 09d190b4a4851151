"""The releases of the application on this clone, and which of them serves.

::

    /opt/app/current -> releases/0123456789ab    what serves; changed by one rename
    /opt/app/previous -> releases/image          where --rollback goes
    /opt/app/releases/0123456789ab/code, venv, static    root's, read by the application, never changed
    /opt/app/releases/0123456789ab/release.json  written last: without it a release is not complete

A release has the name of its bundle's hash; the one that came with the image is called ``image``.
"""

from __future__ import annotations

import filecmp
import grp
import json
import os
import pwd
import re
import shutil
import stat
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from golden.core import Problem, write_whole

ROOT = Path("/opt/app")
STATIC = Path("/var/www/static")
RECORD = "release.json"
# In a release: what collectstatic made of it. The application sees it as STATIC_ROOT.
STATIC_FILES = "static"
FRESH = ".golden-new"
GROUP, STATIC_GROUP = "gunicorn", "www-data"
KEEP = 3
# Longer than the names of all static files of a bundle.
LARGEST_RECORD = 16 << 20
DIGEST = re.compile(r"[0-9a-f]{12}")


def _is_record(found: object) -> bool:
    """Return True if a record has what is read of it."""
    if not isinstance(found, dict) or not all(isinstance(found.get(key), str) for key in ("name", "deployed")):
        return False
    static = found.get("static", [])
    return isinstance(static, list) and all(isinstance(name, str) for name in static)


@dataclass(frozen=True)
class Releases:
    """The releases below one directory."""

    root: Path = ROOT
    static: Path = STATIC

    def path(self, name: str) -> Path:
        """Return the directory of a release."""
        return self.root / "releases" / name

    def current(self) -> str:
        """Return the name of the release that serves."""
        return self._linked("current")

    def previous(self) -> str:
        """Return the name of the release that served before, or nothing."""
        return self._linked("previous")

    def _linked(self, link: str) -> str:
        try:
            name = (self.root / link).readlink().name
        except OSError:
            return ""
        return name if self.path(name).is_dir() else ""

    def record(self, name: str) -> dict[str, Any] | None:
        """Return what is known of a complete release; None when there is none of that name, or its record is damaged."""
        try:
            with (self.path(name) / RECORD).open("rb") as stream:
                found = json.loads(stream.read(LARGEST_RECORD))
        except (OSError, ValueError, RecursionError):
            return None
        return found if _is_record(found) else None

    def listed(self) -> list[dict[str, Any]]:
        """Return the complete releases, the newest first, and what each is."""
        known = {name: self.record(name) for name in self._names()}
        current, previous = self.current(), self.previous()
        found = [
            {"release": name, "name": record["name"], "deployed": record["deployed"], "current": name == current,
             "previous": name == previous}
            for name, record in known.items() if record
        ]  # fmt: skip
        return sorted(found, key=lambda one: str(one["deployed"]), reverse=True)

    def _names(self) -> list[str]:
        return sorted(path.name for path in (self.root / "releases").iterdir() if path.is_dir())

    def complete(self, name: str, facts: dict[str, Any]) -> None:
        """Say that a release is all there."""
        content = {"deployed": datetime.now(UTC).isoformat(timespec="seconds"), **facts}
        path = self.path(name) / RECORD
        write_whole(path, json.dumps(content, indent=1, sort_keys=True).encode(), mode=0o640)
        shutil.chown(path, "root", GROUP)

    def adopt(self) -> None:
        """Record the release that came with the image, and the static files that are its own."""
        name = self.current()
        if name and self.record(name) is None:
            static = sorted(str(path.relative_to(self.static)) for path in self.static.rglob("*") if path.is_file())
            built = datetime.fromtimestamp((self.path(name) / "code").stat().st_mtime, UTC)
            facts = {"name": name, "sha256": "", "static": static, "deployed": built.isoformat(timespec="seconds")}
            self.complete(name, facts)

    def switch(self, name: str) -> None:
        """Let a release serve from the next start on, and remember the one before."""
        before = self.current()
        if before == name:
            return
        self._link("current", name)
        if before:
            self.remember(before)

    def remember(self, name: str) -> None:
        """Say which release --rollback goes to; nowhere without a name."""
        if name:
            self._link("previous", name)
        else:
            (self.root / "previous").unlink(missing_ok=True)

    def _link(self, link: str, name: str) -> None:
        fresh = self.root / f".{link}.new"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(f"releases/{name}")
        fresh.replace(self.root / link)
        descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def remove_incomplete(self) -> None:
        """Remove what a deployment left that was cut off."""
        for name in self._names():
            if DIGEST.fullmatch(name) and self.record(name) is None and name != self.current():
                self.remove(name)

    def remove(self, name: str) -> None:
        """Remove a release, whoever owns it."""
        take(self.path(name))
        shutil.rmtree(self.path(name))

    def prune(self, keep: int = KEEP) -> list[str]:
        """Keep the newest releases, the one that serves and the one before; remove the others and their static files."""
        listed = self.listed()
        kept = {self.current(), self.previous(), *(one["release"] for one in listed[:keep])}
        removed = [one["release"] for one in listed if one["release"] not in kept]
        static = {file for name in removed for file in (self.record(name) or {}).get("static", [])}
        static -= {file for name in kept for file in (self.record(name) or {}).get("static", [])}
        for file in sorted(static):
            (self.static / file).unlink(missing_ok=True)
        for name in removed:
            # Without its record it is an incomplete one, which the next deployment removes should this one be cut off.
            (self.path(name) / RECORD).unlink()
            self.remove(name)
        return removed

    def publish(self, name: str, *, replace: bool) -> list[str]:
        """Copy the static files of a release to where the web server reads them; return their names.

        Files with the hash of their content in the name are kept for all releases. A file with other content than the
        existing one of that name is copied only if ``replace``: until the switch, the active release uses its own.
        The release that came with the image has none here; what it serves are names with hashes.
        """
        names = []
        top = self.path(name) / STATIC_FILES
        for path in sorted(top.rglob("*")):
            inside = str(path.relative_to(top))
            target = self.static / inside
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise Problem(f"{inside}: collectstatic made something that is no plain file")
            if target.exists() and target.is_dir() != path.is_dir():
                raise Problem(f"{inside}: the static files of two releases have a file and a directory of this name")
            if path.is_dir():
                target.mkdir(exist_ok=True)
                shutil.chown(target, "root", STATIC_GROUP)
                target.chmod(0o750)
                continue
            names.append(inside)
            if not target.exists() or (replace and not filecmp.cmp(path, target, shallow=False)):
                self._publish_one(path, target)
        return names

    def withdraw(self, names: list[str]) -> None:
        """Remove static files of a release that came to nothing, but those that another one has."""
        others = {file for name in self._names() for file in (self.record(name) or {}).get("static", [])}
        for file in set(names) - others:
            (self.static / file).unlink(missing_ok=True)

    def _publish_one(self, path: Path, target: Path) -> None:
        # The name of the fresh file may not be longer than the target's, which may have all the bytes that a name can.
        fresh = target.parent / FRESH
        shutil.copyfile(path, fresh)
        shutil.chown(fresh, "root", STATIC_GROUP)
        fresh.chmod(0o640)
        fresh.replace(target)

    def close(self, name: str) -> None:
        """Give a built release to root; only the application's group can read it.

        Raises Problem when a link leads out of the release: only the interpreter is outside.
        """
        top = self.path(name)
        take(top)
        for entry in (top, *top.rglob("*")):
            mode = entry.lstat().st_mode
            if stat.S_ISLNK(mode):
                _check_link(entry, top)
            elif stat.S_ISDIR(mode) or stat.S_ISREG(mode):
                entry.chmod(0o750 if stat.S_ISDIR(mode) or mode & 0o100 else 0o640)
            else:
                raise Problem(f"{entry} is neither a file nor a directory")


def lend(top: Path, user: str) -> None:
    """Give a tree to a user, from its leaves to its root: root does not enter an entry that has a new owner."""
    _own(top, user, topdown=False)


def take(top: Path) -> None:
    """Give a tree to root again, from its root to its leaves, whoever may enter it."""
    _own(top, "root", topdown=True)


def _own(top: Path, user: str, *, topdown: bool) -> None:
    """Change owner and group of links themselves, not of what they lead to."""
    uid, gid = pwd.getpwnam(user).pw_uid, grp.getgrnam(GROUP).gr_gid
    if topdown:
        os.chown(top, uid, gid, follow_symlinks=False)
        top.chmod(0o700)
    for entry in top.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            _own(entry, user, topdown=topdown)
        else:
            os.chown(entry, uid, gid, follow_symlinks=False)
    if not topdown:
        os.chown(top, uid, gid, follow_symlinks=False)


def _check_link(link: Path, top: Path) -> None:
    target = Path(os.path.normpath(link.parent / link.readlink()))
    if not (target.is_relative_to(top) or target.is_relative_to("/usr/bin")):
        raise Problem(f"{link} leads to {target}, out of its release")
