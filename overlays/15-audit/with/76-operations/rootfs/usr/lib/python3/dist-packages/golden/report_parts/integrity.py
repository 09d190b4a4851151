"""Part of the weekly report: the files that AIDE watches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def look(path: Path = Path("/var/lib/aide/last.json")) -> dict[str, Any]:
    """Return the result of the last check of AIDE."""
    if not path.exists():
        return {"checked": None}
    last = json.loads(path.read_text(encoding="utf-8"))
    differences = {key: last.get(key) for key in ("added", "removed", "changed")}
    return {"checked": last.get("time"), "ok": last.get("ok"), **differences}


def attention(found: dict[str, Any]) -> list[str]:
    """Return what needs attention."""
    return ["files differ from what AIDE knows: golden-aide check"] if found.get("ok") is False else []
