"""Reads the values of a Proxmox configuration: ``first,key=value,...``, drives, network cards, boot order, SMBIOS."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

MAC = re.compile(r"(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}")
DRIVE = re.compile(r"(?P<bus>ide|sata|scsi|virtio)(?P<number>\d+)")
FIRST_BOOT_INDEX = 100


class Unknown(Exception):
    """The configuration asks for something that the lab has not."""


@dataclass(frozen=True)
class Drive:
    """A drive: its key, what it holds, and its options."""

    key: str
    bus: str
    number: int
    volume: str
    options: Mapping[str, str]

    @property
    def cdrom(self) -> bool:
        return self.options.get("media") == "cdrom"

    @property
    def cloud_init(self) -> bool:
        return self.cdrom and "cloudinit" in self.volume

    @property
    def empty(self) -> bool:
        return self.volume in ("none", "cdrom")


@dataclass(frozen=True)
class Card:
    """A network card: its model, hardware address and bridge."""

    number: int
    model: str
    mac: str
    bridge: str


def split(text: object) -> tuple[str, dict[str, str]]:
    """Return the part without a key (empty when there is none), and the others by key."""
    first, options = "", {}
    for part in str(text).split(","):
        key, equals, value = part.partition("=")
        if equals:
            options[key] = value
        elif part:
            first = part
    return first, options


def flag(config: Mapping[str, object], key: str, *, default: str = "0") -> bool:
    """Return True if a key that may carry options, such as ``agent: 1,fstrim_cloned_disks=1``, is switched on."""
    first, options = split(config.get(key, default))
    return (first or options.get("enabled", default)) in ("1", "yes", "on", "true")


def drives(config: Mapping[str, object]) -> list[Drive]:
    """Return the drives of a configuration; the firmware's own disk is not among them."""
    found = []
    for key in sorted(config):
        if match := DRIVE.fullmatch(key):
            volume, options = split(config[key])
            found.append(Drive(key, match["bus"], int(match["number"]), volume or options.get("file", ""), options))
    return found


def cards(config: Mapping[str, object]) -> list[Card]:
    """Return the network cards of a configuration. Raises Unknown for what the lab's bridges cannot carry."""
    found = []
    for key in sorted(config):
        if not re.fullmatch(r"net\d+", key):
            continue
        _, options = split(config[key])
        model = next((name for name, value in options.items() if MAC.fullmatch(value)), "")
        if not model or "bridge" not in options:
            raise Unknown(f"{key}: {config[key]}: a card of the lab has a hardware address and a bridge")
        if "tag" in options or "trunks" in options:
            raise Unknown(f"{key}: {config[key]}: the lab has no VLANs")
        found.append(Card(int(key[3:]), model, options[model], options["bridge"]))
    return found


def boot_indices(config: Mapping[str, object]) -> dict[str, int]:
    """Return the boot index of each device of the boot order, as Proxmox gives them."""
    _, options = split(config.get("boot", ""))
    names = [name for name in options.get("order", "").split(";") if name]
    return {name: FIRST_BOOT_INDEX + number for number, name in enumerate(names)}


def smbios(text: str) -> str:
    """Return QEMU's -smbios value for ``smbios1``: decoded if it has base64=1, commas doubled (qemu-server)."""
    _, options = split(text)
    if options.pop("base64", "0") != "1":
        return f"type=1,{text}"
    parts = ["type=1"]
    for key, value in options.items():
        plain = value if key == "uuid" else os.fsdecode(base64.b64decode(value))
        if plain:
            parts.append(f"{key}={plain.replace(',', ',,')}")
    return ",".join(parts)
