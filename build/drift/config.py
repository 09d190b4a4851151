"""Compares the configuration of a template with the published one, key by key: expected value, present value and fix.

The whole configuration is compared: a key that publish does not write, and Proxmox does not add, is a change too.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from build.core.units import MIB, size_bytes
from build.proxmox import labels, vms
from build.proxmox.labels import Label
from build.publish.template import OWN_KEYS, creation
from build.release import mirror
from build.spec import release_policy
from build.spec.cluster import Settings

NOTHING = "nothing"
# The values of missing keys.
DEFAULTS = {"onboot": "0", "protection": "0", "template": "0", "ciupgrade": "1"}
# Proxmox adds these to a drive.
OWN_PARTS = frozenset({"size", "ms-cert", "format"})
DISK, LAST = "scsi0", "raise the version in golden.yaml, publish it, and stop cloning this template"
SIZE = re.compile(r"(?P<number>\d+(\.\d+)?)(?P<unit>[KMGT])")


@dataclass(frozen=True)
class Change:
    """A key of a template that differs from the published value."""

    key: str
    expected: str
    found: str
    remedy: str


@dataclass(frozen=True)
class Seen:
    """A template as the cluster shows it: its line in the list of guests, and its configuration."""

    guest: Mapping[str, Any]
    config: Mapping[str, Any]

    @property
    def node(self) -> str:
        return str(self.guest["node"])

    @property
    def vmid(self) -> int:
        return int(self.guest["vmid"])

    @property
    def name(self) -> str:
        return str(self.guest.get("name", ""))

    def value(self, key: str) -> str:
        """Return the value of a key as text, or its default if it is missing."""
        return str(self.config.get(key, DEFAULTS.get(key, NOTHING))).strip()

    def set(self, key: str, value: str) -> str:
        """Return the command that sets a key."""
        return f"on {self.node}: qm set {self.vmid} --{key} {shlex.quote(value)}"


def changes(seen: Seen, label: Label, settings: Settings, *, channels: Collection[str], disk_mib: int = 0) -> list[Change]:
    """Return the differences from the published configuration, except the changes of releases.

    Those are the tags of ``channels`` and the mirror of the ledger. ``disk_mib``: the size of the image's disk, 0 if it
    is unknown.
    """
    keys = {key: str(value) for key, value in creation(settings, label, seen.vmid).items() if key not in ("vmid", "pool")}
    description, drives = keys.pop("description"), [key for key in ("ide2", "efidisk0") if key in keys]
    differences = [
        *_marks(seen, label, settings, description, channels),
        *(change for key in drives if (change := _drive(seen, key, settings.storage, _options(keys.pop(key))))),
        *_disk(seen, settings.storage, disk_mib), *_card(seen, keys.pop("net0")), *_identity(seen),
    ]  # fmt: skip
    keys |= {"protection": "1", "template": "1", "boot": f"order={DISK}"}
    for key, expected in sorted(keys.items()):
        if seen.value(key) != expected:
            differences.append(Change(key, expected, seen.value(key), _remedy(seen, key, expected)))
    known = OWN_KEYS | set(keys) | {"description", "tags", "net0", DISK, *drives}
    for key in sorted(set(seen.config) - known):
        differences.append(Change(key, NOTHING, seen.value(key), LAST if key.startswith("unused") else _deletion(seen, key)))
    return differences


def _deletion(seen: Seen, key: str) -> str:
    """Return the command that deletes a key: Proxmox does not delete a drive of a protected VM."""
    delete = f"qm set {seen.vmid} --delete {key}"
    if vms.DRIVE.fullmatch(key) and seen.value("protection") == "1":
        delete = f"qm set {seen.vmid} --protection 0 && {delete} && qm set {seen.vmid} --protection 1"
    return f"on {seen.node}: {delete}"


def _remedy(seen: Seen, key: str, expected: str) -> str:
    return LAST if key == "template" else seen.set(key, expected)


def _marks(seen: Seen, label: Label, settings: Settings, description: str, channels: Collection[str]) -> Iterator[Change]:
    """Compare description, tags and pool, which identify the image."""
    described = mirror.without(seen.value("description"))
    if described != description.strip():
        expected, present = _first_difference(description.strip(), described)
        yield Change("description", expected, present, "restore it as shown by --json, or find out who changed it")
    tags = labels.split_tags(str(seen.config.get("tags", "")))
    channel_tags = tags & {release_policy.CANDIDATE, *channels} or {release_policy.CANDIDATE}
    expected_tags = labels.split_tags(label.tags(*channel_tags, *(tags & {labels.REVOKED_TAG})))
    if tags != expected_tags:
        text = ";".join(sorted(expected_tags))
        yield Change("tags", text, ";".join(sorted(tags)) or NOTHING, seen.set("tags", text))
    pool = str(seen.guest.get("pool", "")) or NOTHING
    if pool != settings.pool:
        remedy = f"pveum pool modify {settings.pool} --vms {seen.vmid} --allow-move 1"
        yield Change("pool", settings.pool, pool, remedy)


def _first_difference(expected: str, present: str) -> tuple[str, str]:
    """Return the first lines that differ."""
    ours, theirs = expected.splitlines(), present.splitlines()
    for number in range(max(len(ours), len(theirs))):
        pair = [lines[number] if number < len(lines) else NOTHING for lines in (ours, theirs)]
        if pair[0] != pair[1]:
            return pair[0], pair[1]
    return expected, present


def _disk(seen: Seen, storage: str, disk_mib: int) -> Iterator[Change]:
    change = _drive(seen, DISK, storage, {"discard": "on", "iothread": "1"})
    if change:
        yield change
    size = SIZE.fullmatch(_options(seen.value(DISK)).get("size", ""))
    mib = size_bytes(size["number"], size["unit"]) / MIB if size else 0
    if disk_mib and mib != disk_mib:
        yield Change("disk size", f"{disk_mib} MiB", f"{mib:g} MiB" if size else NOTHING, LAST)


def _drive(seen: Seen, key: str, storage: str, expected_options: Mapping[str, str]) -> Change | None:
    """Compare a drive: it is on the configured storage, in a volume of this VM, with the expected options."""
    value = seen.value(key)
    volume, present = value.split(",")[0], {k: v for k, v in _options(value).items() if k not in OWN_PARTS}
    kind = r"vm-{}-cloudinit" if key == "ide2" else r"(base|vm)-{}-disk-\d+"
    is_own = re.fullmatch(rf"{re.escape(storage)}:(.*/)?{kind.format(seen.vmid)}(\.\w+)?", volume)
    options = dict(expected_options) | ({"media": "cdrom"} if key == "ide2" else {})
    if is_own and present == options:
        return None
    shown = ",".join([f"{storage}:(a volume of VM {seen.vmid})", *(f"{k}={v}" for k, v in sorted(options.items()))])
    return Change(key, shown, value, LAST)


def _options(value: str) -> dict[str, str]:
    return {key: text for key, _, text in (part.partition("=") for part in value.split(",")[1:])}


def _card(seen: Seen, expected: str) -> Iterator[Change]:
    """Compare the network card, without its hardware address."""
    value = seen.value("net0")
    plain = sorted([value.split(",")[0].partition("=")[0], *value.split(",")[1:]])
    if plain != sorted(expected.split(",")):
        model = value.split(",")[0]
        mended = ",".join([model if model.startswith("virtio=") else "virtio", *expected.split(",")[1:]])
        yield Change("net0", expected, value, seen.set("net0", mended))


def _identity(seen: Seen) -> Iterator[Change]:
    """Compare the SMBIOS: all clones would inherit other fields than the UUID."""
    value = seen.value("smbios1")
    if value != NOTHING and (others := [part for part in value.split(",") if not part.startswith("uuid=")]):
        uuid = next((part for part in value.split(",") if part.startswith("uuid=")), "")
        yield Change("smbios1", uuid or NOTHING, ",".join(others), seen.set("smbios1", uuid))
