"""The command ``notes``: prints the release notes of an artifact, in Markdown."""

from __future__ import annotations

import argparse

from build.artifact import contents
from build.cli import options as common
from build.cli.diff import context_of
from build.report import release_notes


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``notes``."""
    common.add_project(parser)
    common.add_cache(parser)
    parser.add_argument(
        "artifact", nargs="?", metavar="ARTIFACT", help="directory, name, version or digest (default: the newest artifact)"
    )
    parser.add_argument("--since", metavar="A", help="compare with this artifact (default: the last one of another version)")


def run(arguments: argparse.Namespace) -> int:
    """Print the notes."""
    context = context_of(arguments)
    new = context.find(arguments.artifact)
    side, changelogs = contents.side_of(new), context.changelogs(new)
    before = context.find(arguments.since) if arguments.since else context.previous(side)
    comparison = context.compare(contents.side_of(before), side, changelogs) if before else None
    print(release_notes.render(side, comparison, changelogs), end="")
    return 0
