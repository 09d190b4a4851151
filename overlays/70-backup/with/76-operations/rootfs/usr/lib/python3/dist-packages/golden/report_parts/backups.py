"""Part of the weekly report: the newest backup, and the last drill."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from golden import core

BACKUPS, DRILL = Path("/var/backups/golden"), Path("/var/lib/golden-restore/last.json")
BACKUP_DAYS = 2


def look(directory: Path = BACKUPS, drill: Path = DRILL) -> dict[str, Any]:
    """How old the newest backup is, and how the last drill went."""
    found = sorted(directory.glob("*.tar.age"), key=lambda path: path.stat().st_mtime)
    age = round((time.time() - found[-1].stat().st_mtime) / 3600, 1) if found else None
    last = json.loads(drill.read_text(encoding="utf-8")) if drill.exists() else None
    return {"configured": core.site().get("backup") is not None, "kept": len(found), "hours_since_last": age, "drill": last}


def attention(found: dict[str, Any]) -> list[str]:
    """Return what needs attention."""
    if not found["configured"]:
        return ["no backup is configured: set backup in /etc/golden/site.yaml"]
    if found["hours_since_last"] is None or found["hours_since_last"] > 24 * BACKUP_DAYS:
        return ["the last backup is old, or there is none: systemctl status golden-backup.service"]
    return []
