"""The command ``layer``: writes a new layer that passes its tests, to be filled in."""

from __future__ import annotations

import argparse

from build.cli import options as common
from build.spec import layer_skeleton


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``layer``."""
    common.add_project(parser)
    parser.add_argument(
        "name", metavar="NN-NAME", help="the new layer, such as 45-redis; layers are installed in this order"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the files of the layer, and print them and what to do next."""
    for path in layer_skeleton.write(common.project_of(arguments).root, arguments.name):
        print(path)
    print(f"Next: add {arguments.name} to layers: of golden.yaml or of a profile, then nox -s plan")
    return 0
