"""Creates a VM from an image and converts it to a protected template; a failure is rolled back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from build.core import log
from build.proxmox import claim, guest_list, labels
from build.proxmox.client import Api, ApiError
from build.proxmox.labels import Label, State
from build.proxmox.vms import Undo, VmIds, is_taken, take_away
from build.publish.upload import Media, UploadedImage
from build.spec import release_policy
from build.spec.cluster import Firmware, Settings

# Proxmox's default for a new VM.
CPU = "x86-64-v2-AES"
CREATE_SECONDS = 7200.0
# Keys that Proxmox adds to a configuration: creation time, identity, hash of the file, lock of a task.
OWN_KEYS = frozenset({"meta", "vmgenid", "digest", "smbios1", "lock"})


# The settings that shape a VM, and the function that reads each back.
SHAPES: Mapping[str, Callable[[str], Any]] = {
    "storage": str, "bridge": str, "vlan": int, "pool": str, "firmware": Firmware, "cores": int, "memory_mib": int,
}  # fmt: skip


def creation(settings: Settings, label: Label, vmid: int) -> dict[str, Any]:
    """Return the configuration of a new VM, without its disk.

    No tags: a token with rights on a pool may set them only on a VM in that pool (Qemu.pm, assert_tag_permissions).
    """
    keys: dict[str, Any] = {
        "vmid": vmid, "name": label.template, "pool": settings.pool, "description": label.describe(), "ostype": "l26",
        "cpu": CPU, "cores": settings.cores, "memory": settings.memory_mib, "agent": "1", "onboot": 0,
        "scsihw": "virtio-scsi-single", "serial0": "socket", "ide2": f"{settings.storage}:cloudinit", "ciupgrade": 0,
        "net0": f"virtio,bridge={settings.bridge}" + (f",tag={settings.vlan}" if settings.vlan else ""),
    }  # fmt: skip
    if settings.firmware is Firmware.UEFI:
        keys |= {"bios": "ovmf", "machine": "q35", "efidisk0": f"{settings.storage}:1,efitype=4m,pre-enrolled-keys=1"}
    return keys


def recorded(settings: Settings) -> dict[str, str]:
    """Return the settings that shape a VM, for its label."""
    return {key: str(getattr(settings, key)) for key in SHAPES}


def as_recorded(settings: Settings, machine: Mapping[str, str]) -> Settings:
    """Return the settings that a VM was created with; those missing in its label are golden.yaml's."""
    from_label = {key: SHAPES[key](machine[key]) for key in SHAPES if key in machine}
    return replace(settings, **from_label)


class Machine:
    """The VM that becomes the template."""

    def __init__(
        self, api: Api, settings: Settings, node: str, label: Label, *, ids: VmIds, undo: Undo, vmid: int = 0
    ) -> None:
        self.api, self.settings, self.node, self.label = api, settings, node, label
        self.ids, self.undo, self.vmid = ids, undo, vmid

    @property
    def path(self) -> str:
        return f"/nodes/{self.node}/qemu/{self.vmid}"

    def create(self, media: Media, uploaded: UploadedImage) -> None:
        """Create the VM from the image on the node, and tag it."""
        upid = self._create(media.disk(uploaded))
        self.api.wait(upid, timeout=CREATE_SECONDS)
        media.attach(self.node, self.vmid, uploaded)
        tag = labels.digest_tag(self.label.digest)
        claim.require(self.label.template, self.vmid, tag, lambda: guest_list.of_node(self.api, self.node))
        self._put(tags=self.label.tags())

    def _create(self, disk: dict[str, Any]) -> str:
        while True:
            vmid = self.vmid = self.ids.take()
            task = {"upid": ""}

            def roll_back(vmid: int = vmid, task: dict[str, str] = task) -> None:
                take_away(self.api, self.node, vmid, run=self.label.run, upid=task["upid"])

            keys = creation(self.settings, self.label, vmid) | disk
            try:
                task["upid"] = str(self.api.post(f"/nodes/{self.node}/qemu", **keys))
            except ApiError as error:
                if is_taken(error, vmid):
                    log.debug(f"{self.node}: {vmid} is used by a guest not visible to this token")
                    continue
                if error.status == 0:
                    self.undo.add(f"VM {vmid}", roll_back)
                raise
            self.undo.add(f"VM {vmid}", roll_back)
            return task["upid"]

    def adopt(self) -> None:
        """Give a VM that Packer created, with its disk at scsi0, the configuration of every template."""
        config = self.api.get(f"{self.path}/config")
        volume, *rest = str(config["scsi0"]).split(",")
        size = [option for option in rest if option.startswith("size=")]
        keys = creation(self.settings, self.label, self.vmid)
        # The installer's second console, and other keys that the builder sets and publishing does not.
        surplus = sorted(set(config) - set(keys) - OWN_KEYS - {"scsi0", "boot", "tags"})
        # The label comes last: a VM with a label is complete.
        name, description = keys.pop("name"), keys.pop("description")
        for key in ("vmid", "pool"):
            del keys[key]
        self.api.put(
            f"{self.path}/config", **keys, scsi0=",".join([volume, "discard=on", "iothread=1", *size]),
            boot="order=scsi0", **({"delete": ",".join(surplus)} if surplus else {}),
        )  # fmt: skip
        self._put(name=name, description=description)
        self._put(tags=self.label.tags())

    def to_template(self) -> None:
        """Convert the VM to a template; its disks are read-only from now on."""
        upid = self.api.post(f"{self.path}/template")
        if upid:
            self.api.wait(upid)

    def finish(self) -> None:
        """Label the template as verified, tag it as a candidate, and protect it, in one call."""
        label = self.label.become(State.TEMPLATE)
        self._put(description=label.describe(), tags=label.tags(release_policy.CANDIDATE), protection=1)

    def _put(self, **keys: Any) -> None:
        self.api.configure(self.path, **keys)
