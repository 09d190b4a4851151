"""admin_cidrs of site.yaml: the networks that may reach SSH."""

from __future__ import annotations

from golden.site_table import Key, Wrong, kind
from golden.site_values import network


@kind("A network such as 192.0.2.0/24 or 2001:db8::/64, and not everybody.")
def cidr(value: object) -> str:
    """Return a network of administrators; a network of all addresses is refused."""
    found = str(network(value))
    if found.endswith("/0"):
        raise Wrong("this is everybody; name the networks that you mean")
    return found


ABOUT = "Networks that may reach SSH. Without any, port 22 is closed."
KEY = Key(lambda site, key: site.items(key, cidr, about=ABOUT), from_hypervisor=True)
