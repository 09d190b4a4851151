"""Puts the tables of the image's demonstration aside ($MOVE is put), or back (golden-deploy-aside@.service)."""

from __future__ import annotations

import argparse
import os
from typing import Any

from golden import aside, core


def main() -> None:
    """Read the command line and do what it asks."""
    core.run_command(argparse.ArgumentParser(description=__doc__), act, lambda result: f"done: {result['move']}")


def act(_arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the statements as the owner of the tables, all or none of them."""
    move = os.environ.get("MOVE", "")
    if move not in aside.STATEMENTS:
        raise core.Problem(f"MOVE={move}: there are {' and '.join(aside.STATEMENTS)}", code=core.USAGE)
    core.run([*aside.CONNECT], stdin=aside.STATEMENTS[move].encode())
    return {"move": move}


if __name__ == "__main__":
    main()
