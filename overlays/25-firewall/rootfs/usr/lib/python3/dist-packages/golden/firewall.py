"""The rules of the packet filter on a clone, in nft's language, generated from the site settings.

Each key of the site settings lists the networks and the outside addresses that it needs (golden.site_table.Key).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from golden import site as site_settings

TABLE = "inet golden"
PORTS = {"http": 80, "https": 443, "scp": 22, "smtp": 587}
# The machine boots isolated while a file with the rules of ISOLATE is included by /etc/nftables.conf.
ISOLATE = (
    f"flush chain {TABLE} gate_in\n"
    f"flush chain {TABLE} gate_out\n"
    f"add rule {TABLE} gate_in jump isolated_in\n"
    f"add rule {TABLE} gate_out jump isolated_out\n"
)
RELEASE = f"flush chain {TABLE} gate_in\nflush chain {TABLE} gate_out\n"


def site_rules(site: Mapping[str, Any], *, default_cidrs: Sequence[str], users: Container[str]) -> str:
    """Return the rules that replace the elements of the packet filter's sets.

    Destinations of a user who is not in ``users`` are left out. Raises ValueError for an invalid network.
    """
    networks = {"admin": site.get("admin_cidrs") or default_cidrs}
    destinations: dict[str, Iterable[tuple[str, str, int]]] = {}
    for key, known in site_settings.keys().items():
        networks |= known.networks(site.get(key))
        destinations |= known.destinations(site.get(key))
    text = "".join(_fill_networks(name, cidrs) for name, cidrs in networks.items())
    for name, wanted in destinations.items():
        text += _fill_destinations(name, [one for one in wanted if one[0] in users])
    return text + _fill("site_out", [f"{user} . {port}" for user, port in sorted(site_out(site)) if user in users])


def _fill_networks(name: str, cidrs: Iterable[str]) -> str:
    """Return the rules that fill the two sets of networks NAME_inet4 and NAME_inet6."""
    networks = [ipaddress.ip_network(cidr) for cidr in cidrs]
    return "".join(
        _fill(f"{name}_inet{version}", [str(net) for net in networks if net.version == version]) for version in (4, 6)
    )


def _fill_destinations(name: str, wanted: Iterable[tuple[str, str, int]]) -> str:
    """Return the rules that fill the two sets of users, addresses and ports NAME_out4 and NAME_out6."""
    elements: dict[int, list[str]] = {4: [], 6: []}
    for user, address, port in sorted(set(wanted)):
        elements[ipaddress.ip_address(address).version].append(f"{user} . {address} . {port}")
    return "".join(_fill(f"{name}_out{version}", found) for version, found in elements.items())


def _fill(name: str, elements: Iterable[str]) -> str:
    text = ", ".join(elements)
    return f"flush set {TABLE} {name}\n" + (f"add element {TABLE} {name} {{ {text} }}\n" if text else "")


def site_out(site: Mapping[str, Any]) -> set[tuple[str, int]]:
    """Return the users and the outside TCP ports to which they may connect: only those in the site settings."""
    named = (known.outgoing(site[key]) for key, known in site_settings.keys().items() if site.get(key))
    wanted = ((user, _port(address)) for addresses in named for user, address in addresses if address)
    return {(user, port) for user, port in wanted if port}


def _port(address: str) -> int | None:
    """Return the TCP port of an address, or the default port of its scheme; None for a path or an empty address."""
    if address.startswith("rclone:"):
        return PORTS["https"]
    parts = urlsplit(address)
    return parts.port or PORTS.get(parts.scheme)


def describe(ruleset: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sets, the counters and whether the machine is isolated, from the output of `nft -j list table`."""
    items = ruleset["nftables"]
    sets = {one["set"]["name"]: one["set"].get("elem", []) for one in items if "set" in one}
    return {
        "isolated": any(one["rule"]["chain"] == "gate_in" for one in items if "rule" in one),
        "administrators": [_network(elem) for name in ("admin_inet4", "admin_inet6") for elem in sets[name]],
        "proxies": [_network(elem) for name in ("proxy_inet4", "proxy_inet6") for elem in sets.get(name, [])],
        "site_out": [":".join(map(str, elem["concat"])) for elem in sets["site_out"]],
        "dropped": {
            one["counter"]["name"].removeprefix("dropped_"): one["counter"]["packets"] for one in items if "counter" in one
        },
    }


def _network(element: object) -> str:
    """Return an element of a set of networks as text: an address, a prefix, or a range of both."""
    if isinstance(element, Mapping):
        if "prefix" in element:
            return f"{element['prefix']['addr']}/{element['prefix']['len']}"
        return "-".join(map(str, element["range"]))
    return str(element)
