"""What earlier runs left: one directory for each stage and key, whole or absent, with the inputs that made it.

Layout below the cache directory::

    files/<2 hex>/<sha256>           downloaded files, named by their hash
    stages/<stage>/<key>/            the stage's files and stage.json {stage, key, inputs, seconds, facts}
    stages/<stage>/latest.json       the key and inputs of the stage's last use, to say why a stage runs again
    stages/<stage>/.<key>.flock      held while a build makes the key, so that a second build waits and reuses
"""

from __future__ import annotations

import errno
import json
import os
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from build import files, log
from build.errors import StepFailed

RECORD = "stage.json"
KEPT_KEYS = 3
KEY_HEX = 16


@dataclass(frozen=True)
class StageKey:
    """A stage and the hash of everything that shapes its result, the stage before it included."""

    stage: str
    key: str
    inputs: Mapping[str, Any]


def stage_key(stage: str, inputs: Mapping[str, Any], previous: StageKey | None = None) -> StageKey:
    """Chain a stage's declared inputs to the stage before it."""
    chained = {**inputs, "previous": previous.key if previous else ""}
    return StageKey(stage, files.digest({"stage": stage, "inputs": chained})[:KEY_HEX], chained)


@dataclass(frozen=True)
class StageResult:
    """A finished stage: where its files are, how long it took when it ran, and what it noted."""

    stage: str
    key: str
    path: Path
    seconds: float
    facts: Mapping[str, Any]
    reused: bool


@dataclass(frozen=True)
class Cache:
    """The cache directory."""

    root: Path

    def stage_path(self, key: StageKey) -> Path:
        return self.root / "stages" / key.stage / key.key

    def lookup(self, key: StageKey) -> StageResult | None:
        """Return the finished stage, or None."""
        path = self.stage_path(key)
        try:
            record = json.loads((path / RECORD).read_text())
            return StageResult(key.stage, key.key, path, record["seconds"], record["facts"], reused=True)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def why(self, key: StageKey) -> str:
        """Say in words why a stage has to run: which declared inputs differ from its last use."""
        try:
            before = json.loads((self.root / "stages" / key.stage / "latest.json").read_text())["inputs"]
        except (OSError, ValueError, KeyError, TypeError):
            return "never built here"
        now = json.loads(files.canonical_json(key.inputs))
        changed = [name for name in sorted(now.keys() | before.keys()) if now.get(name) != before.get(name)]
        own = [name for name in changed if name != "previous"]
        if own:
            return "changed: " + ", ".join(_describe(name, before.get(name), now.get(name)) for name in own)
        return "the stage before it changed" if changed else "its result is no longer in the cache"

    def obtain(self, key: StageKey, make: Callable[[Path], Mapping[str, Any]]) -> StageResult:
        """Return the stage from the cache, or make it: ``make(directory)`` fills the directory and returns facts."""
        home = self.root / "stages" / key.stage
        waiting = f"another build is making {key.stage} {key.key}: waiting for it"
        with files.lock(home / f".{key.key}.flock", waiting=waiting):
            found = self.lookup(key)
            if found is None:
                found = self._make(key, home, make)
        os.utime(found.path)
        files.write_json(home / "latest.json", {"key": key.key, "inputs": key.inputs})
        return found

    def _make(self, key: StageKey, home: Path, make: Callable[[Path], Mapping[str, Any]]) -> StageResult:
        begun = time.monotonic()
        with files.scratch(home) as directory:
            try:
                facts = dict(make(directory))
            except OSError as error:
                full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                raise StepFailed(
                    f"{key.stage}: {error.strerror or error}: {error.filename or directory}",
                    hint=f"free some space: df -h {self.root}" if full else "",
                ) from error
            took = round(time.monotonic() - begun, 2)
            # Of this process so far, children left out: what our own code needs at most.
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            record = {
                "stage": key.stage, "key": key.key, "inputs": key.inputs, "seconds": took,
                "memory_mib": memory, "facts": facts,
            }  # fmt: skip
            files.write_json(directory / RECORD, record)
            final = self.stage_path(key)
            if final.exists():
                files.remove_tree(final)
            files.commit_directory(directory, final)
        self._prune(key)
        return StageResult(key.stage, key.key, final, took, facts, reused=False)

    def _prune(self, key: StageKey) -> None:
        """Keep the newest few results of a stage; a result in use by a running build is newer than those."""
        results = [path for path in (self.root / "stages" / key.stage).iterdir() if path.is_dir() and path.name[0] != "."]
        for path in sorted(results, key=lambda path: path.stat().st_mtime)[:-KEPT_KEYS]:
            log.debug(f"removing {key.stage} {path.name} from the cache")
            files.remove_tree(path)

    def expected_seconds(self, stage: str) -> float:
        """Return how long the stage took the last time it ran on this machine, or 0."""
        return float(self._last_record(stage).get("seconds") or 0.0)

    def last_facts(self, stage: str) -> Mapping[str, Any]:
        """Return what the stage noted the last time it ran on this machine; nothing when it never did."""
        facts: dict[str, Any] = self._last_record(stage).get("facts") or {}
        return facts

    def _last_record(self, stage: str) -> dict[str, Any]:
        """Return the newest record of a stage, or nothing when there is none or it is damaged."""
        records = sorted((self.root / "stages" / stage).glob(f"[!.]*/{RECORD}"), key=lambda path: path.stat().st_mtime)
        try:
            found = json.loads(records[-1].read_text())
        except (IndexError, OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def _describe(name: str, before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        parts = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
        shown = ", ".join(parts[:3]) + (" …" if len(parts) > 3 else "")
        return f"{name} ({shown})"
    return name
