"""Fixtures for tests of replacements: machines that keep their state on a data disk, and a site with two templates."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from build.clone import data_disk
from build.proxmox import client, guest_agent
from build.replace import preflight, switch
from build.replace import replace as replacing
from tests.contract.cloning import HOST_KEY, OPERATOR, Field, Guests
from tests.contract.shipping import make_artifact
from tests.patience import PATIENCE_SECONDS

NEWER = "golden-1.3.0"


class Machines(Guests):
    """Machines whose system uses the data disk: host key and backups are on it; without the disk the system has its own."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # What is on each data disk, by its volume id.
        self.contents: dict[str, dict[str, Any]] = {}
        # VM ids that ran at the same time with one address: there must never be any.
        self.clashes: list[tuple[int, int]] = []
        # Names of templates whose system does not serve, and how: its agent is silent; it ignores the data disk, or
        # refuses it (of another site, a newer layout, incomplete, damaged); it finds the disk read-only, or full.
        self.sick: dict[str, str] = {}
        # What is called when a system starts: whether its application answers. A full disk is adopted, and nothing works.
        self.on_serving: Callable[[bool], object] = lambda _works: None
        self.layouts: dict[str, dict[str, Any]] = {}

    def moved(self, volume_id: str, new_id: str) -> None:
        self.contents[new_id] = self.contents.pop(volume_id, {})

    def image_of(self, vm: Any) -> str:
        """Return the name of the template that a VM was cloned from."""
        return NEWER if "v1.3.0" in str(vm.config.get("tags", "")) else "golden-1.2.3"

    async def started(self, vm: Any) -> None:
        others = [other for other in self.vms if other is not vm and other.status == "running" and not other.template]
        self.clashes += [
            (vm.vmid, other.vmid) for other in others if other.config.get("ipconfig0") == vm.config.get("ipconfig0")
        ]  # fmt: skip
        await super().started(vm)
        sickness = self.sick.get(self.image_of(vm), "")
        if sickness == "silent" or vm.agent is None:
            vm.agent = None
            return
        self.on_serving(sickness not in ("refuses", "full"))
        files, key = vm.agent["files"], data_disk.key_of(vm.config)
        files[guest_agent.HOST_KEY] = f"ssh-ed25519 {base64.b64encode(f'of {vm.vmid}'.encode()).decode()} root@{vm.name}\n"
        if key and sickness not in ("ignores", "refuses"):
            disk = self.contents.setdefault(str(vm.config[key]).split(",")[0], {"key": HOST_KEY, "posts": 0})
            layout = self.layouts.get(self.image_of(vm), {"layout": 1, "versions": {"postgresql": 17}})
            # What is read-only keeps the name of the system before.
            disk |= {} if sickness == "read-only" else {"system": f"system of {vm.vmid}", **layout}
            files[guest_agent.HOST_KEY] = f"{disk['key']} root@{vm.name}\n"
            files[switch.MARKER] = json.dumps({"site": "web1", **disk})
        made = {"made": datetime.now(UTC).isoformat(timespec="seconds")}
        files[preflight.BACKUP] = json.dumps({"manifest": made})


@dataclasses.dataclass
class Ground:
    """A machine with a data disk, cloned from the older of two templates."""

    field: Field
    old: int

    @property
    def proxmox(self) -> Machines:
        assert isinstance(self.field.proxmox, Machines)
        return self.field.proxmox

    def job(self, api: client.Api, **changes: Any) -> replacing.Job:
        # What is sick would be awaited for the whole time.
        timeout = 3.0 if self.proxmox.sick else PATIENCE_SECONDS
        return dataclasses.replace(
            replacing.Job(api, self.field.bench.settings, "golden", "candidate", timeout=timeout), **changes
        )

    def replace(self, **changes: Any) -> replacing.Replaced:
        with client.Api(self.field.bench.settings, OPERATOR) as api:
            return replacing.replace_machine(self.job(api, **changes), "web1")

    def undo(self, **changes: Any) -> replacing.Replaced:
        with client.Api(self.field.bench.settings, OPERATOR) as api:
            return replacing.undo(self.job(api, **changes), "web1")

    def running(self) -> list[tuple[int, str]]:
        """Return id and name of each machine that runs."""
        return sorted((vm.vmid, vm.name) for vm in self.proxmox.vms if vm.status == "running")

    def data_on(self) -> list[int]:
        """Return the VMs that have a data disk."""
        return [vm.vmid for vm in self.proxmox.vms if data_disk.key_of(vm.config)]

    def boot_again(self) -> None:
        """Start the node again: running machines are off, and those with onboot are started."""
        for vm in self.proxmox.vms:
            if vm.status == "running":
                vm.status, vm.agent = "stopped", None
        for vm in self.proxmox.vms:
            if not vm.template and str(vm.config.get("onboot", "0")) == "1":
                vm.status = "running"
                asyncio.run(self.proxmox.started(vm))

    def disk(self) -> dict[str, Any]:
        """Return what is on the data disk."""
        assert len(self.proxmox.contents) == 1
        return next(iter(self.proxmox.contents.values()))


def prepare(field: Field) -> Ground:
    """Make the machine, and publish a newer template."""
    made = field.clone(data_gib=40, memory_mib=4096, more_disk_gib=1)
    field.bench.publish(make_artifact(field.bench.place / "newer", fill=b"\1", version="1.3.0"))
    ground = Ground(field, made.machine.vmid)

    def serve(works: bool) -> None:  # noqa: FBT001
        field.site.codes[:] = [200 if works else 503]

    ground.proxmox.on_serving = serve
    vm = ground.proxmox.vm(made.machine.vmid)
    vm.config["tags"] += ";team-a"
    vm.config["description"] += "\n\nCall 555 before a restart."
    ground.disk()["posts"] = 7
    ground.proxmox.calls.clear()
    return ground
