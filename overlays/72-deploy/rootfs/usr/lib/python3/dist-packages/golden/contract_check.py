"""Compares the running machine with the contract of the release that serves: for checks and the weekly report."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from golden import app_units, contract, exposure, grants
from golden.core import SITE

CURRENT = Path("/opt/app/current")
Located = Callable[[str], Path]
# Returns properties of a unit.
Properties = Callable[[str, Iterable[str]], Mapping[str, str]]


def compare(located: Located, properties: Properties) -> list[str] | None:
    """Return what differs; None without a contract. ``located`` returns where a path of the machine is."""
    release = located(str(CURRENT))
    if not (release / grants.DIRECTORY).is_dir():
        return None
    values, faults = contract.load(release / "code")
    found = [f"{contract.NAME}: {fault}" for fault in faults]
    expected = grants.files(values)
    written = {name: text for name, text in expected.items() if not text.startswith(app_units.LINK)}
    found += _other_files(release / grants.DIRECTORY, written)
    rules = {name.partition("/")[2]: text for name, text in expected.items() if name.startswith(f"{grants.NGINX}/")}
    served = located(str(grants.SERVED))
    found += _other_files(served, rules)
    found += [f"{path} is not of the contract" for path in sorted(served.glob("*")) if path.name not in rules]
    for unit in app_units.names(values):
        state = properties(unit, ["ActiveState"]).get("ActiveState", "?")
        found += [] if state == "active" else [f"{unit} is {state}"]
    return found + exposure.beyond(values, _allowed(located(str(SITE))))


def _other_files(top: Path, expected: Mapping[str, str]) -> list[str]:
    """Return the files that are not as expected."""
    found = []
    for name, text in expected.items():
        try:
            same = (top / name).read_text(encoding="utf-8") == text
        except (OSError, UnicodeDecodeError):
            same = False
        found += [] if same else [f"{top / name} differs from the contract"]
    return found


def _allowed(settings: Path) -> Mapping[str, Any]:
    """Return the site's ceiling (application.allow)."""
    if not settings.exists():
        return {}
    application = json.loads(settings.read_text(encoding="utf-8")).get("application") or {}
    allowed: Mapping[str, Any] = application.get("allow") or {}
    return allowed
