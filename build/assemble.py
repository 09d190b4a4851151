"""Puts the artifact together: the manifest from what the stages noted, the files from where they left them.

The bills of materials and the provenance are made here too, from the locks, the manifest and the root file system itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from build import (
    __version__,
    artifact,
    audit_ledger,
    base,
    compare,
    files,
    host,
    inventory,
    lock,
    origins,
    provenance,
    rootfs,
    sbom,
    sources,
    updates,
    vm,
    wheel_lock,
)  # fmt: skip
from build.apt import Store
from build.artifact import Artifact
from build.cache import Cache, StageKey, StageResult
from build.desk import Desk
from build.errors import StepFailed
from build.inputs import STAGES, Inputs
from build.sbom import Bill, Kind, Part

DISK_LOGS = ("console.log", "syslog.log", "packer.log")


def assemble(
    inputs: Inputs, keys: Mapping[str, StageKey], cache: Cache, *, made: Mapping[str, StageResult], changes: tuple[str, ...],
    begun: float = 0.0,
) -> Artifact:  # fmt: skip
    """Commit the artifact of verified stages.

    ``made`` are the stages that ran just now, ``changes`` how the locks differ from the committed ones, ``begun`` when the
    run began, in seconds since 1970 (0: just now). Raises StepFailed when a stage's result is not in the cache.
    """
    results = {stage: found for stage in STAGES if (found := made.get(stage) or cache.lookup(keys[stage]))}
    for stage in ("rootfs", "disk", "verify"):
        if stage not in results:
            raise StepFailed(f"stage {stage} vanished from the cache", hint="run the build again")
    image = results["disk"].path / artifact.IMAGE
    manifest = _manifest(inputs, keys, results, image, changes) | {
        "sources": sources.facts(sources.origins(inputs.rootfs_lock.entries, Store(cache.root / "files").path)),
        "updates": _updates(inputs, cache),
    }
    now = time.time()
    manifest["built"] = provenance.run_facts(
        os.environ, key=keys["artifact"].key, started=lock.iso(begun or now), finished=lock.iso(now),
        remote=inputs.checkout.remote,
    )  # fmt: skip
    contents: dict[str, Path | str] = {
        artifact.IMAGE: image,
        artifact.TREE: results["rootfs"].path / rootfs.MANIFEST,
        artifact.ROOTFS_LOCK: inputs.rootfs_lock.render("The packages of this image."),
        artifact.INSTALLER_LOCK: inputs.installer_lock.render("The installer of this image."),
        artifact.INPUTS: _json({stage: key.inputs for stage, key in keys.items()}),
        artifact.JUNIT: results["verify"].path / "junit.xml",
        inventory.FILE: results["verify"].path / inventory.FILE,
        inventory.PLOT: results["verify"].path / inventory.PLOT,
        **_wheel_locks(inputs),
        **_logs(results),
    }
    side = compare.side_of_parts(manifest, contents)
    contents["verification/report.html"] = Desk(inputs.project, cache.root).report(side, inputs.rootfs_lock)
    squashfs = results["rootfs"].path / rootfs.SQUASHFS
    parts = _parts(inputs, squashfs, scratch=cache.root / "origins")
    contents |= documents(manifest, contents, parts)
    return artifact.commit(inputs.project.artifacts, contents=contents, manifest=manifest)


def documents(
    manifest: Mapping[str, Any], contents: Mapping[str, Path | str], parts: tuple[Part, ...]
) -> dict[str, Path | str]:
    """Return the bills of materials and the provenance of an artifact of these contents."""
    bill = Bill(
        manifest["name"], manifest["version"], manifest["image"]["sha256"], manifest["inputs"]["archive_date"],
        manifest["goldsmith"], parts,
    )  # fmt: skip
    bills = {artifact.CYCLONEDX: _json(sbom.cyclonedx(bill)), artifact.SPDX: _json(sbom.spdx(bill))}
    # The image's digest is known, and it is large.
    digests = {name: _digest(one) for name, one in {**contents, **bills}.items() if name != artifact.IMAGE}
    return {**bills, artifact.PROVENANCE: _json(provenance.statement(manifest, digests, parts))}


def _json(value: object) -> str:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _digest(source: Path | str) -> str:
    return hashlib.sha256(source.encode()).hexdigest() if isinstance(source, str) else files.sha256_file(source)


def _parts(inputs: Inputs, squashfs: Path, *, scratch: Path) -> tuple[Part, ...]:
    debian, python = origins.read(squashfs, [venv.path for venv in inputs.stack.venvs], scratch=scratch)
    parts = sbom.debs(inputs.rootfs_lock, Kind.DEB, debian) + sbom.debs(inputs.installer_lock, Kind.UDEB)
    for venv in inputs.stack.venvs:
        parts += sbom.wheels(venv.path, wheel_lock.parse(venv.requirements), python[venv.path])
    return tuple(parts)


def _wheel_locks(inputs: Inputs) -> dict[str, Path | str]:
    return {f"wheels/{venv.requirements.parent.name}/requirements.lock": venv.requirements for venv in inputs.stack.venvs}


def _wheels(inputs: Inputs) -> dict[str, Any]:
    """Return the Python environments by the layer that lays them."""
    return {
        venv.requirements.parent.name: {
            "venv": venv.path, "lock": f"wheels/{venv.requirements.parent.name}/requirements.lock",
            "packages": {pin.name: pin.version for pin in wheel_lock.parse(venv.requirements)},
        }
        for venv in inputs.stack.venvs
    }  # fmt: skip


def _manifest(
    inputs: Inputs, keys: Mapping[str, StageKey], results: Mapping[str, StageResult], image: Path, changes: tuple[str, ...]
) -> dict[str, Any]:
    disk, verdict = results["disk"].facts, results["verify"].facts
    return {
        "schema": artifact.SCHEMA,
        "name": inputs.spec.name,
        "version": inputs.spec.version,
        "goldsmith": __version__,
        "image": {
            "file": artifact.IMAGE, "format": "qcow2", "sha256": files.sha256_file(image), "bytes": image.stat().st_size,
            "virtual_mib": vm.sealed_disk_size_mib(image),
        },
        "inputs": {
            "artifact_key": keys["artifact"].key,
            "stage_keys": {stage: key.key for stage, key in keys.items()},
            "archive_date": inputs.rootfs_lock.date,
            "lock_changes": list(changes),
            "commit": inputs.checkout.commit,
            "dirty": inputs.checkout.dirty,
            "spec": inputs.spec.as_inputs(),
            "layers": {layer.name: files.digest([node.as_input() for node in layer.nodes]) for layer in inputs.stack.layers},
            "squashfs_sha256": results["rootfs"].facts["squashfs_sha256"],
            "rootfs_tar_sha256": results["rootfs"].facts["tar_sha256"],
        },
        "packages": inputs.rootfs_lock.versions(),
        "installer": inputs.installer_lock.versions(),
        "wheels": _wheels(inputs),
        "tools": {"packer": disk["packer"], **_tool_versions()},
        "accelerator": disk["accelerator"],
        "stages": [
            {
                "stage": stage, "key": found.key, "seconds": found.seconds, "reused": found.reused,
                "facts": _plain(found.facts),
            }
            for stage, found in results.items()
        ],
        "verification": {key: verdict[key] for key in ("passed", "failed", "skipped", "boot", "clones")},
        "audit": {name: _figure(entry) for name, entry in audit_ledger.load(inputs.project.audit_ledger).items()},
        "retries": {"installer": disk["retries"], "clones": verdict["panics"]},
    }  # fmt: skip


def _updates(inputs: Inputs, cache: Cache) -> dict[str, Any]:
    spec, stack = inputs.spec, inputs.stack
    question = updates.Question(
        inputs.rootfs_lock, base.request_digest(spec, stack), base.requested_packages(spec, stack)
    )
    return updates.at_build(cache.root / "apt", inputs.mirrors, question, inputs.installer_lock)


def _figure(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: entry[name] for name in ("value", "shown", "limit")}


def _tool_versions() -> dict[str, str]:
    return {tool.probe: version for tool in host.needed() if (version := host.version(tool))}


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name != "accelerator"}


def _logs(results: Mapping[str, StageResult]) -> dict[str, Path | str]:
    """Return the logs that the stages kept, by their name in the artifact."""
    found: dict[str, Path | str] = {
        f"logs/installer-{name}": path for name in DISK_LOGS if (path := results["disk"].path / name).is_file()
    }
    clones = results["verify"].path / "logs"
    found |= {f"logs/clone-{path.name}": path for path in sorted(clones.glob("*.log"))}
    tests = results["verify"].path / "pytest.log"
    return found | ({"logs/tests.log": tests} if tests.is_file() else {})
