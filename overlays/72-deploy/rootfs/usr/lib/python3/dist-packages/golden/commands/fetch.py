"""Fetches the bundle that golden-deploy asks for: golden-deploy-fetch.service runs it as an unprivileged user."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from golden import bundle, core


def main() -> None:
    """Read the command line and do what it asks."""
    core.run_command(
        argparse.ArgumentParser(description=__doc__), act, lambda result: f"{result['bytes']} bytes were fetched"
    )


def act(_arguments: argparse.Namespace) -> dict[str, Any]:
    """Fetch the bundle whose address is a credential of the unit."""
    address = Path(os.environ["CREDENTIALS_DIRECTORY"], "address").read_text(encoding="utf-8")
    return {"bytes": bundle.fetch(bundle.checked_address(address), bundle.FETCHED)}


if __name__ == "__main__":
    main()
