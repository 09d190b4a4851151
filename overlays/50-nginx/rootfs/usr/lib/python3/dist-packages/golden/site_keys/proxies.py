"""proxies of site.yaml: which reverse proxies and load balancers are in front of this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from golden.proxies import FORWARDED_FOR, PROXY_PROTOCOL
from golden.site_table import Key, Table, Wrong, kind
from golden.site_values import network, one_of


@kind("An address or a network of proxies, and not everybody.")
def proxy(value: object) -> str:
    """Return the address or the network of proxies: who is believed about the client cannot be everybody."""
    found = str(network(value))
    if found.endswith("/0"):
        raise Wrong("this is everybody, and anybody could name another client; name your proxies")
    return found


def read(site: Table, key: str) -> dict[str, Any] | None:
    """Return the setting."""
    return site.whole(key, _proxies, about="Reverse proxies and load balancers in front: they alone may name the client.")


def _proxies(part: Table) -> dict[str, Any]:
    addresses = part.items("addresses", proxy, about="Their addresses.")
    if not addresses and not part.content.get("addresses"):
        part.complain("addresses", part.content.get("addresses"), "name the proxies, such as [192.0.2.10, 2001:db8::10]")
    forms = one_of(FORWARDED_FOR, PROXY_PROTOCOL)
    about = "How they name the client: by the header X-Forwarded-For, or the PROXY protocol (version 1 or 2)."
    return {"addresses": addresses, "client": part.value("client", forms, default=FORWARDED_FOR, about=about)}


def networks(proxies: Mapping[str, Any] | None) -> Mapping[str, Sequence[str]]:
    """Return the networks whose connections the packet filter does not count."""
    return {"proxy": (proxies or {}).get("addresses", [])}


KEY = Key(read, networks=networks)
