"""Part of the weekly report: whom fail2ban banned."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from golden.report_tools import journal


def look() -> dict[str, Any]:
    """Return the number of bans of each jail."""
    bans = [entry["MESSAGE"] for entry in journal("--unit=fail2ban.service") if " Ban " in entry["MESSAGE"]]
    return {"jails": dict(Counter(banned[1] for line in bans if (banned := re.search(r"\[([\w-]+)\] Ban ", line))))}


def attention(_found: dict[str, Any]) -> list[str]:
    """Return nothing: a ban is the answer already."""
    return []
