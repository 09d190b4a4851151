"""The fake Proxmox VE with machines behind it: what its tasks do to files and processes.

Everything that takes long runs beside the server's loop. A machine that powers itself off is noticed, and stopped on the
cluster. What the lab cannot do (snapshots, suspension, migration) is refused with 501.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fakepve.model import PveError, TaskError
from fakepve.qemu import drives_of, volume_ref

from build.core.errors import GoldsmithError
from build.machines.acceleration import Accelerator
from tests.fakes.proxmox import Proxmox
from tests.lab import agent, cloudinit, values
from tests.lab.disks import Disks
from tests.lab.machines import Machines, Running, await_up
from tests.lab.network import Wires

WATCH_SECONDS = 0.3
NOT_DONE = frozenset({
    "qmsnapshot", "qmdelsnapshot", "qmrollback", "qmsuspend", "qmresume", "qmreset", "qmigrate", "qmmove", "vzdump",
})  # fmt: skip


class Lab(Proxmox):
    """A cluster whose machines are real."""

    def __init__(
        self, directory: Path, *, accelerator: Accelerator, wires: Wires | None = None, dns: cloudinit.Dns | None = None,
        logs: Path | None = None, settle_seconds: float = 0.0, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(directory, **options)
        self.disks = Disks(directory / "disks")
        self.machines = Machines(
            directory / "machines", logs or directory / "logs", accelerator, wires, dns or cloudinit.Dns()
        )  # fmt: skip
        # So long may the task of a start wait for the guest's agent: two guests that boot at once on an emulated host
        # starve each other, until systemd gives up waiting for their disks.
        self.settle_seconds = settle_seconds
        # Machines that powered themselves off, and after how many seconds.
        self.powered_off: dict[int, float] = {}
        # Templates' disks as they were made: volume id -> SHA-256.
        self.sealed: dict[str, str] = {}
        self._full: dict[int, bool] = {}
        self._watchers: set[asyncio.Task[None]] = set()

    def close(self) -> None:
        """End every machine."""
        self.machines.close()

    def changed_templates(self) -> list[str]:
        """Return the templates' disks that are not what they were when they were made."""
        return [volume for volume, digest in self.sealed.items() if self.disks.digest(volume) != digest]

    async def task(self, node: str, ttype: str, tid: Any, user: str, body: Any, vm: Any = None, **options: Any) -> Any:
        """Start a task; refuse what the lab cannot do."""
        if ttype in NOT_DONE:
            raise PveError(501, f"the lab does not do {ttype}: it is no Proxmox VE")
        return await super().task(node, ttype, tid, user, body, vm=vm, **options)

    # --- disks ----------------------------------------------------------------------------------------------------

    async def created(self, vm: Any) -> None:
        """Make the disks of a new machine."""
        await self._half_made(vm, lambda: self._make_disks(vm))

    def _make_disks(self, vm: Any) -> None:
        for key, volume, options in drives_of(vm.config, skip_cdrom=True):
            if self.disks.path(volume).exists():
                continue
            if volume in self.imported:
                self.disks.take(volume, self.imported[volume].path)
            elif key == "efidisk0":
                self.disks.variables(volume, enrolled=options.get("pre-enrolled-keys") == "1")
            elif record := self._qm_volume(volume):
                self.disks.blank(volume, int(record["size"]))

    async def configured(self, vm: Any) -> None:
        """Make the disks that a machine was given later."""
        try:
            await asyncio.to_thread(self._make_disks, vm)
        except GoldsmithError as error:
            raise PveError(500, error.render()) from error

    async def _qm_clone(self, given: dict[str, Any], user: str) -> Any:
        # Proxmox: without a word a template gives a linked clone, anything else a full one.
        source, full = self.vm(int(given["vmid"])), given.get("full")
        self._full[int(given["newid"])] = bool(full) if full is not None else not (source and source.template)
        return await super()._qm_clone(given, user)

    async def cloned(self, vm: Any) -> None:
        """Copy the disks of a full clone, lay those of a linked one over the template's."""
        full = self._full.pop(vm.vmid, True)

        def copy() -> None:
            for _, volume, _ in drives_of(vm.config, skip_cdrom=True):
                (self.disks.full if full else self.disks.linked)(volume, self.origins[volume])

        await self._half_made(vm, copy)

    async def _half_made(self, vm: Any, work: Callable[[], None]) -> None:
        """Complete the creation of a machine; if that fails it is removed, as Proxmox does."""
        try:
            await _aside(work)
        except TaskError:
            for _, volume, _ in drives_of(vm.config):
                self._qm_free(volume)
            self._pool_leave(vm.vmid)
            self.vms.remove(vm)
            raise

    def _qm_rename_volume(self, volid: str) -> str:
        made: str = super()._qm_rename_volume(volid)
        self.disks.rename(volid, made)
        return made

    async def made_template(self, vm: Any) -> None:
        """Take the right to write from the disks, and remember what they are."""
        for _, volume, _ in drives_of(vm.config, skip_cdrom=True):
            self.disks.seal(volume)
            self.sealed[volume] = await asyncio.to_thread(self.disks.digest, volume)

    async def resized(self, vm: Any, key: str, size: int) -> None:
        """Make a disk larger, in the running machine as well."""
        volume = str(vm.config[key]).split(",", 1)[0]
        running = self.machines.running.get(vm.vmid)
        if running is None:
            await _aside(lambda: self.disks.resize(volume, size))
        else:
            await _aside(lambda: running.monitor(f"block_resize drive-{key} {size}B"))

    def freed(self, volume_id: str) -> None:
        """Remove a disk."""
        self.disks.free(volume_id)
        self.sealed.pop(volume_id, None)

    # --- machines -------------------------------------------------------------------------------------------------

    async def started(self, vm: Any) -> None:
        """Boot a machine."""
        try:
            await self._boot(vm)
        except BaseException:
            await self.stopped(vm)
            vm.status = vm.qmpstatus = "stopped"
            raise

    async def _boot(self, vm: Any) -> None:
        try:
            files = self._files(vm)
            place, argv = await asyncio.to_thread(self.machines.prepare, vm.vmid, dict(vm.config), files)
            # Here, not beside: see Machines.start.
            made = self.machines.start(vm.vmid, dict(vm.config), place, argv)
            await asyncio.to_thread(await_up, made)
        except values.Unknown as error:
            raise TaskError(str(error)) from error
        except GoldsmithError as error:
            raise TaskError(error.render()) from error
        self._watch(vm)
        if self.settle_seconds and values.flag(vm.config, "agent"):
            await self._settle(made)

    async def _settle(self, made: Running) -> None:
        deadline = time.monotonic() + self.settle_seconds
        while made.process.poll() is None and time.monotonic() < deadline:
            if await asyncio.to_thread(made.agent.is_up):
                return
            await asyncio.sleep(WATCH_SECONDS)

    def _files(self, vm: Any) -> dict[str, Path]:
        found = {}
        for key, volume, options in drives_of(vm.config):
            storage, name = volume_ref(volume)
            if options.get("media") != "cdrom":
                found[key] = self.disks.path(volume)
                if not found[key].exists():
                    raise TaskError(f"volume '{volume}' does not exist")
            elif storage and name.startswith("iso/"):
                medium = self.media.get((self.place(vm.node, storage), storage, name))
                if medium is None:
                    raise TaskError(f"volume '{volume}' does not exist")
                found[key] = medium.path
        return found

    def _watch(self, vm: Any) -> None:
        async def watch() -> None:
            mine, begun = self.machines.running.get(vm.vmid), time.monotonic()
            while mine is not None and self.machines.running.get(vm.vmid) is mine:
                if mine.process.poll() is not None:
                    await asyncio.to_thread(self.machines.alive, vm.vmid)
                    self.powered_off[vm.vmid] = time.monotonic() - begun
                    vm.status = vm.qmpstatus = "stopped"
                    return
                await asyncio.sleep(WATCH_SECONDS)

        watcher = asyncio.ensure_future(watch())
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)

    async def stopped(self, vm: Any) -> None:
        """Pull the plug of a machine, or clear away one that powered off."""
        await asyncio.to_thread(self.machines.end, vm.vmid)

    async def _powerdown(self, vm: Any, values_: dict[str, Any]) -> Any:
        # Proxmox's times are for machines with KVM.
        timeout = float(values_.get("timeout") or self.shutdown_default_timeout) * self.machines.accelerator.timeout_scale
        asked = values.flag(vm.config, "agent")
        down = await asyncio.to_thread(self.machines.shut_down, vm.vmid, agent=asked, timeout=timeout)
        forced = str(values_.get("forceStop", "0")) in ("1", "true")
        if not down and not forced:
            raise TaskError("VM quit/powerdown failed - got timeout")
        await self.stopped(vm)
        vm.status = vm.qmpstatus = "stopped"
        return None if down else "VM still running - terminating now with SIGTERM"

    async def destroyed(self, vm: Any) -> None:
        """Remove what a machine left beside its disks."""
        await asyncio.to_thread(self.machines.end, vm.vmid)

    # --- the agent ------------------------------------------------------------------------------------------------

    async def _agent_call(self, match: Any, given: dict[str, Any]) -> Any:
        vm, command = self.find(given["node"], given["vmid"]), match.template.rsplit("/", 1)[1]
        running = self.machines.running.get(vm.vmid)
        if vm.status != "running" or running is None:
            raise PveError(500, f"VM {vm.vmid} is not running")
        if not values.flag(vm.config, "agent"):
            raise PveError(500, "No QEMU guest agent configured")
        try:
            return await asyncio.to_thread(running.agent.ask, command, given)
        except agent.NoAnswer as error:
            raise PveError(500, "QEMU guest agent is not running") from error
        except agent.Refused as error:
            raise PveError(500, f"Agent error: {error}") from error
        except agent.Unsupported as error:
            raise PveError(501, str(error)) from error


async def _aside(work: Callable[[], Any]) -> None:
    """Do something slow beside the loop; what fails becomes the task's end."""
    waiting: Awaitable[Any] = asyncio.to_thread(work)
    try:
        await waiting
    except GoldsmithError as error:
        raise TaskError(error.render()) from error
