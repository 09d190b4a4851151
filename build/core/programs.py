"""Records the programs that each stage of a build starts, and compares them with the tools of build/core/host.py.

An undeclared program is not installed before the build: the build works on a host that happens to have it, and fails
midway on a new host. So every build records the programs that it starts, and warns of undeclared ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from build.core import files, host, log, run

DIRECTORY = "programs"


@contextmanager
def recorded(stage: str, logs: Path, *more: host.Tool) -> Iterator[None]:
    """Record the programs that ``stage`` starts within the block in ``logs/programs/STAGE.json``; warn of undeclared ones.

    The file has two sorted lists of names, ``started`` and ``undeclared``. ``more`` are tools that only this host needs.
    """
    started: set[str] = set()
    try:
        with run.watched(started.add):
            yield
    finally:
        undeclared = sorted(started - host.declared(stage, *more))
        record = logs / DIRECTORY / f"{stage}.json"
        record.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(record, {"started": sorted(started), "undeclared": undeclared})
        if undeclared:
            names = ", ".join(undeclared)
            log.warn(f"stage {stage} started {names}, which build/core/host.py does not declare: please report it")
