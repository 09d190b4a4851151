"""What a build takes, gathered once and frozen; and the key of every stage, computed from it.

The keys are a pure function of the inputs, so the plan is known before anything is built. Each stage names exactly what
shapes its result; tools that only watch or report are left out.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from typing import Any

from build.core import files, records
from build.core.cache import StageKey, stage_key
from build.core.git import Checkout
from build.core.project import Project
from build.packages.apt import Mirrors
from build.packages.lock import Lock
from build.spec import audit_ledger, expected_yaml, layers
from build.spec.golden_yaml import Spec
from build.spec.layers import Stack

STAGES = ("base", "rootfs", "media", "disk", "verify", "artifact")
# Whose files a stage reads. The artifact also lists what the root file system contains.
NEEDS = {
    "base": (), "rootfs": ("base",), "media": ("rootfs",), "disk": ("media",), "verify": ("disk",),
    "artifact": ("rootfs", "disk", "verify"),
}  # fmt: skip

# The modules that a stage runs: with all that they import they are an input of it. The container's tests are started as a
# separate program, and the report is rendered by a function that the pipeline passes.
ENTRIES = {
    "base": ("rootfs/base",), "rootfs": ("rootfs/rootfs",), "media": ("media/iso_image",), "disk": ("disk/installation",),
    "verify": ("verify/verify", "verify/container"), "artifact": ("artifact/assemble", "report/context"),
}  # fmt: skip


@dataclass(frozen=True)
class Inputs:
    """Everything that shapes an image."""

    project: Project
    spec: Spec
    stack: Stack
    mirrors: Mirrors
    rootfs_lock: Lock
    installer_lock: Lock
    # Recorded in the manifest, and in no key: the same files are the same image, whichever commit they are in.
    checkout: Checkout = field(default=Checkout())


def lock_input(lock: Lock) -> dict[str, Any]:
    """Return what identifies a locked set: its date, and each file's hash. Artifacts are verified by it, years later."""
    return {"date": lock.date, **{entry.package: f"{entry.version} {entry.sha256[:16]}" for entry in lock.entries}}


def stage_keys(inputs: Inputs) -> dict[str, StageKey]:
    """Return the chained key of every stage, in order."""
    own = {
        "base": _base(inputs), "rootfs": _rootfs(inputs), "media": _media(inputs), "disk": _disk(inputs),
        "verify": _verify(inputs), "artifact": _artifact(inputs),
    }  # fmt: skip
    keys: dict[str, StageKey] = {}
    previous = None
    for stage in STAGES:
        previous = keys[stage] = stage_key(stage, own[stage], previous)
    return keys


def _base(inputs: Inputs) -> dict[str, Any]:
    return {
        "packages": lock_input(inputs.rootfs_lock),
        "requested": list(layers.requested_packages(inputs.spec, inputs.stack)),
        "dpkg options": list(inputs.stack.dpkg_options()),
        "early files": [node.as_input() for node in inputs.stack.early],
        "code": inputs.project.code(*ENTRIES["base"]),
    }


def _rootfs(inputs: Inputs) -> dict[str, Any]:
    stack = inputs.stack.as_inputs()
    nodes = {str(node.path): files.digest(node.as_input())[:16] for node in inputs.stack.nodes}
    return {
        "overlays": nodes,
        "absent": stack["absent"],
        "commands": stack["commands"],
        "wheels": stack["venvs"],
        "hostname": inputs.spec.hostname,
        # The snapshot archive only brings files, which their hashes name.
        "mirrors": [inputs.mirrors.debian, inputs.mirrors.security],
        "code": inputs.project.code(*ENTRIES["rootfs"]),
    }


def _media(inputs: Inputs) -> dict[str, Any]:
    return {
        "installer": lock_input(inputs.installer_lock),
        "preseed": inputs.project.tree(inputs.project.preseed, leave_out=("installer.lock", "README")),
        "spec": {"disk": asdict(inputs.spec.disk), "name": inputs.spec.name, "version": inputs.spec.version},
        "code": inputs.project.code(*ENTRIES["media"]),
    }


def _disk(inputs: Inputs) -> dict[str, Any]:
    return {
        "size_mib": inputs.spec.disk.size_mib,
        "packer": inputs.project.tree(inputs.project.packer, leave_out=("tools/", "proxmox/", "README")),
        "code": inputs.project.code(*ENTRIES["disk"]),
    }


def _verify(inputs: Inputs) -> dict[str, Any]:
    return {
        "spec": files.digest(inputs.spec.as_inputs())[:16],
        "tests": inputs.project.tree(inputs.project.image_tests),
        "expected": {
            layer.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16]
            for layer in inputs.stack.layers
            if (path := layer.directory / expected_yaml.NAME).is_file()
        },
        "code": inputs.project.code(*ENTRIES["verify"]),
    }


def _artifact(inputs: Inputs) -> dict[str, Any]:
    return {
        "name": inputs.spec.name,
        "version": inputs.spec.version,
        "audit": {name: records.write(entry) for name, entry in audit_ledger.load(inputs.project.audit_ledger).items()},
        "code": inputs.project.code(*ENTRIES["artifact"]),
    }
