"""What outlives the operating system: the lists of the layers, and the copies of it on the data disk.

Each layer may bring ``/usr/lib/golden/data.d/NN-noun.toml``::

    [versions]
    postgresql = 17                  # the format of its data; another system must have the same

    [[directory]]
    path = "/opt/app"                # on the data disk, bind-mounted at this path
    options = ["nodev", "nosuid"]    # of the mount
    replace = ["releases/image"]     # belongs to the image: a new system brings its own
    merge = ["static"]               # files of a new system's image are added to those that are there
    set_aside = ["aide.db"]          # belongs to one system: a new one finds it as NAME.former

    [[file]]
    path = "/etc/ssl/private/app.key"    # in a directory of the system: copied to the data disk when it changes

A directory is copied under another name, flushed, and renamed. The files are one set, replaced whole, so that a key and
its certificate always belong together. Owners are numbers on a disk: when a new system has other numbers for the same
names, they are changed in two steps that can be repeated.
"""

from __future__ import annotations

import ctypes
import grp
import os
import pwd
import shutil
import stat
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from golden import core

LISTS = Path("/usr/lib/golden/data.d")
KEYS = {"versions": set(), "directory": {"path", "options", "replace", "merge", "set_aside"}, "file": {"path"}}
OPTIONS = {"nodev", "nosuid", "noexec"}
# Above every id of a system, below the highest one: where an id waits between the two steps of a change.
BETWEEN = 0x40000000
COPY_SECONDS = 6 * 3600


@dataclass(frozen=True)
class Directory:
    """A directory that is kept, and what of it belongs to the image or to one system."""

    path: str
    options: tuple[str, ...] = ()
    replace: tuple[str, ...] = ()
    merge: tuple[str, ...] = ()
    set_aside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kept:
    """The lists of all layers."""

    directories: tuple[Directory, ...] = ()
    files: tuple[str, ...] = ()
    versions: Mapping[str, int] = field(default_factory=dict)


def read(lists: Path = LISTS) -> Kept:
    """Return what the layers keep. Raises Problem that names the file, the key and the value of each mistake."""
    directories: list[Directory] = []
    files: list[str] = []
    versions: dict[str, int] = {}
    problems: list[str] = []
    for path in sorted(lists.glob("*.toml")):
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            problems.append(f"{path}: {error}")
            continue
        problems += [f"{path}: {problem}" for problem in _mistakes(content)]
        versions |= content.get("versions", {})
        directories += [_directory(entry) for entry in content.get("directory", ())]
        files += [str(entry.get("path", "")) for entry in content.get("file", ())]
    paths = [directory.path for directory in directories]
    problems += [f"{lists}: {path} is listed twice" for path in sorted({path for path in paths if paths.count(path) > 1})]
    if problems:
        raise core.Problem("; ".join(problems), hint="correct the lists of the layers", code=core.USAGE)
    return Kept(tuple(sorted(directories, key=lambda directory: directory.path)), tuple(sorted(files)), versions)


def _mistakes(content: Mapping[str, Any]) -> Iterator[str]:
    """Return what is wrong with the content of one list."""
    for key in sorted(content.keys() - KEYS.keys()):
        yield f"{key}: not a key of this list: write {', '.join(KEYS)}"
    for name, version in content.get("versions", {}).items():
        if not isinstance(version, int):
            yield f"versions: {name}: {version!r}: write a number"
    for kind in ("directory", "file"):
        for entry in content.get(kind, ()):
            path = str(entry.get("path", ""))
            if not path.startswith("/") or os.path.normpath(path) != path or path == "/":
                yield f"{kind}: path: {path!r}: write an absolute path"
            for key in sorted(entry.keys() - KEYS[kind]):
                yield f"{kind}: {path}: {key}: not a key: write {', '.join(sorted(KEYS[kind]))}"
            for option in sorted(set(entry.get("options", ())) - OPTIONS):
                yield f"{kind}: {path}: options: {option}: write {', '.join(sorted(OPTIONS))}"


