"""Settings that a new VM takes over from the old one: name, addresses, MAC address, keys, sizes, site settings."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any

from build.clone import data_disk
from build.clone import machine as clone_machine
from build.core import json_text
from build.proxmox import guest_agent, labels
from build.proxmox.labels import CloneLabel
from build.proxmox.vms import DRIVE
from build.replace import record as records

# The tag of a VM that was replaced, and is kept stopped for some days.
KEPT_TAG = "golden-replaced"
# Part of the template, or written by the replacement itself.
OWN = frozenset({
    "arch", "bios", "boot", "bootdisk", "cipassword", "description", "digest", "lock", "machine", "meta", "name", "onboot",
    "ostype", "parent", "protection", "scsihw", "serial0", "smbios1", "tags", "template", "vga", "vmgenid",
})  # fmt: skip
# The drives of the template. Other drives, except for the data disk, have to be moved by the operator.
OWN_DRIVES = frozenset({"scsi0", "efidisk0", "ide2", "tpmstate0"})
# Only root@pam may set these, or they are devices of the node.
FIXED = re.compile(r"args|hookscript|(hostpci|usb|parallel|virtiofs)\d+")
LABEL_LENGTH = 63


def problems(config: Mapping[str, Any]) -> list[str]:
    """Return the problems that prevent a VM with this configuration from being replaced."""
    reasons = [
        f"{key}: it cannot be taken over by another VM: remove it from the VM, and set it again afterwards"
        for key in sorted(config) if FIXED.fullmatch(key)
    ]  # fmt: skip
    key = data_disk.key_of(config)
    if not key:
        reasons.append(f"it has no data disk: add one (docs/how-to/replacing.md): a disk with serial={data_disk.SERIAL}")
    others = [name for name in sorted(config) if DRIVE.fullmatch(name) and name not in OWN_DRIVES | {key}]
    reasons += [f"{name}: only the data disk is moved: detach this disk" for name in others]
    if key in OWN_DRIVES:
        reasons.append(f"{key}: the data disk has the slot of a disk of the template: attach it as scsi1")
    return reasons


def taken_over(old: Mapping[str, Any], new: Mapping[str, Any], label: CloneLabel) -> dict[str, Any]:
    """Return the keys of the new VM's configuration; its own UUID stays. The VM is not started at boot yet."""
    keys = {
        key: value for key, value in old.items()
        if key not in OWN and not DRIVE.fullmatch(key) and not key.startswith("unused") and new.get(key) != value
    }  # fmt: skip
    identity = [part for part in str(new.get("smbios1", "")).split(",") if part.startswith("uuid=")]
    rest = [part for part in str(old.get("smbios1", "")).split(",") if part and not part.startswith("uuid=")]
    keys["smbios1"] = ",".join([*identity, *rest])
    return keys | {"tags": tags(old, label), "description": description(old, label), "onboot": 0, "protection": 0}


def tags(old: Mapping[str, Any], label: CloneLabel) -> str:
    """Return the tags of the new VM: those of its template, and the operator's tags of the old VM."""
    own = {
        tag for tag in labels.split_tags(str(old.get("tags", "")))
        if not labels.VERSION.fullmatch(tag) and not tag.startswith("sha256-") and tag not in (labels.CLONE_TAG, KEPT_TAG)
    }  # fmt: skip
    return ";".join(sorted(own | labels.split_tags(label.tags())))


def description(old: Mapping[str, Any], label: CloneLabel) -> str:
    """Return the description of the new VM: its label, and the operator's text of the old VM."""
    plain = records.inscribed(str(old.get("description", "")), None)
    former = labels.parse_clone(plain)
    if former is not None and former.describe() in plain:
        return plain.replace(former.describe(), label.describe())
    return label.describe()


def main_name(config: Mapping[str, Any], name: str) -> str:
    """Return the name for HTTPS requests: the first server name in the SMBIOS, else the VM's name."""
    fields = dict(part.split("=", 1) for part in str(config.get("smbios1", "")).split(",") if "=" in part)
    try:
        text = base64.b64decode(fields.get("sku", ""), validate=True).decode()
        site = json_text.parse(text.removeprefix(guest_agent.SITE_MARK)) if text.startswith(guest_agent.SITE_MARK) else {}
    except ValueError:
        site = {}
    names = site.get("server_names") if isinstance(site, dict) else None
    return str(names[0]) if names else name


def fixed_addresses(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the static addresses of a configuration."""
    return tuple(re.findall(r"\bip6?=([0-9a-f.:]+)/", str(config.get("ipconfig0", ""))))


def new_name(name: str) -> str:
    """Return the name of the new VM until the names are exchanged."""
    return _suffixed(name, "-new")


def kept_name(name: str, vmid: int) -> str:
    """Return the name of a VM that was replaced."""
    return _suffixed(name, f"-old-{vmid}")


def _suffixed(name: str, suffix: str) -> str:
    first, dot, rest = name.partition(".")
    return f"{first[: LABEL_LENGTH - len(suffix)]}{suffix}{dot}{rest}"


def more_disk_gib(old: Mapping[str, Any], new: Mapping[str, Any]) -> int:
    """Return the GiB by which the system disk has to grow to be as large as the old one."""
    return max(0, -(-(clone_machine.disk_kib(old) - clone_machine.disk_kib(new)) >> 20))
