"""The fence of an incident: one nftables table that lets a few addresses reach SSH, and nothing else in or out.

It stands before every other table, and does not ask whether a connection is established: what an intruder has open ends.
"""

from __future__ import annotations

import ipaddress
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from golden import core

NFT = "/usr/sbin/nft"
TABLE = "inet golden_fence"
STATE = Path("/var/lib/golden-isolate/fence.json")
FIREWALL = Path("/usr/sbin/golden-firewall")


def networks(words: Sequence[str]) -> list[str]:
    """Return addresses and networks in their usual form. Raises Problem for what is none, or is everybody."""
    found = []
    for word in words:
        try:
            network = ipaddress.ip_network(word)
        except ValueError as error:
            raise core.Problem(str(error), hint="name an address such as 192.0.2.7", code=core.USAGE) from None
        if network.prefixlen == 0:
            raise core.Problem(f"{word} is everybody, and no fence", code=core.USAGE)
        found.append(str(network))
    return found


def rules(keep: Sequence[str]) -> str:
    """Return the fence in nft's language: it replaces one that is there in one step."""
    sources = "".join(f"        {_family(one)} saddr {one} tcp dport 22 accept\n" for one in keep)
    targets = "".join(f"        {_family(one)} daddr {one} tcp sport 22 accept\n" for one in keep)
    # A machine that loses its address, or finds no neighbour, cannot be reached by the administrator either.
    housekeeping = (
        "        icmpv6 type { nd-router-advert, nd-router-solicit, nd-neighbor-advert, nd-neighbor-solicit } accept\n"
        "        meta l4proto udp th sport { 67, 68, 546, 547 } th dport { 67, 68, 546, 547 } accept\n"
    )
    return (
        f"table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{\n"
        "    chain input {\n        type filter hook input priority -350; policy drop;\n        iif lo accept\n"
        f"{sources}{housekeeping}    }}\n"
        "    chain forward {\n        type filter hook forward priority -350; policy drop;\n    }\n"
        "    chain output {\n        type filter hook output priority -350; policy drop;\n        oif lo accept\n"
        f"{targets}{housekeeping}    }}\n}}\n"
    )


def _family(network: str) -> str:
    return "ip6" if ":" in network else "ip"


def up(keep: Sequence[str], *, reason: str) -> dict[str, Any]:
    """Put the fence up, now and for the next starts of the machine."""
    raised = {"keep": list(keep), "reason": reason, "since": f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}"}
    core.run([NFT, "-f", "-"], stdin=rules(keep).encode())
    STATE.parent.mkdir(mode=0o700, exist_ok=True)
    core.write_whole(STATE, json.dumps(raised, indent=1).encode())
    return raised | {"firewall": _close_firewall(keep)}


def _close_firewall(keep: Sequence[str]) -> str:
    """Close the ordinary packet filter as well, in case the fence's table is removed."""
    if not FIREWALL.exists():
        return "there is none"
    closed = core.run([FIREWALL, "isolate"], check=False)
    _admit(keep)
    return "closed" if closed.returncode == 0 else f"did not close: {closed.stderr.decode(errors='replace').strip()}"


def _admit(keep: Sequence[str]) -> None:
    """Let the ordinary packet filter admit the addresses too: both have a say."""
    for one in keep:
        name = "admin_inet6" if ":" in one else "admin_inet4"
        core.run([NFT, "add", "element", "inet", "golden", name, f"{{ {one} }}"], check=False)


def resume() -> dict[str, Any]:
    """Put the fence up again after a start of the machine."""
    raised = standing()
    if raised is None:
        return {"keep": None}
    core.run([NFT, "-f", "-"], stdin=rules(raised["keep"]).encode())
    _admit(raised["keep"])
    return raised


def down() -> dict[str, Any]:
    """Take the fence away, and let the packet filter be what the site settings say."""
    raised = standing()
    core.run([NFT, "-f", "-"], stdin=f"table {TABLE}\ndelete table {TABLE}\n".encode())
    STATE.unlink(missing_ok=True)
    if FIREWALL.exists():
        core.run([FIREWALL, "release"])
        core.run(["systemctl", "reload-or-restart", "golden-firewall.service"])
    return {"released": raised}


def standing() -> dict[str, Any] | None:
    """Return what is known about a fence that is up."""
    if not STATE.exists():
        return None
    found: dict[str, Any] = json.loads(STATE.read_text(encoding="utf-8"))
    return found
