"""The command ``revoke``: marks a version as revoked, so that it can no longer be promoted, cloned or published."""

from __future__ import annotations

import argparse

from build.cli import release
from build.release import promote


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``revoke``."""
    release.add_version(parser)


def run(arguments: argparse.Namespace) -> int:
    """Revoke the version; print the result."""
    return release.move_version(arguments, promote.revoke)
