"""What the parts of the weekly report share: the journal and the logs of the last days."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from golden import core

DAYS = 7


def journal(*words: str, days: int = DAYS) -> list[dict[str, Any]]:
    """Return the journal's entries that match, of the last days."""
    argv = ["journalctl", "--quiet", "--no-pager", "--output=json", f"--since=-{days}d", *words]
    argv.append("--output-fields=MESSAGE,_COMM,SYSLOG_IDENTIFIER,_SYSTEMD_UNIT")
    text = core.run(argv, timeout=600, check=False).stdout.decode(errors="replace")
    return [entry for entry in map(json.loads, text.splitlines()) if isinstance(entry.get("MESSAGE"), str)]


def log_lines(directory: Path, pattern: str) -> Iterator[str]:
    """Return the lines of a log and of the older files beside it, as far as they were written in the last days."""
    for path in sorted(directory.glob(pattern)):
        if path.stat().st_mtime < time.time() - DAYS * 86400:
            continue
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8", errors="replace") as stream:
            yield from stream