def _directory(entry: Mapping[str, Any]) -> Directory:
    lists = {key: tuple(map(str, entry.get(key, ()))) for key in ("options", "replace", "merge", "set_aside")}
    return Directory(str(entry.get("path", "")), **lists)


@dataclass(frozen=True)
class Store:
    """The kept directories and files on a mounted data disk; ``root`` is the root of the system, "/" but in tests."""

    disk: Path
    root: Path = Path("/")

    def place(self, path: str) -> Path:
        """Return where the data disk has a kept directory."""
        return self.disk / "kept" / path.lstrip("/")

    def original(self, path: str) -> Path:
        """Return the path in the system."""
        return self.root / path.lstrip("/")

    def room(self, kept: Kept) -> None:
        """Raise Problem if what is not on the disk yet does not fit there."""
        missing = [self.original(entry.path) for entry in kept.directories if not self.place(entry.path).is_dir()]
        needed = sum(_size(path) for path in missing)
        status = os.statvfs(self.disk)
        free = status.f_bavail * status.f_frsize
        # A tenth for directories and for blocks that are not full.
        if needed * 1.1 > free:
            raise core.Problem(
                f"the data disk has {free >> 20} MiB free, and {int(needed * 1.1) >> 20} MiB have to be copied there",
                hint="enlarge the disk, and start the machine again",
            )

    def fill(self, kept: Kept) -> list[str]:
        """Copy each directory that the disk does not have; return their paths."""
        copied = []
        for directory in kept.directories:
            place = self.place(directory.path)
            if not place.is_dir():
                place.parent.mkdir(parents=True, exist_ok=True)
                original = self.original(directory.path)
                original.mkdir(mode=0o755, parents=True, exist_ok=True)
                copy_to(original, place)
                copied.append(directory.path)
        return copied

    def renew(self, kept: Kept) -> None:
        """Bring the parts of the directories that belong to the image, or to one system, up to date with this system."""
        for directory in kept.directories:
            place, original = self.place(directory.path), self.original(directory.path)
            for name in directory.replace:
                if (original / name).exists():
                    (place / name).parent.mkdir(parents=True, exist_ok=True)
                    copy_to(original / name, place / name)
            for name in directory.merge:
                _merge(original / name, place / name)
            for name in directory.set_aside:
                if (place / name).exists():
                    (place / name).replace(place / f"{name}.former")

    @property
    def files(self) -> Path:
        """The directory with the copies of single files: the set, or the one before it while it is replaced."""
        return next((path for path in (self.disk / "files", self.disk / "files.old") if path.is_dir()), self.disk / "files")

    def save(self, kept: Kept) -> bool:
        """Copy the single files to the disk, all as one set; return False if none has changed."""
        originals = {path: self.original(path) for path in kept.files if self.original(path).is_file()}
        current = self.files
        if {path: _facts(original) for path, original in originals.items()} == {
            f"/{path.relative_to(current)}": _facts(path) for path in sorted(current.rglob("*")) if path.is_file()
        }:
            return False
        fresh, old = self.disk / "files.new", self.disk / "files.old"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        for path, original in originals.items():
            target = fresh / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            _copy_file(original, target)
        flush(self.disk)
        if current.name == "files" and current.is_dir():
            shutil.rmtree(old, ignore_errors=True)
            current.replace(old)
        fresh.replace(self.disk / "files")
        flush(self.disk)
        shutil.rmtree(old, ignore_errors=True)
        return True

    def restore(self, kept: Kept) -> list[str]:
        """Copy the single files of the disk into the system; return their paths."""
        restored = []
        for path in kept.files:
            source, original = self.files / path.lstrip("/"), self.original(path)
            if source.is_file():
                original.parent.mkdir(parents=True, exist_ok=True)
                fresh = original.with_name(f".{original.name}.golden")
                _copy_file(source, fresh)
                fresh.replace(original)
                restored.append(path)
        flush(self.root)
        return restored


