"""The list of golden-verify's checks: each layer has a part in /usr/lib/golden/verify.d, and the parts form one list.

An entry of a part is a check, or an addition to a check with a name: ``adds_to: NAME``. The lists of an addition are
appended to those of the check, its mappings are merged with the check's; duplicate items are added once.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from golden import core

NEEDED = ("check", "title", "ids")


def read(directory: Path) -> list[dict[str, Any]]:
    """Return the checks of all parts, in the order of the parts' names, with the additions of other parts.

    Raises Problem for an entry that is neither a check nor an addition, and for additions without a matching check.
    """
    checks: list[dict[str, Any]] = []
    additions: list[tuple[str, dict[str, Any]]] = []
    for part in sorted(directory.glob("*.yaml")):
        for number, entry in enumerate(_entries(part), start=1):
            where = f"{part}, entry {number}"
            if "adds_to" in entry:
                additions.append((where, entry))
                continue
            missing = [key for key in NEEDED if not entry.get(key)]
            if missing:
                raise core.Problem(f"{where}: {', '.join(missing)} missing", hint="write check, title and ids, or adds_to")
            if entry.get("name") and any(check.get("name") == entry["name"] for check in checks):
                raise core.Problem(
                    f"{where}: name: {entry['name']!r}: another check has this name", hint="write another one"
                )
            checks.append(entry)
    names = {check["name"]: check for check in checks if "name" in check}
    for where, entry in additions:
        if entry["adds_to"] not in names:
            known = ", ".join(sorted(names)) or "none"
            raise core.Problem(f"{where}: adds_to: {entry['adds_to']!r}: no check has this name", hint=f"known are {known}")
        _join(names[entry["adds_to"]], {key: value for key, value in entry.items() if key != "adds_to"}, where)
    if not checks:
        raise core.Problem(f"{directory} has no check", hint="each layer installs its checks there as NN-layer.yaml")
    return checks


def _entries(part: Path) -> list[dict[str, Any]]:
    try:
        entries = yaml.safe_load(part.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise core.Problem(f"{part}: {' '.join(str(error).split())}", hint="correct the YAML") from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise core.Problem(f"{part} is not a list of checks", hint="write a list of {check, title, ids, ...}")
    # Entries may share a value by a YAML anchor; an addition to one must not change the other.
    return [copy.deepcopy(entry) for entry in entries]


def _join(check: dict[str, Any], addition: Mapping[str, Any], where: str) -> None:
    """Add an addition to a check."""
    for key, value in addition.items():
        here = check.setdefault(key, type(value)())
        if isinstance(here, list) and isinstance(value, list):
            here += [item for item in value if item not in here]
        elif isinstance(here, dict) and isinstance(value, dict):
            twice = [name for name in value if name in here and here[name] != value[name]]
            if twice:
                raise core.Problem(
                    f"{where}: {key}: {twice[0]!r}: the check has another value", hint="remove one of the two"
                )
            here.update(value)
        else:
            raise core.Problem(
                f"{where}: {key}: {value!r}: only lists and mappings can be added", hint="write a separate check"
            )
