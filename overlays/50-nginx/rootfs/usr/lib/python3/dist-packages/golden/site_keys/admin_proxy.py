"""admin_proxy of site.yaml: who may reach the application's administration."""

from __future__ import annotations

from typing import Any

from golden.site_table import Key, Table
from golden.site_values import certificate_file, network

NOBODY: dict[str, Any] = {"client_ca": None, "cidrs": []}


def read(site: Table, key: str) -> dict[str, Any]:
    """Return the setting."""
    return site.whole(key, _proxy, about="Who may reach the application's /admin/: both are needed.") or dict(NOBODY)


def _proxy(part: Table) -> dict[str, Any]:
    return {
        "client_ca": part.value("client_ca", certificate_file, about="The authority of the client certificates."),
        "cidrs": part.items("cidrs", network, about="The networks that they come from."),
    }


KEY = Key(read)
