"""Checks that an artifact is complete and consistent, without network access and without keys.

Each check has one result; a failed check does not stop the next one. Data that follows from other files is computed again
and compared: the stage keys from their inputs, the provenance from the manifest, the SBOMs from the locks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from build.artifact import artifact, provenance, sbom
from build.artifact.artifact import Artifact
from build.artifact.manifest import SCHEMA
from build.artifact.sbom import Kind, Part
from build.core import files, json_text
from build.core.cache import stage_key
from build.core.errors import GoldsmithError
from build.machines import disk_image
from build.packages import lock as locks
from build.packages import wheel_lock
from build.packages.lock import Lock
from build.packages.wheel_lock import Pin
from build.spec import inputs

SHOWN = 12
HEX = re.compile(r"[0-9a-f]{64}")
# Exceptions that reading a damaged or edited file may raise.
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, ElementTree.ParseError, GoldsmithError)


@dataclass(frozen=True)
class Check:
    """The result of one check: its problems (none: it passed), or that it was not run (``checked`` is False)."""

    name: str
    note: str
    problems: tuple[str, ...] = ()
    checked: bool = True

    @property
    def status(self) -> str:
        """The result as shown to the user."""
        return "FAILED" if self.problems else "ok" if self.checked else "not checked"

    def render(self) -> str:
        """Return the check for a terminal; each problem is on a separate line."""
        shown = [f"{'':13}{problem}" for problem in self.problems[:SHOWN]]
        more = [f"{'':13}and {len(self.problems) - SHOWN} more"] if len(self.problems) > SHOWN else []
        return "\n".join([f"{self.status:<12} {self.name}: {self.note}", *shown, *more])


class ArtifactFiles:
    """The files of the artifact to check: each is read once."""

    def __init__(self, found: Artifact) -> None:
        self.path, self.manifest = found.path, found.manifest

    @cached_property
    def digests(self) -> Mapping[str, str]:
        return artifact.digests(self.path)

    def json(self, name: str) -> Any:
        return json_text.parse((self.path / name).read_text(encoding="utf-8"))

    @cached_property
    def rootfs_lock(self) -> Lock:
        return locks.parse(self.path / artifact.ROOTFS_LOCK)

    @cached_property
    def installer_lock(self) -> Lock:
        return locks.parse(self.path / artifact.INSTALLER_LOCK)

    @cached_property
    def wheels(self) -> dict[str, tuple[Pin, ...]]:
        """The pins of each Python environment by its path in the image."""
        return {
            environment.venv: wheel_lock.parse(self.path / environment.lock)
            for environment in (self.manifest.wheels or {}).values()
        }

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The parts of the image according to the locks."""
        parts = sbom.debs(self.rootfs_lock, Kind.DEB) + sbom.debs(self.installer_lock, Kind.UDEB)
        return tuple(parts + [part for venv, pins in self.wheels.items() for part in sbom.wheels(venv, pins)])


def examine(found: Artifact) -> list[Check]:
    """Return the result of every check that needs no key."""
    if found.manifest.schema != SCHEMA:
        note = f"Goldsmith {found.manifest.goldsmith or ''} wrote it, without provenance: build the artifact again"
        return [Check("manifest", note, (f"schema {found.manifest.schema}, not {SCHEMA}",))]
    contents = ArtifactFiles(found)
    return [_run(contents, name, note, check) for name, (note, check) in CHECKS.items()]


def _run(contents: ArtifactFiles, name: str, note: str, check: Callable[[ArtifactFiles], Iterator[str]]) -> Check:
    try:
        problems = tuple(check(contents))
    except DAMAGE as error:
        brief = error.brief if isinstance(error, GoldsmithError) else f"{type(error).__name__}: {error}"
        problems = (f"cannot be read: {brief}",)
    return Check(name, note, problems)


def _same(what: str, expected: object, actual: object) -> Iterator[str]:
    if expected != actual:
        yield f"{what}: expected {expected!r}, got {actual!r}"


def _files(contents: ArtifactFiles) -> Iterator[str]:
    yield from artifact.check(contents.path, contents.digests)


