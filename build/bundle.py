"""Application bundles: an application's directory and its locked wheels in one deterministic archive, for golden-deploy.

The same directory and the same lock give the same bytes. The receiver (`golden-deploy`) believes nothing but the hash
that is printed here.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path

from build import files, log, wheels
from build.errors import SpecError

FORMAT = 1
MANIFEST, LOCK, CODE, WHEELS = "manifest.json", "requirements.lock", "code", "wheels"
ENTRY = "manage.py"
# Hidden files and what Python leaves behind are not the application.
LEFT_OUT = re.compile(r"\.|__pycache__$|.*\.pyc$")
NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")


def make(directory: Path, target: Path, *, cache: Path) -> str:
    """Write the bundle of the application in ``directory``; return its SHA-256.

    Raises SpecError when the directory is not one that can be deployed, StepFailed when a wheel cannot be fetched.
    """
    lock = directory / LOCK
    for needed in (directory / ENTRY, lock):
        if not needed.is_file():
            raise SpecError(f"{needed} is missing", hint=f"an application has {ENTRY} and a {LOCK} with hashes beside it")
    name = re.sub(r"[^a-z0-9.-]+", "-", directory.resolve().name.lower())
    if not NAME.fullmatch(name):
        raise SpecError(f"{name!r} is no name for an application", hint="letters, digits, dots and dashes")
    _check_lock(lock)
    content = {f"{CODE}/{path}": source for path, source in _application(directory).items()}
    content |= {f"{WHEELS}/{path.name}": path for path in sorted(wheels.fetch(lock, cache=cache).glob("*.whl"))}
    content[LOCK] = lock
    facts = {path: {"bytes": source.stat().st_size, "sha256": files.sha256_file(source)} for path, source in content.items()}
    manifest = json.dumps({"format": FORMAT, "name": name, "files": facts}, indent=1, sort_keys=True).encode()
    with log.step(f"Packing {len(content)} files of {name}"):
        _write(target, manifest, content)
    return files.sha256_file(target)


def _check_lock(lock: Path) -> None:
    """Raise SpecError for a requirement that has no hash: pip would say so, but only on the clone."""
    joined = lock.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in joined.splitlines():
        text = line.partition("#")[0].strip()
        if text and "--hash=sha256:" not in text:
            raise SpecError(f"{lock}: {text!r} has no hash", hint="pip-compile --generate-hashes, or: nox -s lock -- wheels")


def _application(directory: Path) -> dict[str, Path]:
    """Return the application's files by their path below ``directory``."""
    found: dict[str, Path] = {}
    for path in sorted(directory.rglob("*")):
        inside = path.relative_to(directory)
        if any(LEFT_OUT.match(part) for part in inside.parts):
            continue
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise SpecError(f"{path} is neither a file nor a directory", hint="put the file itself there, or remove it")
        if path.is_file() and inside.as_posix() != LOCK:
            found[inside.as_posix()] = path
    return found


def _write(target: Path, manifest: bytes, content: Mapping[str, Path]) -> None:
    fresh = target.with_name(f".{target.name}.new")
    with fresh.open("wb") as stream, tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        _add(archive, MANIFEST, manifest)
        for path in sorted(content):
            _add(archive, path, content[path].read_bytes())
    fresh.replace(target)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o644
    archive.addfile(info, io.BytesIO(content))
