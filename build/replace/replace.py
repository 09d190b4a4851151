"""Replaces the system of a machine by that of a newer template, and rolls back when the new system is not healthy.

The new VM is cloned while the old one serves. Then the old one is shut down, its data disk is moved, the names are exchanged
and the new one starts. It is accepted when it answers, has the host key of the site and uses the data disk; a failure
before that is rolled back. The record in the old VM's description (record.py) has the progress: if a run is killed, the
same command continues it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from build.artifact.verification import NO_TRUST, Trust
from build.clone import data_disk
from build.clone import machine as clone_machine
from build.clone import template as clone_template
from build.clone.machine import Machine
from build.clone.request import Request
from build.clone.template import Source
from build.core import log
from build.core.errors import GoldsmithError, SpecError, StepFailed
from build.core.units import stamp, stamp_now
from build.proxmox import guest_list, labels, template_trust, vms
from build.proxmox.client import Api
from build.proxmox.labels import CloneLabel, CloneState
from build.proxmox.vms import Undo
from build.replace import find, preflight, settings, switch
from build.replace import record as records
from build.replace.find import Pair
from build.replace.record import ConcurrentRun, Phase, Record
from build.spec.cluster import Settings

HEALTH_SECONDS = 900.0


@dataclass(frozen=True)
class Job:
    """Parameters of a replacement.

    ``to``: a channel or a version; ``keep_days``: how long the old VM is kept; ``backup_hours``: the maximum age of the
    newest backup, 0 to skip that check; ``timeout``: the seconds that a system has to become healthy.
    """

    api: Api
    settings: Settings
    product: str
    to: str
    keep_days: int = 7
    backup_hours: int = 24
    timeout: float = HEALTH_SECONDS
    trust: Trust = NO_TRUST
    clock: Callable[[], float] = time.monotonic
    run: str = field(default_factory=lambda: secrets.token_hex(8))


@dataclass(frozen=True)
class Replaced:
    """The result: the machine's current VM and template, the VM that is kept, and the seconds without service."""

    name: str
    machine: Machine
    template: str
    kept: int = 0
    keep_until: str = ""
    without_service: float = 0.0
    changed: bool = True


class RolledBack(StepFailed):
    """A step failed, and the old system serves again."""


def replace_machine(job: Job, name: str) -> Replaced:
    """Replace the system of a machine. Raises SpecError if it cannot be replaced, RolledBack if a step failed."""
    guests = guest_list.listed(job.api)
    pair = find.pair(job.api, guests, name)
    source = _source(job, guests, pair)
    if pair.record is None:
        label = find.label_of(pair.config)
        if label.template == source.label.template:
            log.info(f"{name} already has the system of {label.template}")
            return Replaced(name, pair.old, label.template, changed=False)
        pair = _begin(job, pair, source)
    else:
        pair = _take_over(job, pair, source)
    if pair.active().phase is Phase.BACK:
        _back(job, job.api, pair)
        raise RolledBack(
            f"{name}: this run rolled back an earlier, failed replacement: {pair.active().failed or 'it was interrupted'}",
            hint="correct the cause, then run the same command again",
        )
    return _forward(job, pair, source)


def _source(job: Job, guests: Sequence[Mapping[str, Any]], pair: Pair) -> Source:
    """Return the template on the node of the machine. Raises SpecError if there is none that can be cloned there."""
    version = labels.VERSION.fullmatch(f"v{job.to}")
    request = Request(
        name=pair.name, addresses="", keys="", node=pair.old.node, linked=find.label_of(pair.config).linked,
        template=f"{job.product}-{job.to}" if version else "", channel=job.to,
    )  # fmt: skip
    source = clone_template.source(job.api, clone_template.choose(job.api, guests, request, job.product), request)
    template_trust.require_template(source.label, job.trust, where=f"{source.label.template} on {source.node}")
    return source


def _begin(job: Job, pair: Pair, source: Source) -> Pair:
    """Check everything, then write the record. Nothing is changed before."""
    before = preflight.require(job.api, pair, source.label, timeout=job.timeout, backup_hours=job.backup_hours)
    record = Record(
        name=pair.name, template=source.label.template, phase=Phase.MAKING, made=secrets.token_hex(8), run=job.run,
        begun=stamp_now(), key=data_disk.key_of(pair.config), onboot=int(pair.config.get("onboot", 0)),
        protection=int(pair.config.get("protection", 0)), host_key=before.host_key, system=before.system,
        layout=before.layout,
    )  # fmt: skip
    records.take(job.api, pair.old.path, pair.config, record)
    return replace(pair, record=record, new=None)


