"""Writes the rules for the clients of the database from the site settings (golden-database-clients.service)."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from golden import core, database_clients


def main() -> None:
    """Read the command line and do what it asks."""
    core.run_command(argparse.ArgumentParser(description=__doc__), act, show)


def act(_arguments: argparse.Namespace) -> dict[str, Any]:
    """Write the rules; a server that runs is restarted with them when this unit has ended."""
    setting = core.site()["database_clients"]
    changed = database_clients.write(setting, target=database_clients.TARGET)
    if database_clients.give_network(setting, drop_in=database_clients.DROP_IN):
        changed = True
        core.run(["systemctl", "daemon-reload"])
    if changed:
        # At boot the server waits for this unit, and is not started by this. It would be waited for in vain here.
        core.run(["systemctl", "--no-block", "try-restart", database_clients.SERVER])
    return {"clients": [client["name"] for client in setting["clients"]], "changed": changed}


def show(result: Mapping[str, Any]) -> str:
    """Return the result for people."""
    return f"clients of the database: {' '.join(result['clients']) or 'none'}"


if __name__ == "__main__":
    main()
