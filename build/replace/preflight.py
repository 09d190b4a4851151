"""What is checked before a machine is replaced; nothing is changed, and every problem is reported at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from build.clone import data_disk
from build.core import json_text
from build.core.errors import GoldsmithError, SpecError
from build.proxmox.client import Api, ApiError
from build.replace import settings, switch
from build.replace.find import Pair

# What the last backup on the machine did (overlays/70-backup).
BACKUP = "/var/backups/golden/last.json"
# pve-storage: the plug-ins that rename a volume (volume_has_feature, rename).
RENAMING = frozenset({"btrfs", "cephfs", "cifs", "dir", "glusterfs", "lvm", "lvmthin", "nfs", "rbd", "zfspool"})


@dataclass(frozen=True)
class Found:
    """What the machine is before: its SSH host key, and which system uses the data disk in which layout."""

    host_key: str
    system: str
    layout: str


def require(api: Api, pair: Pair, *, timeout: float, backup_hours: int) -> Found:
    """Return what the machine is now. Raises SpecError that lists everything that prevents its replacement."""
    problems = settings.problems(pair.config)
    problems += [f"lock: {pair.config['lock']}: a task works on the VM: wait for its end"] if "lock" in pair.config else []
    problems += _snapshots(api, pair)
    problems += _storage(api, pair)
    state: Mapping[str, Any] = api.get(f"{pair.old.path}/status/current")
    if (state.get("ha") or {}).get("managed"):
        problems.append("it is managed by HA, which would start it again: remove it there first (ha-manager remove)")
    found = None
    if state["status"] != switch.RUNNING:
        problems.append(f"it is {state['status']}: start it, so that its health before is known")
    elif not problems:
        found = _running(api, pair, problems, timeout=timeout, backup_hours=backup_hours)
    if problems or found is None:
        raise SpecError(
            f"{pair.name} (VM {pair.old.vmid} on {pair.old.node}) cannot be replaced",
            details="\n".join(problems),
            hint="nothing was changed",
        )
    return found


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


def _running(api: Api, pair: Pair, problems: list[str], *, timeout: float, backup_hours: int) -> Found | None:
    adopted = switch.adopted(api, pair.old)
    if adopted is None:
        problems.append("data disk: the machine does not use it, or its guest agent is silent: golden-data status on it")
    if backup_hours and (problem := backup_problem(api, pair, hours=backup_hours)):
        problems.append(problem)
    if problems or adopted is None:
        return None
    try:
        reached = switch.require_healthy(api, pair.old, pair.name, timeout=timeout)
    except GoldsmithError as error:
        problems.append(f"it is not healthy now: {error.brief}; {error.details}")
        return None
    return Found(reached.host_key, adopted.system, adopted.layout)


def backup_problem(api: Api, pair: Pair, *, hours: int) -> str:
    """Return a problem if the newest backup of the machine is older than ``hours``, or unknown."""
    advice = f"systemctl start golden-backup on it, or --backup-age 0 to go on without (now: --backup-age {hours})"
    try:
        last = json_text.parse(str(api.get(f"{pair.old.path}/agent/file-read", file=BACKUP).get("content", "")))
        made = datetime.fromisoformat(str(last["manifest"]["made"]))
    except (ApiError, ValueError, KeyError, TypeError):
        return f"backup: there is none that is known ({BACKUP}): {advice}"
    age = (datetime.now(UTC) - (made if made.tzinfo else made.replace(tzinfo=UTC))).total_seconds() / 3600
    return f"backup: the newest one is {age:.0f} hours old: {advice}" if age > hours else ""
