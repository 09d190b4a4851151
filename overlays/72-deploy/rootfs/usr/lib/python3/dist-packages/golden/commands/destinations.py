"""Opens the packet filter for the servers that the application's contract names (golden-destinations.service)."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from golden import core, destinations, grants, trial
from golden.releases import Releases

# /etc/nftables.conf includes the first, so that a reload of the packet filter keeps it.
RULES = Path("/run/golden-firewall/destinations.nft")
SEEN = Path("/run/golden-firewall/destinations.json")


def main() -> None:
    """Read the command line and do what it asks."""
    core.run_command(argparse.ArgumentParser(description=__doc__), act, show)


def act(_arguments: argparse.Namespace) -> dict[str, Any]:
    """Look up the destinations of the release that serves, and of one that is tried; nothing else stays open."""
    releases = Releases()
    served, tried = releases.path(releases.current()), trial.CANDIDATE
    contracts = [grants.read(release) or {} for release in (served, tried)]
    declared = list(dict.fromkeys(name for contract in contracts for name in contract.get("destinations", [])))
    seen, failed = destinations.seen_now(declared, _before(), time.time())
    text = destinations.rules(seen)
    core.run(["nft", "-f", "-"], stdin=text.encode())
    core.write_whole(RULES, text.encode())
    core.write_whole(SEEN, json.dumps(seen).encode())
    # A name server that is away for a while raises no alert while an address is known.
    return {"ok": not failed or bool(seen), "open": sorted(seen), "unknown": failed}


def _before() -> dict[str, float]:
    try:
        found = json.loads(SEEN.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def show(result: Mapping[str, Any]) -> str:
    """Return the result for people."""
    unknown = f"; cannot be looked up: {', '.join(result['unknown'])}" if result["unknown"] else ""
    return f"open: {', '.join(result['open']) or 'nothing'}{unknown}"


if __name__ == "__main__":
    main()
