"""What an engine returns to its command: the text to print, and the error to report after it."""

from __future__ import annotations

from dataclasses import dataclass

from build.core.errors import GoldsmithError


@dataclass(frozen=True)
class Result:
    """A text for standard output; ``error`` when the run failed although there is a result to print."""

    text: str
    error: GoldsmithError | None = None
