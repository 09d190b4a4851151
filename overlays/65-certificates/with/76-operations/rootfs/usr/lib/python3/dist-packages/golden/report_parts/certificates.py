"""Part of the weekly report: the web server's certificate."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from golden import core

CERTIFICATE = Path("/etc/ssl/certs/app.pem")
WARN_DAYS = 21


def look() -> dict[str, Any]:
    """Until when the web server's certificate holds."""
    shown = core.run(["openssl", "x509", "-in", CERTIFICATE, "-noout", "-enddate", "-subject", "-issuer"])
    fields = dict(line.split("=", 1) for line in shown.stdout.decode().splitlines())
    until = datetime.strptime(fields["notAfter"], "%b %d %H:%M:%S %Y %Z").replace(tzinfo=UTC)
    days = (until - datetime.now(UTC)).days
    return {"until": until.isoformat(), "days": days, "subject": fields["subject"], "issuer": fields["issuer"]}


def attention(found: dict[str, Any]) -> list[str]:
    """Return what needs attention."""
    days = found["days"]
    return [f"the certificate ends in {days} days: golden-certificate --help"] if days < WARN_DAYS else []
