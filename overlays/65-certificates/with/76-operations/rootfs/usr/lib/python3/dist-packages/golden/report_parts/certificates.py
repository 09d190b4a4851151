"""Part of the weekly report: the web server's certificate."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from golden import certificates, renewal


def look() -> dict[str, Any]:
    """Until when the web server's certificate holds, and how many days before that it needs attention."""
    leaf = certificates.read_chain(certificates.CERTIFICATE)[0]
    return {
        "until": leaf.ends.isoformat(), "days": int(leaf.days_left(datetime.now(UTC))), "subject": leaf.subject,
        "issuer": leaf.issuer, "warn_days": renewal.warn_days(leaf),
    }  # fmt: skip


def attention(found: dict[str, Any]) -> list[str]:
    """Return what needs attention."""
    if found["days"] >= found.get("warn_days", certificates.WARN_DAYS):
        return []
    return [f"the certificate ends in {found['days']} days: golden-certificate --help"]
