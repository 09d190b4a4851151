"""Part of the weekly report: the alerts."""

from __future__ import annotations

from typing import Any

from golden.report_tools import journal

SHOWN = 20


def look() -> dict[str, Any]:
    """Return the last alerts."""
    alerts = [entry["MESSAGE"] for entry in journal("SYSLOG_IDENTIFIER=golden-alert", "--priority=alert")]
    return {"alerts": alerts[-SHOWN:]}


def attention(found: dict[str, Any]) -> list[str]:
    """Return what needs attention."""
    return [f"{len(found['alerts'])} alerts: golden-alert --list"] if found["alerts"] else []
