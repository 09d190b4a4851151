"""Shows other hosts that a run still works on its VM, and recognises the VM of a killed run.

A killed run leaves an unfinished VM behind, and the next run removes it. It must not remove the VM of a run that is
active on another host. So a run writes a number to the description of its VM, a higher one every BEAT_SECONDS. A run
that finds an unfinished VM waits for its tasks, and then WATCH_SECONDS: if the description changes, another run is
active. Clocks are not compared.

While a VM is cloned, its configuration cannot be changed (measured on Proxmox VE 9.2: qemu-server locks the source until the
disks are copied), and only the token that started the clone can see its task. So a run that watches also tries the lock:
time in which the VM is locked does not count.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from build.core import log
from build.core.errors import GoldsmithError
from build.proxmox import vms
from build.proxmox.api_errors import CHANGED, is_locked
from build.proxmox.claim import ConcurrentRun
from build.proxmox.client import Api, ApiError
from build.proxmox.labels import Label

BEAT_SECONDS = 20.0
# Up to three beats may be lost.
WATCH_SECONDS = 4 * BEAT_SECONDS
# How often the description is read, and how often the lock is tried.
LOOK_SECONDS, TRY_SECONDS = 5.0, BEAT_SECONDS
POLL_SECONDS = 1.0


@contextmanager
def beating(api: Api, path: str, label: Label) -> Iterator[None]:
    """Write ``label`` with a rising number to the VM at ``path`` while the block runs; the first one before it starts.

    A failed beat is not an error: the next one follows. After the block no beat is pending. Raises ApiError if the
    first beat fails.
    """
    ended = threading.Event()
    api.configure(path, description=replace(label, beat=1).describe())

    def beat() -> None:
        with api.another() as own:
            # A heartbeat that waits for the lock would delay the end of the run.
            own.lock_seconds = 0.0
            number = 1
            while not ended.wait(BEAT_SECONDS):
                number += 1
                try:
                    own.configure(path, description=replace(label, beat=number).describe())
                except GoldsmithError as error:
                    log.debug(f"{path}: beat {number} was lost: {error.brief}")

    thread = threading.Thread(target=beat, name=f"heartbeat of {path}")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def require_abandoned(api: Api, leftovers: Sequence[tuple[str, int]], check: Callable[[], None]) -> None:
    """Return if no run works on these VMs, given by node and VM id; ``check`` raises if the user interrupts.

    Raises ConcurrentRun if another run works on one of them.
    """
    if not leftovers:
        return
    names = ", ".join(f"VM {vmid} on {node}" for node, vmid in leftovers)
    log.info(f"{names}: unfinished; checking for {WATCH_SECONDS:.0f} s whether another host works on it")
    for node, vmid in leftovers:
        vms.settle(api, node, vmid)
    before = [_description(api, node, vmid) for node, vmid in leftovers]
    now = time.monotonic()
    deadline, look, attempt = now + WATCH_SECONDS, now + LOOK_SECONDS, now + TRY_SECONDS
    while now < deadline:
        check()
        time.sleep(min(POLL_SECONDS, max(0.0, deadline - now)))
        now = time.monotonic()
        if now >= min(look, deadline):
            look = now + LOOK_SECONDS
            if [_description(api, node, vmid) for node, vmid in leftovers] != before:
                raise ConcurrentRun(
                    f"another host is publishing the same image: {names}",
                    hint="wait until it is done, then run the same command again: it finds the finished template",
                )
        if now >= min(attempt, deadline):
            attempt = now + TRY_SECONDS
            if any(_is_busy(api, node, vmid) for node, vmid in leftovers):
                log.debug(f"{names}: locked, for example by a clone; watching begins again")
                deadline = time.monotonic() + WATCH_SECONDS


def _description(api: Api, node: str, vmid: int) -> str | None:
    config = vms.config_of(api, node, vmid)
    return None if config is None else str(config.get("description", ""))


def _is_busy(api: Api, node: str, vmid: int) -> bool:
    """Return True if a task has locked the VM: its name is set to the value that it has, which needs the lock."""
    config = vms.config_of(api, node, vmid)
    if config is None or "name" not in config:
        return False
    with api.another() as own:
        own.lock_seconds = 0.0
        try:
            own.put(f"/nodes/{node}/qemu/{vmid}/config", name=config["name"], digest=str(config.get("digest", "")))
        except ApiError as error:
            if is_locked(error) or CHANGED.search(error.brief):
                return True
            if vms.is_gone(api, error, vmid):
                return False
            raise
    return False
