"""Writes the connection to the database from the site settings (golden-remote-database.service)."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from golden import core, remote_database


def main() -> None:
    """Read the command line and do what it asks."""
    core.run_command(argparse.ArgumentParser(description=__doc__), act, show)


def act(_arguments: argparse.Namespace) -> dict[str, Any]:
    """Write the connection; the process that connects is started with it, or stopped, when this unit has ended."""
    setting = core.site()["database"]
    changed = remote_database.write(setting, target=remote_database.TARGET)
    if remote_database.open_address(setting, drop_in=remote_database.DROP_IN):
        changed = True
        core.run(["systemctl", "daemon-reload"])
    if changed:
        # It starts after this unit, which must not wait for it.
        core.run(["systemctl", "--no-block", "restart" if setting else "stop", remote_database.SERVICE])
    return {"address": setting["address"] if setting else "", "changed": changed}


def show(result: Mapping[str, Any]) -> str:
    """Return the result for people."""
    return f"database: {result['address'] or 'none'}"


if __name__ == "__main__":
    main()
