"""Clones a VM from a published template, applies the site settings, starts it and waits until it responds.

On failure or interrupt, everything this run created is removed (and nothing else). An existing clone with that name, of
the same template and with the same options, is left unchanged; an unfinished clone of a killed run is completed; any
other VM with that name is an error.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from build.artifact.verification import NO_TRUST, Trust
from build.clone import health
from build.clone import machine as clone_machine
from build.clone import template as clone_template
from build.clone.health import Reached
from build.clone.machine import Machine
from build.clone.request import Request
from build.clone.template import Source
from build.core import log
from build.core.errors import GoldsmithError, SpecError, StepFailed
from build.core.units import stamp_now
from build.proxmox import claim, guest_agent, guest_list, labels, template_trust, vms
from build.proxmox.client import Api
from build.proxmox.labels import CloneLabel, CloneState
from build.proxmox.vms import Undo
from build.spec.cluster import Settings

POLL_SECONDS = 0.5


class Outcome(StrEnum):
    """The result of the request."""

    CLONED = "made"
    CONTINUED = "was begun before, and is finished now"
    THERE = "was there already"


@dataclass(frozen=True)
class Made:
    """A clone on the cluster; ``reached`` is None if the command did not wait for it."""

    name: str
    machine: Machine
    template: str
    digest: str
    outcome: Outcome
    running: bool
    linked: bool
    reached: Reached | None = None


@dataclass(frozen=True)
class Job:
    """Parameters of a clone.

    ``product``: the product of the templates; ``user``: the administrator; ``trust``: the signers whose signatures a
    template must have.
    """

    api: Api
    settings: Settings
    request: Request
    product: str
    user: str
    trust: Trust = NO_TRUST


def clone(job: Job) -> Made:
    """Create the clone, or return the existing one.

    Raises SpecError if there is no such template or the name is taken, VerificationFailed if required signatures are
    missing, StepFailed if a step failed. After a failure, everything this run created is removed, unless the request
    has ``keep``.
    """
    request = job.request
    guest_agent.require_fits(request.site, family=request.family)
    guests = guest_list.listed(job.api)
    source = clone_template.source(job.api, clone_template.choose(job.api, guests, request, job.product), request)
    where = f"{source.label.template} on {source.node} (VM {source.vmid})"
    if signers := template_trust.require_template(source.label, job.trust, where=where):
        log.info(f"{where} is signed by {', '.join(signers)}")
    if same := [guest for guest in guests if guest.get("name") == request.name]:
        existing = _found(job, source, same)
        if existing is not None:
            return existing
    _require_no_unseen(request.name, guests)
    kind = "linked" if request.linked else "full"
    with log.step(
        f"Creating {request.name} on {source.place}: a {kind} clone of {source.label.template}",
        done=f"{request.name} is created",
    ):
        return _new(job, source)


def _require_no_unseen(name: str, guests: Sequence[Mapping[str, Any]]) -> None:
    """Raise StepFailed if a clone on a node that does not answer may have that name."""
    hidden = labels.unnamed_clones(guests)
    if hidden:
        raise StepFailed(
            f"the names of {len(hidden)} clones are unknown, because their node does not answer: one of them may be {name}",
            details=", ".join(hidden),
            hint="start that node: the name of a clone must be unique",
        )


def _new(job: Job, source: Source) -> Made:
    image_label, now = source.label, stamp_now()
    label = CloneLabel(
        template=image_label.template, version=image_label.version, digest=image_label.digest, artifact=image_label.artifact,
        state=CloneState.MAKING, cloned=now, run=secrets.token_hex(8), linked=job.request.linked, web=image_label.web,
    )  # fmt: skip
    undo = Undo("remove it manually: qm destroy VMID --purge")
    # A separate connection: the other one may be in use when everything is rolled back.
    with job.api.another() as spare:
        try:
            machine = clone_machine.make(
                job.api, source, job.request, label, pool=job.settings.clones, undo=undo, spare=spare
            )  # fmt: skip
            log.info(f"{job.request.name} is VM {machine.vmid} on {machine.node}")
            # The tag is set together with the configuration.
            claim.require(job.request.name, machine.vmid, labels.CLONE_TAG, lambda: guest_list.listed(job.api))
            clone_machine.configure(job.api, machine, job.request, label, user=job.user, default=_default(job, source))
            return _finish(job, source, machine, label, Outcome.CLONED)
        except BaseException:
            if job.request.keep:
                log.warn(f"--keep: the incomplete {job.request.name} is kept; run the same command again to continue")
            else:
                _take_back(undo)
            raise


def _finish(job: Job, source: Source, machine: Machine, label: CloneLabel, outcome: Outcome) -> Made:
    """Grow the disk, create the data disk, start the VM, wait for it, and label it as finished."""
    request, reached = job.request, None
    if request.more_disk_gib:
        clone_machine.grow(job.api, machine, source, request.more_disk_gib)
    if request.data_gib:
        clone_machine.add_data(job.api, machine, source, request)
    clone_machine.start(job.api, machine)
    if request.wait:
        sign = f"https://{request.main_name}" if label.web else "its SSH host key: it has no web server"
        log.info(f"it was started; waiting for its guest agent, and for {sign}")
        reached = _reach(job, machine, label)
    clone_machine.hand_over(job.api, machine, label)
    return _made(job, machine, label, outcome, reached=reached)


def _made(
    job: Job, machine: Machine, label: CloneLabel, outcome: Outcome, *, reached: Reached | None, running: bool = True
) -> Made:
    return Made(job.request.name, machine, label.template, label.digest, outcome, running, label.linked, reached)


def _reach(job: Job, machine: Machine, label: CloneLabel) -> Reached:
    request = job.request
    return health.reach(
        job.api, machine, request.main_name, timeout=request.timeout, fixed=request.fixed, web=label.web
    )  # fmt: skip


def _found(job: Job, source: Source, same: Sequence[Mapping[str, Any]]) -> Made | None:
    """Return the existing VM of that name if it is the requested clone, completed if necessary. Raises SpecError if not.

    None if it was removed: the run that created it has failed, and was perhaps killed before it could remove it.
    """
    request, guest = job.request, same[0]
    if len(same) > 1:
        raise SpecError(
            f"{len(same)} VMs are named {request.name}: " + ", ".join(f"{guest['node']}/{guest['vmid']}" for guest in same),
            hint="remove all but one, or choose another --name",
        )
    where = f"{guest['node']}/{guest['vmid']}"
    machine = Machine(str(guest["node"]), int(guest["vmid"]))
    label = None
    if guest.get("type") == "qemu":
        seen = vms.config_of(job.api, machine.node, machine.vmid)
        if seen is None:
            # The run that created it has removed it since it was listed.
            return None
        label = labels.parse_clone(str(seen.get("description", "")))
    if label is None:
        raise SpecError(
            f"the name {request.name} is taken by {where}, which is not a clone of Goldsmith", hint="choose another --name"
        )
    if label.state is CloneState.REMOVING:
        log.info(f"{where}: a run that failed has left it; it is removed")
        vms.remove(job.api, machine.node, machine.vmid)
        return None
    if (label.template, label.digest) != (source.label.template, source.label.digest):
        raise SpecError(
            f"{request.name} already exists ({where}), as a clone of {label.template} and not of {source.label.template}",
            hint=f"choose another --name, or select the existing clone with --template {label.template}",
        )
    if request.node not in ("", machine.node):
        raise SpecError(f"{request.name} already exists, on {machine.node}", hint=f"use --node {machine.node}")
    if label.state is CloneState.MADE:
        return _there(job, source, machine, label, guest)
    return _continue(job, source, machine, label)


def _there(job: Job, source: Source, machine: Machine, label: CloneLabel, guest: Mapping[str, Any]) -> Made:
    _require_same(job, source, machine)
    log.info(f"{job.request.name} already exists, as VM {machine.vmid} on {machine.node}: nothing was changed")
    running = guest.get("status") == "running"
    reached = _reach(job, machine, label) if running and job.request.wait else None
    return _made(job, machine, label, Outcome.THERE, reached=reached, running=running)


def _continue(job: Job, source: Source, machine: Machine, label: CloneLabel) -> Made:
    """Complete a clone of a killed run. A failure does not remove it, because this run did not create it."""
    with log.step(f"Continuing with {job.request.name}, which an earlier run started ({label.run})", done="finished"):
        clone_machine.wait_unlocked(job.api, machine, tell=log.info)
        label = clone_machine.take_over(job.api, machine, label, secrets.token_hex(8))
        if job.api.get(f"{machine.path}/status/current")["status"] == "running":
            _require_same(job, source, machine)
        else:
            clone_machine.configure(job.api, machine, job.request, label, user=job.user, default=_default(job, source))
        return _finish(job, source, machine, label, Outcome.CONTINUED)


def _default(job: Job, source: Source) -> str:
    """Return the image's own administrator: golden.yaml's if the template's label has none."""
    return source.administrator or job.user


def _require_same(job: Job, source: Source, machine: Machine) -> None:
    config = job.api.get(f"{machine.path}/config")
    if changed := clone_machine.differences(config, job.request, user=job.user, default=_default(job, source)):
        raise SpecError(
            f"{job.request.name} already exists, with other settings ({machine.node}/{machine.vmid})",
            details="\n".join(changed), hint="choose another --name, or change the existing VM with qm set",
        )  # fmt: skip


def _take_back(undo: Undo) -> None:
    """Roll back, even if Ctrl-C is pressed again: otherwise part of the clone would be left."""
    problems: list[str] = []

    def work() -> None:
        try:
            problems.extend(undo.run())
        except GoldsmithError as error:
            problems.append(error.brief)

    worker = threading.Thread(target=work)
    worker.start()
    while worker.is_alive():
        try:
            worker.join(POLL_SECONDS)
        except KeyboardInterrupt:
            log.warn("everything this run created is still being removed; please wait")
    for problem in problems:
        log.warn(problem)
