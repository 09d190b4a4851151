"""Bans of fail2ban as lines for the web server: behind a proxy, the packet filter sees no client."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from typing import Any

# The jails that ban from the web server; a jail's sets are named addr-set-JAIL and addr6-set-JAIL.
JAILS = ("golden-limit", "golden-probes")
# As many as map_hash_max_size of nginx takes with ease.
MOST = 20_000


def lines(ruleset: Mapping[str, Any]) -> str:
    """Return the lines for nginx's map of $client_network from what `nft -j list table inet f2b-table` prints."""
    ends = tuple(f"-{jail}" for jail in JAILS)
    sets = (item["set"] for item in ruleset.get("nftables", []) if "set" in item)
    banned = (element for found in sets if found["name"].endswith(ends) for element in found.get("elem", []))
    keys = sorted({key for element in banned for key in _keys(element)})
    return "".join(f"{key} 1;\n" for key in keys[:MOST])


def _keys(element: str | Mapping[str, Any]) -> Iterator[str]:
    """Yield the ways in which conf.d/05-clients.conf may write an address, or a network of 64 bits."""
    if not isinstance(element, Mapping):
        yield str(element)
        return
    address = ipaddress.IPv6Address(element["prefix"]["addr"])
    groups = [group.lstrip("0") or "0" for group in address.exploded.split(":")[:4]]
    for length in range(len(groups) + 1):
        # nginx leaves out zeros at the end of the network, with those that follow, or writes them.
        if set(groups[length:]) <= {"0"}:
            yield f"{':'.join(groups[:length])}::/64"
