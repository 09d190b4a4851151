"""Application bundles: an application's directory and its locked wheels in one reproducible archive, for golden-deploy.

The same directory and the same lock give the same bytes. Every problem that would stop the bundle on the clone is reported
here, all at once: files, names, lock, wheels, the contract (golden-app.yaml), the callable. The receiver (`golden-deploy`)
relies only on the hash that is printed here.
"""

from __future__ import annotations

import email.message
import email.parser
import io
import json
import os
import re
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from build.core import files, log
from build.core.errors import SpecError, StepFailed
from build.packages import app_contract, app_layout, ignore_list, wheel_lock, wheels
from build.packages.app_contract import AppContract
from build.packages.wheel_lock import GUEST_ENVIRONMENT, GUEST_PYTHON, Pin

FORMAT = 1
MANIFEST, LOCK, CODE, WHEELS = "manifest.json", "requirements.lock", "code", "wheels"
# The limits of golden-deploy (golden/bundle.py has the same; a test compares them). Lengths of names in bytes.
LONGEST_PART, LONGEST_NAME = 240, 1024
NEVER_TAKEN = r"\.(env(\..*)?|git|hg|svn|ssh|aws|gnupg|netrc|pgpass)"
LARGEST_FILE, LARGEST_BUNDLE, MOST_FILES = 512 << 20, 2 << 30, 50_000
# Without these the image cannot run an application.
NEEDED = ("django", "gunicorn")
# The packages of which Django's backend for PostgreSQL imports one.
DRIVERS = ("psycopg", "psycopg2", "psycopg2-binary")
# What psycopg uses of libpq is in one of them.
COMPILED_DRIVERS = ("psycopg-binary", "psycopg-c")
# pip-compile leaves them out by default.
UNSAFE = ("setuptools", "pip", "wheel", "distribute")
PROBLEMS_SHOWN = 100


@dataclass
class _Draft:
    """The content of a bundle, and its problems."""

    content: dict[str, Path]
    left_out: dict[str, str]
    problems: list[str]


def make(directory: Path, target: Path | None, *, cache: Path, wsgi: str = "") -> str:
    """Write the bundle of the application in ``directory``; return its SHA-256. Without a target it is only checked.

    ``wsgi`` is MODULE:CALLABLE as the image starts it, for an application that has no callable in the usual place and
    declares none; empty: it is not checked. Raises SpecError that names every problem of the directory and its lock,
    StepFailed when the package index lacks wheels or cannot be reached.
    """
    if not directory.is_dir():
        raise SpecError(f"{directory} is not a directory", hint="use the directory with the application's manage.py")
    draft, contract = _Draft({}, {}, []), app_contract.read(directory)
    _collect(directory, draft)
    draft.problems += contract.problems
    code = {path.removeprefix(f"{CODE}/"): source for path, source in draft.content.items()}
    draft.problems += app_layout.entry_problems(code, contract, wsgi)
    lock = directory / LOCK
    draft.problems += app_layout.entry_point_problems(directory)
    with tempfile.TemporaryDirectory(prefix="goldsmith-bundle-") as scratch:
        if lock.is_file():
            draft.content[LOCK] = _wheels(directory, draft, contract, cache=cache, scratch=Path(scratch))
        else:
            draft.problems.append(f"{LOCK} is missing: {app_layout.lock_remedy(directory)}")
        _check_sizes(draft)
        for path, pattern in sorted(draft.left_out.items()):
            log.info(f"left out: {path} ({pattern})")
        for notice in app_layout.notices(code):
            log.warn(notice)
        if draft.left_out:
            log.info(f"to leave out more, or to include a file with !PATTERN, write {ignore_list.NAME} in {directory}")
        if draft.problems:
            count = "1 problem" if len(draft.problems) == 1 else f"{len(draft.problems)} problems"
            raise SpecError(f"{directory} cannot be bundled: {count}", details="\n".join(draft.problems[:PROBLEMS_SHOWN]),
                            hint="correct them and run the command again; no bundle was written")  # fmt: skip
        return _pack(directory, draft, target) if target else ""


