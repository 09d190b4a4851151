"""The command ``restore``: undoes a revocation."""

from __future__ import annotations

import argparse

from build.cli import release
from build.release import promote


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``restore``."""
    release.add_version(parser)


def run(arguments: argparse.Namespace) -> int:
    """Undo the revocation; print the result."""
    return release.move_version(arguments, promote.restore)
