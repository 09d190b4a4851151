"""Makes a machine of an image, turns it into a protected template, and takes back what was made when that fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from build import labels, log, release_policy
from build.cluster import Firmware, Settings
from build.errors import GoldsmithError, HostError, StepFailed
from build.labels import Label, State
from build.publish_media import Brought, Media
from build.pve import Api, ApiError, TaskFailed

# What Proxmox itself proposes for a new machine.
CPU = "x86-64-v2-AES"
CREATE_SECONDS = 7200.0
SETTLE_SECONDS = 600.0
TRIES = 3
TASKS_LOOKED_AT = 20
# pve-manager, Tasks.pm: the status of a task in the list that has not ended.
RUNNING = "RUNNING"
OUR_TASKS = ("qmcreate", "qmconfig", "qmstart", "qmstop", "qmtemplate", "resize")
# What Proxmox adds to a configuration by itself: when it was made, its identity, the hash of the file, the lock of a task.
OWN_KEYS = frozenset({"meta", "vmgenid", "digest", "smbios1", "lock"})
GONE = ("does not exist", "no such VM")
EXISTS = ("already exists", "already used")


# The settings that shape a machine, and how each is read back.
SHAPES: Mapping[str, Callable[[str], Any]] = {
    "storage": str, "bridge": str, "vlan": int, "pool": str, "firmware": Firmware, "cores": int, "memory_mib": int,
}  # fmt: skip


class Stopped(StepFailed):
    """The user wants to stop."""


class VmIds:
    """The VM ids of the settings, the lowest free one first; several threads may ask."""

    def __init__(self, bounds: tuple[int, int], taken: Collection[int]) -> None:
        self.bounds, self._taken, self._lock = bounds, set(taken), threading.Lock()

    def take(self) -> int:
        """Return an id that is free as far as we can see: guests that we may not see are found by trying."""
        first, last = self.bounds
        with self._lock:
            for vmid in range(first, last + 1):
                if vmid not in self._taken:
                    self._taken.add(vmid)
                    return vmid
        raise HostError(
            f"no VM id is free from {first} to {last}",
            hint="widen vmids in golden.yaml, or remove templates of old versions",
        )


class Undo:
    """What was made and is taken back, the newest first, when the work fails."""

    def __init__(self, remedy: str = "run the same command again, which removes it") -> None:
        self._remedy = remedy
        self._steps: list[tuple[str, Callable[[], None]]] = []

    def add(self, what: str, step: Callable[[], None]) -> None:
        """Remember how to take back what is about to be made. The step finds out itself whether it was."""
        self._steps.append((what, step))

    def forget(self) -> None:
        """Keep everything: the work is done."""
        self._steps.clear()

    def run(self) -> list[str]:
        """Take everything back; return what could not be, for people. Never raises a GoldsmithError."""
        problems = []
        while self._steps:
            what, step = self._steps.pop()
            try:
                _persist(step)
            except GoldsmithError as error:
                problems.append(f"{what} could not be removed: {error.brief}; {self._remedy}")
        return problems


def _persist(step: Callable[[], None]) -> None:
    """Try again when nobody answered: to remove what is ours twice is no harm."""
    for attempt in range(1, TRIES + 1):
        try:
            step()
        except ApiError as error:
            if error.status != 0 or attempt == TRIES:
                raise
        else:
            return


def creation(settings: Settings, label: Label, vmid: int) -> dict[str, Any]:
    """Return the configuration of a new machine, without its disk.

    No tags: a token with rights on a pool may set them only on a machine in it (Qemu.pm, assert_tag_permissions).
    """
    keys: dict[str, Any] = {
        "vmid": vmid, "name": label.template, "pool": settings.pool, "description": label.describe(), "ostype": "l26",
        "cpu": CPU, "cores": settings.cores, "memory": settings.memory_mib, "agent": "1", "onboot": 0,
        "scsihw": "virtio-scsi-single", "serial0": "socket", "ide2": f"{settings.storage}:cloudinit", "ciupgrade": 0,
        "net0": f"virtio,bridge={settings.bridge}" + (f",tag={settings.vlan}" if settings.vlan else ""),
    }  # fmt: skip
    if settings.firmware is Firmware.UEFI:
        keys |= {
            "bios": "ovmf", "machine": "q35", "efidisk0": f"{settings.storage}:1,efitype=4m,pre-enrolled-keys=1"
        }
    return keys


def recorded(settings: Settings) -> dict[str, str]:
    """Return the settings that shape a machine, for its label."""
    return {key: str(getattr(settings, key)) for key in SHAPES}


def as_recorded(settings: Settings, machine: Mapping[str, str]) -> Settings:
    """Return the settings with which a machine was made; those that its label does not tell are golden.yaml's."""
    told = {key: SHAPES[key](machine[key]) for key in SHAPES if key in machine}
    return replace(settings, **told)