def _manifest(contents: ArtifactFiles) -> Iterator[str]:
    """Check the fields that this schema requires, and that older manifests lack; the reader has checked the types."""
    manifest, recorded = contents.manifest, contents.manifest.inputs
    shapes: dict[str, bool] = {
        "image.sha256": bool(HEX.fullmatch(manifest.image.sha256)),
        "inputs.commit": recorded.commit is not None and bool(re.fullmatch(r"([0-9a-f]{40})?", recorded.commit)),
        "inputs.dirty": recorded.dirty is not None, "inputs.spec": recorded.spec is not None,
        "inputs.layers": recorded.layers is not None, "inputs.stage_keys": recorded.stage_keys is not None,
        "inputs.artifact_key": recorded.artifact_key is not None,
        "inputs.squashfs_sha256": bool(HEX.fullmatch(recorded.squashfs_sha256 or "")),
        "inputs.rootfs_tar_sha256": bool(HEX.fullmatch(recorded.rootfs_tar_sha256 or "")),
    }  # fmt: skip
    yield from (f"{key}: not valid in schema {SCHEMA}" for key, good in shapes.items() if not good)
    spec = recorded.spec or {}
    yield from _same("inputs.spec.name", spec["name"], manifest.name)
    yield from _same("inputs.spec.version", spec["version"], manifest.version)


def _name(contents: ArtifactFiles) -> Iterator[str]:
    expected = artifact.name_of(contents.manifest.name, contents.manifest.version, contents.manifest.image.sha256)
    yield from _same("the directory's name", expected, contents.path.name)


def _image(contents: ArtifactFiles) -> Iterator[str]:
    image = contents.manifest.image
    yield from _same("SHA-256", image.sha256, contents.digests.get(disk_image.IMAGE, "no image"))
    yield from _same("bytes", image.bytes, (contents.path / disk_image.IMAGE).stat().st_size)


def _locks(contents: ArtifactFiles) -> Iterator[str]:
    for key, lock, listed in (
        ("packages", contents.rootfs_lock, contents.manifest.packages),
        ("installer", contents.installer_lock, contents.manifest.installer),
    ):  # fmt: skip
        for name in provenance.differences(lock.versions(), listed):
            yield f"{key}.{name}: the lock and the manifest differ"
    yield from _same("the date of rootfs.lock", contents.manifest.inputs.archive_date, contents.rootfs_lock.date)
    for layer, environment in (contents.manifest.wheels or {}).items():
        pins = {pin.name: pin.version for pin in contents.wheels[environment.venv]}
        for name in provenance.differences(pins, environment.packages):
            yield f"wheels.{layer}.{name}: the lock and the manifest differ"


def _sboms(contents: ArtifactFiles) -> Iterator[str]:
    expected = sorted(part.key for part in contents.parts)
    cyclonedx, spdx = contents.json(artifact.CYCLONEDX), contents.json(artifact.SPDX)
    yield from _same("the format of CycloneDX", ("CycloneDX", "1.6"), (cyclonedx["bomFormat"], cyclonedx["specVersion"]))
    yield from _same("the format of SPDX", "SPDX-2.3", spdx["spdxVersion"])
    for name, listed in ((artifact.CYCLONEDX, sbom.of_cyclonedx(cyclonedx)), (artifact.SPDX, sbom.of_spdx(spdx))):
        for key in sorted(set(expected) - set(listed)):
            yield f"{name}: {key[0]} {key[1]} {key[2]} of the lock is missing, or has another hash"
        for key in sorted(set(listed) - set(expected)):
            yield f"{name}: {key[0]} {key[1]} {key[2]} is not in a lock, or has another hash there"
        if len(listed) != len(set(listed)):
            yield f"{name}: a part is listed twice"
    component, image = cyclonedx["metadata"]["component"], spdx["packages"][0]
    expected_image = (contents.manifest.name, contents.manifest.version, contents.manifest.image.sha256)
    yield from _same(f"{artifact.CYCLONEDX}: the image", expected_image,
                     (component["name"], component["version"], component["hashes"][0]["content"]))  # fmt: skip
    yield from _same(f"{artifact.SPDX}: the image", expected_image,
                     (image["name"], image["versionInfo"], image["checksums"][0]["checksumValue"]))  # fmt: skip


