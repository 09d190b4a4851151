"""Stage cache: one directory per stage and key, complete or absent, with the inputs of the stage.

Layout below the cache directory::

    files/<2 hex>/<sha256>           downloaded files, named by their hash
    stages/<stage>/<key>/            the stage's files and stage.json {stage, key, inputs, seconds, facts}
    stages/<stage>/latest.json       the key and inputs of the stage's last use, to show why a stage runs again
    stages/<stage>/.<key>.flock      locked while a build runs the stage; a second build waits and reuses the result
"""

from __future__ import annotations

import errno
import os
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from build.core import files, json_text, log, records
from build.core.errors import StepFailed

RECORD = "stage.json"
KEPT_KEYS = 3
KEY_HEX = 16
F = TypeVar("F")


@dataclass(frozen=True)
class StageKey:
    """A stage and the hash of everything that shapes its result, including the previous stage."""

    stage: str
    key: str
    inputs: Mapping[str, Any]


def stage_key(stage: str, inputs: Mapping[str, Any], previous: StageKey | None = None) -> StageKey:
    """Chain a stage's declared inputs to the key of the previous stage."""
    chained = {**inputs, "previous": previous.key if previous else ""}
    return StageKey(stage, files.digest({"stage": stage, "inputs": chained})[:KEY_HEX], chained)


@dataclass(frozen=True)
class StageResult:
    """A finished stage: the directory of its files, its run time in seconds, and the facts that it recorded.

    ``facts`` have the stage's own type if the cache knows it, else they are plain data.
    """

    stage: str
    key: str
    path: Path
    seconds: float
    facts: Any
    reused: bool

    def facts_as(self, kind: type[F]) -> F:
        """Return the facts as the stage's own type. Raises records.Unreadable when they are of another one."""
        return self.facts if isinstance(self.facts, kind) else records.read(kind, self.facts)


@dataclass(frozen=True)
class Cache:
    """The cache directory; ``kinds`` are the types of the facts of each stage.

    A result whose facts are not of its stage's type was written by other code: it counts as absent, and is made again.
    """

    root: Path
    kinds: Mapping[str, type] = field(default_factory=dict)

    def stage_path(self, key: StageKey) -> Path:
        return self.root / "stages" / key.stage / key.key

    def lookup(self, key: StageKey) -> StageResult | None:
        """Return the finished stage, or None."""
        path = self.stage_path(key)
        try:
            record = json_text.parse((path / RECORD).read_text())
            facts = record["facts"]
            if kind := self.kinds.get(key.stage):
                facts = records.read(kind, facts)
            return StageResult(key.stage, key.key, path, record["seconds"], facts, reused=True)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def why(self, key: StageKey) -> str:
        """Return the reason why a stage has to run: the declared inputs that differ from its last use."""
        try:
            before = json_text.parse((self.root / "stages" / key.stage / "latest.json").read_text())["inputs"]
        except (OSError, ValueError, KeyError, TypeError):
            return "not cached"
        now = json_text.parse(files.canonical_json(key.inputs))
        changed = [name for name in sorted(now.keys() | before.keys()) if now.get(name) != before.get(name)]
        own = [name for name in changed if name != "previous"]
        if own:
            return "changed: " + ", ".join(_describe(name, before.get(name), now.get(name)) for name in own)
        return "the previous stage changed" if changed else "its result is no longer in the cache"

    def obtain(self, key: StageKey, make: Callable[[Path], object]) -> StageResult:
        """Return the stage from the cache, or run it: ``make(directory)`` fills the directory and returns facts."""
        home = self.root / "stages" / key.stage
        waiting = f"another build is running stage {key.stage} {key.key}: waiting for it"
        with files.lock(home / f".{key.key}.flock", waiting=waiting):
            result = self.lookup(key)
            if result is None:
                result = self._make(key, home, make)
        os.utime(result.path)
        files.write_json(home / "latest.json", {"key": key.key, "inputs": key.inputs})
        return result

    def _make(self, key: StageKey, home: Path, make: Callable[[Path], object]) -> StageResult:
        started = time.monotonic()
        with files.scratch(home) as directory:
            try:
                facts = make(directory)
            except OSError as error:
                full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                raise StepFailed(
                    f"{key.stage}: {error.strerror or error}: {error.filename or directory}",
                    hint=f"free disk space: df -h {self.root}" if full else "",
                ) from error
            elapsed = round(time.monotonic() - started, 2)
            # Peak memory of this process so far, without its children.
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            record = {
                "stage": key.stage, "key": key.key, "inputs": key.inputs, "seconds": elapsed,
                "memory_mib": memory, "facts": records.write(facts) if is_dataclass(facts) else facts,
            }  # fmt: skip
            files.write_json(directory / RECORD, record)
            final = self.stage_path(key)
            if final.exists():
                files.remove_tree(final)
            files.commit_directory(directory, final)
        self._prune(key)
        return StageResult(key.stage, key.key, final, elapsed, facts, reused=False)

    def _prune(self, key: StageKey) -> None:
        """Keep the newest few results of a stage; a result in use by a running build is newer than those."""
        results = [path for path in (self.root / "stages" / key.stage).iterdir() if path.is_dir() and path.name[0] != "."]
        for path in sorted(results, key=lambda path: path.stat().st_mtime)[:-KEPT_KEYS]:
            log.debug(f"removing {key.stage} {path.name} from the cache")
            files.remove_tree(path)

    def expected_seconds(self, stage: str) -> float:
        """Return how long the stage took the last time it ran on this machine, or 0."""
        return float(self._last_record(stage).get("seconds") or 0.0)

    def _last_record(self, stage: str) -> dict[str, Any]:
        """Return the newest record of a stage, or an empty mapping if there is none or it is damaged."""
        records = sorted((self.root / "stages" / stage).glob(f"[!.]*/{RECORD}"), key=lambda path: path.stat().st_mtime)
        try:
            record = json_text.parse(records[-1].read_text())
        except (IndexError, OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}


def _describe(name: str, before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        parts = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
        shown = ", ".join(parts[:3]) + (" …" if len(parts) > 3 else "")
        return f"{name} ({shown})"
    return name
