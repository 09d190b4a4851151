"""The artifact: an immutable directory, named by its content, that holds the image and everything known about it.

::

    artifacts/<name>-<version>-<first 12 hex digits of the image's SHA-256>/
        image.qcow2            the pristine disk, never booted
        manifest.json          schema, inputs, digests, packages, tools, accelerator, timings, retries
        rootfs.files.tsv       every path of the root file system: mode, owner, size, SHA-256
        inventory.json         what a clone has: units, sockets, rights, kernel settings, users (build/verify/inventory.py)
        boot.svg               systemd-analyze's plot of that clone's boot
        rootfs.lock            the package set that was installed; installer.lock beside it
        wheels/<layer>/        requirements.lock of each Python environment
        inputs.json            what each stage declared as its inputs: the stage keys are hashes of it
        sbom.cdx.json          every package and wheel, as CycloneDX; sbom.spdx.json the same as SPDX
        provenance.json        in-toto statement with SLSA provenance: from the commit and the locks to the disk
        verification/          junit.xml, report.html
        logs/                  installer console and syslog, consoles of the clones, test output
        SHA256SUMS             of every other file

It is written under a hidden name, made read-only, flushed, and renamed. Signatures are stored beside it, in
``<its name>.signatures/``: they are added later, by several signers.

Schema 1 had neither SBOMs nor provenance: such an artifact can be inspected and booted, but not published.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from build.artifact import manifest as manifests
from build.artifact.manifest import Manifest
from build.core import files, json_text, log
from build.core.errors import SpecError, StepFailed
from build.machines.disk_image import IMAGE

DIGEST_HEX = 12
MANIFEST = manifests.FILE
SUMS = "SHA256SUMS"
NAMED = re.compile(rf"(.+?)-[0-9]+\.[0-9]+\.[0-9]+(-[a-z0-9]+)?-[0-9a-f]{{{DIGEST_HEX}}}")
ROOTFS_LOCK, INSTALLER_LOCK, TREE, JUNIT = "rootfs.lock", "installer.lock", "rootfs.files.tsv", "verification/junit.xml"
CYCLONEDX, SPDX, PROVENANCE, INPUTS = "sbom.cdx.json", "sbom.spdx.json", "provenance.json", "inputs.json"


@dataclass(frozen=True)
class Artifact:
    """A committed artifact directory and its manifest."""

    path: Path
    manifest: Manifest

    @property
    def image(self) -> Path:
        return self.path / IMAGE


def name_of(name: str, version: str, image_sha256: str) -> str:
    """Return the directory name of an artifact."""
    return f"{name}-{version}-{image_sha256[:DIGEST_HEX]}"


def commit(root: Path, *, contents: Mapping[str, Path | str], manifest: Manifest) -> Artifact:
    """Write an artifact from its parts (path in the artifact -> file or text) and give it its name.

    If the same image is already committed, it is checked and returned. Raises StepFailed when the name is used by another
    image, or when the existing artifact is damaged.
    """
    # Check that the manifest can be read before it is committed.
    Manifest.read(manifest.as_json(), MANIFEST, schemas=(manifests.SCHEMA,))
    final = root / name_of(manifest.name, manifest.version, manifest.image.sha256)
    with files.lock(root / ".commit.lock", waiting="another build is committing its artifact: waiting for it"):
        if final.exists():
            return _same(final, manifest.image.sha256)
        with files.scratch(root) as hidden:
            _write(hidden, contents, manifest)
            make_read_only(hidden)
            files.commit_directory(hidden, final)
    return load(final)


def _same(path: Path, image_sha256: str) -> Artifact:
    existing = load(path)
    if existing.manifest.image.sha256 != image_sha256:
        raise StepFailed(f"{path} exists and holds another image", hint="raise the version in golden.yaml")
    problems = check(path)
    if problems:
        raise StepFailed(f"{path} is damaged", details="\n".join(problems), hint="remove it, and build again")
    return existing


def _write(directory: Path, contents: Mapping[str, Path | str], manifest: Manifest) -> None:
    for name, source in contents.items():
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source, str):
            target.write_text(source, encoding="utf-8")
        else:
            shutil.copyfile(source, target)
    files.write_json(directory / MANIFEST, manifest.as_json())
    (directory / SUMS).write_text(sums(directory))


def digests(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of an artifact by its path in it, SHA256SUMS left out."""
    checksums = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_file() and name != SUMS:
            checksums[name] = files.sha256_file(path)
    return checksums


def sums(directory: Path) -> str:
    """Return the text of SHA256SUMS, as `sha256sum --check` reads it."""
    return "".join(f"{digest}  {name}\n" for name, digest in digests(directory).items())


def make_read_only(directory: Path) -> None:
    """Remove write permission from every file and directory of the artifact."""
    for path in [*directory.rglob("*"), directory]:
        path.chmod(0o555 if path.is_dir() else 0o444)


def load(path: Path) -> Artifact:
    """Open an artifact; raise SpecError when the directory is not an artifact of a known schema."""
    try:
        content = json_text.parse((path / MANIFEST).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise SpecError(f"{path} is not an artifact: {error}", hint="build one: nox -s build") from error
    return Artifact(path, Manifest.read(content, str(path / MANIFEST)))


def check(path: Path, present: Mapping[str, str] | None = None) -> list[str]:
    """Compare every file with SHA256SUMS; return the problems, one per entry (empty when there are none).

    ``present``: the result of :func:`digests`, if the caller already has it.
    """
    if not (path / SUMS).is_file():
        return [f"{SUMS}: missing"]
    actual = digests(path) if present is None else present
    problems = [f"{entry.relative_to(path).as_posix()}: a link" for entry in sorted(path.rglob("*")) if entry.is_symlink()]
    recorded = set()
    for line in (path / SUMS).read_text(encoding="utf-8").splitlines():
        checksum, _, name = line.partition("  ")
        recorded.add(name)
        if name not in actual:
            problems.append(f"{name}: missing")
        elif actual[name] != checksum:
            problems.append(f"{name}: changed")
    return problems + [f"{name}: not listed in {SUMS}" for name in sorted(actual.keys() - recorded)]


def committed(root: Path) -> list[Path]:
    """Return the artifact directories below ``root``, the oldest first."""
    directories = [path for path in root.glob("*-*-*") if (path / MANIFEST).is_file() and not path.name.startswith(".")]
    return sorted(directories, key=lambda path: path.stat().st_mtime)


def everything(root: Path) -> Iterator[Artifact]:
    """Yield the artifacts below ``root``, the oldest first; a damaged one is skipped with a warning."""
    for path in committed(root):
        try:
            yield load(path)
        except SpecError as error:
            log.warn(f"{error.brief}; it is skipped")


def find(root: Path, key: str) -> Artifact | None:
    """Return the committed artifact that was built from the inputs with this key, or None."""
    return next((artifact for artifact in everything(root) if artifact.manifest.inputs.artifact_key == key), None)


def newest(root: Path, name: str = "") -> Artifact:
    """Return the artifact (of the image ``name``) that was committed last; raise SpecError when there is none."""
    directories = [path for path in committed(root) if not name or image_name(path) == name]
    if not directories:
        of_name = f" of {name}" if name else ""
        raise SpecError(f"there is no artifact{of_name} in {root}", hint="build one: nox -s build")
    return load(directories[-1])


def image_name(path: Path) -> str:
    """Return the name of the image in the directory name of an artifact."""
    # Versions and names may both contain hyphens: the version is the part that begins with a number and a dot.
    match = NAMED.fullmatch(path.name)
    return match[1] if match else ""