def _take_over(job: Job, pair: Pair, source: Source | None) -> Pair:
    """Continue the replacement of an earlier run. Raises SpecError if it is to another template."""
    pair = find.settled(job.api, pair)
    record = pair.active()
    if source is not None and record.phase is not Phase.BACK and record.template != source.label.template:
        raise SpecError(
            f"a replacement of {pair.name} by {record.template} is in progress since {record.begun}",
            hint=f"finish it with --to and that version, or roll it back: nox -s replace -- {pair.name} --undo",
        )
    log.info(f"{pair.name}: continuing with the replacement of {record.begun} ({record.phase})")
    taken = replace(record, run=job.run)
    records.take(job.api, pair.old.path, pair.config, taken)
    return replace(pair, record=taken)


def _forward(job: Job, pair: Pair, source: Source) -> Replaced:
    """Do the steps; roll back if one fails, also after Ctrl-C, but not if another run has taken over."""
    step = ["creating the new VM"]
    try:
        return _steps(job, pair, source, step)
    except ConcurrentRun:
        raise
    except BaseException as error:
        reason = error.brief if isinstance(error, GoldsmithError) else f"{type(error).__name__} {error}".strip()
        _roll_back(job, pair, f"{step[0]}: {reason}")
        if isinstance(error, GoldsmithError):
            raise RolledBack(
                f"{pair.name} was not replaced: {step[0]} failed: {reason}",
                details=error.details,
                hint=f"the old system is back; {error.hint}" if error.hint else "the old system is back",
            ) from error
        raise


def _steps(job: Job, pair: Pair, source: Source, step: list[str]) -> Replaced:
    api, old, name = job.api, pair.old, pair.name

    def begin(what: str) -> None:
        records.require_ours(api, old.path, job.run)
        step[0] = what
        log.info(f"{name}: {what}")

    if pair.active().phase is Phase.MAKING:
        begin("creating the new VM")
        pair = _make(job, pair, source)
        begin("preparing the change")
        pair = _mark(job, pair, Phase.SWITCHING, peer=pair.require_new().vmid)
    new, record = pair.require_new(), pair.active()
    begin("stopping the old system")
    stopped = job.clock()
    switch.rename(api, old, name, onboot=0, protection=0)
    switch.stop(api, old)
    begin("moving the data disk")
    switch.move_data(api, old, new, record.key)
    begin("starting the new system")
    switch.rename(api, old, settings.kept_name(name, old.vmid))
    switch.rename(api, new, name)
    switch.start(api, new, old)
    begin("waiting for the new system")
    switch.require_healthy(api, new, name, timeout=job.timeout, host_key=record.host_key)
    without_service = job.clock() - stopped
    _require_adopted(job, pair)
    begin("accepting the new system")
    # It may have been started manually in the meantime.
    switch.stop(api, old)
    return _accept(job, pair, without_service)


def _mark(job: Job, pair: Pair, phase: Phase, **changes: Any) -> Pair:
    record = pair.active().become(phase, **changes)
    records.write(job.api, pair.old.path, record, run=job.run)
    return replace(pair, record=record)


def _make(job: Job, pair: Pair, source: Source) -> Pair:
    """Clone and configure the new VM; one that an earlier run cloned is used. It is not started."""
    api, record = job.api, pair.active()
    vms.settle_clones(api, source.node, timeout=clone_machine.CLONE_SECONDS)
    new = pair.new or find.made_by(api, guest_list.listed(api), record)
    label = CloneLabel(
        template=source.label.template, version=source.label.version, digest=source.label.digest,
        artifact=source.label.artifact, state=CloneState.MAKING, cloned=record.begun, run=record.made,
        linked=find.label_of(pair.config).linked, web=source.label.web,
    )  # fmt: skip
    if new is None:
        new = _clone(job, pair, source, label)
        _require_wanted(job, pair, new)
    clone_machine.wait_unlocked(api, new, tell=log.info)
    if gib := settings.more_disk_gib(pair.config, source.config):
        clone_machine.grow(api, new, source, gib)
    config = api.get(f"{new.path}/config")
    api.configure(new.path, **settings.taken_over(pair.config, config, label))
    return replace(pair, new=new)


