"""The command ``rollback``: moves a channel back to its previous version."""

from __future__ import annotations

import argparse
from contextlib import ExitStack

from build.cli import options as common
from build.cli import release
from build.release import promote


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``rollback``."""
    release.add_move(parser)
    parser.add_argument("channel", metavar="CHANNEL", help="such as stable")


def run(arguments: argparse.Namespace) -> int:
    """Move the channel; print the result."""
    reason = release.reason_of(arguments)
    with ExitStack() as stack:
        job = release.open_job(stack, common.project_of(arguments), arguments.secrets)
        report = promote.rollback(job, arguments.channel, reason=reason, dry_run=arguments.dry_run)
    return release.show(report, as_json=arguments.json)
