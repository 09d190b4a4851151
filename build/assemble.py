"""Puts the artifact together: the manifest from what the stages noted, the files from where they left them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from build import __version__, artifact, audit_ledger, compare, files, host, inventory, rootfs, vm
from build.artifact import Artifact
from build.cache import Cache, StageKey, StageResult
from build.desk import Desk
from build.errors import StepFailed
from build.inputs import STAGES, Inputs

DISK_LOGS = ("console.log", "syslog.log", "packer.log")


def assemble(
    inputs: Inputs, keys: Mapping[str, StageKey], cache: Cache, *, made: Mapping[str, StageResult], changes: tuple[str, ...]
) -> Artifact:
    """Commit the artifact of verified stages.

    ``made`` are the stages that ran just now, ``changes`` how the locks differ from the committed ones. Raises
    StepFailed when a stage's result is not in the cache.
    """
    results = {stage: found for stage in STAGES if (found := made.get(stage) or cache.lookup(keys[stage]))}
    for stage in ("rootfs", "disk", "verify"):
        if stage not in results:
            raise StepFailed(f"stage {stage} vanished from the cache", hint="run the build again")
    image = results["disk"].path / artifact.IMAGE
    manifest = _manifest(inputs, keys, results, image, changes)
    contents: dict[str, Path | str] = {
        artifact.IMAGE: image,
        "rootfs.files.tsv": results["rootfs"].path / rootfs.MANIFEST,
        "rootfs.lock": inputs.rootfs_lock.render("The packages of this image."),
        "installer.lock": inputs.installer_lock.render("The installer of this image."),
        "verification/junit.xml": results["verify"].path / "junit.xml",
        inventory.FILE: results["verify"].path / inventory.FILE,
        inventory.PLOT: results["verify"].path / inventory.PLOT,
        **_logs(results),
    }
    side = compare.side_of_parts(manifest, contents)
    contents["verification/report.html"] = Desk(inputs.project, cache.root).report(side, inputs.rootfs_lock)
    return artifact.commit(inputs.project.artifacts, contents=contents, manifest=manifest)


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
            "spec": inputs.spec.as_inputs(),
            "layers": {layer.name: files.digest([node.as_input() for node in layer.nodes]) for layer in inputs.stack.layers},
            "squashfs_sha256": results["rootfs"].facts["squashfs_sha256"],
            "rootfs_tar_sha256": results["rootfs"].facts["tar_sha256"],
        },
        "packages": inputs.rootfs_lock.versions(),
        "installer": inputs.installer_lock.versions(),
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
