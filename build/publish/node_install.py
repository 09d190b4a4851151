"""Builds on a node of Proxmox VE: the installer runs there, and the result is verified and kept like a published image.

The installer ISO is the one of the pipeline. Packer creates the VM under a unique name; it gets the configuration of
every template, is tested with two clones, and becomes a protected candidate. On failure or interrupt, everything this
run created is removed (and nothing else). Its digest is that of the installer ISO: the disk was never a file.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from build.core import files, log, run
from build.core.errors import StepFailed
from build.core.units import stamp_now
from build.disk.installation import MEMORY_MIB
from build.disk.packer import Packer
from build.proxmox import guest_list, labels, preflight
from build.proxmox.client import Api
from build.proxmox.labels import Label, State
from build.proxmox.vms import Undo, VmIds, config_of, is_free, remove, take_away
from build.publish import heartbeat, node_packer, publish
from build.publish.publish import Outcome, Subject, Template, Verifier
from build.publish.template import CPU, Machine
from build.publish.upload import OverApi, Uploads
from build.spec.cluster import Role, Settings
from build.spec.golden_yaml import Spec

# The installer needs 300 MiB; the rest caches the installer ISO while it is copied. Packer's own work before and after
# the installation: to create a disk, to shut down, to remove a failed VM.
WORK_SECONDS = 1800.0
POLL_SECONDS = 0.5
OUTPUT = "packer.txt"


class Isos(OverApi):
    """Upload as content ``iso``."""

    content, suffix = "iso", ".iso"


@dataclass(frozen=True)
class Medium:
    """The installer ISO."""

    image: Path
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Job:
    """Parameters of an installation on a node.

    ``packages``: the names of those that it installs; ``seconds``: the time limit of the installation.
    """

    medium: Medium
    packages: Collection[str]
    spec: Spec
    settings: Settings
    node: str
    api: Api
    tokens: Mapping[Role, Api]
    verifier: Verifier
    packer: Packer
    templates: Path
    logs: Path
    seconds: int


def build(job: Job) -> Template:
    """Install on the node and return the template; an existing template of the same installer ISO is left unchanged.

    Raises SpecError if the name is taken, HostError if the cluster is not ready, VerificationFailed if clones failed,
    StepFailed if a step failed. After a failure, everything this run created is removed.
    """
    label = _label(job)
    with log.step("Checking the cluster", done="the cluster is ready"):
        need = preflight.Need(job.medium.image.stat().st_size, job.spec.disk.size_mib << 20)
        view = preflight.look(
            job.api, job.settings, nodes=[job.node], need=need, tokens=job.tokens, medium=Isos.content
        )  # fmt: skip
        view.require()
        guests = guest_list.listed(job.api)
        [place] = publish.places(job.api, [job.node], label, guests, shared=view.disks_shared)
    _tell_strays(label, guests)
    if place.outcome is Outcome.THERE and not place.leftovers:
        log.info(f"{label.template} already exists on {place.node} as VM {place.vmid}: nothing to build.")
        return Template(place.node, place.vmid, label.template, Outcome.THERE)
    ids = VmIds(job.settings.vmids, {int(guest["vmid"]) for guest in guests})
    with log.step(f"Building {label.template} on {job.node}", done="built"):
        return _Run(job, label, ids).through(place)


def _label(job: Job) -> Label:
    provenance = {"Installed": f"on {job.node}, by {job.packer.name}", **labels.servers_of(job.packages)}
    return Label(
        name=job.spec.name, version=job.spec.version, digest=job.medium.sha256, artifact="", state=State.PUBLISHING,
        published=stamp_now(), run=secrets.token_hex(8),
        provenance={title: text for title, text in provenance.items() if text},
    )  # fmt: skip


def _prefix(label: Label) -> str:
    return f"{label.template}-build-"


def _tell_strays(label: Label, guests: Sequence[Mapping[str, Any]]) -> None:
    """Warn of VMs left by a killed run: they have no label yet, so they are found only by name."""
    for guest in guests:
        if str(guest.get("name", "")).startswith(_prefix(label)):
            log.warn(
                f"VM {guest['vmid']} on {guest['node']} ({guest['name']}) belongs to another run; if that run was killed: "
                f"qm stop {guest['vmid']} && qm destroy {guest['vmid']} --purge 1"
            )


class _Run:
    """One build on one node."""

    def __init__(self, job: Job, label: Label, ids: VmIds) -> None:
        self.job, self.label, self.ids = job, label, ids
        self.api, self.node = job.api, job.node
        self.media = Isos(job.api, job.settings)
        self.undo = Undo()

    def through(self, place: publish.Target) -> Template:
        """Run all steps; roll back if one fails. The installer ISO is always removed from the node."""
        try:
            vmid = self._steps(place)
        except BaseException:
            for problem in self.undo.run():
                log.warn(f"{self.node}: {problem}")
            raise
        finally:
            publish.tidy(self.media, self.node, self.label)
        return Template(place.node, vmid, self.label.template, place.outcome)

    def _steps(self, place: publish.Target) -> int:
        publish.clear(self.api, place, self.label, lambda: None)
        vmid = place.vmid
        if place.outcome is Outcome.PUBLISHED:
            vmid = self._install()
        machine = Machine(self.api, self.job.settings, place.node, self.label, ids=self.ids, undo=self.undo, vmid=vmid)
        if place.outcome is Outcome.PUBLISHED:
            machine.adopt()
            log.info(f"{self.node}: VM {vmid} is installed; clones of it are verified next")
            with heartbeat.beating(self.api, machine.path, self.label):
                self.job.verifier(Subject(self.node, vmid, self.label, self.ids, lambda: None))
                machine.to_template()
        if place.outcome is not Outcome.THERE:
            machine.finish()
        self.undo.forget()
        return vmid

    def _install(self) -> int:
        """Install with Packer; return the VM's id."""
        volume = self._bring()
        vmid = self._free_id()
        name = _prefix(self.label) + self.label.run
        job = node_packer.Job(
            node=self.node, vmid=vmid, name=name, medium=volume, storage_type=self._storage_type(),
            disk_mib=self.job.spec.disk.size_mib, cpu=CPU, memory_mib=MEMORY_MIB, seconds=self.job.seconds,
        )  # fmt: skip
        self.undo.add(f"VM {vmid}", lambda: self._take_back(vmid, name))
        self._run_packer(job)
        path = f"/nodes/{self.node}/qemu/{vmid}"
        config = self.api.get(f"{path}/config")
        if config.get("name") != name or "scsi0" not in config:
            raise StepFailed(f"Packer reported success, but there is no VM {name}", hint="run the same command again")
        # The plugin leaves the VM running. Nothing runs in it: its boot order has only an empty drive.
        if self.api.get(f"{path}/status/current")["status"] == "running":
            self.api.wait(self.api.post(f"{path}/status/stop"))
        return vmid

    def _bring(self) -> str:
        medium = self.job.medium
        if uploaded := self.media.find(self.node, medium, self.label):
            return uploaded.volume
        uploads = Uploads(medium.image.stat().st_size, 1)
        try:
            return self.media.bring(self.node, medium, self.label, uploads.teller(self.node, lambda: None)).volume
        finally:
            uploads.progress.finish()

    def _free_id(self) -> int:
        """Return an id that is not used by a guest hidden from this token either: Packer would only fail."""
        while True:
            vmid = self.ids.take()
            if is_free(self.api, vmid):
                return vmid
            log.debug(f"{vmid} is used by a guest not visible to this token")

    def _storage_type(self) -> str:
        listed = self.api.get(f"/nodes/{self.node}/storage")
        return next(str(storage["type"]) for storage in listed if storage["storage"] == self.job.settings.storage)

    def _run_packer(self, job: node_packer.Job) -> None:
        output = self.job.logs / OUTPUT
        output.unlink(missing_ok=True)
        progress = log.Progress("installing", job.seconds)
        limit = job.seconds + WORK_SECONDS
        with files.scratch(self.job.logs) as directory:
            workspace = node_packer.prepare(
                directory, found=self.job.packer, templates=self.job.templates, settings=self.job.settings, job=job
            )
            environment = node_packer.environment(workspace, self.job.settings, self.api.token)
            with run.spawn(workspace.argv(), cwd=directory, env=environment, log=output) as process:
                status = None
                while status is None and limit > 0:
                    status = process.wait(POLL_SECONDS)
                    limit -= POLL_SECONDS
                    progress.update(f"VM {job.vmid} on {self.node}")
            progress.finish()
        if status != 0:
            details = run.tail(output.read_text(encoding="utf-8", errors="replace"))
            raise StepFailed(
                run.ending("Packer", status) if status else "Packer did not end in time", details=details,
                hint=f"the whole output is in {output}; run the same command again and watch the installer on {self.node}: "
                f"qm terminal {job.vmid}; a slow node needs more --install-minutes",
            )  # fmt: skip

    def _take_back(self, vmid: int, name: str) -> None:
        """Remove the VM if it belongs to this run: identified by its label, or by its name if it has no label yet."""
        take_away(self.api, self.node, vmid, run=self.label.run)
        config = config_of(self.api, self.node, vmid)
        if config is not None and config.get("name") == name:
            remove(self.api, self.node, vmid)