def _clone(job: Job, pair: Pair, source: Source, label: CloneLabel) -> Machine:
    storage = "" if label.linked else str(pair.config[clone_machine.DISK]).partition(":")[0]
    request = Request(
        name=settings.new_name(pair.name), addresses="", keys="", node=pair.old.node, linked=label.linked, storage=storage
    )
    undo = Undo("remove it manually: qm destroy VMID --purge")
    with job.api.another() as spare:
        try:
            return clone_machine.make(job.api, source, request, label, pool=job.settings.clones, undo=undo, spare=spare)
        except BaseException:
            for problem in undo.run():
                log.warn(problem)
            raise


def _require_wanted(job: Job, pair: Pair, new: Machine) -> None:
    """Remove the clone of this run if another run uses a different one. Raises ConcurrentRun after a take-over."""
    try:
        records.require_ours(job.api, pair.old.path, job.run)
    except ConcurrentRun:
        record = records.parse(str(job.api.get(f"{pair.old.path}/config").get("description", "")))
        # Until the record names the new VM, the other run may use this one; it removes what it does not use.
        if record is None or record.made != pair.active().made or record.peer not in (0, new.vmid):
            _remove(job.api, new, pair.active())
        raise


def _remove_others(api: Api, record: Record, new: Machine | None) -> None:
    """Remove clones of the same replacement that another run made at the same time."""
    for machine in (clone for clone in find.all_made_by(api, guest_list.listed(api), record) if clone != new):
        try:
            clone_machine.wait_unlocked(api, machine, tell=log.debug)
            _remove(api, machine, record)
        except GoldsmithError as error:
            log.warn(f"VM {machine.vmid} on {machine.node}, a second clone for {record.name}, is left over: {error.brief}")


def _require_adopted(job: Job, pair: Pair) -> None:
    """Raise StepFailed unless the new system uses the data disk."""
    adopted, record = switch.adopted(job.api, pair.require_new()), pair.active()
    if adopted is None or adopted.system == record.system:
        raise StepFailed(
            "the new system does not use the data disk", hint="read its console; golden-data status on it shows the reason"
        )


def _accept(job: Job, pair: Pair, without_service: float) -> Replaced:
    """Label both VMs: the new one is now the machine's current VM, the old one is kept."""
    new, record = pair.require_new(), pair.active()
    _remove_others(job.api, record, new)
    config = job.api.get(f"{new.path}/config")
    label = find.label_of(config)
    description = str(config.get("description", "")).replace(label.describe(), label.become(CloneState.MADE).describe())
    job.api.configure(new.path, description=description, onboot=record.onboot, protection=record.protection)
    until = stamp(datetime.now(UTC) + timedelta(days=job.keep_days))
    old_tags = labels.split_tags(str(pair.config.get("tags", ""))) | {settings.KEPT_TAG}
    kept = record.become(Phase.KEPT, keep_until=until, peer=new.vmid)
    records.write(job.api, pair.old.path, kept, run=job.run, tags=";".join(sorted(old_tags)))
    return Replaced(pair.name, new, record.template, pair.old.vmid, until, without_service)


# --- rollback -------------------------------------------------------------------------------------------------------


def _roll_back(job: Job, pair: Pair, failed: str) -> None:
    """Roll back over a separate connection: the other one may be in use. Raises StepFailed if it cannot be completed."""
    log.warn(f"{pair.name}: {failed}: rolling back")
    with job.api.another() as api:
        try:
            config = records.require_ours(api, pair.old.path, job.run)
            current = records.parse(str(config.get("description", "")))
            new = pair.new or find.made_by(api, guest_list.listed(api), current or pair.active())
            back = replace(pair, new=new, record=(current or pair.active()).become(Phase.BACK, failed=failed))
            records.write(api, pair.old.path, back.record, run=job.run)
            _back(job, api, back)
        except ConcurrentRun:
            raise
        except GoldsmithError as error:
            raise StepFailed(
                f"{pair.name}: {failed}; the rollback is not complete: {error.brief}",
                details=error.details,
                hint="no data are lost: run the same command again, which completes the rollback",
            ) from error


