"""Where an image comes from: an in-toto Statement v1 with SLSA Provenance v1, computed from what the artifact says itself.

Formats: https://in-toto.io/Statement/v1 and https://slsa.dev/spec/v1.0/provenance; the keys are those that Packer's own
``provenance`` post-processor writes (externalParameters, internalParameters with packerVersion, resolvedDependencies of uri
and digest, builder with versions, byproducts by name), so that what reads the one reads the other. It is a pure function of
the manifest, the locks and the files' digests: who verifies computes it again and compares.
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
# Of what is described here; another shape is another number.
BUILD_TYPE = "goldsmith:buildtypes/image/v1"
LOCAL_BUILDER = "goldsmith:local-build"
# The variables in which CI systems say which job runs, as Packer reads them.
BUILDER_VARIABLES = ("GITHUB_WORKFLOW_REF", "CI_JOB_URL", "CI_PIPELINE_URL", "BUILD_URL")
INVOCATION_VARIABLES = ("GITHUB_RUN_ID", "CI_PIPELINE_ID", "CI_JOB_ID", "BUILD_ID")


def run_of(environment: Mapping[str, str], *, key: str, started: str, finished: str, remote: str) -> Run:
    """Return what the manifest keeps of a run: who built, which run it was, when, and from where the checkout came."""
    builder = next((environment[name] for name in BUILDER_VARIABLES if environment.get(name)), LOCAL_BUILDER)
    invocation = next((environment[name] for name in INVOCATION_VARIABLES if environment.get(name)), "")
    return Run(builder, invocation or str(uuid.uuid5(NAMESPACE, f"{key} {started}")), started, finished, remote)


def statement(manifest: Manifest, digests: Mapping[str, str], parts: Iterable[Part]) -> dict[str, Any]:
    """Return the statement; ``digests``: SHA-256 of the artifact's other files by their path in it.

    Raises ValueError when the manifest is of a schema without what it is made from.
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
        "byproducts": [{"name": name, "digest": {"sha256": one}} for name, one in _byproducts(manifest, digests)],
    }  # fmt: skip
    return {
        "_type": STATEMENT, "predicateType": PREDICATE,
        "subject": [{"name": disk_image.IMAGE, "digest": {"sha256": manifest.image.sha256}}],
        "predicate": {"buildDefinition": definition, "runDetails": details},
    }  # fmt: skip


def _checkout(inputs: BuildInputs, built: Run) -> Iterator[dict[str, Any]]:
    if inputs.commit:
        found = {"name": "checkout", "digest": {"gitCommit": inputs.commit}, "annotations": {"dirty": inputs.dirty}}
        yield {"uri": f"git+{built.remote}", **found} if built.remote else found


def _locks(wheels: Mapping[str, Wheels], digests: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    for name in (artifact.ROOTFS_LOCK, artifact.INSTALLER_LOCK, *sorted(one.lock for one in wheels.values())):
        yield {"name": name, "uri": f"goldsmith:artifact/{name}", "digest": {"sha256": digests[name]}}


def _files(parts: Iterable[Part]) -> Iterator[dict[str, Any]]:
    seen = set()
    for part in sorted(parts):
        for one in part.hashes:
            if (part.purl, one) not in seen:
                seen.add((part.purl, one))
                yield {"uri": part.purl, "digest": {"sha256": one}}


def _byproducts(manifest: Manifest, digests: Mapping[str, str]) -> Iterator[tuple[str, str | None]]:
    """Yield what stands between the inputs and the disk, in order, and what was written about it."""
    yield "rootfs.tar", manifest.inputs.rootfs_tar_sha256
    yield "filesystem.squashfs", manifest.inputs.squashfs_sha256
    if iso := stage_fact(manifest, "media", "iso_sha256"):
        yield "installer.iso", iso
    for name in (artifact.INPUTS, artifact.TREE, artifact.JUNIT, artifact.CYCLONEDX, artifact.SPDX):
        yield name, digests[name]


def stage_fact(manifest: Manifest, stage: str, name: str) -> str:
    """Return what a stage noted; empty when its record had left the cache before the artifact was put together."""
    found = manifest.stage(stage)
    return str(found.facts.get(name, "")) if found else ""


def differences(expected: Any, found: Any, where: str = "") -> Iterator[str]:
    """Yield the paths at which two JSON values differ, the innermost ones."""
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        for key in sorted(expected.keys() | found.keys()):
            inner = f"{where}.{key}" if where else str(key)
            if key in expected and key in found:
                yield from differences(expected[key], found[key], inner)
            else:
                yield inner
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for number, (one, other) in enumerate(zip(expected, found, strict=True)):
            yield from differences(one, other, f"{where}[{number}]")
    elif expected != found or type(expected) is not type(found):
        yield where
