"""Finds the VMs of a machine: the current one, the new one of a replacement, and the kept ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from build.clone.machine import Machine
from build.core.errors import SpecError, StepFailed
from build.proxmox import labels, vms
from build.proxmox.client import Api
from build.proxmox.labels import CloneLabel
from build.replace import record as records
from build.replace import settings, switch
from build.replace.record import Phase, Record


@dataclass(frozen=True)
class Pair:
    """A machine and its replacement: ``config`` is that of the old VM, with its digest."""

    name: str
    old: Machine
    config: Mapping[str, Any]
    record: Record | None = None
    new: Machine | None = None

    def active(self) -> Record:
        """Return the record of a replacement that has begun."""
        assert self.record is not None
        return self.record

    def require_new(self) -> Machine:
        """Return the new VM. Raises StepFailed if it is gone."""
        if self.new is None:
            raise StepFailed(f"the new VM of {self.name} is gone", hint="it was removed: run the same command again")
        return self.new


def label_of(config: Mapping[str, Any]) -> CloneLabel:
    """Return the label of a clone. Raises SpecError if the VM is not a clone of Goldsmith."""
    label = labels.parse_clone(str(config.get("description", "")))
    if label is None:
        raise SpecError(
            f"{config.get('name', 'the VM')} is not a clone of Goldsmith: its description has no label",
            hint="clone machines with nox -s clone",
        )
    return label


def pair(api: Api, guests: Sequence[Mapping[str, Any]], name: str) -> Pair:
    """Return the machine with a name; during a replacement, its old and new VM.

    Raises SpecError if there is none, StepFailed if it may be on a node that does not answer.
    """
    _require_seen(guests, name)
    read = list(_read(api, guests, name))
    for machine, config in read:
        record = records.parse(str(config.get("description", "")))
        if record is not None and record.name == name and record.phase is not Phase.KEPT:
            return Pair(name, machine, config, record, made_by(api, guests, record))
    named = [(machine, config) for machine, config in read if config.get("name") == name]
    if len(named) != 1:
        places = ", ".join(f"{machine.node}/{machine.vmid}" for machine, _ in named)
        problem = f"{len(named)} VMs are named {name}: {places}" if named else f"there is no clone named {name}"
        raise SpecError(
            problem,
            hint="nox -s fleet lists the machines; if it is missing there, check the token: nox -s doctor -- --proxmox",
        )
    machine, config = named[0]
    label_of(config)
    return Pair(name, machine, config)


def kept(api: Api, guests: Sequence[Mapping[str, Any]], name: str) -> Pair:
    """Return the VM that was replaced last as ``old``, and the current one as ``new``. Raises SpecError."""
    current = pair(api, guests, name)
    candidates = [(machine, config, record) for machine, config, record in all_kept(api, guests)
             if record.name == name and not record.undo and record.peer == current.old.vmid]  # fmt: skip
    if not candidates:
        raise SpecError(
            f"{name} has no VM to go back to",
            hint="the old VM was removed after its retention time, or the machine was never replaced",
        )
    machine, config, record = max(candidates, key=lambda entry: entry[2].begun)
    return Pair(name, machine, config, record, current.old)


def made_by(api: Api, guests: Sequence[Mapping[str, Any]], record: Record) -> Machine | None:
    """Return the new VM of a replacement: the one that its record names, else one with its run's label; None without one.

    Two runs at once can have cloned one each, until the record names one of them.
    """
    machines = all_made_by(api, guests, record)
    return next((machine for machine in machines if machine.vmid == record.peer), machines[0] if machines else None)


def all_made_by(api: Api, guests: Sequence[Mapping[str, Any]], record: Record) -> list[Machine]:
    """Return every VM that was cloned for a replacement, by the run in its label."""
    return [
        machine for machine, config in _read(api, guests, record.name)
        if labels.run_of(str(config.get("description", ""))) == record.made
    ]  # fmt: skip


def all_kept(api: Api, guests: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Machine, Mapping[str, Any], Record]]:
    """Yield every VM that is kept, its configuration and record."""
    for guest in guests:
        if settings.KEPT_TAG not in labels.split_tags(str(guest.get("tags", ""))):
            continue
        machine = Machine(str(guest["node"]), int(guest["vmid"]))
        config = api.get(f"{machine.path}/config")
        record = records.parse(str(config.get("description", "")))
        if record is not None and record.phase is Phase.KEPT:
            yield machine, config, record


def settled(api: Api, pair: Pair) -> Pair:
    """Return a pair with the configuration that it has after the end of every task that moves the data disk.

    The task of a run that was killed goes on. Raises ConcurrentRun if another run has completed the replacement.
    """
    vms.settle_moves(api, pair.old.node, pair.old.vmid, timeout=switch.MOVE_SECONDS)
    config = records.require_active(api, pair.old.path)
    return replace(pair, config=config, record=records.parse(str(config["description"])))


def names(guests: Sequence[Mapping[str, Any]], *, tag: str = "", pool: str = "") -> list[str]:
    """Return the names of the machines with a tag, in a pool, or all; without the kept ones."""
    selected = set()
    for guest in guests:
        tags = labels.split_tags(str(guest.get("tags", "")))
        chosen = (not tag or tag in tags) and (not pool or guest.get("pool") == pool)
        if chosen and labels.CLONE_TAG in tags and settings.KEPT_TAG not in tags and "name" in guest:
            selected.add(str(guest["name"]))
    return sorted(selected)


def _read(api: Api, guests: Sequence[Mapping[str, Any]], name: str) -> Iterator[tuple[Machine, Mapping[str, Any]]]:
    """Yield the VMs with the names that a replacement of this machine uses, with their configurations."""
    for guest in guests:
        vmid = int(guest["vmid"])
        if guest.get("template") or str(guest.get("type", "qemu")) != "qemu":
            continue
        if guest.get("name") in (name, settings.new_name(name), settings.kept_name(name, vmid)):
            machine = Machine(str(guest["node"]), vmid)
            yield machine, api.get(f"{machine.path}/config")


def _require_seen(guests: Sequence[Mapping[str, Any]], name: str) -> None:
    hidden = labels.unnamed_clones(guests)
    if hidden:
        raise StepFailed(
            f"{len(hidden)} clones have no name, because their node does not answer: one of them may be {name}",
            details=", ".join(hidden),
            hint="start that node, then run the same command again",
        )
