"""Explains failures of the application's management commands to users who do not have its manage.py."""

from __future__ import annotations

FOREIGN = "it is not the image's own application: accounts are made by its own commands, see 40-app in overlays/README.md"


def reason(said: str, command: str) -> tuple[str, str]:
    """Return why a management command failed, and what to do."""
    lines = [line for line in said.splitlines() if line.strip()]
    if not lines:
        return f"the application's command {command} failed without output", "journalctl -u gunicorn"
    if any(line.startswith("Unknown command") for line in lines):
        return f"this application has no command {command!r}", FOREIGN
    told = next((line for line in lines if line.startswith("CommandError: ")), lines[-1])
    usage = any(line.startswith("usage: ") for line in lines)
    return told.removeprefix("CommandError: "), FOREIGN if usage else ""
