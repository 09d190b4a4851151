"""The command ``fleet``: shows every machine that was cloned from a template."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from build.cli import cluster
from build.cli import options as common
from build.core.errors import StepFailed, VerificationFailed
from build.core.project import Project
from build.core.units import stamp_now
from build.fleet import fleet, page
from build.fleet.fleet import Fact
from build.spec import golden_yaml as specs
from build.spec.cluster import Role

CHANNEL = "stable"


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``fleet``."""
    common.add_project(parser)
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one HTML page, for a wall")
    parser.add_argument(
        "--channel", default=CHANNEL, metavar="NAME", help="channel that systems are compared with (default: %(default)s)"
    )
    common.add_secrets(parser)
    common.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the machines, with the operator's token; the exit code does not depend on what they are."""
    project = common.project_of(arguments)
    facts = read(project, arguments.secrets, channel=arguments.channel)
    if arguments.html:
        product = specs.load(project.spec).name
        arguments.html.write_text(page.page(product, facts, time=stamp_now()), encoding="utf-8")
    print(json.dumps([asdict(fact) for fact in facts], indent=1, sort_keys=True) if arguments.json else page.text(facts))
    return 0


def read(project: Project, secrets: Path | None, *, channel: str = CHANNEL) -> list[Fact]:
    """Return the machines of the cluster of golden.yaml."""
    spec = specs.load(project.spec)
    with cluster.connect(cluster.settings_of(spec), Role.OPERATOR, secrets) as api:
        return fleet.fleet(api, spec.name, spec.releases.channels, channel)


def drift(project: Project, secrets: Path | None, *, as_json: bool) -> int:
    """Print the machines that differ from their templates; return 3 if one does, 1 if one could not be asked."""
    facts = read(project, secrets)
    differing = fleet.attention(facts)
    if as_json:
        result = {"drift": bool(differing), "machines": [asdict(fact) for fact in differing]}
        print(json.dumps(result, indent=1, sort_keys=True))
    else:
        print(_text(facts, differing))
    if any(fact.differences for fact in differing):
        return VerificationFailed.exit_code
    return StepFailed.exit_code if differing else 0


def _text(facts: Sequence[Fact], differing: Sequence[Fact]) -> str:
    lines = []
    for fact in differing:
        lines += [f"{fact.node}/{fact.vmid} {fact.name}: {fact.template or 'unknown template'}", *page.differences(fact)]
    kept = sum(fact.kept for fact in facts)
    good = len(facts) - len(differing) - kept
    return "\n".join([*lines, f"{good} machines are as they should be, {len(differing)} are not"])
