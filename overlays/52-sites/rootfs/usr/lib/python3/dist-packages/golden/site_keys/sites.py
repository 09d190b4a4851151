"""sites of site.yaml: static sites and reverse proxies, by separate names."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from golden.site_table import Key, Table, Wrong, kind
from golden.site_values import certificate_file, host_name, host_or_address, text_line
from golden.sites import server

TOP = "/var/www/sites"
ROOT = rf"{TOP}(/[A-Za-z0-9_-][A-Za-z0-9._-]*)+"
URL = r"^https?://[0-9a-f.:\[\]]+$"
BODY = "[1-9][0-9]{0,2}[KM]"
ABOUT = "Sites with separate names, beside those of server_names: static files, or a server on another machine."


@kind("A directory below /var/www/sites.", pattern=f"^{ROOT}$")
def directory(value: object) -> str:
    """Return the directory of a static site: the web server reads no other part of the machine."""
    path = text_line(value)
    if not re.fullmatch(ROOT, path):
        raise Wrong(f"write a directory below {TOP}, such as {TOP}/www: letters, digits and ._-")
    return path


@kind("A URL such as http://10.0.0.5:8080: an address, and a port if it is another one.", pattern=URL)
def upstream(value: object) -> str:
    """Return the URL of a server on another machine: http or https, an address and a port."""
    text = text_line(value)
    try:
        parts = urlsplit(text)
        address = ipaddress.ip_address(parts.hostname or "")
        good = parts.scheme in ("http", "https") and parts.port != 0
    except ValueError:
        raise Wrong("write http:// or https://, an IP address and a port, such as http://10.0.0.5:8080; no name") from None
    host = f"[{address}]" if address.version == 6 else str(address)
    place = f"{host}:{parts.port}" if parts.port else host
    if not good or text != f"{parts.scheme}://{place}":
        raise Wrong("write http:// or https://, an IP address and a port, such as http://10.0.0.5:8080; no path and no user")
    if address.is_loopback or address.is_unspecified or address.is_multicast or address.is_link_local:
        raise Wrong("write the address of another machine")
    return text


@kind("A size such as 10M or 512K.", pattern=f"^{BODY}$")
def size(value: object) -> str:
    """Return a size as nginx writes it."""
    text = text_line(value)
    if not re.fullmatch(BODY, text):
        raise Wrong("write a size such as 512K or 10M, of at most 999M")
    return text


def read(site: Table, key: str) -> list[dict[str, Any]]:
    """Return the sites without a fault, each name once."""
    found = site.parts(key, _site, about=ABOUT)
    once: dict[str, dict[str, Any]] = {}
    for one in found:
        if one["name"] in once:
            site.complain(key, one["name"], "two sites have this name: remove one of them, or give it another name")
        once.setdefault(one["name"], one)
    return list(once.values())


def _site(part: Table) -> dict[str, Any]:
    name = part.needed("name", host_name, about="The name, of at most 253 characters, that clients ask for.")
    root = part.value("root", directory, about="The files of a static site. Instead: upstream.")
    address = part.value("upstream", upstream, about="The server that answers. Instead: root.")
    ca = part.value("ca", certificate_file, about="For https: the authority that signed the upstream's certificate.")
    peer = part.value("peer", host_or_address, about="For https: the name in that certificate, if it is not the site's.")
    body = part.value("body", size, default="1M", about="The largest request that the upstream gets.")
    given = part.content
    if (given.get("root") is None) == (given.get("upstream") is None):
        part.complain("root", given.get("root"), "write one of the two: root (a static site), or upstream (a server)")
    secure = str(given.get("upstream")).startswith("https:")
    if secure and given.get("ca") is None:
        part.complain("ca", None, "is needed for https: the authority of the certificate, such as /etc/golden/ca.pem")
    for word in ("ca", "peer"):
        if given.get(word) is not None and not secure:
            part.complain(word, given[word], "is for an upstream with https:// only: remove it, or change the upstream")
    return {"name": name, "root": root, "upstream": address, "ca": ca, "peer": peer, "body": body}


def files(sites: Sequence[Mapping[str, Any]]) -> Mapping[str, bytes]:
    """Return the names for golden-names.service: they are in the certificate, and have separate servers."""
    return {"other-names": f"{' '.join(site['name'] for site in sites)}\n".encode()}


def destinations(sites: Sequence[Mapping[str, Any]]) -> Mapping[str, Sequence[tuple[str, str, int]]]:
    """Return the upstreams, which the web server may reach."""
    return {"upstream": [("nginx", *server(site["upstream"])) for site in sites or () if site["upstream"]]}


KEY = Key(read, files, destinations=destinations)
