"""What a published template has to be, key by key, and what is otherwise: expected, found, and the remedy.

The whole configuration is compared: a key that publish does not write, and Proxmox does not add, is a change too.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from build import labels, release_mirror, release_policy
from build.cluster import Settings
from build.labels import Label
from build.publish_machine import OWN_KEYS, creation

NOTHING = "nothing"
# A key that is not there stands for this.
DEFAULTS = {"onboot": "0", "protection": "0", "template": "0", "ciupgrade": "1"}
# Proxmox adds these to a drive by itself.
OWN_PARTS = frozenset({"size", "ms-cert", "format"})
DISK, LAST = "scsi0", "raise the version in golden.yaml, publish it, and make no more clones of this one"
SIZE = re.compile(r"(?P<number>\d+(\.\d+)?)(?P<unit>[KMGT])")
MIB_PER_UNIT = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1 << 20}


@dataclass(frozen=True)
class Change:
    """A key of a template that is not as publish left it."""

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
        """Return the value of a key as text, what stands for it when it is not there."""
        return str(self.config.get(key, DEFAULTS.get(key, NOTHING))).strip()

    def set(self, key: str, value: str) -> str:
        """Return the command that sets a key."""
        return f"on {self.node}: qm set {self.vmid} --{key} {shlex.quote(value)}"


def changes(
    seen: Seen, label: Label, settings: Settings, *, channels: Collection[str], disk_mib: int = 0
) -> list[Change]:
    """Return what is not as publish left it, beside what a release changes: tags of ``channels``, the mirror of the ledger.

    ``disk_mib``: the size of the image's disk, 0 when that is not known.
    """
    keys = {key: str(value) for key, value in creation(settings, label, seen.vmid).items() if key not in ("vmid", "pool")}
    description, drives = keys.pop("description"), [key for key in ("ide2", "efidisk0") if key in keys]
    found = [
        *_marks(seen, label, settings, description, channels),
        *(change for key in drives if (change := _drive(seen, key, settings.storage, _options(keys.pop(key))))),
        *_disk(seen, settings.storage, disk_mib), *_card(seen, keys.pop("net0")), *_identity(seen),
    ]  # fmt: skip
    keys |= {"protection": "1", "template": "1", "boot": f"order={DISK}"}
    for key, expected in sorted(keys.items()):
        if seen.value(key) != expected:
            found.append(Change(key, expected, seen.value(key), _remedy(seen, key, expected)))
    known = OWN_KEYS | set(keys) | {"description", "tags", "net0", DISK, *drives}
    for key in sorted(set(seen.config) - known):
        remedy = f"on {seen.node}: qm set {seen.vmid} --delete {key}"
        found.append(Change(key, NOTHING, seen.value(key), remedy if not key.startswith("unused") else LAST))
    return found


def _remedy(seen: Seen, key: str, expected: str) -> str:
    return LAST if key == "template" else seen.set(key, expected)


def _marks(
    seen: Seen, label: Label, settings: Settings, description: str, channels: Collection[str]
) -> Iterator[Change]:
    """Compare description, tags and pool: what tells people and programs which image this is."""
    described = release_mirror.without(seen.value("description"))
    if described != description.strip():
        expected, found = _first_difference(description.strip(), described)
        yield Change("description", expected, found, "put it back as --json shows it, or see who changed it")
    tags = labels.split_tags(str(seen.config.get("tags", "")))
    stands = tags & {release_policy.CANDIDATE, *channels} or {release_policy.CANDIDATE}
    wanted = labels.split_tags(label.tags(*stands, *(tags & {labels.REVOKED_TAG})))
    if tags != wanted:
        text = ";".join(sorted(wanted))
        yield Change("tags", text, ";".join(sorted(tags)) or NOTHING, seen.set("tags", text))
    pool = str(seen.guest.get("pool", "")) or NOTHING
    if pool != settings.pool:
        remedy = f"pveum pool modify {settings.pool} --vms {seen.vmid} --allow-move 1"
        yield Change("pool", settings.pool, pool, remedy)


def _first_difference(expected: str, found: str) -> tuple[str, str]:
    """Return the first lines that differ."""
    ours, theirs = expected.splitlines(), found.splitlines()
    for number in range(max(len(ours), len(theirs))):
        pair = [lines[number] if number < len(lines) else NOTHING for lines in (ours, theirs)]
        if pair[0] != pair[1]:
            return pair[0], pair[1]
    return expected, found


def _disk(seen: Seen, storage: str, disk_mib: int) -> Iterator[Change]:
    change = _drive(seen, DISK, storage, {"discard": "on", "iothread": "1"})
    if change:
        yield change
    size = SIZE.fullmatch(_options(seen.value(DISK)).get("size", ""))
    mib = float(size["number"]) * MIB_PER_UNIT[size["unit"]] if size else 0
    if disk_mib and mib != disk_mib:
        yield Change("disk size", f"{disk_mib} MiB", f"{mib:g} MiB" if size else NOTHING, LAST)


def _drive(seen: Seen, key: str, storage: str, wanted: Mapping[str, str]) -> Change | None:
    """Compare a drive: it lies on our storage, in a volume of this machine's own, with our options."""
    value = seen.value(key)
    volume, found = value.split(",")[0], {k: v for k, v in _options(value).items() if k not in OWN_PARTS}
    kind = r"vm-{}-cloudinit" if key == "ide2" else r"(base|vm)-{}-disk-\d+"
    own = re.fullmatch(rf"{re.escape(storage)}:(.*/)?{kind.format(seen.vmid)}(\.\w+)?", volume)
    options = dict(wanted) | ({"media": "cdrom"} if key == "ide2" else {})
    if own and found == options:
        return None
    shown = ",".join([f"{storage}:(a volume of VM {seen.vmid})", *(f"{k}={v}" for k, v in sorted(options.items()))])
    return Change(key, shown, value, LAST)


def _options(value: str) -> dict[str, str]:
    return {key: text for key, _, text in (part.partition("=") for part in value.split(",")[1:])}


def _card(seen: Seen, wanted: str) -> Iterator[Change]:
    """Compare the network card, whose hardware address is its own."""
    value = seen.value("net0")
    plain = sorted([value.split(",")[0].partition("=")[0], *value.split(",")[1:]])
    if plain != sorted(wanted.split(",")):
        model = value.split(",")[0]
        mended = ",".join([model if model.startswith("virtio=") else "virtio", *wanted.split(",")[1:]])
        yield Change("net0", wanted, value, seen.set("net0", mended))


def _identity(seen: Seen) -> Iterator[Change]:
    """Compare the SMBIOS: what stands there beside the UUID would reach all clones."""
    value = seen.value("smbios1")
    if value != NOTHING and (others := [part for part in value.split(",") if not part.startswith("uuid=")]):
        uuid = next((part for part in value.split(",") if part.startswith("uuid=")), "")
        yield Change("smbios1", uuid or NOTHING, ",".join(others), seen.set("smbios1", uuid))
