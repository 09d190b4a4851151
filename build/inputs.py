"""What a build takes, gathered once and frozen; and the key of every stage, computed from it.

The keys are a pure function of the inputs, so the plan is known before anything is built. Each stage names exactly what
shapes its result; tools that only watch or report are left out.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from build import audit_ledger, base, files
from build.apt import Mirrors
from build.cache import StageKey, stage_key
from build.checkout import Checkout
from build.layers import Stack
from build.lock import Lock
from build.project import Project
from build.spec import Spec

STAGES = ("base", "rootfs", "media", "disk", "verify", "artifact")
# Whose files a stage reads. The artifact also tells what the root file system holds.
NEEDS = {
    "base": (), "rootfs": ("base",), "media": ("rootfs",), "disk": ("media",), "verify": ("disk",),
    "artifact": ("rootfs", "disk", "verify"),
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
    # Told in the manifest, and in no key: the same files are the same image, whichever commit they are in.
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
        "requested": list(base.requested_packages(inputs.spec, inputs.stack)),
        "dpkg options": list(inputs.stack.dpkg_options()),
        "early files": [node.as_input() for node in inputs.stack.early],
        "code": inputs.project.code("base"),
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
        "code": inputs.project.code("rootfs", "layers"),
    }


def _media(inputs: Inputs) -> dict[str, Any]:
    return {
        "installer": lock_input(inputs.installer_lock),
        "preseed": inputs.project.tree(inputs.project.preseed, leave_out=("installer.lock", "README")),
        "spec": {"disk": asdict(inputs.spec.disk), "name": inputs.spec.name, "version": inputs.spec.version},
        "code": inputs.project.code("media", "identities", "preseed", "initrd", "cpio", "debs"),
    }


def _disk(inputs: Inputs) -> dict[str, Any]:
    return {
        "size_mib": inputs.spec.disk.size_mib,
        "packer": inputs.project.tree(inputs.project.packer, leave_out=("tools/", "proxmox/", "README")),
        "code": inputs.project.code("disk", "identities", "packer", "console"),
    }


def _verify(inputs: Inputs) -> dict[str, Any]:
    return {
        "spec": files.digest(inputs.spec.as_inputs())[:16],
        "tests": inputs.project.tree(inputs.project.image_tests),
        "planes": files.sha256_file(inputs.project.planes)[:16],
        "code": inputs.project.code(
            "verify", "image_tests", "stories", "container", "vm", "seed", "sealed", "stocktaking", "inventory", "boot_plot",
        ),
    }


def _artifact(inputs: Inputs) -> dict[str, Any]:
    return {
        "name": inputs.spec.name,
        "version": inputs.spec.version,
        "audit": audit_ledger.load(inputs.project.audit_ledger),
        "code": inputs.project.code(
            "artifact", "assemble", "report", "pages", "plots", "compare", "compare_text", "compare_page", "changelogs",
            "debian_changelog", "cases", "stored", "desk", "sbom", "origins", "provenance", "wheel_lock", "sources",
            "updates",
        ),
    }
