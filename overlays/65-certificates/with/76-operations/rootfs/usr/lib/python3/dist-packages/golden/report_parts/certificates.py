"""Part of the weekly report: the web server's certificate."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from golden import core

CERTIFICATE = Path("/etc/ssl/certs/app.pem")
WARN_DAYS = 21


def look() -> dict[str, Any]:
    """Until when the web server's certificate holds, and how many days before that it needs attention."""
    shown = core.run(["openssl", "x509", "-in", CERTIFICATE, "-noout", "-dates", "-subject", "-issuer"])
    fields = dict(line.split("=", 1) for line in shown.stdout.decode().splitlines())
    begins, until = (_moment(fields[name]) for name in ("notBefore", "notAfter"))
    # A short-lived one is renewed later than three weeks before its end: see golden.renewal.
    return {
        "until": until.isoformat(), "days": (until - datetime.now(UTC)).days, "subject": fields["subject"],
        "issuer": fields["issuer"], "warn_days": min(WARN_DAYS, (until - begins).days / 4),
    }  # fmt: skip


def _moment(text: str) -> datetime:
    return datetime.strptime(text, "%b %d %H:%M:%S %Y %Z").replace(tzinfo=UTC)


def attention(found: dict[str, Any]) -> list[str]:
    """Return what needs attention."""
    if found["days"] >= found.get("warn_days", WARN_DAYS):
        return []
    return [f"the certificate ends in {found['days']} days: golden-certificate --help"]
