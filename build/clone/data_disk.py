"""The data disk of a clone: a second disk with a serial number by which the image finds it (overlays/22-data).

What must outlive the operating system is on it, so that the system can be replaced. The site that it belongs to is in the
SMBIOS of the VM (``family``): the image waits for the disk at its first start, and refuses that of another site.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any

from build.core.errors import StepFailed
from build.core.units import GIB, size_bytes
from build.proxmox.api_errors import CHANGED
from build.proxmox.client import Api, ApiError
from build.proxmox.vms import DRIVE

# The image's golden/data.py has the same two; a test compares them.
SERIAL, FAMILY_MARK = "golden-data", "golden-data:"
KEY = "scsi1"
# qemu-server, PVE/QemuServer/Drive.pm: a LUN of the SCSI controller.
SLOTS = tuple(f"scsi{number}" for number in range(1, 31))
SIZE = re.compile(r"\bsize=(?P<number>\d+(\.\d+)?)(?P<unit>[KMGT])")


def family(site: str) -> str:
    """Return the field ``family`` of ``smbios1`` that names the site of a machine's data disk, in base64."""
    return base64.b64encode(f"{FAMILY_MARK}{site}".encode()).decode()


def site_of(config: Mapping[str, Any]) -> str:
    """Return the site in the SMBIOS of a configuration; empty if it names none."""
    fields = dict(part.split("=", 1) for part in str(config.get("smbios1", "")).split(",") if "=" in part)
    text = fields.get("family", "")
    try:
        plain = base64.b64decode(text, validate=True).decode() if fields.get("base64") == "1" else text
    except ValueError:
        return ""
    return plain.removeprefix(FAMILY_MARK) if plain.startswith(FAMILY_MARK) else ""


def key_of(config: Mapping[str, Any]) -> str:
    """Return the key of the data disk in a configuration, such as ``scsi1``; empty if there is none."""
    drives = [key for key, value in sorted(config.items()) if f"serial={SERIAL}" in str(value).split(",")]
    return next((key for key in drives if DRIVE.fullmatch(key)), "")


def size_gib(config: Mapping[str, Any]) -> int:
    """Return the size of the data disk in GiB; 0 if there is none or its size is unknown."""
    match = SIZE.search(str(config.get(key_of(config), "")))
    return size_bytes(match["number"], match["unit"]) // GIB if match else 0


def free_slot(config: Mapping[str, Any]) -> str:
    """Return the first free SCSI slot of a configuration. Raises StepFailed if there is none."""
    for key in SLOTS:
        if key not in config:
            return key
    raise StepFailed("the VM has no free SCSI slot for its data disk", hint="detach one: qm disk unlink VMID --idlist KEY")


def add(api: Api, path: str, storage: str, gib: int) -> None:
    """Create the data disk of a stopped VM; one that exists is left unchanged. Raises ApiError.

    If the response is lost, the configuration shows whether the disk was created: a second request would create another.
    """
    for attempt in (1, 2):
        config = api.get(f"{path}/config")
        if key_of(config):
            return
        # Proxmox appends a new drive to the boot order unless the request contains it.
        boot = {"boot": config["boot"]} if "boot" in config else {}
        try:
            drive = {free_slot(config): f"{storage}:{gib},discard=on,serial={SERIAL}"}
            api.put(f"{path}/config", **drive, **boot, digest=config.get("digest"))
        except ApiError as error:
            # Another run may have created it in the meantime.
            if (error.status != 0 and not CHANGED.search(error.brief)) or attempt == 2:
                raise
        else:
            return
