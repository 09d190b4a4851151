"""Errors shown to the user, in three parts: the problem, the details, and what to do next.

Exit codes: 1 a step failed, 2 the input or the host is not suitable, 3 the image did not pass verification, 130
interrupted.
"""

from __future__ import annotations

EXIT_INTERRUPTED = 130


class GoldsmithError(Exception):
    """Base of every error that is meant for the user: shown without a traceback."""

    exit_code = 1

    def __init__(self, brief: str, *, details: str = "", hint: str = "") -> None:
        super().__init__(brief)
        self.brief = brief
        self.details = details
        self.hint = hint

    def render(self) -> str:
        """Return the text for a terminal: brief, indented details, hint."""
        lines = [self.brief]
        lines += [f"    {line}" for line in self.details.splitlines()]
        if self.hint:
            lines.append(f"  -> {self.hint}")
        return "\n".join(lines)


class SpecError(GoldsmithError):
    """An input file is wrong: the text names file, key, value and fix."""

    exit_code = 2


class HostError(GoldsmithError):
    """The host lacks a tool, disk space, memory or a permission."""

    exit_code = 2


class StepFailed(GoldsmithError):
    """A step failed."""

    exit_code = 1


class CommandFailed(StepFailed):
    """A command that a step ran exited non-zero or ran out of time."""

    def __init__(self, brief: str, *, returncode: int, details: str = "", hint: str = "") -> None:
        super().__init__(brief, details=details, hint=hint)
        self.returncode = returncode


class TimedOut(CommandFailed):
    """A command exceeded its time limit."""


class VerificationFailed(GoldsmithError):
    """The image was built, booted and tested, and does not meet the specification."""

    exit_code = 3
