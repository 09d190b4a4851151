"""The command ``drift``: compares the templates on the cluster with the published images."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict

from build.cli import cluster, fleet
from build.cli import options as common
from build.core.errors import StepFailed, VerificationFailed
from build.drift import drift
from build.drift.disk import Disks
from build.drift.drift import TemplateReport
from build.publish import ssh_import
from build.release.ledger import LedgerFile
from build.spec import golden_yaml as specs
from build.spec.cluster import Role


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``drift``."""
    common.add_project(parser)
    common.add_cache(parser)
    parser.add_argument("--ssh", action="store_true", help="compare the disks too, on their nodes over SSH; takes minutes")
    parser.add_argument("--machines", action="store_true", help="compare the machines that were cloned, not the templates")
    common.add_secrets(parser)
    common.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Compare, with the operator's token; print the changes of each template."""
    project, cache = common.project_of(arguments), common.cache_of(arguments)
    if arguments.machines:
        return fleet.drift(project, arguments.secrets, as_json=arguments.json)
    spec = specs.load(project.spec)
    settings = cluster.settings_of(spec)
    disks = Disks(ssh_import.Ssh(), cache.root / "drift") if arguments.ssh else None
    with cluster.connect(settings, Role.OPERATOR, arguments.secrets) as api:
        verdicts = drift.drift(
            drift.Job(
                api=api, settings=settings, product=spec.name, artifacts=project.artifacts, disks=disks,
                policy=spec.releases, book=LedgerFile(project.root / spec.releases.ledger),
            )
        )  # fmt: skip
    facts = {"drift": any(verdict.changes for verdict in verdicts), "guests": [asdict(verdict) for verdict in verdicts]}
    if text := json.dumps(facts, indent=1, sort_keys=True) if arguments.json else text_of(verdicts):
        print(text)
    return exit_code(verdicts)


def exit_code(verdicts: Sequence[TemplateReport]) -> int:
    """Return 3 when something was changed, 1 when something could not be read, else 0."""
    if any(verdict.changes for verdict in verdicts):
        return VerificationFailed.exit_code
    return StepFailed.exit_code if any(verdict.problem for verdict in verdicts) else 0


def text_of(verdicts: Sequence[TemplateReport]) -> str:
    """Return what there is to tell, for people."""
    lines: list[str] = []
    for verdict in verdicts:
        lines.append(f"{verdict.node}/{verdict.vmid} {verdict.name}: {_headline(verdict)}")
        for change in verdict.changes:
            lines += [f"  {change.key}: expected {change.expected}, found {change.found}", f"    -> {change.remedy}"]
        lines += [f"  {note}" for note in verdict.notes]
    return "\n".join(lines)


def _headline(verdict: TemplateReport) -> str:
    counted = len(verdict.changes)
    if counted:
        changes = f"{counted} change{'s' * (counted > 1)}"
        return f"{changes}; {verdict.problem}" if verdict.problem else changes
    if verdict.problem:
        return f"not compared: {verdict.problem}"
    return "as it was published" if verdict.is_template else "no template"
