"""The command ``report``: regenerates the HTML report of an artifact, with the trend until now."""

from __future__ import annotations

import argparse
from pathlib import Path

from build.artifact import artifact, contents
from build.cli import options as common
from build.cli.diff import context_of
from build.core import files
from build.core.errors import SpecError
from build.packages import lock


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``report``."""
    common.add_project(parser)
    common.add_cache(parser)
    parser.add_argument(
        "artifact", nargs="?", metavar="ARTIFACT", help="directory, name, version or digest (default: the newest artifact)"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="the page (default: report-NAME.html in the current directory)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the page, and print its path; the report in the artifact itself is not changed."""
    context = context_of(arguments)
    chosen = context.find(arguments.artifact)
    output: Path = arguments.output or Path(f"report-{chosen.path.name}.html")
    if chosen.path.resolve() in output.resolve().parents:
        raise SpecError(f"{output} lies in the artifact, which is immutable", hint="name another place: -o FILE")
    files.write_atomic(output, context.report(contents.side_of(chosen), lock.parse(chosen.path / artifact.ROOTFS_LOCK)))
    print(output)
    return 0
