"""Checks before a machine is replaced: nothing is changed, and all problems are reported at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from build.clone import data_disk
from build.core import json_text
from build.core.errors import GoldsmithError, SpecError
from build.proxmox import labels
from build.proxmox.client import Api, ApiError
from build.proxmox.labels import Label
from build.replace import settings, switch
from build.replace.find import Pair
from build.replace.switch import Adopted

# The result of the last backup on the machine (overlays/70-backup).
BACKUP = "/var/backups/golden/last.json"
# pve-storage: the plugins that can rename a volume (volume_has_feature, rename).
RENAMING = frozenset({"btrfs", "cephfs", "cifs", "dir", "glusterfs", "lvm", "lvmthin", "nfs", "rbd", "zfspool"})


@dataclass(frozen=True)
class Before:
    """The state of the machine before: its SSH host key, the system that uses the data disk, and the disk's layout."""

    host_key: str
    system: str
    layout: str


def require(api: Api, pair: Pair, template: Label, *, timeout: float, backup_hours: int) -> Before:
    """Return the current state of the machine. Raises SpecError with everything that prevents its replacement."""
    problems = settings.problems(pair.config)
    problems += (
        [f"lock: {pair.config['lock']}: a task is running on the VM: wait until it has ended"]
        if "lock" in pair.config
        else []
    )
    problems += _snapshots(api, pair)
    problems += _storage(api, pair)
    state: Mapping[str, Any] = api.get(f"{pair.old.path}/status/current")
    if (state.get("ha") or {}).get("managed"):
        problems.append("it is managed by HA, which would start it again: remove it there first (ha-manager remove)")
    before = None
    if state["status"] != switch.RUNNING:
        problems.append(f"it is {state['status']}: start it, so that its health can be checked first")
    elif not problems:
        before = _running(api, pair, template, problems, timeout=timeout, backup_hours=backup_hours)
    if problems or before is None:
        raise SpecError(
            f"{pair.name} (VM {pair.old.vmid} on {pair.old.node}) cannot be replaced",
            details="\n".join(problems),
            hint="nothing was changed",
        )
    return before


def _snapshots(api: Api, pair: Pair) -> list[str]:
    listed = [str(entry["name"]) for entry in api.get(f"{pair.old.path}/snapshot") if entry["name"] != "current"]
    return [f"snapshots: {', '.join(listed)}: a disk in a snapshot cannot be moved: remove them"] if listed else []


def _storage(api: Api, pair: Pair) -> list[str]:
    """Return a problem if the storage of the data disk cannot rename its volumes."""
    key = data_disk.key_of(pair.config)
    name = str(pair.config.get(key, "")).partition(":")[0]
    kinds = {str(entry["storage"]): str(entry["type"]) for entry in api.get(f"/nodes/{pair.old.node}/storage")}
    if not key or kinds.get(name, "dir") in RENAMING:
        return []
    return [f"{key}: the storage {name} ({kinds[name]}) cannot give a disk to another VM: move it: qm disk move"]


def _running(
    api: Api, pair: Pair, template: Label, problems: list[str], *, timeout: float, backup_hours: int
) -> Before | None:  # fmt: skip
    adopted = switch.adopted(api, pair.old)
    if adopted is None:
        problems.append(
            "data disk: the machine does not use it, or its guest agent does not answer: run golden-data status on it"
        )
    else:
        problems += filter(None, [_other_site(pair, adopted), _other_postgresql(adopted, template)])
    if backup_hours and (problem := backup_problem(api, pair, hours=backup_hours)):
        problems.append(problem)
    if problems or adopted is None:
        return None
    try:
        reached = switch.require_healthy(api, pair.old, pair.name, timeout=timeout)
    except GoldsmithError as error:
        problems.append(f"it is not healthy now: {error.brief}; {error.details}")
        return None
    return Before(reached.host_key, adopted.system, adopted.layout)


def _other_site(pair: Pair, adopted: Adopted) -> str:
    """Return a problem if the data disk belongs to another site than the one in the SMBIOS, which the new VM takes over."""
    site = data_disk.site_of(pair.config)
    if not site or site == adopted.site:
        return ""
    return (
        f"data disk: it belongs to the site {adopted.site}, and the SMBIOS of the VM names {site}: attach the disk of {site}"
    )


def _other_postgresql(adopted: Adopted, template: Label) -> str:
    """Return a problem if the template has another major version of PostgreSQL than the cluster on the data disk.

    A template whose label does not name its version is not refused: its system refuses the disk, and the replacement is
    rolled back.
    """
    cluster = json_text.parse(adopted.layout)["versions"].get("postgresql")
    offered = template.provenance.get(labels.POSTGRESQL, "")
    if cluster is None or not offered or str(cluster) == offered:
        return ""
    return (
        f"PostgreSQL: the cluster on the data disk is of version {cluster}, and {template.template} has {offered}, "
        f"which cannot read it: use a template with PostgreSQL {cluster}, or clone a new machine and restore a backup"
    )


def backup_problem(api: Api, pair: Pair, *, hours: int) -> str:
    """Return a problem if the newest backup of the machine is older than ``hours``, or unknown."""
    advice = f"run systemctl start golden-backup on it, or skip this check with --backup-age 0 (now: --backup-age {hours})"
    try:
        last = json_text.parse(str(api.get(f"{pair.old.path}/agent/file-read", file=BACKUP).get("content", "")))
        time = datetime.fromisoformat(str(last["manifest"]["made"]))
    except (ApiError, ValueError, KeyError, TypeError):
        return f"backup: no backup is recorded ({BACKUP}): {advice}"
    age = (datetime.now(UTC) - (time if time.tzinfo else time.replace(tzinfo=UTC))).total_seconds() / 3600
    return f"backup: the newest one is {age:.0f} hours old: {advice}" if age > hours else ""
