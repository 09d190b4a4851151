"""Writes for the web server which proxies are in front, and who may reach the administration (golden-proxy.service)."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from golden import core, proxies, proxy


def main() -> None:
    """Read the command line and do what it asks."""
    core.run_command(argparse.ArgumentParser(description=__doc__), act, show)


def act(_arguments: argparse.Namespace) -> dict[str, Any]:
    """Write both; a wrong setting of the administration closes it, and leaves the proxies as they are set."""
    site = core.site()
    believed = proxies.apply(site.get("proxies"), target=proxy.TARGET)
    return {"proxies": believed, **proxy.apply(site["admin_proxy"])}


def show(result: Mapping[str, Any]) -> str:
    """Return the result for people."""
    believed = f"clients are named by {' '.join(result['proxies'])}; " if result["proxies"] else ""
    opened = "open to " + " ".join(result["cidrs"]) if result["open"] else f"closed: {result['reason']}"
    return f"{believed}the administration is {opened}"


if __name__ == "__main__":
    main()
