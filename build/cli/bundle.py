"""The command ``bundle``: packs an application with its locked wheels for golden-deploy."""

from __future__ import annotations

import argparse
from pathlib import Path

from build.cli import options as common
from build.packages import app_bundle
from build.spec import golden_yaml as specs


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``bundle``."""
    common.add_project(parser)
    common.add_cache(parser)
    parser.add_argument("directory", type=Path, metavar="DIR", help="the application, with manage.py and requirements.lock")
    parser.add_argument(
        "--wsgi", metavar="MODULE:CALLABLE",
        help="WSGI callable for an application that has none in the usual place (default: that of golden.yaml)",
    )  # fmt: skip
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("-o", "--output", type=Path, metavar="FILE", help="the bundle to write")
    what.add_argument("--check", action="store_true", help="check everything that makes a bundle, and write none")


def run(arguments: argparse.Namespace) -> int:
    """Write the bundle, and print its SHA-256; with --check only say that it could be written."""
    wsgi = arguments.wsgi or specs.load(common.project_of(arguments).spec).application.wsgi
    cache = common.cache_of(arguments).root
    target = None if arguments.check else arguments.output
    digest = app_bundle.make(arguments.directory, target, cache=cache, wsgi=wsgi)
    print(digest or f"{arguments.directory} can be bundled")
    return 0
