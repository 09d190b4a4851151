"""Clones a VM from a template, applies its site settings, starts it, and removes it after a failure.

Each step can be repeated: a killed run is continued by the next one with the same options.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from build.clone import data_disk
from build.clone.request import Request
from build.clone.template import Source
from build.core import log
from build.core.errors import StepFailed
from build.core.units import KIB, size_bytes
from build.proxmox import guest_agent, labels
from build.proxmox.api_errors import CHANGED, NO_ANSWER
from build.proxmox.claim import ConcurrentRun
from build.proxmox.client import Api, ApiError, TaskFailed
from build.proxmox.labels import CloneLabel, CloneState
from build.proxmox.vms import Undo, is_taken, is_taken_by_now, settle_clone, settle_earlier_clones, take_away

CLONE_SECONDS = 7200.0
# Attempts if other clients take the VM id between the query and the clone.
TRIES = 10
STARTED_SECONDS = 60.0
# The time that a clone may take to complete after its response was lost.
SETTLE_SECONDS = 1800.0
POLL_SECONDS = 1.0
PERCENT = re.compile(r"\((?P<number>\d+(\.\d+)?)\s?%\)")
SIZE = re.compile(r"size=(?P<number>\d+(\.\d+)?)(?P<unit>[KMGT])")
DISK, CARD = "scsi0", "net0"


@dataclass(frozen=True)
class Machine:
    """A VM on a node."""

    node: str
    vmid: int

    @property
    def path(self) -> str:
        return f"/nodes/{self.node}/qemu/{self.vmid}"


def make(api: Api, source: Source, request: Request, label: CloneLabel, *, pool: str, undo: Undo, spare: Api) -> Machine:
    """Clone the template; ``spare`` is the connection that ``undo`` uses to remove the clone."""
    keys: dict[str, Any] = {"name": request.name, "pool": pool, "description": label.describe()}
    keys |= {"full": 0} if request.linked else {"full": 1, "storage": request.storage or None}
    keys["target"] = source.target or None
    others: set[int] = set()
    for _ in range(TRIES):
        vmid, task = int(api.get("/cluster/nextid")), {"upid": ""}

        def take_back(vmid: int = vmid, task: dict[str, str] = task) -> None:
            if vmid not in others:
                _take_back(spare, source, vmid, run=label.run, upid=task["upid"])

        try:
            task["upid"] = str(api.post(f"/nodes/{source.node}/qemu/{source.vmid}/clone", newid=vmid, **keys))
        except ApiError as error:
            if is_taken(error, vmid):
                log.debug(f"{vmid} was taken by another client")
                continue
            if error.status == 0:
                undo.add(f"VM {vmid}", take_back)
            raise
        except KeyboardInterrupt:
            # It is unknown whether Proxmox received the request: the rollback looks for the VM.
            undo.add(f"VM {vmid}", take_back)
            raise
        undo.add(f"VM {vmid}", take_back)
        try:
            _wait(api, task["upid"])
        except TaskFailed as error:
            if not is_taken_by_now(error, vmid):
                raise
            others.add(vmid)
            continue
        # The check for other VMs of the name must see the clone of a killed run.
        settle_earlier_clones(api, source.node, task["upid"], timeout=CLONE_SECONDS)
        return Machine(source.place, vmid)
    raise StepFailed(f"{TRIES} VM ids in a row were taken by others", hint="run the same command again")


def _take_back(api: Api, source: Source, vmid: int, *, run: str, upid: str) -> None:
    """Remove a clone that this run created, on either node."""
    places = dict.fromkeys((source.node, source.place))

    def announce(api: Api, node: str, vmid: int) -> bool:
        return _announce_removal(api, node, vmid, run)

    if not upid:
        # Until the task ends, the clone is in no pool, and not visible to this token; its label identifies the run.
        settle_clone(api, source.node, source.vmid, vmid, timeout=SETTLE_SECONDS)
    for node in places:
        take_away(api, node, vmid, run=run, upid=upid if node == source.node else "", ahead=announce)


def _announce_removal(api: Api, node: str, vmid: int, run: str) -> bool:
    """Label a clone of a run as being removed, so that no other run continues it. Return False if one does already."""
    machine = Machine(node, vmid)
    label = labels.parse_clone(str(api.get(f"{machine.path}/config").get("description", "")))
    if label is not None and label.run != run:
        return False
    # It is labelled already if a request of the removal failed.
    if label is not None and label.state is not CloneState.REMOVING:
        going = label.become(CloneState.REMOVING).describe()
        try:
            _change(api, machine, run, lambda _config: {"description": going})
        except ConcurrentRun:
            return False
        except ApiError as error:
            if error.status == NO_ANSWER:
                raise
            # A right that is missing, for example: the clone is removed all the same.
            log.debug(f"VM {vmid} is removed without that label: {error.brief}")
    return True


def _wait(api: Api, upid: str) -> None:
    progress = log.Progress("copying the disk")

    def tell(line: str) -> None:
        match = PERCENT.search(line)
        progress.update("on Proxmox VE", float(match["number"]) / 100 if match else None)

    try:
        api.wait(upid, timeout=CLONE_SECONDS, tell=tell)
    finally:
        progress.finish()


def wanted(config: Mapping[str, Any], request: Request, *, user: str, default: str) -> dict[str, Any]:
    """Return the configuration keys of a clone.

    Cloud-init, site and hardware settings, without the template's protection.
    """
    keys: dict[str, Any] = {"protection": 0, "onboot": 1}
    keys |= guest_agent.cloud_init(user=user, default=default, keys=request.keys, addresses=request.addresses)
    # Always, with the clone's own UUID: it replaces the template's value.
    keys["smbios1"] = guest_agent.smbios(str(config.get("smbios1", "")), request.site, family=request.family)
    if request.nameservers:
        keys["nameserver"] = " ".join(request.nameservers)
    if request.memory_mib:
        keys["memory"] = request.memory_mib
    if request.cores:
        keys["cores"] = request.cores
    if request.bridge or request.vlan:
        keys[CARD] = card(str(config.get(CARD, "")), bridge=request.bridge, vlan=request.vlan)
    return keys


def card(old: str, *, bridge: str, vlan: int) -> str:
    """Return a network card with another bridge or VLAN and the same hardware address."""
    model, *rest = old.split(",")
    changed = {key for key, value in (("bridge", bridge), ("tag", vlan)) if value}
    kept = [part for part in rest if part.partition("=")[0] not in changed]
    new = [f"bridge={bridge}"] * bool(bridge) + [f"tag={vlan}"] * bool(vlan)
    return ",".join([model, *sorted([*kept, *new])])


def differences(config: Mapping[str, Any], request: Request, *, user: str, default: str) -> list[str]:
    """Return the keys of a VM that differ from the request, one a line, with both values."""
    requested = wanted(config, request, user=user, default=default)
    # A VM may have the image's own administrator as ciuser: that is the default without the key, too.
    if config.get("ciuser", user) != user:
        requested["ciuser"] = user
    # An operator may protect the VM, or not start it at boot: that is not a difference.
    del requested["protection"], requested["onboot"]
    # They contain no secrets: the keys are public keys.
    lines = [
        f"{key}: it has {config.get(key, 'nothing')!s}, asked for {value!s}"
        for key, value in requested.items() if _parts(config.get(key, "")) != _parts(value)
    ]  # fmt: skip
    # It may have grown since.
    if data_disk.size_gib(config) < request.data_gib:
        lines.append(f"data disk: it has {data_disk.size_gib(config)} GiB, asked for {request.data_gib} GiB")
    return lines


def _parts(value: object) -> list[str]:
    """Return the parts of a value, sorted: their order in Proxmox is arbitrary."""
    return sorted(str(value).strip().split(","))


def configure(api: Api, machine: Machine, request: Request, label: CloneLabel, *, user: str, default: str) -> None:
    """Set the whole configuration of a stopped VM, in one call. Raises ConcurrentRun if another run has taken it over."""

    def keys(config: Mapping[str, Any]) -> dict[str, Any]:
        mine = {"tags": label.tags(), "description": label.describe()}
        return mine | wanted(config, request, user=user, default=default)

    _change(api, machine, label.run, keys)


def take_over(api: Api, machine: Machine, label: CloneLabel, run: str) -> CloneLabel:
    """Write the id of this run into an unfinished clone: the run that had it before stops, and does not remove it.

    Raises ConcurrentRun if a third run was faster, or the first one removes it.
    """
    ours = replace(label, run=run)
    _change(api, machine, label.run, lambda _config: {"description": ours.describe()})
    return ours


def _change(api: Api, machine: Machine, run: str, keys: Callable[[Mapping[str, Any]], dict[str, Any]]) -> None:
    """Change the configuration of a clone while it belongs to a run. Raises ConcurrentRun if it does not."""
    for attempt in range(1, TRIES + 1):
        config = api.get(f"{machine.path}/config")
        label = labels.parse_clone(str(config.get("description", "")))
        if label is None or label.run != run or label.state is CloneState.REMOVING:
            raise ConcurrentRun(
                f"another run works on {config.get('name', 'the clone')} (VM {machine.vmid} on {machine.node})",
                hint="wait until it is done, then run the same command again: it finds the result of that run",
            )
        try:
            return api.configure(machine.path, digest=str(config.get("digest", "")), **keys(config))
        except ApiError as error:
            if attempt == TRIES or not CHANGED.search(error.brief):
                raise
    raise AssertionError


def grow(api: Api, machine: Machine, source: Source, gib: int) -> None:
    """Make the disk ``gib`` GiB larger than the template's; a disk that is already as large is left unchanged."""
    size = disk_kib(source.config) + (gib << 20)
    for attempt in (1, 2):
        if disk_kib(api.get(f"{machine.path}/config")) >= size:
            return
        try:
            # An absolute size, not a difference: repeating the request is harmless.
            if upid := api.put(f"{machine.path}/resize", disk=DISK, size=f"{size >> 10}M"):
                api.wait(upid)
        except ApiError as error:
            if error.status != 0 or attempt == 2:
                raise
        else:
            return


