"""Builds on a node of Proxmox VE: the installer runs there, and what it leaves is verified and kept like what is published.

The medium is the line's own. Packer makes the machine, which is found afterwards by a name that no other run has; it is
given the configuration of every template, proved by two clones, and becomes a protected candidate. What fails, or is
interrupted, is taken back: what this run made, and nothing else. Its digest is the medium's: the disk was never a file.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from build import files, log, packer_proxmox, preflight, publish, run
from build.cluster import Role, Settings
from build.errors import StepFailed
from build.labels import Label, State
from build.packer import Packer
from build.publish import Outcome, Subject, Template, Verifier
from build.publish_machine import CPU, EXISTS, GONE, Machine, Undo, VmIds, remove, take_away
from build.publish_media import OverApi, Uploads
from build.pve import Api, ApiError
from build.spec import Spec

# The installer needs 300 MiB; the rest caches the medium while it is copied.
MEMORY_MIB = 2048
# Packer's own work before and after the installation: to make a disk, to shut down, to take away what failed.
WORK_SECONDS = 1800.0
POLL_SECONDS = 0.5
OUTPUT = "packer.txt"


class Isos(OverApi):
    """Upload as content ``iso``."""

    content, suffix = "iso", ".iso"


@dataclass(frozen=True)
class Medium:
    """The installation medium."""

    image: Path
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is installed where, and with what; ``seconds``: how long the installation may take, which is waited for."""

    medium: Medium
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
    """Install on the node and return the template; one of the same medium that is there is left as it is.

    Raises SpecError when the name is taken, HostError when the cluster is not ready, VerificationFailed when clones
    failed, StepFailed when a step failed: what was made is gone again then.
    """
    label = _label(job)
    with log.step("Looking at the cluster", done="the cluster is ready"):
        need = preflight.Need(job.medium.image.stat().st_size, job.spec.disk.size_mib << 20)
        view = preflight.look(
            job.api, job.settings, nodes=[job.node], need=need, tokens=job.tokens, medium=Isos.content
        )  # fmt: skip
        view.require()
        guests = job.api.get("/cluster/resources", type="vm")
        [place] = publish.places(job.api, [job.node], label, guests, shared=view.disks_shared)
    _tell_strays(label, guests)
    if place.outcome is Outcome.THERE and not place.leftovers:
        log.info(f"{label.template} is on {place.node} already, as {place.vmid}: it is not built twice.")
        return Template(place.node, place.vmid, label.template, Outcome.THERE)
    ids = VmIds(job.settings.vmids, {int(one["vmid"]) for one in guests})
    with log.step(f"Building {label.template} on {job.node}", done="built"):
        return _Run(job, label, ids).through(place)


def _label(job: Job) -> Label:
    return Label(
        name=job.spec.name, version=job.spec.version, digest=job.medium.sha256, artifact="", state=State.PUBLISHING,
        published=publish.now(), run=secrets.token_hex(8),
        provenance={"Installed": f"on {job.node}, by {job.packer.name}"},
    )  # fmt: skip


def _prefix(label: Label) -> str:
    return f"{label.template}-build-"


def _tell_strays(label: Label, guests: list[Mapping[str, Any]]) -> None:
    """Name what a run that was killed has left: it bears no label yet, so that only its name tells whose it is."""
    for guest in guests:
        if str(guest.get("name", "")).startswith(_prefix(label)):
            log.warn(
                f"VM {guest['vmid']} on {guest['node']} ({guest['name']}) is of another run; if that one was killed: "
                f"qm stop {guest['vmid']} && qm destroy {guest['vmid']} --purge 1"
            )


