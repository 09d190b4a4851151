"""Virtual machines of a cluster: free ids, removal, rollback of failed runs, tasks after a lost response."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Collection
from typing import Any

from build.core import log
from build.core.errors import GoldsmithError, HostError
from build.proxmox import labels
from build.proxmox.api_errors import CONFIG_LOCK
from build.proxmox.client import Api, ApiError, Denied, TaskFailed

DRIVE = re.compile(r"(ide|sata|scsi|virtio|efidisk|tpmstate)\d+")

SETTLE_SECONDS = 600.0
TRIES = 3
# No response, or an error of the server, such as a lock that was not free in time.
PASSING = (0, 500)
BAD_REQUEST = 400
# pve-manager, Tasks.pm: the status of a running task in the list.
RUNNING = "RUNNING"
OUR_TASKS = ("qmcreate", "qmconfig", "qmstart", "qmstop", "qmtemplate", "resize")
GONE = ("does not exist", "no such VM")
EXISTS = ("already exists", "already used")
# qemu-server, clone_vm: the task of a clone checks the VM id again, after the request was accepted.
EXISTS_BY_NOW = "unable to create VM {vmid}: config file already exists"


class Stopped(GoldsmithError):
    """The user interrupted. Not a StepFailed: loops that retry failed steps must end at once."""


class VmIds:
    """The VM ids of the settings, the lowest free one first; thread-safe."""

    def __init__(self, bounds: tuple[int, int], taken: Collection[int]) -> None:
        self.bounds, self._taken, self._lock = bounds, set(taken), threading.Lock()

    def take(self) -> int:
        """Return an id that no visible guest has; ids of hidden guests are found by trying."""
        first, last = self.bounds
        with self._lock:
            for vmid in range(first, last + 1):
                if vmid not in self._taken:
                    self._taken.add(vmid)
                    return vmid
        raise HostError(
            f"no VM id is free from {first} to {last}",
            hint="extend vmids in golden.yaml, or remove templates of old versions (nox -s prune)",
        )


class Undo:
    """Rollback steps for created resources; run newest first if the work fails."""

    def __init__(self, remedy: str = "run the same command again, which removes it") -> None:
        self._remedy = remedy
        self._steps: list[tuple[str, Callable[[], None]]] = []

    def add(self, what: str, step: Callable[[], None]) -> None:
        """Add the rollback of a resource that is about to be created. The step itself checks whether it exists."""
        self._steps.append((what, step))

    def forget(self) -> None:
        """Keep everything: the work is done."""
        self._steps.clear()

    def run(self) -> list[str]:
        """Roll everything back; return messages for failed steps. Never raises a GoldsmithError."""
        problems = []
        while self._steps:
            what, step = self._steps.pop()
            try:
                _persist(step)
            except GoldsmithError as error:
                problems.append(f"{what} could not be removed: {error.brief}; {self._remedy}")
        return problems


def _persist(step: Callable[[], None]) -> None:
    """Retry without a response, or after a refusal that may pass: removing the same resource twice is harmless."""
    for attempt in range(1, TRIES + 1):
        try:
            step()
        except ApiError as error:
            if error.status not in PASSING or attempt == TRIES:
                raise
        else:
            return


def take_away(
    api: Api, node: str, vmid: int, *, run: str, upid: str = "", source: int = 0,
    ahead: Callable[[Api, str, int], bool] = lambda _api, _node, _vmid: True,
) -> None:  # fmt: skip
    """Remove a VM that this run created, or was creating when the response was lost.

    ``source``: the VM that it is a clone of; ``ahead`` is called before its removal, and returns whether it may be removed.
    Without the task's id only a VM with this run's label is removed: the VM id may belong to another run.
    """
    running = _tasks(api, node, vmid)
    if upid:
        for task in dict.fromkeys([upid, *running]):
            _end(api, node, task)
    else:
        # After they have ended, the label identifies the run: Proxmox adds a VM to its pool last.
        _settle(api, [*running, *(_clone_tasks(api, node, source, vmid) if source else [])])
    config = config_of(api, node, vmid)
    if config is None:
        return
    owner_run = labels.run_of(config.get("description", ""))
    is_ours = owner_run == run
    # The task belongs to this run, so a VM without a label does too. Another run may have reused the VM id since.
    if not is_ours and (owner_run or not upid):
        return
    if is_ours and int(config.get("protection", 0)):
        api.put(f"/nodes/{node}/qemu/{vmid}/config", protection=0)
    if ahead(api, node, vmid):
        remove(api, node, vmid)


def remove(api: Api, node: str, vmid: int) -> None:
    """Stop a VM and remove it with its disks; a missing VM is not an error."""
    path = f"/nodes/{node}/qemu/{vmid}"
    try:
        if api.get(f"{path}/status/current")["status"] == "running":
            api.wait(api.post(f"{path}/status/stop"))
        api.wait(api.delete(path, purge=1))
    except ApiError as error:
        if not is_gone(api, error, vmid):
            raise


def config_of(api: Api, node: str, vmid: int) -> dict[str, Any] | None:
    """Return the configuration of a VM, or None if it does not exist. Raises ApiError."""
    try:
        config: dict[str, Any] = api.get(f"/nodes/{node}/qemu/{vmid}/config")
    except ApiError as error:
        if is_gone(api, error, vmid):
            return None
        raise
    return config


def is_gone(api: Api, error: ApiError, vmid: int) -> bool:
    """Return True if a call failed because there is no such VM.

    For a token with privileges from a pool, a removed VM is in no pool: the status is 403. Checking whether the VM id
    is in use needs no privilege.
    """
    if isinstance(error, Denied):
        return error.path in ("", f"/vms/{vmid}") and is_free(api, vmid)
    return any(words in error.brief for words in GONE)


def is_free(api: Api, vmid: int) -> bool:
    """Return True if no guest of the cluster has the VM id, visible to the token or not. Raises ApiError."""
    try:
        api.get("/cluster/nextid", vmid=vmid)
    except ApiError as error:
        if error.status == BAD_REQUEST:
            return False
        raise
    return True


def is_taken(error: ApiError, vmid: int) -> bool:
    """Return True if a VM could not be created because its VM id is in use, or locked by another creation.

    Proxmox may still be creating the VM of a run that was killed.
    """
    return any(words in error.brief for words in (*EXISTS, CONFIG_LOCK.format(vmid=vmid)))


def is_taken_by_now(error: TaskFailed, vmid: int) -> bool:
    """Return True if a clone failed because another client took its VM id after the request: that VM is not this run's."""
    return EXISTS_BY_NOW.format(vmid=vmid) in error.brief


