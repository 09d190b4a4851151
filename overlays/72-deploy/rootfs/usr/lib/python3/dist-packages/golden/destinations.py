"""The servers outside that the application may reach: their addresses, in the packet filter, for its user alone.

Names are looked up again every minute (golden-destinations.timer, which runs only where a contract has destinations). An
address stays open for an hour after it was last seen, so that connections outlive a server that changes its address, and a
name server that does not answer closes nothing at once.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Any

USER, TABLE = "gunicorn", "inet golden"
SETS = {4: "application_out4", 6: "application_out6"}
KEPT_SECONDS = 3600

# "192.0.2.1 587" and when it was last seen, in seconds of the system's clock.
Seen = Mapping[str, float]


def look_up(host: str) -> list[str]:
    """Return the addresses of a host. Raises OSError when the name cannot be looked up."""
    return sorted({str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)})


def seen_now(
    destinations: Iterable[str], before: Seen, now: float, *, lookup: Callable[[str], Iterable[str]] = look_up
) -> tuple[dict[str, float], list[str]]:
    """Return the addresses that are open from now on, and the names that could not be looked up.

    ``before`` is what was open until now: of destinations that are declared, an address stays for KEPT_SECONDS.
    """
    ports = {destination: destination.rpartition(":")[::2] for destination in destinations}
    declared = {port for _host, port in ports.values()}
    found = {key: when for key, when in before.items() if now - when < KEPT_SECONDS and key.split()[1] in declared}
    failed = []
    for destination, (host, port) in ports.items():
        try:
            addresses = list(lookup(host.strip("[]")))
        except OSError:
            failed.append(destination)
            continue
        found |= {f"{address} {port}": now for address in addresses if _is_outside(address)}
    return found, failed


def _is_outside(text: str) -> bool:
    """Return True for an address of one other machine: a name may not open this machine's own services."""
    address = ipaddress.ip_address(text.partition("%")[0])
    closed: list[Any] = [address.is_loopback, address.is_multicast, address.is_unspecified, address.is_link_local]
    return not any(closed)


def rules(seen: Seen) -> str:
    """Return the rules that fill the sets of the packet filter, in place of what they held."""
    elements: dict[int, list[str]] = {4: [], 6: []}
    for key in sorted(seen):
        address, port = key.split()
        elements[ipaddress.ip_address(address).version].append(f"{USER} . {address} . {port}")
    return "".join(
        f"flush set {TABLE} {name}\n"
        + (f"add element {TABLE} {name} {{ {', '.join(elements[version])} }}\n" if elements[version] else "")
        for version, name in SETS.items()
    )