def _pack(directory: Path, draft: _Draft, target: Path) -> str:
    """Write the archive; return its SHA-256."""
    name = re.sub(r"[^a-z0-9.-]+", "-", directory.resolve().name.lower()).strip("-.")[:64] or "application"
    facts = {
        path: {"bytes": source.stat().st_size, "sha256": files.sha256_file(source)} for path, source in draft.content.items()
    }
    manifest = json.dumps({"format": FORMAT, "name": name, "files": facts}, indent=1, sort_keys=True).encode()
    with log.step(f"Packing {len(draft.content)} files of {name}"):
        _write(target, manifest, draft.content)
    return files.sha256_file(target)


# --- files ------------------------------------------------------------------------------------------------------------


def _collect(directory: Path, draft: _Draft) -> None:
    """Put the application's files into the draft: no file that the ignore list names, no environment, no own wheels."""
    patterns = ignore_list.load(directory)
    for top, names, plain in os.walk(directory):
        kept = []
        for name in sorted(names):
            path = Path(top, name)
            inside = path.relative_to(directory).as_posix()
            reason = _reason(path, inside, patterns)
            if reason:
                draft.left_out[f"{inside}/"] = reason
            elif path.is_symlink():
                draft.problems.append(f"{inside!r} is a link to a directory: put the directory there, or leave it out")
            elif inside != WHEELS:
                kept.append(name)
        names[:] = kept
        for name in sorted(plain):
            path = Path(top, name)
            inside = path.relative_to(directory).as_posix()
            if inside in (LOCK, ignore_list.NAME):
                continue
            if reason := ignore_list.reason(patterns, inside, directory=False):
                draft.left_out[inside] = reason
            elif problem := _problem(path, inside, directory):
                draft.problems.append(problem)
            else:
                draft.content[f"{CODE}/{inside}"] = path


def _reason(path: Path, inside: str, patterns: Sequence[ignore_list.Pattern]) -> str:
    """Return why a directory is left out; empty when it is not."""
    if (path / "pyvenv.cfg").is_file():
        return "a virtual environment"
    reason = ignore_list.reason(patterns, inside, directory=True)
    # Uploads have no such file: it is a package of the project.
    return "" if reason == ignore_list.MEDIA and (path / "__init__.py").is_file() else reason


def _problem(path: Path, inside: str, directory: Path) -> str:
    """Return why a file cannot be in a bundle; empty when it can."""
    name = f"{CODE}/{inside}"
    if not inside.isprintable() or "\\" in inside:
        return f"{inside!r}: file names must have only printable characters (UTF-8), and no backslash: rename it"
    if len(path.name.encode()) > LONGEST_PART or len(name.encode()) > LONGEST_NAME:
        return f"{inside!r}: the name is longer than {LONGEST_PART} bytes, or its path than {LONGEST_NAME}: shorten it"
    if any(re.fullmatch(NEVER_TAKEN, part) for part in inside.split("/")):
        return f"{inside!r}: secrets and repositories are never in a bundle: remove the pattern from {ignore_list.NAME}"
    return _content_problem(path, inside, directory)