def _tasks(api: Api, node: str, vmid: int, *, kinds: Collection[str] = OUR_TASKS) -> list[str]:
    """Return the running tasks of a VM: only those of this token."""
    listed = api.get(f"/nodes/{node}/tasks", vmid=vmid, source="active")
    running = [task for task in listed if task.get("status", RUNNING) == RUNNING]
    return [str(task["upid"]) for task in running if task.get("type") in kinds]


def _clone_tasks(api: Api, node: str, source: int, vmid: int) -> list[str]:
    """Return the running tasks that clone a VM to a VM id.

    Proxmox lists them under the VM id of the source; the first line of a task's log has the new one.
    """
    return [
        upid for upid in _tasks(api, node, source, kinds=("qmclone",))
        if re.search(rf"\b{vmid}\b", api.first_line(upid))
    ]  # fmt: skip


def settle_earlier_clones(api: Api, node: str, upid: str, *, timeout: float) -> None:
    """Wait for the end of the clones that this token started on a node before the task ``upid``.

    Proxmox adds a clone to its pool last: the clone of a killed run is not visible before its task has ended.
    """
    listed = api.get(f"/nodes/{node}/tasks", source="active", typefilter="qmclone")
    _settle(
        api, [
            str(task["upid"]) for task in listed
            if task.get("status", RUNNING) == RUNNING and task["upid"] != upid and _begun(task["upid"]) <= _begun(upid)
        ], timeout=timeout,
    )  # fmt: skip


def _begun(upid: str) -> int:
    """Return the start time of a task in seconds; PVE::UPID writes it as a hexadecimal number."""
    return int(upid.split(":")[4], 16)


def settle(api: Api, node: str, vmid: int, *, kinds: Collection[str] = OUR_TASKS) -> None:
    """Wait for the end of a VM's tasks, also of failing ones: those that create or change it. Raises ApiError."""
    _settle(api, _tasks(api, node, vmid, kinds=kinds))


def settle_clone(api: Api, node: str, source: int, vmid: int, *, timeout: float) -> None:
    """Wait until no task clones a VM to a VM id: the response to that clone was lost."""
    _settle(api, _clone_tasks(api, node, source, vmid), timeout=timeout)


def _settle(api: Api, tasks: Collection[str], *, timeout: float = SETTLE_SECONDS) -> None:
    """Wait for the end of tasks, also of failing ones."""
    for upid in tasks:
        try:
            api.wait(upid, timeout=timeout)
        except TaskFailed as error:
            log.debug(error.brief)


def _end(api: Api, node: str, upid: str) -> None:
    """Abort a task: Proxmox then removes the incomplete VM."""
    try:
        if api.get(f"/nodes/{node}/tasks/{upid}/status")["status"] != "stopped":
            api.delete(f"/nodes/{node}/tasks/{upid}")
        api.wait(upid, timeout=SETTLE_SECONDS)
    except TaskFailed:
        return


def settle_clones(api: Api, node: str, *, timeout: float) -> None:
    """Wait for the end of every clone that this token has started on a node: a clone is not visible before."""
    listed = api.get(f"/nodes/{node}/tasks", source="active", typefilter="qmclone")
    _settle(api, [str(task["upid"]) for task in listed if task.get("status", RUNNING) == RUNNING], timeout=timeout)


def settle_moves(api: Api, node: str, vmid: int, *, timeout: float) -> None:
    """Wait for the end of every task of this token that moves a disk from or to a VM.

    Until then the disk is in the old configuration, or in none. Proxmox lists such a task under an id with both VMs, such as
    ``104-scsi1>105-scsi1``, and sets no lock in the configurations.
    """
    listed = api.get(f"/nodes/{node}/tasks", source="active", typefilter="qmmove")
    of_vm = re.compile(rf"(?:^|>){vmid}-")
    _settle(api, [
        str(task["upid"]) for task in listed
        if task.get("status", RUNNING) == RUNNING and of_vm.search(str(task.get("id", "")))
    ], timeout=timeout)  # fmt: skip
