"""What an artifact proves about itself, without a network and without any key: whole, and free of contradiction.

Each check is one question with one answer; none stops the next. What the files say of each other is computed anew wherever
that is possible: the stage keys from their inputs, the provenance from the manifest, the bills from the locks.
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
# What a file that somebody edited may raise when it is read as what it should be.
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, ElementTree.ParseError, GoldsmithError)


@dataclass(frozen=True)
class Check:
    """The answer to one question: what is wrong (nothing: it holds), or why it was not asked."""

    name: str
    note: str
    problems: tuple[str, ...] = ()
    asked: bool = True

    @property
    def status(self) -> str:
        """One word for the line."""
        return "FAILED" if self.problems else "ok" if self.asked else "not checked"

    def render(self) -> str:
        """Return the check for a terminal; a failed one tells each problem on a line of its own."""
        shown = [f"{'':13}{one}" for one in self.problems[:SHOWN]]
        more = [f"{'':13}and {len(self.problems) - SHOWN} more"] if len(self.problems) > SHOWN else []
        return "\n".join([f"{self.status:<12} {self.name}: {self.note}", *shown, *more])


class Case:
    """An artifact under examination: each of its files is read once."""

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
        """The pins of each Python environment by the path that it has in the image."""
        return {one.venv: wheel_lock.parse(self.path / one.lock) for one in (self.manifest.wheels or {}).values()}

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """What the locks say that the image is made of."""
        parts = sbom.debs(self.rootfs_lock, Kind.DEB) + sbom.debs(self.installer_lock, Kind.UDEB)
        return tuple(parts + [part for venv, pins in self.wheels.items() for part in sbom.wheels(venv, pins)])


def examine(found: Artifact) -> list[Check]:
    """Return the answer to every question that needs no key."""
    if found.manifest.schema != SCHEMA:
        why = f"made by Goldsmith {found.manifest.goldsmith or ''} before there was provenance: build it again"
        return [Check("manifest", why, (f"schema {found.manifest.schema}, not {SCHEMA}",))]
    case = Case(found)
    return [_ask(case, name, note, question) for name, (note, question) in QUESTIONS.items()]


def _ask(case: Case, name: str, note: str, question: Callable[[Case], Iterator[str]]) -> Check:
    try:
        problems = tuple(question(case))
    except DAMAGE as error:
        brief = error.brief if isinstance(error, GoldsmithError) else f"{type(error).__name__}: {error}"
        problems = (f"cannot be read: {brief}",)
    return Check(name, note, problems)


def _same(what: str, said: object, found: object) -> Iterator[str]:
    if said != found:
        yield f"{what}: {said!r} is written, {found!r} is found"


def _files(case: Case) -> Iterator[str]:
    yield from artifact.check(case.path, case.digests)


def _manifest(case: Case) -> Iterator[str]:
    """Beyond the types, which the reader checks: what this schema requires, though older manifests lack it."""
    manifest, given = case.manifest, case.manifest.inputs
    shapes: dict[str, bool] = {
        "image.sha256": bool(HEX.fullmatch(manifest.image.sha256)),
        "inputs.commit": given.commit is not None and bool(re.fullmatch(r"([0-9a-f]{40})?", given.commit)),
        "inputs.dirty": given.dirty is not None, "inputs.spec": given.spec is not None,
        "inputs.layers": given.layers is not None, "inputs.stage_keys": given.stage_keys is not None,
        "inputs.artifact_key": given.artifact_key is not None,
        "inputs.squashfs_sha256": bool(HEX.fullmatch(given.squashfs_sha256 or "")),
        "inputs.rootfs_tar_sha256": bool(HEX.fullmatch(given.rootfs_tar_sha256 or "")),
    }  # fmt: skip
    yield from (f"{key}: not what the schema asks for" for key, good in shapes.items() if not good)
    spec = given.spec or {}
    yield from _same("inputs.spec.name", spec["name"], manifest.name)
    yield from _same("inputs.spec.version", spec["version"], manifest.version)


def _name(case: Case) -> Iterator[str]:
    expected = artifact.name_of(case.manifest.name, case.manifest.version, case.manifest.image.sha256)
    yield from _same("the directory's name", expected, case.path.name)


def _image(case: Case) -> Iterator[str]:
    image = case.manifest.image
    yield from _same("SHA-256", image.sha256, case.digests.get(disk_image.IMAGE, "no image"))
    yield from _same("bytes", image.bytes, (case.path / disk_image.IMAGE).stat().st_size)


def _locks(case: Case) -> Iterator[str]:
    for key, lock, listed in (
        ("packages", case.rootfs_lock, case.manifest.packages), ("installer", case.installer_lock, case.manifest.installer),
    ):  # fmt: skip
        for name in provenance.differences(lock.versions(), listed):
            yield f"{key}.{name}: the lock and the manifest differ"
    yield from _same("the date of rootfs.lock", case.manifest.inputs.archive_date, case.rootfs_lock.date)
    for layer, one in (case.manifest.wheels or {}).items():
        pins = {pin.name: pin.version for pin in case.wheels[one.venv]}
        for name in provenance.differences(pins, one.packages):
            yield f"wheels.{layer}.{name}: the lock and the manifest differ"


def _bills(case: Case) -> Iterator[str]:
    expected = sorted(part.key for part in case.parts)
    cyclonedx, spdx = case.json(artifact.CYCLONEDX), case.json(artifact.SPDX)
    yield from _same("the format of CycloneDX", ("CycloneDX", "1.6"), (cyclonedx["bomFormat"], cyclonedx["specVersion"]))
    yield from _same("the format of SPDX", "SPDX-2.3", spdx["spdxVersion"])
    for name, listed in ((artifact.CYCLONEDX, sbom.of_cyclonedx(cyclonedx)), (artifact.SPDX, sbom.of_spdx(spdx))):
        for one in sorted(set(expected) - set(listed)):
            yield f"{name}: {one[0]} {one[1]} {one[2]} of the lock is not there, or not with this hash"
        for one in sorted(set(listed) - set(expected)):
            yield f"{name}: {one[0]} {one[1]} {one[2]} is in no lock, or not with this hash"
        if len(listed) != len(set(listed)):
            yield f"{name}: something is listed twice"
    said, image = cyclonedx["metadata"]["component"], spdx["packages"][0]
    wanted = (case.manifest.name, case.manifest.version, case.manifest.image.sha256)
    yield from _same(f"{artifact.CYCLONEDX}: the image", wanted,
                     (said["name"], said["version"], said["hashes"][0]["content"]))  # fmt: skip
    yield from _same(f"{artifact.SPDX}: the image", wanted,
                     (image["name"], image["versionInfo"], image["checksums"][0]["checksumValue"]))  # fmt: skip


def _provenance(case: Case) -> Iterator[str]:
    expected = provenance.statement(case.manifest, case.digests, case.parts)
    for path in provenance.differences(json_text.parse(json.dumps(expected)), case.json(artifact.PROVENANCE)):
        yield f"{path or 'the document'}: not what manifest, locks and files say"


def _chain(case: Case) -> Iterator[str]:
    """From the spec to the disk: every stage's key is the hash of its inputs and of the key before it."""
    given, declared = case.manifest.inputs, case.json(artifact.INPUTS)
    keys = given.stage_keys or {}
    previous = None
    for stage in inputs.STAGES:
        own = dict(declared[stage])
        yield from _same(f"{stage}: the key before it", previous.key if previous else "", own.pop("previous"))
        previous = stage_key(stage, own, previous)
        yield from _same(f"{stage}: its key", keys[stage], previous.key)
    yield from _same("artifact_key", given.artifact_key, keys["artifact"])
    for one in case.manifest.stages:
        yield from _same(f"{one.stage}: the key of what was used", keys[one.stage], one.key)
    wheels = sorted([one.venv, case.digests[one.lock]] for one in (case.manifest.wheels or {}).values())
    facts = {
        "base: packages": (declared["base"]["packages"], inputs.lock_input(case.rootfs_lock)),
        "rootfs: wheels": (sorted(declared["rootfs"]["wheels"]), wheels),
        "media: installer": (declared["media"]["installer"], inputs.lock_input(case.installer_lock)),
        "media: version": (declared["media"]["spec"]["version"], case.manifest.version),
        "verify: spec": (declared["verify"]["spec"], files.digest(given.spec)[:16]),
        "artifact: version": (declared["artifact"]["version"], case.manifest.version),
        "rootfs: squashfs": (given.squashfs_sha256, provenance.stage_fact(case.manifest, "rootfs", "squashfs_sha256")),
        "rootfs: tar": (given.rootfs_tar_sha256, provenance.stage_fact(case.manifest, "rootfs", "tar_sha256")),
        "rootfs: paths": (provenance.stage_fact(case.manifest, "rootfs", "paths"), str(_paths(case.path))),
    }  # fmt: skip
    for what, (said, found) in facts.items():
        if said != found:
            yield f"{what}: the declared input and what lies here differ"


