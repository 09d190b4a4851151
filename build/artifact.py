"""The artifact: an immutable directory, named by its content, that holds the image and everything known about it.

::

    artifacts/<name>-<version>-<first 12 hex digits of the image's SHA-256>/
        image.qcow2            the sealed disk, never booted
        manifest.json          schema, inputs, digests, packages, tools, accelerator, timings, retries
        rootfs.files.tsv       every path of the root file system: mode, owner, size, SHA-256
        inventory.json         what a clone of it is: units, sockets, rights, kernel settings, users (build/inventory.py)
        boot.svg               systemd-analyze's plot of that clone's boot
        rootfs.lock            the package set that was installed; installer.lock beside it
        verification/          junit.xml, report.html
        logs/                  installer console and syslog, clone consoles, test output
        SHA256SUMS             of every other file

It is made under a hidden name, made read-only, flushed, and renamed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from build import files, log
from build.errors import SpecError, StepFailed

SCHEMA = 1
DIGEST_HEX = 12
IMAGE = "image.qcow2"
MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"
REQUIRED = ("schema", "name", "version", "image", "inputs", "packages", "installer", "tools", "accelerator", "stages",
            "verification", "retries")  # fmt: skip


@dataclass(frozen=True)
class Artifact:
    """A committed artifact directory and its manifest."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def image(self) -> Path:
        return self.path / IMAGE


def name_of(name: str, version: str, image_sha256: str) -> str:
    """Return the directory name of an artifact."""
    return f"{name}-{version}-{image_sha256[:DIGEST_HEX]}"


def commit(root: Path, *, contents: Mapping[str, Path | str], manifest: Mapping[str, Any]) -> Artifact:
    """Write an artifact from its parts (path in the artifact -> file or text) and give it its name.

    The same image committed again is found, checked, and returned. Raises StepFailed when the name is taken by another
    image, or when what is there is damaged.
    """
    _require_keys(manifest, MANIFEST)
    final = root / name_of(manifest["name"], manifest["version"], manifest["image"]["sha256"])
    with files.lock(root / ".commit.lock", waiting="another build is committing its artifact: waiting for it"):
        if final.exists():
            return _same(final, manifest["image"]["sha256"])
        with files.scratch(root) as hidden:
            _write(hidden, contents, manifest)
            make_read_only(hidden)
            files.commit_directory(hidden, final)
    return load(final)


def _same(path: Path, image_sha256: str) -> Artifact:
    found = load(path)
    if found.manifest["image"]["sha256"] != image_sha256:
        raise StepFailed(f"{path} exists and holds another image", hint="raise the version in golden.yaml")
    problems = check(path)
    if problems:
        raise StepFailed(f"{path} is damaged", details="\n".join(problems), hint="remove it, and build again")
    return found


def _write(directory: Path, contents: Mapping[str, Path | str], manifest: Mapping[str, Any]) -> None:
    for name, source in contents.items():
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source, str):
            target.write_text(source, encoding="utf-8")
        else:
            shutil.copyfile(source, target)
    files.write_json(directory / MANIFEST, manifest)
    (directory / SUMS).write_text(sums(directory))


def sums(directory: Path) -> str:
    """Return the text of SHA256SUMS, as `sha256sum --check` reads it."""
    lines = []
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_file() and name != SUMS:
            lines.append(f"{files.sha256_file(path)}  {name}\n")
    return "".join(lines)


def make_read_only(directory: Path) -> None:
    """Take the right to write from every file and directory of the artifact."""
    for path in [*directory.rglob("*"), directory]:
        path.chmod(0o555 if path.is_dir() else 0o444)


def load(path: Path) -> Artifact:
    """Open an artifact; raise SpecError when it is no artifact of a known schema."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise SpecError(f"{path} is no artifact: {error}", hint="build one: nox -s build") from error
    _require_keys(manifest, str(path / MANIFEST))
    return Artifact(path, manifest)


def _require_keys(manifest: Mapping[str, Any], where: str) -> None:
    missing = [key for key in REQUIRED if not isinstance(manifest, dict) or key not in manifest]
    if missing or manifest["schema"] != SCHEMA:
        raise SpecError(
            f"{where} is no manifest of schema {SCHEMA}", details=f"missing: {', '.join(missing)}" if missing else "",
            hint="it was written by another version of Goldsmith, or damaged: build anew",
        )  # fmt: skip


def check(path: Path) -> list[str]:
    """Compare every file with SHA256SUMS; return what is wrong, one problem a line (empty when nothing is)."""
    if not (path / SUMS).is_file():
        return [f"{SUMS}: missing"]
    problems = []
    recorded = set()
    for line in (path / SUMS).read_text(encoding="utf-8").splitlines():
        checksum, _, name = line.partition("  ")
        recorded.add(name)
        file = path / name
        if not file.is_file():
            problems.append(f"{name}: missing")
        elif files.sha256_file(file) != checksum:
            problems.append(f"{name}: changed")
    present = {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()}
    problems += [f"{name}: not listed in {SUMS}" for name in sorted(present - recorded - {SUMS})]
    return problems


def committed(root: Path) -> list[Path]:
    """Return the artifact directories below ``root``, the oldest first."""
    found = [path for path in root.glob("*-*-*") if (path / MANIFEST).is_file() and not path.name.startswith(".")]
    return sorted(found, key=lambda path: path.stat().st_mtime)


def find(root: Path, key: str) -> Artifact | None:
    """Return the committed artifact that was built from the inputs with this key, or None."""
    for path in committed(root):
        try:
            found = load(path)
        except SpecError as error:
            log.warn(f"{error.brief}; it is passed over")
            continue
        if found.manifest["inputs"].get("artifact_key") == key:
            return found
    return None


def newest(root: Path) -> Artifact:
    """Return the artifact that was committed last; raise SpecError when there is none."""
    found = committed(root)
    if not found:
        raise SpecError(f"there is no artifact in {root}", hint="build one: nox -s build")
    return load(found[-1])