def copy_to(source: Path, target: Path) -> None:
    """Copy a file or a directory with owners, modes and attributes; ``target`` is the old or the new one, never half of it.

    A power cut between the two renames leaves the old one as ``.NAME.golden-old``; the copy is then repeated.
    """
    fresh, old = (target.with_name(f".{target.name}.golden-{state}") for state in ("new", "old"))
    _remove(fresh)
    # Only this file system: another one below it is kept by its own entry or not at all.
    core.run(["cp", "--archive", "--one-file-system", "--no-target-directory", source, fresh], timeout=COPY_SECONDS)
    flush(fresh.parent)
    if target.exists():
        _remove(old)
        target.replace(old)
    fresh.replace(target)
    flush(target.parent)
    _remove(old)


def flush(path: Path) -> None:
    """Write the whole file system of a path to its disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if library.syncfs(descriptor) != 0:
            raise core.Problem(f"{path}: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _merge(source: Path, target: Path) -> None:
    """Copy the files of ``source`` that ``target`` does not have."""
    for path in sorted(source.rglob("*")):
        copy = target / path.relative_to(source)
        if path.is_dir() and not path.is_symlink():
            if not copy.exists():
                copy.mkdir()
                _own(copy, path.lstat())
        elif not copy.exists():
            copy_to(path, copy)


def _copy_file(source: Path, target: Path) -> None:
    """Write a copy of a small file, flushed, with its mode and owner."""
    content, status = source.read_bytes(), source.stat()
    target.unlink(missing_ok=True)
    with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    _own(target, status)


def _own(path: Path, status: os.stat_result) -> None:
    if (path.lstat().st_uid, path.lstat().st_gid) != (status.st_uid, status.st_gid):
        os.chown(path, status.st_uid, status.st_gid)
    path.chmod(stat.S_IMODE(status.st_mode))


def _facts(path: Path) -> tuple[bytes, int, int, int]:
    status = path.stat()
    return path.read_bytes(), stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid


def _size(path: Path) -> int:
    """Return the bytes that a tree occupies."""
    if not path.is_dir():
        return 0
    return sum(entry.lstat().st_blocks * 512 for entry in path.rglob("*") if not entry.is_dir() or entry.is_symlink())


def owners() -> dict[str, dict[str, int]]:
    """Return the users and groups of this system by name."""
    return {
        "users": {user.pw_name: user.pw_uid for user in pwd.getpwall()},
        "groups": {group.gr_name: group.gr_gid for group in grp.getgrall()},
    }


def changes(old: Mapping[str, Mapping[str, int]], new: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """Return the ids of users and groups that have another number now, old to new; keys are text, as JSON writes them."""
    return {
        kind: {str(number): new[kind][name] for name, number in old.get(kind, {}).items()
               if name in new[kind] and new[kind][name] != number}
        for kind in ("users", "groups")
    }  # fmt: skip


def chown(trees: Sequence[Path], step: Callable[[str, int], int]) -> None:
    """Give everything in the trees the ids that ``step`` returns for kind ("users", "groups") and id; modes are kept."""
    for tree in trees:
        for path in (tree, *tree.rglob("*")):
            status = path.lstat()
            uid, gid = step("users", status.st_uid), step("groups", status.st_gid)
            if (uid, gid) != (status.st_uid, status.st_gid):
                os.chown(path, uid, gid, follow_symlinks=False)
                if not stat.S_ISLNK(status.st_mode):
                    # chown(2) clears set-user-ID and set-group-ID, which directories of uploads and sockets have.
                    path.chmod(stat.S_IMODE(status.st_mode))


def shift(mapping: Mapping[str, Mapping[str, int]]) -> Callable[[str, int], int]:
    """Return the first step of a change of ids: to the new one plus BETWEEN. Repeating it changes nothing more."""
    return lambda kind, number: mapping[kind][str(number)] + BETWEEN if str(number) in mapping[kind] else number


def settle(_kind: str, number: int) -> int:
    """Return the second step: the ids above BETWEEN become their final ids."""
    return number - BETWEEN if number >= BETWEEN else number