def _back(job: Job, api: Api, pair: Pair) -> None:
    """Make the old VM the current one again, from any step; remove the new VM unless an accepted replacement is undone."""
    old, record = pair.old, pair.active()
    # The clone of a killed run may not be listed yet.
    vms.settle_clones(api, old.node, timeout=clone_machine.CLONE_SECONDS)
    new = pair.new or find.made_by(api, guest_list.listed(api), record)
    if new is not None:
        clone_machine.wait_unlocked(api, new, tell=log.info)
        switch.stop(api, new)
        switch.move_data(api, new, old, record.key)
        after = settings.kept_name(pair.name, new.vmid) if record.undo else settings.new_name(pair.name)
        switch.rename(api, new, after, onboot=0, protection=0)
    switch.rename(api, old, pair.name)
    switch.start(api, old, new)
    switch.require_healthy(api, old, pair.name, timeout=job.timeout)
    if new is not None and not record.undo:
        _remove(api, new, record)
        _remove_others(api, record, None)
    keys = {"onboot": record.onboot, "protection": record.protection, "tags": _without_kept(pair.config)}
    if new is not None and record.undo:
        _keep(job, api, new, record)
    records.write(api, old.path, None, run=job.run, **keys)
    log.info(f"{pair.name}: the old system serves again, as VM {old.vmid}")


def _without_kept(config: Mapping[str, Any]) -> str:
    return ";".join(sorted(labels.split_tags(str(config.get("tags", ""))) - {settings.KEPT_TAG}))


def _remove(api: Api, new: Machine, record: Record) -> None:
    """Remove the new VM, if it is the one of this replacement and the data disk is not on it."""
    config = vms.config_of(api, new.node, new.vmid)
    if config is None:
        return
    if data_disk.key_of(config) or labels.run_of(str(config.get("description", ""))) != record.made:
        raise StepFailed(f"VM {new.vmid} is not removed: it has the data disk, or is not the VM of this replacement")
    # A clone has the protection of its template.
    vms.take_away(api, new.node, new.vmid, run=record.made)


def _keep(job: Job, api: Api, new: Machine, record: Record) -> None:
    """Label the new VM of an undone replacement: it is stopped, and will be removed later."""
    until = stamp(datetime.now(UTC) + timedelta(days=job.keep_days))
    config = api.get(f"{new.path}/config")
    kept = record.become(Phase.KEPT, keep_until=until, undo=True, peer=0)
    text = records.inscribed(str(config.get("description", "")), kept)
    own = labels.split_tags(str(config.get("tags", ""))) | {settings.KEPT_TAG}
    api.configure(new.path, description=text, tags=";".join(sorted(own)), protection=0)


def undo(job: Job, name: str) -> Replaced:
    """Go back to the VM that was replaced, with the current data; or roll back a replacement in progress.

    Raises SpecError if there is no such VM, or if the old system cannot read the data that the new one wrote.
    """
    guests = guest_list.listed(job.api)
    pair = find.pair(job.api, guests, name)
    if pair.record is None:
        pair = find.kept(job.api, guests, name)
        _require_readable(job, pair)
        record = pair.active().become(Phase.BACK, undo=True, run=job.run, failed="undone")
        records.take(job.api, pair.old.path, pair.config, record)
        pair = replace(pair, record=record)
    else:
        pair = _take_over(job, pair, None)
        if pair.active().phase is not Phase.BACK:
            pair = _mark(job, pair, Phase.BACK, failed="it was undone")
    start = job.clock()
    _back(job, job.api, pair)
    kept = pair.new.vmid if pair.new and pair.active().undo else 0
    return Replaced(name, pair.old, find.label_of(pair.config).template, kept, without_service=job.clock() - start)


def _require_readable(job: Job, pair: Pair) -> None:
    """Raise SpecError if the new system has changed the layout of the data, according to its agent."""
    adopted, record = switch.adopted(job.api, pair.require_new()), pair.active()
    if adopted is not None and record.layout and adopted.layout != record.layout:
        raise SpecError(
            f"{pair.name} cannot go back: the new system has changed the layout of the data",
            hint="restore a backup",
            details=f"before: {record.layout}\nnow:    {adopted.layout}",
        )


def clean(job: Job, *, now: datetime) -> list[str]:
    """Remove the kept VMs after their retention time; return their names."""
    removed = []
    for machine, config, record in find.all_kept(job.api, guest_list.listed(job.api)):
        if not record.keep_until or stamp(now) < record.keep_until:
            continue
        if data_disk.key_of(config) or switch.status(job.api, machine) != switch.STOPPED:
            log.warn(f"VM {machine.vmid} ({record.name}) is kept: it runs, or has a data disk")
            continue
        vms.remove(job.api, machine.node, machine.vmid)
        removed.append(str(config.get("name", machine.vmid)))
    return removed