def _paths(path: Path) -> int:
    lines = (path / artifact.TREE).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    return sum(not line.startswith("#") for line in lines)


def _tests(case: Case) -> Iterator[str]:
    cases = list(ElementTree.parse(case.path / artifact.JUNIT).getroot().iter("testcase"))
    failed = sum(one.find("failure") is not None or one.find("error") is not None for one in cases)
    skipped = sum(one.find("skipped") is not None for one in cases)
    passed, verdict = len(cases) - failed - skipped, case.manifest.verification
    yield from _same("passed", verdict.passed, passed)
    yield from _same("failed", verdict.failed, failed)
    yield from _same("skipped", verdict.skipped, skipped)
    if failed or not passed:
        yield "it was not verified: tests failed, or none passed"


QUESTIONS: Mapping[str, tuple[str, Callable[[Case], Iterator[str]]]] = {
    "files": ("every file is as SHA256SUMS says, and nothing else is there", _files),
    "manifest": ("it has what its schema asks for", _manifest),
    "name": ("the directory is named by name, version and image", _name),
    "image": ("the disk is the one that the manifest names", _image),
    "locks": ("packages, installer and wheels of the manifest are those of the locks", _locks),
    "bills": ("CycloneDX and SPDX list what the locks list, with the same hashes", _bills),
    "provenance": ("it says what manifest, locks and files say", _provenance),
    "chain": ("from the spec to the disk each stage's key follows from its inputs", _chain),
    "tests": ("the results are those that the manifest counts, and none failed", _tests),
}
