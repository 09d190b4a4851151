"""Part of the weekly report: the application's contract."""

from __future__ import annotations

import json
from typing import Any

from golden import core


def look() -> dict[str, Any]:
    """Tell what the application opens by its contract, and where the machine differs from it."""
    done = core.run(["golden-contract", "--json", "--compare"], check=False)
    if done.returncode not in (core.OK, core.CHECK_FAILED):
        return {"release": None, "opens": [], "problems": []}
    found = json.loads(done.stdout)
    return {name: found[name] for name in ("release", "opens", "problems")}


def attention(found: dict[str, Any]) -> list[str]:
    """Return what needs attention."""
    return [f"the application's contract: {problem}" for problem in found["problems"]]
