"""Part of the weekly report: what would be upgraded."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

from golden import core


def look() -> dict[str, Any]:
    """Tell what would be upgraded, and whether something still runs from before an upgrade (requirement R78)."""
    simulated = core.run(["apt-get", "--simulate", "--quiet", "-o", "Debug::NoLocking=1", "dist-upgrade"], check=False)
    pending = [line.split()[1] for line in simulated.stdout.decode().splitlines() if line.startswith("Inst ")]
    asked = sorted(Path("/var/lib/apt/lists").glob("*Release"))
    age = (time.time() - max(path.stat().st_mtime for path in asked)) / 86400 if asked else None
    return {
        "pending": pending,
        "days_since_asked": age and round(age, 1),
        "reboot_required": Path("/run/reboot-required").exists() or _newer_kernel(),
    }


def _newer_kernel() -> bool:
    """Return whether a kernel is installed that is newer than the one that runs."""
    installed = {path.name.removeprefix("vmlinuz-") for path in Path("/boot").glob("vmlinuz-*")}
    running = os.uname().release
    newest = max(installed, key=lambda name: [int(one) for one in re.findall(r"\d+", name)], default="")
    return running in installed and running != newest


def attention(found: dict[str, Any]) -> list[str]:
    """Return what needs attention."""
    pending = len(found["pending"])
    lines = [f"{pending} packages have updates: unattended-upgrade --dry-run"] if pending else []
    return lines + (["an update needs a restart of the machine"] if found["reboot_required"] else [])
