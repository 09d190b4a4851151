"""The web server's request filter: what it does about a request that its rules find, shown or changed."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from golden import core

MODE = Path("/etc/nginx/waf/mode.conf")
ENGINE = {"off": "Off", "watch": "DetectionOnly", "refuse": "On"}


def current() -> str:
    """Return the mode that is written down."""
    engine = MODE.read_text().split()[-1]
    return next(mode for mode, word in ENGINE.items() if word == engine)


def change(mode: str) -> None:
    """Write a mode down, and let the web server read it; the former one is back when it does not."""
    core.need_root()
    before = MODE.read_bytes()
    replace(f"SecRuleEngine {ENGINE[mode]}\n".encode())
    try:
        core.run(["systemctl", "reload", "nginx.service"])
    except core.Problem:
        replace(before)
        raise


def replace(content: bytes) -> None:
    """Replace the file and keep its group, by which the web server reads it."""
    core.write_whole(MODE, content, mode=0o640)
    core.run(["chgrp", "nginx", MODE])


def act(arguments: argparse.Namespace) -> Mapping[str, Any]:
    """Change the mode if one is given; say which one holds."""
    if arguments.mode:
        change(arguments.mode)
    return {"mode": current()}


def main() -> None:
    """Read the command line and do what it asks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", nargs="?", choices=ENGINE, help="watch: findings are logged; refuse: and answered with 403")
    core.run_command(parser, act, lambda result: str(result["mode"]))