def _provenance(contents: ArtifactFiles) -> Iterator[str]:
    expected = provenance.statement(contents.manifest, contents.digests, contents.parts)
    for path in provenance.differences(json_text.parse(json.dumps(expected)), contents.json(artifact.PROVENANCE)):
        yield f"{path or 'the document'}: differs from manifest, locks and files"


def _chain(contents: ArtifactFiles) -> Iterator[str]:
    """Check from the spec to the disk that each stage's key is the hash of its inputs and of the previous key."""
    recorded, declared = contents.manifest.inputs, contents.json(artifact.INPUTS)
    keys = recorded.stage_keys or {}
    previous = None
    for stage in inputs.STAGES:
        own = dict(declared[stage])
        yield from _same(f"{stage}: the previous key", previous.key if previous else "", own.pop("previous"))
        previous = stage_key(stage, own, previous)
        yield from _same(f"{stage}: its key", keys[stage], previous.key)
    yield from _same("artifact_key", recorded.artifact_key, keys["artifact"])
    for stage_record in contents.manifest.stages:
        yield from _same(
            f"{stage_record.stage}: the key of the result that was used", keys[stage_record.stage], stage_record.key
        )
    wheels = sorted(
        [environment.venv, contents.digests[environment.lock]] for environment in (contents.manifest.wheels or {}).values()
    )
    manifest = contents.manifest
    facts = {
        "base: packages": (declared["base"]["packages"], inputs.lock_input(contents.rootfs_lock)),
        "rootfs: wheels": (sorted(declared["rootfs"]["wheels"]), wheels),
        "media: installer": (declared["media"]["installer"], inputs.lock_input(contents.installer_lock)),
        "media: version": (declared["media"]["spec"]["version"], manifest.version),
        "verify: spec": (declared["verify"]["spec"], files.digest(recorded.spec)[:16]),
        "artifact: version": (declared["artifact"]["version"], manifest.version),
        "rootfs: squashfs": (recorded.squashfs_sha256, provenance.stage_fact(manifest, "rootfs", "squashfs_sha256")),
        "rootfs: tar": (recorded.rootfs_tar_sha256, provenance.stage_fact(manifest, "rootfs", "tar_sha256")),
        "rootfs: paths": (provenance.stage_fact(manifest, "rootfs", "paths"), str(_paths(contents.path))),
    }  # fmt: skip
    for what, (declared_value, actual) in facts.items():
        if declared_value != actual:
            yield f"{what}: the declared input and the artifact differ"


def _paths(path: Path) -> int:
    lines = (path / artifact.TREE).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    return sum(not line.startswith("#") for line in lines)


def _tests(contents: ArtifactFiles) -> Iterator[str]:
    cases = list(ElementTree.parse(contents.path / artifact.JUNIT).getroot().iter("testcase"))
    failed = sum(test.find("failure") is not None or test.find("error") is not None for test in cases)
    skipped = sum(test.find("skipped") is not None for test in cases)
    passed, counts = len(cases) - failed - skipped, contents.manifest.verification
    yield from _same("passed", counts.passed, passed)
    yield from _same("failed", counts.failed, failed)
    yield from _same("skipped", counts.skipped, skipped)
    if failed or not passed:
        yield "the image was not verified: tests failed, or none passed"


CHECKS: Mapping[str, tuple[str, Callable[[ArtifactFiles], Iterator[str]]]] = {
    "files": ("SHA256SUMS matches every file, and there are no other files", _files),
    "manifest": ("it has the fields that its schema requires", _manifest),
    "name": ("the directory's name consists of name, version and digest", _name),
    "image": ("the disk is the one in the manifest", _image),
    "locks": ("packages, installer and wheels in the manifest are those of the locks", _locks),
    "bills": ("the SBOMs (CycloneDX and SPDX) list the packages of the locks, with the same hashes", _sboms),
    "provenance": ("it matches manifest, locks and files", _provenance),
    "chain": ("each stage's key, from the spec to the disk, matches its inputs", _chain),
    "tests": ("the results match the counts in the manifest, and no test failed", _tests),
}
