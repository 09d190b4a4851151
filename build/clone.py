"""Makes an operator a machine of a published template, told its site, started, and seen to answer.

What fails, or is interrupted, is taken back: what this run made, and nothing else. A machine of that name that was made
of the same template, with the same words, is there already; one that a killed run began is finished; any other is refused.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from build import clone_machine, clone_reach, clone_source, labels, log, proof
from build.clone_machine import Machine
from build.clone_reach import Reached
from build.clone_request import Request
from build.clone_source import Source
from build.cluster import Settings
from build.errors import GoldsmithError, SpecError
from build.labels import CloneLabel, CloneState
from build.proof import NOBODY, Trust
from build.publish_machine import Undo
from build.pve import Api

POLL_SECONDS = 0.5


class Outcome(StrEnum):
    """What became of the request."""

    CLONED = "made"
    CONTINUED = "was begun before, and is finished now"
    THERE = "was there already"


@dataclass(frozen=True)
class Made:
    """A machine on the cluster; ``reached`` is None when nobody waited for it."""

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
    """What an operator wants, where, and with what.

    ``product``: whose templates; ``user``: the administrator; ``trust``: whose signatures a template must carry.
    """

    api: Api
    settings: Settings
    request: Request
    product: str
    user: str
    trust: Trust = NOBODY


def clone(job: Job) -> Made:
    """Make the machine that is asked for, or find it.

    Raises SpecError when there is no such template or the name is taken, VerificationFailed when nobody vouches for it who
    has to, StepFailed when a step failed: what this run made is gone again then, unless the request says to keep it.
    """
    request = job.request
    guests = job.api.get("/cluster/resources", type="vm")
    source = clone_source.source(job.api, clone_source.choose(job.api, guests, request, job.product), request)
    where = f"{source.label.template} on {source.node} (VM {source.vmid})"
    if vouched := proof.require_template(source.label, job.trust, where=where):
        log.info(f"{where} is signed by {', '.join(vouched)}")
    if same := [one for one in guests if one.get("name") == request.name]:
        return _found(job, source, same)
    kind = "linked" if request.linked else "full"
    with log.step(
        f"Making {request.name} on {source.place}: a {kind} clone of {source.label.template}", done=f"{request.name} is made"
    ):
        return _new(job, source)


def _new(job: Job, source: Source) -> Made:
    theirs, now = source.label, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    label = CloneLabel(
        template=theirs.template, version=theirs.version, digest=theirs.digest, artifact=theirs.artifact,
        state=CloneState.MAKING, cloned=now, run=secrets.token_hex(8), linked=job.request.linked,
    )  # fmt: skip
    undo = Undo("remove it by hand: qm destroy NUMBER --purge")
    # A connection of its own: the other one may be in the middle of something when everything is taken back.
    with job.api.another() as spare:
        try:
            machine = clone_machine.make(
                job.api, source, job.request, label, pool=job.settings.clones, undo=undo, spare=spare
            )  # fmt: skip
            log.info(f"{job.request.name} is VM {machine.vmid} on {machine.node}")
            clone_machine.configure(job.api, machine, job.request, label, user=job.user)
            return _finish(job, source, machine, label, Outcome.CLONED)
        except BaseException:
            if job.request.keep:
                log.warn(f"--keep: what was made of {job.request.name} stays; the same command again continues with it")
            else:
                _take_back(undo)
            raise


def _finish(job: Job, source: Source, machine: Machine, label: CloneLabel, outcome: Outcome) -> Made:
    """Grow, start, wait, and hand over."""
    request, reached = job.request, None
    if request.more_disk_gib:
        clone_machine.grow(job.api, machine, source, request.more_disk_gib)
    clone_machine.start(job.api, machine)
    if request.wait:
        log.info(f"it is started; waiting for its guest agent, and for https://{request.main_name}{clone_reach.HEALTH}")
        reached = _reach(job, machine)
    clone_machine.hand_over(job.api, machine, label)
    return _made(job, machine, label, outcome, reached=reached)


def _made(
    job: Job, machine: Machine, label: CloneLabel, outcome: Outcome, *, reached: Reached | None, running: bool = True
) -> Made:
    return Made(job.request.name, machine, label.template, label.digest, outcome, running, label.linked, reached)


def _reach(job: Job, machine: Machine) -> Reached:
    request = job.request
    return clone_reach.reach(job.api, machine, request.main_name, timeout=request.timeout, fixed=request.fixed)


def _found(job: Job, source: Source, same: Sequence[Mapping[str, Any]]) -> Made:
    """Return the machine of that name if it is the one that is asked for, finished if need be. Raises SpecError if not."""
    request, guest = job.request, same[0]
    where = f"{guest['node']}/{guest['vmid']}"
    machine = Machine(str(guest["node"]), int(guest["vmid"]))
    label, config = None, {}
    if len(same) == 1 and guest.get("type") == "qemu":
        config = job.api.get(f"{machine.path}/config")
        label = labels.parse_clone(str(config.get("description", "")))
    if label is None:
        raise SpecError(
            f"the name {request.name} is taken by {where}, which clone did not make", hint="choose another --name"
        )
    if (label.template, label.digest) != (source.label.template, source.label.digest):
        raise SpecError(
            f"{request.name} is there already ({where}), as a clone of {label.template} and not of {source.label.template}",
            hint=f"choose another --name; the same machine again: --template {label.template}",
        )
    if request.node not in ("", machine.node):
        raise SpecError(f"{request.name} is there already, on {machine.node}", hint=f"say --node {machine.node}")
    if label.state is CloneState.MADE:
        return _there(job, machine, label, guest)
    return _continue(job, source, machine, label)


def _there(job: Job, machine: Machine, label: CloneLabel, guest: Mapping[str, Any]) -> Made:
    _require_same(job, machine)
    log.info(f"{job.request.name} is there already, as VM {machine.vmid} on {machine.node}: nothing is changed")
    running = guest.get("status") == "running"
    reached = _reach(job, machine) if running and job.request.wait else None
    return _made(job, machine, label, Outcome.THERE, reached=reached, running=running)


def _continue(job: Job, source: Source, machine: Machine, label: CloneLabel) -> Made:
    """Finish what a killed run began. What fails now does not remove it: this run did not make it."""
    with log.step(f"Continuing with {job.request.name}, which a run before this one began ({label.run})", done="finished"):
        clone_machine.wait_unlocked(job.api, machine, tell=log.info)
        if job.api.get(f"{machine.path}/status/current")["status"] == "running":
            _require_same(job, machine)
        else:
            clone_machine.configure(job.api, machine, job.request, label, user=job.user)
        return _finish(job, source, machine, label, Outcome.CONTINUED)


def _require_same(job: Job, machine: Machine) -> None:
    config = job.api.get(f"{machine.path}/config")
    if others := clone_machine.differences(config, job.request, user=job.user):
        raise SpecError(
            f"{job.request.name} is there already, with other settings ({machine.node}/{machine.vmid})",
            details="\n".join(others), hint="choose another --name, or change the machine itself: qm set",
        )  # fmt: skip


def _take_back(undo: Undo) -> None:
    """Remove what was made, also when somebody presses Ctrl-C again: half of it would stay otherwise."""
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
            log.warn("what this run has made is still being removed; please wait")
    for problem in problems:
        log.warn(problem)