class Machine:
    """The machine that becomes the template."""

    def __init__(
        self, api: Api, settings: Settings, node: str, label: Label, *, ids: VmIds, undo: Undo, vmid: int = 0
    ) -> None:
        self.api, self.settings, self.node, self.label = api, settings, node, label
        self.ids, self.undo, self.vmid = ids, undo, vmid

    @property
    def path(self) -> str:
        return f"/nodes/{self.node}/qemu/{self.vmid}"

    def create(self, media: Media, brought: Brought) -> None:
        """Make the machine of the image that is on the node, and mark it."""
        upid = self._create(media.disk(brought))
        self.api.wait(upid, timeout=CREATE_SECONDS)
        media.attach(self.node, self.vmid, brought)
        self._put(tags=self.label.tags())

    def _create(self, disk: dict[str, Any]) -> str:
        while True:
            vmid = self.vmid = self.ids.take()
            made = {"upid": ""}

            def take_back(vmid: int = vmid, made: dict[str, str] = made) -> None:
                take_away(self.api, self.node, vmid, run=self.label.run, upid=made["upid"])

            keys = creation(self.settings, self.label, vmid) | disk
            try:
                made["upid"] = str(self.api.post(f"/nodes/{self.node}/qemu", **keys))
            except ApiError as error:
                if any(words in error.brief for words in EXISTS):
                    log.debug(f"{self.node}: {vmid} is taken by a guest that we may not see")
                    continue
                if error.status == 0:
                    self.undo.add(f"VM {vmid}", take_back)
                raise
            self.undo.add(f"VM {vmid}", take_back)
            return made["upid"]

    def adopt(self) -> None:
        """Give a machine that was made elsewhere, with its disk at scsi0, the configuration of every other one."""
        config = self.api.get(f"{self.path}/config")
        volume, *rest = str(config["scsi0"]).split(",")
        size = [option for option in rest if option.startswith("size=")]
        keys = creation(self.settings, self.label, self.vmid)
        # The installer's second console, and what else a builder writes that publishing does not.
        surplus = sorted(set(config) - set(keys) - OWN_KEYS - {"scsi0", "boot", "tags"})
        # The label comes last: what bears it is complete.
        name, description = keys.pop("name"), keys.pop("description")
        for made in ("vmid", "pool"):
            del keys[made]
        self.api.put(
            f"{self.path}/config", **keys, scsi0=",".join([volume, "discard=on", "iothread=1", *size]),
            boot="order=scsi0", **({"delete": ",".join(surplus)} if surplus else {}),
        )  # fmt: skip
        self._put(name=name, description=description)
        self._put(tags=self.label.tags())

    def to_template(self) -> None:
        """Turn the machine into a template; its disks cannot be written from now on."""
        upid = self.api.post(f"{self.path}/template")
        if upid:
            self.api.wait(upid)

    def finish(self) -> None:
        """Mark the template as verified and a candidate, and protect it, in one step."""
        label = self.label.become(State.TEMPLATE)
        self._put(description=label.describe(), tags=label.tags(release_policy.CANDIDATE), protection=1)

    def _put(self, **keys: Any) -> None:
        self.api.configure(self.path, **keys)


def take_away(api: Api, node: str, vmid: int, *, run: str, upid: str = "", source: int = 0) -> None:
    """Remove a machine that this run made, or was making when the answer was lost; ``source``: what it is a clone of.

    Without the task's id only a machine with this run's label is removed: the number may be somebody else's.
    """
    # Proxmox notes a clone's task under the number of its source.
    found = [*_tasks(api, node, vmid), *(_tasks(api, node, source, kinds=("qmclone",)) if source and not upid else [])]
    for task in dict.fromkeys([upid, *found] if upid else found):
        _end(api, node, task)
    config = _config(api, node, vmid)
    if config is None:
        return
    ours = labels.run_of(config.get("description", "")) == run
    if not upid and not ours:
        return
    if ours and int(config.get("protection", 0)):
        api.put(f"/nodes/{node}/qemu/{vmid}/config", protection=0)
    remove(api, node, vmid)


def remove(api: Api, node: str, vmid: int) -> None:
    """Stop a machine and remove it with its disks; one that is not there is no error."""
    path = f"/nodes/{node}/qemu/{vmid}"
    try:
        if api.get(f"{path}/status/current")["status"] == "running":
            api.wait(api.post(f"{path}/status/stop"))
        api.wait(api.delete(path, purge=1))
    except ApiError as error:
        if not any(words in error.brief for words in GONE):
            raise


def _config(api: Api, node: str, vmid: int) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = api.get(f"/nodes/{node}/qemu/{vmid}/config")
    except ApiError as error:
        if any(words in error.brief for words in GONE):
            return None
        raise
    return found


def _tasks(api: Api, node: str, vmid: int, *, kinds: Collection[str] = OUR_TASKS) -> list[str]:
    """Return the tasks of a machine that run: the token sees its own."""
    listed = api.get(f"/nodes/{node}/tasks", vmid=vmid, source="all", limit=TASKS_LOOKED_AT)
    running = [one for one in listed if one.get("status", RUNNING) == RUNNING]
    return [str(one["upid"]) for one in running if one.get("type") in kinds]


def _end(api: Api, node: str, upid: str) -> None:
    """End a task: Proxmox removes what a creation has made so far when it is aborted."""
    try:
        if api.get(f"/nodes/{node}/tasks/{upid}/status")["status"] != "stopped":
            api.delete(f"/nodes/{node}/tasks/{upid}")
        api.wait(upid, timeout=SETTLE_SECONDS)
    except TaskFailed:
        return
