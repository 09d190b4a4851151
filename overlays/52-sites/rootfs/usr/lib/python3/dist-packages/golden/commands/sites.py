"""Writes the sites of the site settings for the web server (golden-sites.service)."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from golden import core, sites


def main() -> None:
    """Read the command line and do what it asks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trial", action="store_true", help="write what the web server reads, and leave its unit as it is")
    core.run_command(parser, act, show)


def act(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write the sites; while one has an upstream, the web server has a network from its next start."""
    settings = core.site()["sites"]
    sites.write(settings, target=sites.TARGET)
    if not arguments.trial and sites.give_network(settings, drop_in=sites.DROP_IN):
        core.run(["systemctl", "daemon-reload"])
    return {"sites": [site["name"] for site in settings]}


def show(result: Mapping[str, Any]) -> str:
    """Return the result for people."""
    return f"sites: {' '.join(result['sites']) or 'none'}"


if __name__ == "__main__":
    main()
