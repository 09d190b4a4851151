"""Sites with separate names: static files below /var/www/sites, or an upstream, a web server on another machine.

The settings become server blocks for nginx, and, while there are upstreams, a drop-in that gives nginx a network.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from golden.core import pem_certificates, replace_files

TARGET = Path("/run/golden")
FILE, AUTHORITY = "sites.conf", "site-{number}-ca.pem"
# Read after hardening.conf of the same directory, whose PrivateNetwork=true it replaces.
DROP_IN = Path("/run/systemd/system/nginx.service.d/upstreams.conf")
CLOSED = "php[0-9]?|phtml|phar|py|pyc|sh|env|ini|sql|sqlite3?|db|bak|old|orig|save|swp|key|pem"
READABLE = 0o644
PORTS = {"http": 80, "https": 443}
NETWORK = """\
# Written by golden-sites.service: a site of /etc/golden/site.yaml has an upstream. The packet filter decides which
# servers the web server reaches.
[Service]
PrivateNetwork=false
RestrictAddressFamilies=AF_INET AF_INET6
"""
# Every server has the limits, the refused paths, the bans and the page of errors of the web server.
COMMON = """\
    include /etc/nginx/snippets/limits.conf;
    include /etc/nginx/snippets/errors.conf;
    include /etc/nginx/snippets/paths.conf;
"""
PLAIN = """\
server {{
    listen 80;
    listen [::]:80;
    listen 127.0.0.1:80;
    listen [::1]:80;
    server_name {names};
{common}    include /etc/nginx/snippets/plain.conf;
}}
"""
SERVER = """\
server {{
    listen 443 ssl;
    listen [::]:443 ssl;
    listen 127.0.0.1:443 ssl;
    listen [::1]:443 ssl;
    http2 on;
    server_name {name};
{common}{content}}}
"""
# Hidden files, and names of code, configuration, databases, keys and backups, are never an answer.
STATIC = """\
    root {root};
    index index.html;
    log_not_found off;
    location ~ "/\\.(?!well-known/)" {{ return 404; }}
    location ~* "\\.(?:{closed})$" {{ return 404; }}
    location / {{
        limit_req zone=files burst=1000 nodelay;
        limit_except GET {{ deny all; }}
    }}
"""
# With a path, proxy_pass passes on the path that nginx decided on.
PROXY = """\
    client_max_body_size {body};
    location / {{
        proxy_pass {scheme}://site-{number}/;
        include /etc/nginx/snippets/application.conf;
{tls}    }}
"""
UPSTREAM = """\
upstream site-{number} {{
    server {address} max_fails=0;
    keepalive 16;
}}
"""
TLS = """\
        proxy_ssl_protocols TLSv1.2 TLSv1.3;
        proxy_ssl_verify on;
        proxy_ssl_verify_depth 4;
        proxy_ssl_trusted_certificate {authority};
        proxy_ssl_name {peer};
        proxy_ssl_server_name on;
"""

Sites = Sequence[Mapping[str, Any]]


def lines(sites: Sites, *, target: Path = TARGET) -> str:
    """Return the server blocks of the sites, for nginx, at the level of http."""
    if not sites:
        return ""
    text = PLAIN.format(names=" ".join(site["name"] for site in sites), common=COMMON)
    for number, site in enumerate(sites, 1):
        content = STATIC.format(root=site["root"], closed=CLOSED)
        if site["upstream"]:
            content = _proxy(number, site, target)
            text += UPSTREAM.format(number=number, address=_address(site["upstream"]))
        text += SERVER.format(name=site["name"], common=COMMON, content=content)
    return text


def _proxy(number: int, site: Mapping[str, Any], target: Path) -> str:
    scheme, tls = urlsplit(site["upstream"]).scheme, ""
    if scheme == "https":
        tls = TLS.format(authority=target / AUTHORITY.format(number=number), peer=site["peer"] or site["name"])
    return PROXY.format(number=number, scheme=scheme, body=site["body"], tls=tls)


def _address(upstream: str) -> str:
    """Return the address and port of an upstream, as nginx writes them."""
    host, port = server(upstream)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def server(upstream: str) -> tuple[str, int]:
    """Return the address and the port of an upstream."""
    parts = urlsplit(upstream)
    return str(ipaddress.ip_address(parts.hostname or "")), parts.port or PORTS[parts.scheme]


def write(sites: Sites, *, target: Path = TARGET) -> None:
    """Write what nginx reads, or remove it."""
    text = lines(sites, target=target)
    wanted: dict[str, bytes | None] = {path.name: None for path in target.glob(AUTHORITY.format(number="*"))}
    for number, site in enumerate(sites, 1):
        if site["ca"]:
            wanted[AUTHORITY.format(number=number)] = pem_certificates(Path(site["ca"]).read_bytes()).encode()
    # nginx's own file last: it names the others.
    replace_files(target, {**wanted, FILE: text.encode() or None}, mode=READABLE)


def give_network(sites: Sites, *, drop_in: Path = DROP_IN) -> bool:
    """Give the web server's unit a network if a site has an upstream, or take it away; return True for a change."""
    wanted = NETWORK.encode() if any(site["upstream"] for site in sites) else None
    return replace_files(drop_in.parent, {drop_in.name: wanted}, mode=READABLE)
