"""The data disk: found by its serial number, formatted once, checked, mounted, and known by what is written on it.

The states of a disk, in the order in which it goes through them; a power cut leaves one of them:

    blank                            no signature of any kind: it is formatted
    label golden-new, no site.json   what must be kept is being copied: it is formatted again
    label golden-new, site.json      everything is copied: it gets its final label
    label golden-data, site.json     in use

Anything else is refused, and nothing on it is changed. The services that need the data do not start then
(golden-data.service), and sshd does.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from golden import core
from golden import kept as kept_module

SERIAL = "golden-data"
# udev names a SCSI disk of QEMU scsi-0QEMU_QEMU_HARDDISK_SERIAL, and one of virtio-blk virtio-SERIAL.
LINKS = Path("/dev/disk/by-id")
NAMES = re.compile(rf"(?:scsi-0QEMU_QEMU_HARDDISK_|virtio-|ata-QEMU_HARDDISK_){SERIAL}")
STATE = Path("/var/lib/golden-data")
MOUNTED = STATE / "disk"
# The site whose data disk this system uses: from then on it does not start its services without that disk.
OWN = STATE / "site"
# Site of a machine that `clone --data` made: smbios1, field family.
FAMILY, FAMILY_MARK = Path("/sys/class/dmi/id/product_family"), "golden-data:"
MACHINE_ID = Path("/etc/machine-id")
SITE_ID = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")
LABEL, NEW_LABEL = "golden-data", "golden-new"
# Raised when a system older than this one could not use the disk.
LAYOUT = 1
OPTIONS = "noatime,nodev,nosuid,noexec"
DEVICE_SECONDS, TOOL_SECONDS = 90, 6 * 3600
POLL_SECONDS = 0.5
# fsck(8): 1, errors were corrected.
REPAIRED = 1
NOTHING_FOUND = 2


@dataclass(frozen=True)
class Disk:
    """A block device and what blkid finds on it."""

    device: Path
    kind: str
    label: str


def expected_site(family: Path = FAMILY) -> str:
    """Return the site in the SMBIOS of the machine; empty if there is none. Raises Problem if it is not a valid name."""
    try:
        text = family.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
    if not text.startswith(FAMILY_MARK):
        return ""
    site = text.removeprefix(FAMILY_MARK)
    if not SITE_ID.fullmatch(site):
        raise core.Problem(
            f"smbios1: family: {text!r} does not name a site", hint="qm set VMID --smbios1 ...,family=, as clone --data does"
        )
    return site


def own_site(own: Path = OWN) -> str:
    """Return the site whose data disk this system has used; empty before the first time."""
    return own.read_text(encoding="utf-8").strip() if own.exists() else ""


def find(*, wait: float, links: Path = LINKS) -> Path | None:
    """Return the disk with the serial number, waiting up to ``wait`` seconds for it. Raises Problem if there are two."""
    deadline = time.monotonic() + wait
    while True:
        found = {path.resolve() for path in links.iterdir() if NAMES.fullmatch(path.name)} if links.is_dir() else set()
        if len(found) > 1:
            raise core.Problem(
                f"several disks have the serial number {SERIAL}: {', '.join(sorted(map(str, found)))}",
                hint="remove all but one from the machine",
            )
        if found or time.monotonic() >= deadline:
            return found.pop() if found else None
        time.sleep(POLL_SECONDS)


def probe(device: Path) -> Disk:
    """Return what is on a disk; its kind is empty if it has no signature. Raises Problem for a read-only disk."""
    switch = Path("/sys/class/block") / device.name / "ro"
    if switch.exists() and switch.read_text().strip() == "1":
        raise core.Problem(f"the data disk {device} is read-only", hint="remove ro=1 (qm config VMID)")
    shown = core.run(["blkid", "--probe", "--output", "export", device], check=False)
    if shown.returncode == NOTHING_FOUND:
        return Disk(device, "", "")
    if shown.returncode != 0:
        raise core.Problem(f"blkid cannot read {device}: {shown.stderr.decode(errors='replace').strip()}")
    values = dict(line.split("=", 1) for line in shown.stdout.decode(errors="replace").splitlines() if "=" in line)
    return Disk(device, values.get("TYPE") or values.get("PTTYPE") or "unknown", values.get("LABEL", ""))


def make(device: Path) -> None:
    """Make the file system of a data disk, with the label of an unfinished one."""
    core.run(["mkfs.ext4", "-q", "-F", "-L", NEW_LABEL, "-m", "1", device], timeout=TOOL_SECONDS)


def check(device: Path, *, force: bool = False) -> None:
    """Check and repair the file system as at every start of a machine. Raises Problem if it needs an administrator."""
    done = core.run(["e2fsck", "-p", *(["-f"] if force else []), device], timeout=TOOL_SECONDS, check=False)
    if done.returncode & ~REPAIRED:
        raise core.Problem(
            f"e2fsck cannot repair {device} by itself: {done.stdout.decode(errors='replace').strip()[-300:]}",
            hint=f"make a copy of the disk, then e2fsck -f {device}",
        )


def grow_unmounted(device: Path) -> None:
    """Make the file system as large as the disk, if the disk was enlarged while the machine was off."""
    shown = core.run(["dumpe2fs", "-h", device]).stdout.decode(errors="replace")
    numbers = {key: int(value) for key, value in re.findall(r"(?m)^Block (count|size):\s+(\d+)$", shown)}
    size = int(core.run(["blockdev", "--getsize64", device]).stdout or 0)
    if numbers and size // numbers["size"] > numbers["count"]:
        check(device, force=True)
        core.run(["resize2fs", device], timeout=TOOL_SECONDS)


def mount(device: Path, place: Path = MOUNTED, *, read_only: bool = False) -> None:
    """Mount the disk where only root can reach it."""
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    core.run(["mount", "-t", "ext4", "-o", f"{OPTIONS},{'ro' if read_only else 'rw'}", device, place])


def bind(kept: kept_module.Kept, store: kept_module.Store) -> None:
    """Mount each kept directory at its path in the system."""
    for directory in kept.directories:
        original = store.original(directory.path)
        original.mkdir(mode=0o755, parents=True, exist_ok=True)
        if not original.samefile(store.place(directory.path)):
            # The mount inherits noexec from the disk's, so that "exec" has to be written.
            options = {"noatime", "bind", *directory.options} | (set() if "noexec" in directory.options else {"exec"})
            core.run(["mount", "-o", ",".join(sorted(options)), store.place(directory.path), original])


def read_marker(place: Path) -> dict[str, Any] | None:
    """Return what site.json on a mounted disk contains; None if there is none. Raises Problem if it is damaged."""
    path = place / "site.json"
    if not path.exists():
        return None
    try:
        marker: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        valid = _is_marker(marker)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        marker, valid = {}, False
    if not valid:
        raise core.Problem(f"{path} is damaged", hint="restore the data disk from a backup; no file on it was changed")
    return marker


def _is_marker(marker: Mapping[str, Any]) -> bool:
    """Return True if every part of site.json has its type. Raises KeyError, TypeError or AttributeError for others."""
    change = marker.get("change") or {"step": 1, "ids": {"users": {}, "groups": {}}}
    owners = marker.get("owners", {})
    numbers = [marker["layout"], change["step"], *marker.get("versions", {}).values()]
    for names in (*owners.values(), *change["ids"].values()):
        numbers += names.values()
    texts = [marker["site"], marker["system"], *(number for names in change["ids"].values() for number in names)]
    return (
        all(type(number) is int for number in numbers) and all(isinstance(text, str) for text in texts)
        and change["ids"].keys() == {"users", "groups"} and owners.keys() <= {"users", "groups"}
    )  # fmt: skip


def write_marker(place: Path, marker: Mapping[str, Any]) -> None:
    """Replace site.json of a mounted disk."""
    core.write_whole(place / "site.json", json.dumps(marker, indent=1, sort_keys=True).encode())


def require_usable(marker: Mapping[str, Any] | None, *, own: str, expected: str, versions: Mapping[str, int]) -> None:
    """Raise Problem unless this system may use the disk: its site, its layout, and the formats of what is on it."""
    if marker is None:
        raise core.Problem(
            "the data disk has no site.json",
            hint="look into its lost+found, or restore a backup; no file on the disk was changed",
        )
    for name, source in ((own, f"{OWN} has"), (expected, "its SMBIOS has")):
        if name and name != marker["site"]:
            raise core.Problem(
                f"the data disk belongs to the site {marker['site']}, and this machine to another: {source} {name}",
                hint="attach the disk of this site; no file on the disk was changed",
            )
    if marker["layout"] > LAYOUT:
        raise core.Problem(
            f"the data disk has the layout {marker['layout']}, and this system knows the layouts up to {LAYOUT}",
            hint="start a machine of a newer template with it; no file on the disk was changed",
        )
    for name, version in sorted(marker.get("versions", {}).items()):
        mine = versions.get(name)
        if mine is not None and mine != version:
            direction = "newer" if version > mine else "older"
            raise core.Problem(
                f"the data disk has data of {name} {version}, which is {direction} than {name} {mine} of this system",
                hint=f"use a template with {name} {version}, or restore a backup on a machine with {mine}",
            )


def attach(
    kept: kept_module.Kept, store: kept_module.Store, disk: Disk, *, own: Path = OWN, expected: str = ""
) -> dict[str, Any]:  # fmt: skip
    """Format, check, mount and bring up to date a data disk; return its marker. Can be repeated after a power cut.

    Raises Problem for a disk that this system must not use; it is not mounted then, and no file on it was changed.
    """
    mine = own_site(own)
    _require_ours(disk, mine, own)
    if not disk.kind:
        make(disk.device)
    else:
        check(disk.device)
        grow_unmounted(disk.device)
    mount(disk.device, store.disk, read_only=bool(disk.kind))
    try:
        marker = read_marker(store.disk)
        if marker is not None or disk.label == LABEL:
            require_usable(marker, own=mine, expected=expected, versions=kept.versions)
            core.run(["mount", "-o", "remount,rw", store.disk])
        elif disk.kind:
            # The first copy was interrupted: nothing has used the disk yet.
            core.run(["umount", store.disk])
            make(disk.device)
            mount(disk.device, store.disk)
        marker = _adopt(kept, store, marker or _begin(kept, store, expected or mine or new_site()))
        if probe(disk.device).label != LABEL:
            core.run(["tune2fs", "-L", LABEL, disk.device])
    except BaseException:
        core.run(["umount", store.disk], check=False)
        raise
    own.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if mine != marker["site"]:
        core.write_whole(own, f"{marker['site']}\n".encode())
    bind(kept, store)
    return marker


def _require_ours(disk: Disk, mine: str, own: Path) -> None:
    """Raise Problem unless the disk is a data disk, or blank and this system has not used another one."""
    if not disk.kind and mine:
        raise core.Problem(
            f"the data disk of the site {mine} is missing: {disk.device} in its place is blank",
            hint=f"attach the disk of this site; to begin without its data, remove {own} and start the machine again",
        )
    if disk.kind and (disk.kind != "ext4" or disk.label not in (LABEL, NEW_LABEL)):
        raise core.Problem(
            f"{disk.device} has the serial number {SERIAL}, and contains {disk.kind} with the label {disk.label!r}",
            hint=f"attach a data disk, or a blank one; wipefs --all {disk.device} erases what is on it",
        )


def _begin(kept: kept_module.Kept, store: kept_module.Store, site: str) -> dict[str, Any]:
    """Copy everything to a new disk, and write its marker last."""
    store.room(kept)
    store.fill(kept)
    store.save(kept)
    kept_module.flush(store.disk)
    marker = new_marker(site, kept)
    write_marker(store.disk, marker)
    return marker


def _adopt(kept: kept_module.Kept, store: kept_module.Store, marker: dict[str, Any]) -> dict[str, Any]:
    """Bring the disk up to date with this system: a new one of the site, or one with more layers than before."""
    fresh = new_marker(marker["site"], kept)
    store.room(kept)
    if marker["system"] != fresh["system"]:
        _change_owners(store, marker)
        store.fill(kept)
        store.renew(kept)
        store.restore(kept)
    else:
        store.fill(kept)
        store.save(kept)
    if fresh != marker:
        kept_module.flush(store.disk)
        write_marker(store.disk, fresh)
    return fresh


def _change_owners(store: kept_module.Store, marker: dict[str, Any]) -> None:
    """Give the kept files the ids that their owners have in this system, in two steps that marker["change"] records."""
    change = marker.get("change") or {"step": 1, "ids": kept_module.changes(marker.get("owners", {}), kept_module.owners())}
    if not any(change["ids"].values()):
        return
    trees = [path for path in (store.disk / "kept", store.files) if path.is_dir()]
    if change["step"] == 1:
        write_marker(store.disk, {**marker, "change": change})
        kept_module.chown(trees, kept_module.shift(change["ids"]))
        kept_module.flush(store.disk)
        change = {**change, "step": 2}
        write_marker(store.disk, {**marker, "change": change})
    kept_module.chown(trees, kept_module.settle)
    kept_module.flush(store.disk)
    marker.update(owners=kept_module.owners(), change=None)
    write_marker(store.disk, marker)


def new_marker(site: str, kept: kept_module.Kept, *, machine_id: Path = MACHINE_ID) -> dict[str, Any]:
    """Return the content of site.json for this system."""
    return {
        "layout": LAYOUT, "site": site, "system": machine_id.read_text().strip(), "versions": dict(kept.versions),
        "owners": kept_module.owners(),
    }  # fmt: skip


def new_site() -> str:
    """Return a name for a site that has none."""
    return secrets.token_hex(6)


def grow(device: Path) -> None:
    """Make the file system as large as the disk, while it is mounted."""
    rescan = Path("/sys/class/block") / device.name / "device" / "rescan"
    if rescan.exists():
        rescan.write_text("1")
    core.run(["resize2fs", device], timeout=TOOL_SECONDS)
