"""Assembles the artifact: the manifest from the facts that the stages recorded, and the files from their results.

The SBOMs and the provenance are also made here, from the locks, the manifest and the root file system.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from build import __version__
from build.artifact import artifact, licences, provenance, sbom
from build.artifact.artifact import Artifact
from build.artifact.contents import Side, side_of_parts
from build.artifact.manifest import (
    SCHEMA,
    AuditFigure,
    BuildInputs,
    Image,
    Manifest,
    Retries,
    StageRecord,
    Verification,
    Wheels,
)
from build.artifact.sbom import Bill, Kind, Part
from build.core import files, host, records
from build.core.cache import Cache, StageKey, StageResult
from build.core.errors import StepFailed
from build.core.units import stamp_of
from build.disk.installation import DiskFacts
from build.machines import disk_image, vm
from build.packages import source_packages, wheel_lock
from build.packages.apt import Store
from build.packages.updates import PendingUpdates
from build.rootfs import rootfs
from build.rootfs.rootfs import RootfsFacts
from build.spec import audit_ledger
from build.spec.inputs import STAGES, Inputs
from build.verify import inventory
from build.verify.verify import VerifyFacts

DISK_LOGS = ("console.log", "syslog.log", "packer.log")


def assemble(
    inputs: Inputs, keys: Mapping[str, StageKey], cache: Cache, *, made: Mapping[str, StageResult], changes: tuple[str, ...],
    updates: PendingUpdates, render_report: Callable[[Side], str], begun: float = 0.0,
) -> Artifact:  # fmt: skip
    """Commit the artifact of verified stages.

    ``made`` has the results of the stages that just ran, ``changes`` the differences between the locks and the committed
    ones, ``updates`` the pending updates (:mod:`build.packages.updates`), ``begun`` the start of the run in seconds since
    1970 (0: now); ``render_report`` renders the HTML report. Raises StepFailed when a stage's result is not in the cache.
    """
    results = {stage: result for stage in STAGES if (result := made.get(stage) or cache.lookup(keys[stage]))}
    for stage in ("rootfs", "disk", "verify"):
        if stage not in results:
            raise StepFailed(f"the result of stage {stage} is no longer in the cache", hint="run the build again")
    image = results["disk"].path / disk_image.IMAGE
    origins = source_packages.origins(inputs.rootfs_lock.entries, Store(cache.root / "files").path)
    now = time.time()
    run = provenance.run_of(
        os.environ, key=keys["artifact"].key, started=stamp_of(begun or now), finished=stamp_of(now),
        remote=inputs.checkout.remote,
    )  # fmt: skip
    manifest = dataclasses.replace(
        _manifest(inputs, keys, results, image, changes), built=run, sources=origins, updates=updates
    )
    contents: dict[str, Path | str] = {
        disk_image.IMAGE: image,
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
    contents["verification/report.html"] = render_report(side_of_parts(manifest, contents))
    squashfs = results["rootfs"].path / rootfs.SQUASHFS
    parts = _parts(inputs, squashfs, scratch=cache.root / "origins")
    contents |= documents(manifest, contents, parts)
    return artifact.commit(inputs.project.artifacts, contents=contents, manifest=manifest)


def documents(manifest: Manifest, contents: Mapping[str, Path | str], parts: tuple[Part, ...]) -> dict[str, Path | str]:
    """Return the SBOMs and the provenance of an artifact with these contents."""
    bill = Bill(
        manifest.name, manifest.version, manifest.image.sha256, manifest.inputs.archive_date, manifest.goldsmith or "",
        parts,
    )  # fmt: skip
    bills = {artifact.CYCLONEDX: _json(sbom.cyclonedx(bill)), artifact.SPDX: _json(sbom.spdx(bill))}
    # The image's digest is known, and the image is large: it is not read again.
    digests = {name: _digest(source) for name, source in {**contents, **bills}.items() if name != disk_image.IMAGE}
    return {**bills, artifact.PROVENANCE: _json(provenance.statement(manifest, digests, parts))}


def _json(value: object) -> str:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _digest(source: Path | str) -> str:
    return hashlib.sha256(source.encode()).hexdigest() if isinstance(source, str) else files.sha256_file(source)


def _parts(inputs: Inputs, squashfs: Path, *, scratch: Path) -> tuple[Part, ...]:
    debian, python = licences.read(squashfs, [venv.path for venv in inputs.stack.venvs], scratch=scratch)
    parts = sbom.debs(inputs.rootfs_lock, Kind.DEB, debian) + sbom.debs(inputs.installer_lock, Kind.UDEB)
    for venv in inputs.stack.venvs:
        parts += sbom.wheels(venv.path, wheel_lock.parse(venv.requirements), python[venv.path])
    return tuple(parts)


def _wheel_locks(inputs: Inputs) -> dict[str, Path | str]:
    return {f"wheels/{venv.requirements.parent.name}/requirements.lock": venv.requirements for venv in inputs.stack.venvs}


def _wheels(inputs: Inputs) -> dict[str, Wheels]:
    """Return the Python environments by the layer that installs them."""
    return {
        venv.requirements.parent.name: Wheels(
            venv.path, f"wheels/{venv.requirements.parent.name}/requirements.lock",
            {pin.name: pin.version for pin in wheel_lock.parse(venv.requirements)},
        )
        for venv in inputs.stack.venvs
    }  # fmt: skip


def _manifest(
    inputs: Inputs, keys: Mapping[str, StageKey], results: Mapping[str, StageResult], image: Path, changes: tuple[str, ...]
) -> Manifest:
    root = results["rootfs"].facts_as(RootfsFacts)
    disk, verified = results["disk"].facts_as(DiskFacts), results["verify"].facts_as(VerifyFacts)
    return Manifest(
        schema=SCHEMA,
        name=inputs.spec.name,
        version=inputs.spec.version,
        goldsmith=__version__,
        image=Image(
            files.sha256_file(image), image.stat().st_size, vm.virtual_size_mib(image),
            file=disk_image.IMAGE, format="qcow2",
        ),
        inputs=BuildInputs(
            artifact_key=keys["artifact"].key,
            stage_keys={stage: key.key for stage, key in keys.items()},
            archive_date=inputs.rootfs_lock.date,
            lock_changes=changes,
            commit=inputs.checkout.commit,
            dirty=inputs.checkout.dirty,
            spec=inputs.spec.as_inputs(),
            layers={layer.name: files.digest([node.as_input() for node in layer.nodes]) for layer in inputs.stack.layers},
            squashfs_sha256=root.squashfs_sha256,
            rootfs_tar_sha256=root.tar_sha256,
        ),
        packages=inputs.rootfs_lock.versions(),
        installer=inputs.installer_lock.versions(),
        wheels=_wheels(inputs),
        tools={"packer": disk.packer, **_tool_versions()},
        accelerator=disk.accelerator,
        stages=tuple(
            StageRecord(stage, result.seconds, result.reused, _plain(result.facts), key=result.key)
            for stage, result in results.items()
        ),
        verification=Verification(
            verified.passed, verified.failed, verified.skipped, verified.clones, verified.boot
        ),
        audit={
            name: AuditFigure(entry.value, entry.shown, entry.limit)
            for name, entry in audit_ledger.load(inputs.project.audit_ledger).items()
        },
        retries=Retries(disk.retries, verified.panics),
    )  # fmt: skip


def _tool_versions() -> dict[str, str]:
    return {tool.probe: version for tool in host.needed() if (version := host.version(tool))}


def _plain(facts: Any) -> dict[str, Any]:
    plain = records.write(facts) if dataclasses.is_dataclass(facts) else facts
    return {name: value for name, value in plain.items() if name != "accelerator"}


def _logs(results: Mapping[str, StageResult]) -> dict[str, Path | str]:
    """Return the logs of the stages by their names in the artifact."""
    logs: dict[str, Path | str] = {
        f"logs/installer-{name}": path for name in DISK_LOGS if (path := results["disk"].path / name).is_file()
    }
    clones = results["verify"].path / "logs"
    logs |= {f"logs/clone-{path.name}": path for path in sorted(clones.glob("*.log"))}
    tests = results["verify"].path / "pytest.log"
    return logs | ({"logs/tests.log": tests} if tests.is_file() else {})
