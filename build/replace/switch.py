"""The steps that exchange two VMs: each checks the current state first, so that it can be repeated after an interruption.

The two VMs never run at the same time: one is started only after the other one is stopped, and neither starts at boot
until the exchange is accepted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from build.clone import data_disk, health
from build.clone import machine as clone_machine
from build.clone.health import Reached
from build.clone.machine import Machine
from build.core import json_text, log
from build.core.errors import StepFailed
from build.proxmox import labels, vms
from build.proxmox.client import Api, ApiError, TaskFailed
from build.replace import settings

SHUTDOWN_SECONDS = 180
MOVE_SECONDS = 900.0
# The marker of the data disk on a running machine (overlays/22-data, golden/data.py).
MARKER = "/var/lib/golden-data/disk/site.json"
RUNNING, STOPPED = "running", "stopped"


@dataclass(frozen=True)
class Adopted:
    """A data disk in use, as read by the guest agent: the system that uses it, and the layout that a system must support."""

    site: str
    system: str
    layout: str


def status(api: Api, machine: Machine) -> str:
    """Return "running" or "stopped". Raises ApiError."""
    return str(api.get(f"{machine.path}/status/current")["status"])


def stop(api: Api, machine: Machine, *, tell: Callable[[str], None] = log.info) -> None:
    """Shut a VM down, so that everything is written; switch it off if it does not stop. Raises TaskFailed, ApiError.

    A task of an interrupted or killed run may be about to start it.
    """
    vms.settle(api, machine.node, machine.vmid)
    if status(api, machine) == STOPPED:
        return
    tell(f"shutting VM {machine.vmid} down")
    _write(api, machine, "shutdown", STOPPED, timeout=SHUTDOWN_SECONDS)
    if status(api, machine) != STOPPED:
        log.warn(f"VM {machine.vmid} did not shut down within {SHUTDOWN_SECONDS} s: it is switched off")
        _write(api, machine, "stop", STOPPED)
    if status(api, machine) != STOPPED:
        raise StepFailed(f"VM {machine.vmid} on {machine.node} does not stop", hint=f"check it: qm status {machine.vmid}")


def _write(api: Api, machine: Machine, action: str, wanted: str, **parameters: Any) -> None:
    """Change the state of a VM; a failed task is ignored if the VM then has that state.

    After a lost answer the task is waited for. If there is none, the request did not arrive, and is sent once more.
    """
    for attempt in (1, 2):
        try:
            api.wait(api.post(f"{machine.path}/status/{action}", **parameters))
        except TaskFailed as error:
            failed: StepFailed = error
        except ApiError as error:
            if error.status != 0 or attempt == 2:
                raise
            failed = error
        else:
            return
        vms.settle(api, machine.node, machine.vmid, kinds=(f"qm{action}",))
        if status(api, machine) == wanted:
            return
        if isinstance(failed, TaskFailed):
            if action != "shutdown":
                raise failed
            log.debug(failed.brief)
            return


def start(api: Api, machine: Machine, other: Machine | None) -> None:
    """Start a VM after the other one is stopped."""
    if other is not None:
        stop(api, other)
    clone_machine.start(api, machine)


def move_data(api: Api, source: Machine, target: Machine, key: str) -> None:
    """Move the data disk from a stopped VM to another one of the node, unless it is already moved. Raises StepFailed.

    The volume is renamed by the storage: nothing is copied. The task of an earlier run, or of a lost answer, is waited for;
    then the configurations show where the disk is.
    """
    failed: StepFailed | None = None
    for attempt in (1, 2, 3):
        vms.settle_moves(api, source.node, source.vmid, timeout=MOVE_SECONDS)
        there = api.get(f"{target.path}/config")
        if data_disk.key_of(there):
            return
        if failed is not None and attempt > 2:
            raise failed
        config = api.get(f"{source.path}/config")
        current = data_disk.key_of(config)
        if not current:
            raise StepFailed(
                f"neither VM {source.vmid} nor VM {target.vmid} has the data disk",
                hint=f"find the unused disk: qm config {source.vmid}; attach it as {key} with serial={data_disk.SERIAL}",
            )
        stop(api, source)
        try:
            place = {"target_vmid": target.vmid, "target_disk": key, "target_digest": there.get("digest")}
            upid = api.post(f"{source.path}/move_disk", disk=current, digest=config.get("digest"), **place)
            api.wait(upid, timeout=MOVE_SECONDS)
        except (ApiError, TaskFailed) as error:
            # The task of a request whose answer was lost may begin late: then the second request fails.
            if failed is None and (isinstance(error, TaskFailed) or error.status != 0):
                raise
            failed = error
        else:
            return


def rename(api: Api, machine: Machine, name: str, **keys: Any) -> None:
    """Set the name of a VM, and further keys, unless it already has them."""
    config = api.get(f"{machine.path}/config")
    changed = {key: value for key, value in {"name": name, **keys}.items() if str(config.get(key, "")) != str(value)}
    if changed:
        api.configure(machine.path, **changed)


def adopted(api: Api, machine: Machine) -> Adopted | None:
    """Return the data disk that a running machine uses, or None if its agent cannot be reached or reports none."""
    try:
        marker = json_text.parse(str(api.get(f"{machine.path}/agent/file-read", file=MARKER).get("content", "")))
        layout = {"layout": marker["layout"], "versions": marker.get("versions", {})}
        return Adopted(str(marker["site"]), str(marker["system"]), json.dumps(layout, sort_keys=True))
    except (ApiError, ValueError, KeyError, TypeError) as error:
        log.debug(f"VM {machine.vmid}: {MARKER}: {error}")
        return None


def require_healthy(api: Api, machine: Machine, name: str, *, timeout: float, host_key: str = "") -> Reached:
    """Wait until a machine answers with its own certificate, and has the host key of the site. Raises StepFailed.

    A machine whose image has no web server only needs the host key.
    """
    config: Mapping[str, Any] = api.get(f"{machine.path}/config")
    main = settings.main_name(config, name)
    label = labels.parse_clone(str(config.get("description", "")))
    reached = health.reach(
        api, machine, main, timeout=timeout, fixed=settings.fixed_addresses(config), web=label is None or label.web
    )  # fmt: skip
    if host_key and reached.host_key != host_key:
        raise StepFailed(
            f"VM {machine.vmid} on {machine.node} has another SSH host key than the machine that it replaces",
            hint="it does not use the data disk: read its console, and golden-data status",
        )
    return reached