def add_data(api: Api, machine: Machine, source: Source, request: Request) -> None:
    """Create the data disk on the storage of the VM's disk."""
    storage = request.storage or str(source.config[DISK]).partition(":")[0]
    data_disk.add(api, machine.path, storage, request.data_gib)


def disk_kib(config: Mapping[str, Any]) -> int:
    """Return the size of the disk in a configuration, in KiB; 0 if it is unknown."""
    match = SIZE.search(str(config.get(DISK, "")))
    return size_bytes(match["number"], match["unit"]) // KIB if match else 0


def start(api: Api, machine: Machine) -> None:
    """Start the VM if it is not running. After a lost response the status is checked instead of a retry."""
    if _status(api, machine) == "running":
        return
    try:
        api.wait(api.post(f"{machine.path}/status/start"))
    except TaskFailed:
        # Another run, or a person, may have started it at the same time.
        if _status(api, machine) != "running":
            raise
    except ApiError as error:
        if error.status != 0:
            raise
        deadline = time.monotonic() + STARTED_SECONDS
        while _status(api, machine) != "running":
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_SECONDS)


def _status(api: Api, machine: Machine) -> str:
    return str(api.get(f"{machine.path}/status/current")["status"])


def wait_unlocked(api: Api, machine: Machine, *, tell: Callable[[str], None]) -> Mapping[str, Any]:
    """Wait until a clone of a killed run is complete; return its configuration."""
    deadline = time.monotonic() + CLONE_SECONDS
    while True:
        config: Mapping[str, Any] = api.get(f"{machine.path}/config")
        if "lock" not in config:
            return config
        if time.monotonic() > deadline:
            raise StepFailed(
                f"VM {machine.vmid} on {machine.node} stays locked ({config['lock']})",
                hint=f"check the node's task list; if no task works on it, run qm unlock {machine.vmid}",
            )
        tell(f"VM {machine.vmid} is still being cloned")
        time.sleep(POLL_SECONDS)


def hand_over(api: Api, machine: Machine, label: CloneLabel) -> None:
    """Label the VM as finished: from now on no run changes it. Raises ConcurrentRun if another run has taken it over."""
    _change(api, machine, label.run, lambda _config: {"description": label.become(CloneState.MADE).describe()})
