"""Which reverse proxies and load balancers are in front of this machine: the site's settings as lines for the web server.

Only connections from their addresses may name another client, in one form: the header X-Forwarded-For, or the PROXY
protocol. nginx takes the last address of the header that is not a proxy's, so that what a client wrote before it is not
believed. With the PROXY protocol every connection from the network has to begin with it; those of the machine itself, over
the loopback interface, do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from golden.core import write_whole

FILE = "proxies.conf"
FORWARDED_FOR, PROXY_PROTOCOL = "x-forwarded-for", "proxy-protocol"
HEADERS = {FORWARDED_FOR: "X-Forwarded-For", PROXY_PROTOCOL: "proxy_protocol"}
# An option of a socket holds for all servers that use it. The name is reserved, so no client requests it (RFC 2606).
LISTENERS = """server {
    listen 80 proxy_protocol;
    listen [::]:80 proxy_protocol;
    listen 443 ssl proxy_protocol;
    listen [::]:443 ssl proxy_protocol;
    server_name proxy.invalid;
    include /etc/nginx/snippets/errors.conf;
    location / { return 421; }
}
"""


def lines(settings: Mapping[str, Any]) -> str:
    """Return the lines for nginx, at the level of http."""
    text = "".join(f"set_real_ip_from {address};\n" for address in settings["addresses"])
    text += f"real_ip_header {HEADERS[settings['client']]};\nreal_ip_recursive on;\n"
    return text + (LISTENERS if settings["client"] == PROXY_PROTOCOL else "")


def apply(settings: Mapping[str, Any] | None, *, target: Path) -> list[str]:
    """Write what the settings ask for, or remove it; return the addresses that are believed now."""
    if not settings:
        (target / FILE).unlink(missing_ok=True)
        return []
    write_whole(target / FILE, lines(settings).encode(), mode=0o644)
    return list(settings["addresses"])
