"""The shape of a command, and how its module is imported: only when the command is called.

So a command that needs no cluster works in an environment without the packages of the commands that do.
"""

from __future__ import annotations

import argparse
import importlib
from typing import Protocol, cast


class Command(Protocol):
    """What the module of a command provides."""

    @staticmethod
    def options(parser: argparse.ArgumentParser) -> None:
        """Add the options that the command uses, and no others."""

    @staticmethod
    def run(arguments: argparse.Namespace) -> int:
        """Run the command, print its result, and return the exit code. Raises GoldsmithError."""


def load(name: str) -> Command:
    """Import the module of a command and return it; ``name`` is the command's, such as ``verify-artifact``."""
    return cast(Command, importlib.import_module(f"build.cli.{name.replace('-', '_')}"))
