"""The real installer on the lab's node: Packer's proxmox-iso source, and what becomes of the machine afterwards.

The line is build/publish/node_install.py, as `nox -s build -- --on proxmox` runs it. It gets a Packer that the command line
refuses, because the one it asks for cannot be had where Goldsmith is made; two things stand in for plugin 1.2.4:

* its build block, without what an older plugin does not know (tests/packers.py), or that of Packer 1.6.6, with a password;
* Node, a lab that passes over the builder's order to make a template of the machine: 1.2.4 does not give it.
"""

from __future__ import annotations

import dataclasses
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from build.artifact import find
from build.cli import build_on_proxmox, cluster
from build.core import files
from build.core.errors import HostError
from build.core.project import Project
from build.disk import packer
from build.disk.packer import Packer
from build.pipeline.build import ISO
from build.proxmox import client, roles
from build.publish import node_install, publish
from build.spec import golden_yaml as specs
from build.spec.cluster import Role, Settings, Token
from tests import packers
from tests.fakes.proxmox import Proxmox
from tests.lab.cluster import Lab

UNFINISHED = "-build-"
PASSWORD_USER = "packer@pve"
# 1.6.6 knows no tokens. What it needs instead is in this file of the lab's own, which is gone with the lab.
WITH_PASSWORD = """#!/bin/sh
unset PROXMOX_TOKEN
PROXMOX_USERNAME={user} PROXMOX_PASSWORD={password} exec {packer} "$@"
"""


class Node(Lab):
    """A lab that does not convert the builder's VM; ``kept`` has the VMs that the builder wanted to make templates of."""

    def __init__(self, directory: Path, **options: Any) -> None:
        super().__init__(directory, **options)
        self.kept: set[int] = set()

    async def task(self, node: str, ttype: str, tid: Any, user: str, body: Any, vm: Any = None, **options: Any) -> Any:
        """Start a task; of a machine that is not finished no template is made."""
        if ttype == "qmtemplate" and vm is not None and UNFINISHED in vm.name:

            async def pass_over() -> None:
                self.kept.add(vm.vmid)

            return await super().task(node, ttype, tid, user, pass_over, **options)
        return await super().task(node, ttype, tid, user, body, vm=vm, **options)


@dataclass(frozen=True)
class Equipment:
    """A Packer that can build on the lab's node, and the templates for it."""

    packer: Packer
    templates: Path

    @property
    def serial_ports(self) -> bool:
        """Whether its builder gives the machine serial ports, which the installer talks to."""
        return self.packer.version >= packer.FIRST_WITHOUT_BUILDERS


def newest_medium(cache: Path) -> Path:
    """Return the newest installation medium of the cache."""
    return find.newest_result(cache, "media") / ISO


def find_packer(chosen: str) -> Packer:
    """Return the chosen Packer, else the compiled one with its plugin, else one with the builder inside (Debian 12's).

    Raises HostError with the way to get one.
    """
    if not chosen and (compiled := packers.with_proxmox()):
        return compiled
    for path in [Path(chosen)] if chosen else [one.path for one in packers.packers()]:
        version, plugins = packer.packer_version(path), packers.proxmox_plugins()
        if version < packer.FIRST_WITHOUT_BUILDERS:
            return Packer(path, version)
        if plugins:
            return Packer(path, version, plugins)
    raise HostError("no Packer here has a proxmox-iso builder", hint=packers.GET_CURRENT)


def equip(found: Packer, lab: Proxmox, settings: Settings, place: Path) -> Equipment:
    """Prepare the Packer's templates below ``place``, and a user where it knows no tokens, with a publisher's rights."""
    templates = place / "packer"
    shutil.copytree(packers.TEMPLATES, templates, ignore=shutil.ignore_patterns("tools"))
    if found.version >= packer.FIRST_WITHOUT_BUILDERS:
        packers.for_the_locked_plugin(templates / "proxmox" / "plugin")
        return Equipment(found, templates)
    password = lab.users[PASSWORD_USER] = secrets.token_hex(16)
    for grant in roles.grants(Role.PUBLISHER, settings, major=lab.version_numbers[0]):
        lab.grant(PASSWORD_USER, grant.path, *grant.privileges)
    # It makes the disk before the machine, which is in no pool then.
    lab.grant(PASSWORD_USER, "/vms", "VM.Config.Disk")
    wrapper = place / "packer-with-password"
    text = WITH_PASSWORD.format(user=PASSWORD_USER, password=password, packer=found.path)
    files.write_atomic(wrapper, text, mode=0o700)
    return Equipment(Packer(wrapper, found.version), templates)


def install(
    project: Project, equipment: Equipment, medium: Path, *, tokens: Mapping[Role, Token], scratch: Path, logs: Path,
    seconds: int, tests: Sequence[str] = (),
) -> publish.Template:  # fmt: skip
    """Install on the node and return the candidate template; with ``tests`` two clones are tested with them before."""
    spec = specs.load(project.spec)
    settings = cluster.settings_of(spec)
    with client.Api(settings, tokens[Role.PUBLISHER]) as publisher, client.Api(settings, tokens[Role.VERIFIER]) as verifier:
        job = build_on_proxmox.installation(
            project, spec, settings, medium=medium, node=settings.nodes[0], packer=equipment.packer, scratch=scratch,
            logs=logs, tokens={Role.PUBLISHER: publisher, Role.VERIFIER: verifier}, seconds=seconds,
        )  # fmt: skip
        return node_install.build(
            dataclasses.replace(job, templates=equipment.templates, verifier=job.verifier if tests else _unjudged)
        )


def _unjudged(_subject: publish.Subject) -> None:
    """Leave the judging to the operator's clone."""
