"""Writes for the web server whom fail2ban bans, where proxies are in front (golden-bans.service)."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from golden import bans, core

# fail2ban makes the first when a ban begins or ends; a ban that comes while the second is written makes it again.
CHANGED = Path("/run/golden-bans/changed")
FILE = Path("/run/golden/banned.conf")
LIST = ("nft", "-j", "list", "table", "inet", "f2b-table")


def main() -> None:
    """Read the command line and do what it asks."""
    core.run_command(argparse.ArgumentParser(description=__doc__), act, lambda result: f"{result['banned']} banned")


def act(_arguments: argparse.Namespace) -> dict[str, Any]:
    """Write the file and have the web server read it, if it changed."""
    CHANGED.unlink(missing_ok=True)
    listed = core.run(list(LIST), check=False)
    text = bans.lines(json.loads(listed.stdout)) if listed.returncode == 0 else ""
    before = FILE.read_text() if FILE.exists() else ""
    if text != before:
        core.write_whole(FILE, text.encode(), mode=0o644)
        core.run(["systemctl", "reload", "nginx.service"])
    return {"banned": text.count("\n")}


if __name__ == "__main__":
    main()
