"""Makes an operator's machine of a template, tells it its site, starts it, and takes it away again when that fails.

Each step can be done twice: a run that was killed is continued by the next one with the same words.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from build import log, pve_guest
from build.clone_request import Request
from build.clone_source import Source
from build.errors import StepFailed
from build.labels import CloneLabel, CloneState
from build.publish_machine import EXISTS, Undo, take_away
from build.pve import Api, ApiError

CLONE_SECONDS = 7200.0
# Ids that somebody else took between the question and the clone.
TRIES = 10
STARTED_SECONDS = 60.0
# A clone whose answer was lost: how long it may take to show, and to be whole.
APPEAR_SECONDS, SETTLE_SECONDS = 5.0, 1800.0
POLL_SECONDS = 1.0
PERCENT = re.compile(r"\((?P<number>\d+(\.\d+)?)\s?%\)")
SIZE = re.compile(r"size=(?P<number>\d+(\.\d+)?)(?P<unit>[KMGT])")
KIB_PER_UNIT = {"K": 1, "M": 1 << 10, "G": 1 << 20, "T": 1 << 30}
DISK, CARD = "scsi0", "net0"


@dataclass(frozen=True)
class Machine:
    """A machine on a node."""

    node: str
    vmid: int

    @property
    def path(self) -> str:
        return f"/nodes/{self.node}/qemu/{self.vmid}"


def make(api: Api, source: Source, request: Request, label: CloneLabel, *, pool: str, undo: Undo, spare: Api) -> Machine:
    """Clone the template; ``spare`` is the connection that takes the clone away again when asked by ``undo``."""
    keys: dict[str, Any] = {"name": request.name, "pool": pool, "description": label.describe()}
    keys |= {"full": 0} if request.linked else {"full": 1, "storage": request.storage or None}
    keys["target"] = source.target or None
    for _ in range(TRIES):
        vmid, task = int(api.get("/cluster/nextid")), {"upid": ""}

        def take_back(vmid: int = vmid, task: dict[str, str] = task) -> None:
            _take_back(spare, source, vmid, run=label.run, upid=task["upid"])

        try:
            task["upid"] = str(api.post(f"/nodes/{source.node}/qemu/{source.vmid}/clone", newid=vmid, **keys))
        except ApiError as error:
            if any(words in error.brief for words in EXISTS):
                log.debug(f"{vmid} was taken meanwhile")
                continue
            if error.status == 0:
                undo.add(f"VM {vmid}", take_back)
            raise
        except KeyboardInterrupt:
            # Whether it was heard shows when it is looked for.
            undo.add(f"VM {vmid}", take_back)
            raise
        undo.add(f"VM {vmid}", take_back)
        _wait(api, task["upid"])
        return Machine(source.place, vmid)
    raise StepFailed(f"{TRIES} VM ids in a row were taken by others", hint="run the same command again")


def _take_back(api: Api, source: Source, vmid: int, *, run: str, upid: str) -> None:
    """Remove a clone that this run made, wherever it is by now."""
    places = dict.fromkeys((source.node, source.place))
    if not upid:
        # Which of the template's tasks is ours cannot be told: it is let end, and the label then says whose clone it is.
        _settle(api, Machine(source.node, vmid))
    for node in places:
        take_away(api, node, vmid, run=run, upid=upid if node == source.node else "")


def _settle(api: Api, machine: Machine) -> None:
    begun = time.monotonic()
    while (waited := time.monotonic() - begun) < SETTLE_SECONDS:
        try:
            if "lock" not in api.get(f"{machine.path}/config"):
                return
        except ApiError as error:
            if error.status == 0 or waited > APPEAR_SECONDS:
                return
        time.sleep(POLL_SECONDS)


def _wait(api: Api, upid: str) -> None:
    progress = log.Progress("copying the disk")

    def tell(line: str) -> None:
        found = PERCENT.search(line)
        progress.update("as Proxmox tells it", float(found["number"]) / 100 if found else None)

    try:
        api.wait(upid, timeout=CLONE_SECONDS, tell=tell)
    finally:
        progress.finish()


def wanted(config: Mapping[str, Any], request: Request, *, user: str) -> dict[str, Any]:
    """Return the keys that make a clone the operator's own: what it is told, and nothing of the template's protection."""
    keys: dict[str, Any] = {"protection": 0, "onboot": 1}
    keys |= pve_guest.cloud_init(user=user, keys=request.keys, addresses=request.addresses)
    # Always, and with the clone's own UUID: what the template carried is nobody's business.
    keys["smbios1"] = pve_guest.smbios(str(config.get("smbios1", "")), request.site)
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


def differences(config: Mapping[str, Any], request: Request, *, user: str) -> list[str]:
    """Return what a machine has that was not asked for, one key a line: what it has, and what was asked."""
    asked = wanted(config, request, user=user)
    # An operator may protect the machine, or not start it at boot: that is no other machine.
    del asked["protection"], asked["onboot"]
    # Nothing secret is among them: the keys are public ones.
    return [
        f"{key}: it has {config.get(key, 'nothing')!s}, asked for {value!s}"
        for key, value in asked.items() if _parts(config.get(key, "")) != _parts(value)
    ]  # fmt: skip


def _parts(value: object) -> list[str]:
    """Return the parts of a value without their order, which is Proxmox's own business."""
    return sorted(str(value).strip().split(","))


def configure(api: Api, machine: Machine, request: Request, label: CloneLabel, *, user: str) -> None:
    """Tell a stopped machine everything, in one step."""
    config = api.get(f"{machine.path}/config")
    keys = wanted(config, request, user=user)
    api.configure(machine.path, tags=label.tags(), description=label.describe(), **keys)


def grow(api: Api, machine: Machine, source: Source, gib: int) -> None:
    """Make the disk larger than the template's by so much; one that is as large already stays."""
    size = disk_kib(source.config) + (gib << 20)
    for attempt in (1, 2):
        if disk_kib(api.get(f"{machine.path}/config")) >= size:
            return
        try:
            # A whole size, not a difference: to ask twice is no harm.
            if upid := api.put(f"{machine.path}/resize", disk=DISK, size=f"{size >> 10}M"):
                api.wait(upid)
        except ApiError as error:
            if error.status != 0 or attempt == 2:
                raise
        else:
            return


def disk_kib(config: Mapping[str, Any]) -> int:
    """Return the size of the disk in a configuration, in KiB; 0 when it is not told."""
    found = SIZE.search(str(config.get(DISK, "")))
    return int(float(found["number"]) * KIB_PER_UNIT[found["unit"]]) if found else 0


def start(api: Api, machine: Machine) -> None:
    """Start the machine; one that runs is content. A lost answer is looked up, not repeated."""
    if _status(api, machine) == "running":
        return
    try:
        api.wait(api.post(f"{machine.path}/status/start"))
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
    """Wait until a clone that a killed run began is whole; return its configuration."""
    deadline = time.monotonic() + CLONE_SECONDS
    while True:
        config: Mapping[str, Any] = api.get(f"{machine.path}/config")
        if "lock" not in config:
            return config
        if time.monotonic() > deadline:
            raise StepFailed(
                f"VM {machine.vmid} on {machine.node} stays locked ({config['lock']})",
                hint=f"look at the node's task list; when nothing works on it any more: qm unlock {machine.vmid}",
            )
        tell(f"VM {machine.vmid} is being cloned still")
        time.sleep(POLL_SECONDS)


def hand_over(api: Api, machine: Machine, label: CloneLabel) -> None:
    """Write down that the machine is complete: from now on no run touches it."""
    api.configure(machine.path, description=label.become(CloneState.MADE).describe())
