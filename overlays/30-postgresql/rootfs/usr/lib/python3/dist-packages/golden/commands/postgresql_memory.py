"""Writes PostgreSQL's memory settings for this machine, at each boot, before the server starts."""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from golden import core
from golden import memory as memory_rules

TARGET = Path("/run/golden/postgresql-memory.conf")


def act(arguments: argparse.Namespace) -> Mapping[str, Any]:
    """Work the settings out, and write them unless they are only asked for."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = memory_rules.settings(memory=memory, workers=arguments.workers)
    if not arguments.show:
        text = memory_rules.render(found, memory=memory, workers=arguments.workers)
        core.write_whole(TARGET, text.encode(), mode=0o644)
    return {"memory": memory, "workers": arguments.workers, "settings": found}


def workers(text: str) -> int:
    """Return the number of workers in ``text``."""
    number = int(text)
    if not 1 <= number <= 1000:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and 1000: see /etc/gunicorn/environment")
    return number


def show(result: Mapping[str, Any]) -> str:
    """Return the settings as PostgreSQL reads them."""
    return memory_rules.render(result["settings"], memory=result["memory"], workers=result["workers"]).rstrip()


def main() -> None:
    """Read the command line and do what it asks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--show", action="store_true", help="only show the settings, and write nothing")
    parser.add_argument(
        "--workers", type=workers, default=os.environ.get("WEB_CONCURRENCY", "2"), metavar="N",
        help="workers of the application (default: WEB_CONCURRENCY of the environment, or 2)",
    )  # fmt: skip
    core.run_command(parser, act, show)