def _content_problem(path: Path, inside: str, directory: Path) -> str:
    """Return why the file with this name cannot be in a bundle; empty when it can."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return f"{inside!r} cannot be read ({error.strerror}): correct or remove it"
    if not stat.S_ISREG(mode):
        return f"{inside!r} is neither a file nor a directory: remove it, or leave it out"
    if path.is_symlink() and not path.resolve().is_relative_to(directory.resolve()):
        return f"{inside!r} is a link to a file outside of the project: put the file itself there, or leave it out"
    return "" if os.access(path, os.R_OK) else f"{inside!r} cannot be read by this user: chmod u+r"


def _check_sizes(draft: _Draft) -> None:
    sizes = {path: source.stat().st_size for path, source in draft.content.items()}
    for path, size in sizes.items():
        if size > LARGEST_FILE:
            draft.problems.append(f"{path!r} has {size >> 20} MiB, and a file at most {LARGEST_FILE >> 20}: leave it out")
    if len(sizes) >= MOST_FILES:
        draft.problems.append(f"{len(sizes)} files, and a bundle has fewer than {MOST_FILES}: leave some out")
    if sum(sizes.values()) > LARGEST_BUNDLE:
        draft.problems.append(f"{sum(sizes.values()) >> 20} MiB, and a bundle has at most {LARGEST_BUNDLE >> 20}")


# --- wheels -----------------------------------------------------------------------------------------------------------


def _wheels(directory: Path, draft: _Draft, contract: AppContract, *, cache: Path, scratch: Path) -> Path:
    """Put the wheels into the draft; return the bundle's lock: only pins for the clone's Python, each with its hash.

    A wheel in ``wheels/`` of the project is taken for its line of the lock, whatever hash stands there.
    """
    lock = wheel_lock.read(directory / LOCK)
    draft.problems += [f"{LOCK}: {problem}" for problem in lock.problems]
    own = _own_wheels(directory / WHEELS, draft)
    pins: list[Pin] = []
    fetched: list[Pin] = []
    for pin in lock.pins:
        wheel = own.pop((pin.name, _version(pin.version)), None)
        if wheel is not None:
            pins.append(replace(pin, hashes=(files.sha256_file(wheel),)))
            draft.content[f"{WHEELS}/{wheel.name}"] = wheel
            continue
        if not pin.hashes:
            draft.problems.append(f"{LOCK}: {pin.name}=={pin.version} has no hash: {wheel_lock.REMEDY}")
        pins.append(pin)
        fetched.append(pin)
    for (name, version), wheel in own.items():
        draft.problems.append(f"{WHEELS}/{wheel.name}: the lock has no line {name}=={version}: add it, or remove the wheel")
    missing = [name for name in NEEDED if name not in {pin.name for pin in pins}]
    draft.problems += [f"{LOCK}: {name} is missing, but the image needs it: add it to your packages" for name in missing]
    draft.problems += [f"{LOCK}: {problem}" for problem in contract.missing_packages({pin.name for pin in pins})]
    if not any(pin.name in DRIVERS for pin in pins) and _names_postgresql(draft):
        draft.problems.append(f"{LOCK}: no driver for PostgreSQL, which the code uses: add psycopg[binary]")
    if {"psycopg"} == {pin.name for pin in pins} & {"psycopg", *DRIVERS, *COMPILED_DRIVERS}:
        draft.problems.append(f"{LOCK}: psycopg alone looks for a library that a clone does not open: add psycopg[binary]")
    travelling = _write_lock(scratch / LOCK, pins)
    if all(pin.hashes for pin in fetched) and not lock.problems:
        _fetch(_write_lock(scratch / "fetched.lock", fetched, lock.sources), directory / LOCK, draft, cache=cache)
        _check_dependencies(pins, draft)
    return travelling


def _names_postgresql(draft: _Draft) -> bool:
    """Return True if the code contains the name of Django's backend for PostgreSQL."""
    sources = (path for name, path in draft.content.items() if name.startswith(f"{CODE}/") and name.endswith(".py"))
    return any(b"django.db.backends.postgresql" in path.read_bytes() for path in sources)


def _write_lock(path: Path, pins: Sequence[Pin], sources: Sequence[str] = ()) -> Path:
    path.write_text("".join(f"{line}\n" for line in (*sources, *(pin.line() for pin in pins))), encoding="utf-8")
    return path


def _version(text: str) -> str:
    """Return a version in its usual form (PEP 440); the text itself when it has none."""
    try:
        return str(Version(text))
    except InvalidVersion:
        return text


def _own_wheels(directory: Path, draft: _Draft) -> dict[tuple[str, str], Path]:
    """Return the project's own wheels by name and version; those that the clone's Python cannot use are problems."""
    found: dict[tuple[str, str], Path] = {}
    for path in sorted(directory.glob("*")) if directory.is_dir() else ():
        try:
            name, version, _build, tags = parse_wheel_filename(path.name)
        except (InvalidWheelFilename, InvalidVersion):
            draft.problems.append(
                f"{WHEELS}/{path.name} does not have the name of a wheel: build it with pip wheel, or remove it"
            )
            continue
        if not tags & wheel_lock.guest_tags():
            draft.problems.append(
                f"{WHEELS}/{path.name} is not for CPython {GUEST_PYTHON} on x86_64 Linux: build it with that Python"
            )
        elif not zipfile.is_zipfile(path):
            draft.problems.append(f"{WHEELS}/{path.name} is damaged: build it again")
        else:
            found[wheel_lock.normal(name), str(version)] = path
    return found


