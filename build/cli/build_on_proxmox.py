"""``build --on proxmox``: builds the installer ISO here, and runs the installer on a node of the cluster."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from build.cli import cluster
from build.cli import options as common
from build.core import files
from build.core.errors import SpecError
from build.core.project import Project
from build.disk.packer import Packer
from build.packages import lock as locks
from build.pipeline import build
from build.proxmox import client
from build.publish import node_install, node_packer, node_verify
from build.spec import golden_yaml as specs
from build.spec.cluster import Role, Settings


def run(arguments: argparse.Namespace) -> int:
    """Install on a node of golden.yaml (its first one unless one is named), and print the template."""
    chosen = replace(common.build_of(arguments), fresh=arguments.fresh)
    project, cache = chosen.project, chosen.cache
    cluster.settings_of(specs.load(project.spec))
    medium, spec = build.build_media(chosen)
    settings = cluster.settings_of(spec)
    if len(arguments.node) > 1:
        raise SpecError("a build runs on one node", hint="give --node once; for another node, run the build again")
    packer = node_packer.locate(tools=project.packer / "tools", cache=cache.root / "packer", chosen=chosen.packer)
    with ExitStack() as stack:
        publisher, verifier = cluster.publishing(stack, cache, settings, arguments.secrets)
        job = installation(
            project, spec, settings, medium=medium, node=cluster.nodes_of(settings, arguments.node)[0],
            tokens={Role.PUBLISHER: publisher, Role.VERIFIER: verifier}, packer=packer, scratch=cache.root / "clones",
            logs=cache.root / "logs" / "build-on-proxmox", seconds=arguments.install_minutes * 60,
        )  # fmt: skip
        template = node_install.build(job)
    print(f"{template.node}/{template.vmid} {template.name}")
    return 0


def installation(
    project: Project, spec: specs.Spec, settings: Settings, *, medium: Path, node: str, tokens: Mapping[Role, client.Api],
    packer: Packer, scratch: Path, logs: Path, seconds: int,
) -> node_install.Job:  # fmt: skip
    """Return a build on a node, which two clones test there; ``seconds``: how long the installer may take."""
    judge = node_verify.NodeVerifier(
        api=tokens[Role.VERIFIER], settings=settings, tests=project.image_tests, scratch=scratch, logs=logs,
        spec=spec.as_inputs(), disk_mib=spec.disk.size_mib,
    )  # fmt: skip
    packages = frozenset(entry.package for entry in locks.parse(project.rootfs_lock).entries)
    return node_install.Job(
        medium=node_install.Medium(medium, files.sha256_file(medium)), packages=packages, spec=spec, settings=settings,
        node=node, api=tokens[Role.PUBLISHER], tokens=tokens, verifier=judge.verify, packer=packer,
        templates=project.packer, logs=logs, seconds=seconds,
    )  # fmt: skip
