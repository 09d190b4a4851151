"""The command ``history``: prints the ledger of the releases, or rebuilds it from the cluster."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from dataclasses import asdict

from build.cli import options as common
from build.cli import release
from build.core.errors import SpecError
from build.core.project import Project
from build.release import channels, rebuild
from build.release.ledger import LedgerFile
from build.release.preconditions import Job
from build.spec import golden_yaml as specs


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``history``."""
    release.add_cluster(parser)
    parser.add_argument("channel", nargs="?", default="", metavar="CHANNEL", help="only this channel (default: all)")
    parser.add_argument("--rebuild", action="store_true", help="rebuild the ledger from its mirror on the cluster")


def run(arguments: argparse.Namespace) -> int:
    """Print the ledger."""
    project = common.project_of(arguments)
    if not arguments.rebuild:
        print(_history(project, arguments.channel, as_json=arguments.json))
        return 0
    with ExitStack() as stack:
        job = release.open_job(stack, project, arguments.secrets)
        print(_rebuilt(job, arguments.channel, as_json=arguments.json))
    return 0


def _history(project: Project, channel: str, *, as_json: bool) -> str:
    policy = specs.load(project.spec).releases
    book = LedgerFile(project.root / policy.ledger)
    if not book.exists():
        raise SpecError(
            f"there is no ledger of releases at {book.path}",
            hint="fetch it from where it is kept (git pull), or from the cluster: nox -s history -- --rebuild",
        )
    ledger = book.read()
    known = {*policy.channels, *(entry.channel for entry in ledger.entries)} - {""}
    if channel and channel not in known:
        raise SpecError(f"there is no channel {channel}", hint=f"there are: {', '.join(sorted(known))}")
    if as_json:
        return release.to_json(release.ledger_facts(ledger, channel))
    return "\n".join(release.ledger_lines(ledger, channel))


def _rebuilt(job: Job, channel: str, *, as_json: bool) -> str:
    result = rebuild.rebuild(job)
    if as_json:
        facts = release.ledger_facts(result.ledger, channel)
        dropped = [asdict(entry) for entry in result.dropped]
        return release.to_json(facts | {"kept": str(result.kept or ""), "dropped": dropped})
    lines = [f"{job.book.path} has {len(result.ledger.entries)} entries, as the cluster mirrors them"]
    lines += [f"the ledger that was there is kept as {result.kept}"] if result.kept else []
    lines += [f"not on the chain, and left out: {channels.describe(entry)}" for entry in result.dropped]
    return "\n".join([*lines, *release.ledger_lines(result.ledger, channel)])