def _fetch(lock: Path, shown: Path, draft: _Draft, *, cache: Path) -> None:
    """Fetch the other wheels; a failure is added to the other problems, or raised if there are none."""
    try:
        house = wheels.fetch(lock, cache=cache, shown=shown)
    except StepFailed as failure:
        if not draft.problems:
            raise
        draft.problems += [failure.brief, *(f"  {line}" for line in failure.details.splitlines()), f"  {failure.hint}"]
        return
    draft.content |= {f"{WHEELS}/{path.name}": path for path in sorted(house.glob("*.whl"))}


def _check_dependencies(pins: Sequence[Pin], draft: _Draft) -> None:
    """Report packages that the wheels need on the clone's Python and the lock lacks: it was made for another Python."""
    versions = {pin.name: pin.version for pin in pins}
    extras = {pin.name: pin.extras for pin in pins}
    for path, source in sorted(draft.content.items()):
        if not path.startswith(f"{WHEELS}/"):
            continue
        name, metadata = wheel_lock.normal(parse_wheel_filename(source.name)[0]), _metadata(source)
        if not _runs_here(metadata.get("Requires-Python", "")):
            draft.problems.append(f"{path}: it needs Python {metadata['Requires-Python']}, but the clone has {GUEST_PYTHON}")
        for needed in _needs(metadata, extras.get(name, ())):
            locked = versions.get(wheel_lock.normal(needed.name))
            if locked is None or not needed.specifier.contains(locked, prereleases=True):
                draft.problems.append(
                    f"{LOCK}: {name} needs {needed.name}{needed.specifier} on Python {GUEST_PYTHON}, but the lock "
                    + (f"has {locked}" if locked else "lacks it")
                    + f": {_lock_remedy(needed)}"
                )


def _lock_remedy(needed: Requirement) -> str:
    """Return how a lock gets a package that it lacks."""
    if wheel_lock.normal(needed.name) in UNSAFE:
        return "pip-compile leaves it out without --allow-unsafe"
    return f"write it for that Python (uv pip compile --python-version {GUEST_PYTHON} --generate-hashes)"


def _metadata(wheel: Path) -> email.message.Message:
    """Return the metadata of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        name = next((name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)), "")
        text = archive.read(name).decode(errors="replace") if name else ""
    return email.parser.Parser().parsestr(text, headersonly=True)


def _runs_here(needed: str) -> bool:
    try:
        return SpecifierSet(needed).contains(GUEST_ENVIRONMENT["python_full_version"])
    except InvalidSpecifier:  # pip accepts it too
        return True


def _needs(metadata: email.message.Message, extras: Sequence[str]) -> Iterator[Requirement]:
    """Return the packages that a wheel needs on the clone."""
    environments = [{**GUEST_ENVIRONMENT, "extra": extra} for extra in ("", *extras)]
    for line in metadata.get_all("Requires-Dist", []):
        try:
            needed = Requirement(line)
        except InvalidRequirement:
            continue
        if needed.marker is None or any(needed.marker.evaluate(environment) for environment in environments):
            yield needed


# --- archive ----------------------------------------------------------------------------------------------------------


def _write(target: Path, manifest: bytes, content: Mapping[str, Path]) -> None:
    """Write the archive: uncompressed; names over 100 bytes or with non-ASCII characters are in PAX records."""
    fresh = target.with_name(f".{target.name}.new")
    with fresh.open("wb") as stream, tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        _add(archive, MANIFEST, manifest)
        for path in sorted(content):
            _add(archive, path, content[path].read_bytes())
    fresh.replace(target)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o644
    archive.addfile(info, io.BytesIO(content))
