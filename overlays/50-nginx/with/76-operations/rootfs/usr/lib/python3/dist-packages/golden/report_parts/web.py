"""Part of the weekly report: how the web server answered."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from golden.report_tools import DAYS, log_lines


def look(directory: Path = Path("/var/log/nginx")) -> dict[str, Any]:
    """How the web server answered, and which paths failed most."""
    since = (datetime.now(UTC) - timedelta(days=DAYS)).isoformat()
    kinds: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for line in log_lines(directory, "access.log*"):
        try:
            entry = json.loads(line)
            status, when, requests = int(entry["status"]), str(entry["ts"]), int(entry.get("requests", 1))
        except (ValueError, KeyError, TypeError):
            kinds["not readable"] += 1
            continue
        if when < since[:19]:
            continue
        kinds[f"{status // 100}xx"] += requests
        kinds["429"] += requests * (status == 429)
        if status >= 500:
            failed[f"{status} {str(entry.get('uri', ''))[:80]}"] += requests
    total = sum(count for kind, count in kinds.items() if kind.endswith("xx"))
    rates = {kind: round(100 * kinds[kind] / total, 2) for kind in ("4xx", "5xx") if total}
    return {"requests": total, "answers": dict(kinds), "percent": rates, "failed": dict(failed.most_common(10))}


def attention(_found: dict[str, Any]) -> list[str]:
    """Return nothing: an error of the web server has its own alert, and the rest is for reading."""
    return []
