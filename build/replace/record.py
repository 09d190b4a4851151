"""The record of a replacement in the description of the old VM: its progress, so that any later run can continue it.

A run that begins or continues writes its own id into the record, with Proxmox's digest of the configuration as a condition:
of two concurrent runs one succeeds, and a run whose id is no longer in the record stops without a further change.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from build.core import json_text
from build.core.errors import StepFailed
from build.proxmox.api_errors import CHANGED
from build.proxmox.client import Api, ApiError

MARK = re.compile(r"\n*<!-- goldsmith-replace: (?P<facts>\{.*\}) -->")
SCHEMA = 1


class Phase(StrEnum):
    """The progress: the new VM is created, the machine is switched to it or back, or the old VM is only kept."""

    MAKING = "making"
    SWITCHING = "switching"
    BACK = "back"
    KEPT = "kept"


class ConcurrentRun(StepFailed):
    """Another run continues with the replacement."""


@dataclass(frozen=True)
class Record:
    """A replacement of the machine ``name``. ``made``: the run id in the label of the new VM; ``run``: the current run.

    ``key`` is the drive of the data disk; ``onboot`` and ``protection`` are those of the old VM before. ``layout`` is the
    part of the data disk's site.json that decides which systems can read it; empty if it could not be read.
    """

    name: str
    template: str
    phase: Phase
    made: str
    run: str
    begun: str
    key: str
    onboot: int
    protection: int
    host_key: str = ""
    system: str = ""
    layout: str = ""
    keep_until: str = ""
    failed: str = ""
    # The VM id of the new VM if it is known; ``undo`` is True if an accepted replacement is undone.
    peer: int = 0
    undo: bool = False

    def become(self, phase: Phase, **changes: Any) -> Record:
        """Return the record in another phase."""
        return replace(self, phase=phase, **changes)


def parse(description: str) -> Record | None:
    """Return the record in a description, or None if there is none that this version can read."""
    match = MARK.search(description or "")
    try:
        facts = json_text.parse(match["facts"]) if match else {}
        if facts.pop("schema", None) != SCHEMA:
            return None
        return Record(**{**facts, "phase": Phase(facts["phase"])})
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def inscribed(description: str, record: Record | None) -> str:
    """Return a description with the record in place of an earlier one; None removes it."""
    plain = MARK.sub("", description or "").rstrip("\n")
    if record is None:
        return plain
    facts = json.dumps(asdict(record) | {"schema": SCHEMA}, sort_keys=True, separators=(",", ":")).replace(">", "\\u003e")
    return f"{plain}\n\n<!-- goldsmith-replace: {facts} -->"


def take(api: Api, path: str, config: Mapping[str, Any], record: Record, **keys: Any) -> None:
    """Write a record. Raises ConcurrentRun if the configuration was changed since it was read; ApiError."""
    description = inscribed(str(config.get("description", "")), record)
    try:
        api.put(f"{path}/config", description=description, digest=config.get("digest"), **keys)
    except ApiError as error:
        if error.status == 0 and parse(str(api.get(f"{path}/config").get("description", ""))) == record:
            return
        if CHANGED.search(f"{error.brief} {error.details}"):
            raise ConcurrentRun(
                f"another run has changed the VM of {record.name}",
                hint="wait until it has ended, then run the same command again",
            ) from error
        raise


def write(api: Api, path: str, record: Record | None, *, run: str, **keys: Any) -> None:
    """Replace the record of this run, and set further ``keys`` in the same call. Raises ConcurrentRun."""
    config = require_ours(api, path, run)
    api.configure(path, description=inscribed(str(config.get("description", "")), record), **keys)


def require_ours(api: Api, path: str, run: str) -> Mapping[str, Any]:
    """Return the configuration of the old VM. Raises ConcurrentRun unless its record has this run's id."""
    return _require(api, path, lambda record: record.run == run)


def require_active(api: Api, path: str) -> Mapping[str, Any]:
    """Return the configuration of the old VM. Raises ConcurrentRun unless its replacement is in progress."""
    return _require(api, path, lambda record: record.phase is not Phase.KEPT)


def _require(api: Api, path: str, wanted: Callable[[Record], bool]) -> Mapping[str, Any]:
    config: Mapping[str, Any] = api.get(f"{path}/config")
    record = parse(str(config.get("description", "")))
    if record is None or not wanted(record):
        raise ConcurrentRun(
            "another run continues with this replacement", hint="wait until it is done, then run the same command again"
        )
    return config
