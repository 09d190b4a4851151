"""Reads the committed ledger of the audit: what each figure was when it was last recorded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from build.core import json_text, records
from build.core.errors import SpecError

FORMAT = 1


@dataclass(frozen=True)
class Entry:
    """A figure as it was recorded: ``shown`` and ``limit`` are for people, ``items`` are what was found, by name."""

    value: float
    shown: str
    limit: str
    items: tuple[str, ...]


def load(path: Path) -> dict[str, Entry]:
    """Read a ledger: entries by name. A ledger that does not exist yet is empty; raises SpecError when it is damaged."""
    try:
        content = json_text.parse(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise SpecError(f"{path} is not a ledger of format {FORMAT}", hint="write it again: nox -s audit -- --update")
        return {name: records.read(Entry, entry) for name, entry in content["figures"].items()}
    except FileNotFoundError:
        return {}
    except (AttributeError, ValueError, KeyError, TypeError) as error:
        raise SpecError(f"{path} is damaged: {error}", hint="write it again: nox -s audit -- --update") from error