class _Run:
    """One build on one node."""

    def __init__(self, job: Job, label: Label, ids: VmIds) -> None:
        self.job, self.label, self.ids = job, label, ids
        self.api, self.node = job.api, job.node
        self.media = Isos(job.api, job.settings)
        self.undo = Undo()

    def through(self, place: publish.Place) -> Template:
        """Take every step; take back what was made when one fails. The medium leaves the node in every case."""
        try:
            vmid = self._steps(place)
        except BaseException:
            for problem in self.undo.run():
                log.warn(f"{self.node}: {problem}")
            raise
        finally:
            publish.tidy(self.media, self.node, self.label)
        return Template(place.node, vmid, self.label.template, place.outcome)

    def _steps(self, place: publish.Place) -> int:
        publish.clear(self.api, place)
        vmid = place.vmid
        if place.outcome is Outcome.PUBLISHED:
            vmid = self._install()
        machine = Machine(self.api, self.job.settings, place.node, self.label, ids=self.ids, undo=self.undo, vmid=vmid)
        if place.outcome is Outcome.PUBLISHED:
            machine.adopt()
            log.info(f"{self.node}: VM {vmid} is installed; clones of it are verified next")
            self.job.verifier(Subject(self.node, vmid, self.label, self.ids, lambda: None))
            machine.to_template()
        if place.outcome is not Outcome.THERE:
            machine.finish()
        self.undo.forget()
        return vmid

    def _install(self) -> int:
        """Let Packer install; return the machine's id."""
        volume = self._bring()
        vmid = self._free_id()
        name = _prefix(self.label) + self.label.run
        job = packer_proxmox.Job(
            node=self.node, vmid=vmid, name=name, medium=volume, storage_type=self._storage_type(),
            disk_mib=self.job.spec.disk.size_mib, cpu=CPU, memory_mib=MEMORY_MIB, seconds=self.job.seconds,
        )  # fmt: skip
        self.undo.add(f"VM {vmid}", lambda: self._take_back(vmid, name))
        self._run_packer(job)
        path = f"/nodes/{self.node}/qemu/{vmid}"
        config = self.api.get(f"{path}/config")
        if config.get("name") != name or "scsi0" not in config:
            raise StepFailed(f"Packer says that it succeeded, and left no {name} behind", hint="run the same command again")
        # The plugin starts the machine that it leaves. Nothing runs in it: its boot order has only an empty drive.
        if self.api.get(f"{path}/status/current")["status"] == "running":
            self.api.wait(self.api.post(f"{path}/status/stop"))
        return vmid

    def _bring(self) -> str:
        medium = self.job.medium
        if found := self.media.find(self.node, medium, self.label):
            return found.volume
        uploads = Uploads(medium.image.stat().st_size, 1)
        try:
            return self.media.bring(self.node, medium, self.label, uploads.teller(self.node, lambda: None)).volume
        finally:
            uploads.progress.finish()

    def _free_id(self) -> int:
        """Return an id that is free also of guests that we may not see: Packer would only fail."""
        while True:
            vmid = self.ids.take()
            try:
                self.api.get("/cluster/nextid", vmid=vmid)
            except ApiError as error:
                if not any(words in error.brief for words in EXISTS):
                    raise
                log.debug(f"{vmid} is taken by a guest that we may not see")
            else:
                return vmid

    def _storage_type(self) -> str:
        listed = self.api.get(f"/nodes/{self.node}/storage")
        return next(str(one["type"]) for one in listed if one["storage"] == self.job.settings.storage)

    def _run_packer(self, job: packer_proxmox.Job) -> None:
        output = self.job.logs / OUTPUT
        output.unlink(missing_ok=True)
        progress = log.Progress("installing", job.seconds)
        limit = job.seconds + WORK_SECONDS
        with files.scratch(self.job.logs) as directory:
            workspace = packer_proxmox.prepare(
                directory, found=self.job.packer, templates=self.job.templates, settings=self.job.settings, job=job
            )
            environment = packer_proxmox.environment(workspace, self.job.settings, self.api.token)
            with run.spawn(workspace.argv(), cwd=directory, env=environment, log=output) as process:
                status = None
                while status is None and limit > 0:
                    status = process.wait(POLL_SECONDS)
                    limit -= POLL_SECONDS
                    progress.update(f"VM {job.vmid} on {self.node}")
            progress.finish()
        if status != 0:
            said = run.tail(output.read_text(encoding="utf-8", errors="replace"))
            raise StepFailed(
                f"Packer ended with status {status}" if status else "Packer did not end in time", details=said,
                hint=f"all it said is in {output}; run the same command again and watch the installer on {self.node}: "
                f"qm terminal {job.vmid}; a slow node needs more --install-minutes",
            )  # fmt: skip

    def _take_back(self, vmid: int, name: str) -> None:
        """Remove the machine if it is this run's: by its label, and before it has one by its name."""
        take_away(self.api, self.node, vmid, run=self.label.run)
        try:
            config = self.api.get(f"/nodes/{self.node}/qemu/{vmid}/config")
        except ApiError as error:
            if any(words in error.brief for words in GONE):
                return
            raise
        if config.get("name") == name:
            remove(self.api, self.node, vmid)
