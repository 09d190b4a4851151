"""Provenance of an image: an in-toto Statement v1 with SLSA Provenance v1, computed from the files of the artifact.

Formats: https://in-toto.io/Statement/v1 and https://slsa.dev/spec/v1.0/provenance; the keys are those that Packer's own
``provenance`` post-processor writes (externalParameters, internalParameters with packerVersion, resolvedDependencies of uri
and digest, builder with versions, byproducts by name), so that the same tools read both. It is a pure function of the
manifest, the locks and the files' digests: verification computes it again and compares.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from build.artifact import artifact
from build.artifact.manifest import BuildInputs, Manifest, Run, Wheels
from build.artifact.sbom import NAMESPACE, Part
from build.core import records
from build.machines import disk_image

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
# Identifies the structure that this module writes; a change of the structure needs a new number.
BUILD_TYPE = "goldsmith:buildtypes/image/v1"
LOCAL_BUILDER = "goldsmith:local-build"
# The variables in which CI systems identify the running job; Packer reads the same ones.
BUILDER_VARIABLES = ("GITHUB_WORKFLOW_REF", "CI_JOB_URL", "CI_PIPELINE_URL", "BUILD_URL")
INVOCATION_VARIABLES = ("GITHUB_RUN_ID", "CI_PIPELINE_ID", "CI_JOB_ID", "BUILD_ID")


def run_of(environment: Mapping[str, str], *, key: str, started: str, finished: str, remote: str) -> Run:
    """Return the manifest's record of a run: builder, invocation, times, and the remote of the checkout."""
    builder = next((environment[name] for name in BUILDER_VARIABLES if environment.get(name)), LOCAL_BUILDER)
    invocation = next((environment[name] for name in INVOCATION_VARIABLES if environment.get(name)), "")
    return Run(builder, invocation or str(uuid.uuid5(NAMESPACE, f"{key} {started}")), started, finished, remote)


def statement(manifest: Manifest, digests: Mapping[str, str], parts: Iterable[Part]) -> dict[str, Any]:
    """Return the statement; ``digests``: SHA-256 of the artifact's other files by their path in it.

    Raises ValueError when the manifest has an older schema, without the run and the wheels.
    """
    inputs, built = manifest.inputs, manifest.built
    if built is None or manifest.wheels is None:
        raise ValueError(f"a manifest of schema {manifest.schema} has no run and no wheels")
    versions = {"goldsmith": manifest.goldsmith, "packer": manifest.tools.get("packer", "")}
    definition = {
        "buildType": BUILD_TYPE,
        "externalParameters": {"spec": inputs.spec, "layers": inputs.layers},
        "internalParameters": {
            "packerVersion": versions["packer"], "tools": manifest.tools, "accelerator": records.write(manifest.accelerator),
            "stageKeys": inputs.stage_keys,
        },
        "resolvedDependencies": [*_checkout(inputs, built), *_locks(manifest.wheels, digests), *_files(parts)],
    }  # fmt: skip
    details = {
        "builder": {"id": built.builder, "version": versions},
        "metadata": {
            "invocationId": built.invocation, "startedOn": built.started, "finishedOn": built.finished,
        },
        "byproducts": [{"name": name, "digest": {"sha256": digest}} for name, digest in _byproducts(manifest, digests)],
    }  # fmt: skip
    return {
        "_type": STATEMENT, "predicateType": PREDICATE,
        "subject": [{"name": disk_image.IMAGE, "digest": {"sha256": manifest.image.sha256}}],
        "predicate": {"buildDefinition": definition, "runDetails": details},
    }  # fmt: skip


def _checkout(inputs: BuildInputs, built: Run) -> Iterator[dict[str, Any]]:
    if inputs.commit:
        dependency = {"name": "checkout", "digest": {"gitCommit": inputs.commit}, "annotations": {"dirty": inputs.dirty}}
        yield {"uri": f"git+{built.remote}", **dependency} if built.remote else dependency


def _locks(wheels: Mapping[str, Wheels], digests: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    for name in (
        artifact.ROOTFS_LOCK,
        artifact.INSTALLER_LOCK,
        *sorted(environment.lock for environment in wheels.values()),
    ):
        yield {"name": name, "uri": f"goldsmith:artifact/{name}", "digest": {"sha256": digests[name]}}


def _files(parts: Iterable[Part]) -> Iterator[dict[str, Any]]:
    seen = set()
    for part in sorted(parts):
        for digest in part.hashes:
            if (part.purl, digest) not in seen:
                seen.add((part.purl, digest))
                yield {"uri": part.purl, "digest": {"sha256": digest}}


def _byproducts(manifest: Manifest, digests: Mapping[str, str]) -> Iterator[tuple[str, str | None]]:
    """Yield the intermediate files between the inputs and the disk, in order, and the files that describe them."""
    yield "rootfs.tar", manifest.inputs.rootfs_tar_sha256
    yield "filesystem.squashfs", manifest.inputs.squashfs_sha256
    if iso := stage_fact(manifest, "media", "iso_sha256"):
        yield "installer.iso", iso
    for name in (artifact.INPUTS, artifact.TREE, artifact.JUNIT, artifact.CYCLONEDX, artifact.SPDX):
        yield name, digests[name]


def stage_fact(manifest: Manifest, stage: str, name: str) -> str:
    """Return a fact of a stage; empty when its record was no longer in the cache when the artifact was assembled."""
    record = manifest.stage(stage)
    return str(record.facts.get(name, "")) if record else ""


def differences(expected: Any, actual: Any, where: str = "") -> Iterator[str]:
    """Yield the paths at which two JSON values differ, the innermost ones."""
    if isinstance(expected, Mapping) and isinstance(actual, Mapping):
        for key in sorted(expected.keys() | actual.keys()):
            inner = f"{where}.{key}" if where else str(key)
            if key in expected and key in actual:
                yield from differences(expected[key], actual[key], inner)
            else:
                yield inner
    elif isinstance(expected, list) and isinstance(actual, list) and len(expected) == len(actual):
        for number, (left, right) in enumerate(zip(expected, actual, strict=True)):
            yield from differences(left, right, f"{where}[{number}]")
    elif expected != actual or type(expected) is not type(actual):
        yield where
