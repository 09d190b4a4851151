"""Sets the networks of administrators in the packet filter, isolates the machine in an incident, and shows its state."""

from __future__ import annotations

import argparse
import json
import os
import pwd
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from golden import core
from golden import firewall as rules

NFT = "/usr/sbin/nft"
# /etc/nftables.conf includes both. The first is for the current boot; the second persists across reboots.
SITE_RULES = Path("/run/golden-firewall/site.nft")
ISOLATION = Path("/etc/golden/isolation.nft")


def _apply(text: str) -> None:
    """Change the packet filter atomically."""
    core.run([NFT, "-f", "-"], stdin=text.encode())


def load() -> dict[str, Any]:
    """Fill the sets from the site settings, or else from the spec of the image."""
    site = core.site() if core.SITE.exists() else {}
    cidrs = os.environ.get("ADMIN_CIDRS", "").split()
    try:
        text = rules.site_rules(site, default_cidrs=cidrs, users={account.pw_name for account in pwd.getpwall()})
    except ValueError as error:
        raise core.Problem(f"admin_cidrs: {error}", hint="write networks such as 192.0.2.0/24") from None
    _apply(text)
    core.write_whole(SITE_RULES, text.encode())
    return status()


def isolate() -> dict[str, Any]:
    """Drop all connections except those of administrators to port 22, now and after a reboot."""
    _apply(rules.ISOLATE)
    ISOLATION.parent.mkdir(mode=0o755, exist_ok=True)
    core.write_whole(ISOLATION, rules.ISOLATE.encode())
    return status()


def release() -> dict[str, Any]:
    """End the isolation."""
    ISOLATION.unlink(missing_ok=True)
    _apply(rules.RELEASE)
    return status()


def status() -> dict[str, Any]:
    """Show the current state of the packet filter."""
    listed = core.run([NFT, "-j", "list", "table", *rules.TABLE.split()])
    return rules.describe(json.loads(listed.stdout))


ACTIONS = {"load": load, "isolate": isolate, "release": release, "status": status}


def _show(result: Mapping[str, Any]) -> str:
    dropped = ", ".join(f"{name} {packets}" for name, packets in result["dropped"].items())
    return "\n".join(
        (
            "ISOLATED: administrators only" if result["isolated"] else "in service",
            f"SSH from: {', '.join(result['administrators']) or 'nowhere'}",
            f"outgoing for the site: {', '.join(result['site_out']) or 'nothing'}",
            f"packets dropped: {dropped}",
        )
    )


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="golden-firewall", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="{load,isolate,release,status}")
    for name, action in ACTIONS.items():
        verbs.add_parser(name, help=(action.__doc__ or "").splitlines()[0])

    def act(arguments: argparse.Namespace) -> dict[str, Any]:
        core.need_root()
        return ACTIONS[arguments.verb]()

    core.run_command(parser, act, _show)
