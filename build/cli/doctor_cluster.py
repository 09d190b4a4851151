"""``doctor --proxmox`` and ``--roles``: what the cluster lacks, and the commands that create pool, roles and tokens."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from build.artifact import find
from build.cli import cluster
from build.cli import options as common
from build.cli.doctor import BAD, GOOD
from build.core.errors import GoldsmithError, HostError, SpecError
from build.core.project import Project
from build.proxmox import client, preflight, roles
from build.proxmox.preflight import Finding
from build.spec import golden_yaml as specs
from build.spec.cluster import Role

# What is checked where there is no artifact: a usual image, and its disk.
USUAL = preflight.Need(upload=2 << 30, disk=16 << 30)


def run(arguments: argparse.Namespace) -> int:
    """Print the findings, or the commands; return 0, or 2 when something is missing on the cluster."""
    project = common.project_of(arguments)
    if arguments.roles:
        major = arguments.pve or _major(project, arguments.secrets)
        print("\n".join(roles.commands(cluster.settings_of(specs.load(project.spec)), major=major)))
        return 0
    findings = look(project, secrets=arguments.secrets)
    print("\n".join(lines_of(findings)))
    return 0 if all(finding.good for finding in findings) else HostError.exit_code


def lines_of(findings: Sequence[Finding]) -> list[str]:
    """Return one line for each thing that was checked on the cluster, each miss with its fix."""
    width = max(len(finding.what) for finding in findings)
    lines: list[str] = []
    for finding in findings:
        lines.append(f"{GOOD if finding.good else BAD:<8} {finding.what:<{width}}  {finding.text}")
        if not finding.good:
            lines.append(f"{'':<8} {'':<{width}}  -> {finding.remedy}")
    return lines


def look(project: Project, *, secrets: Path | None) -> list[Finding]:
    """Check the cluster with every token that is configured; a missing one is a finding too, but the replacer's."""
    settings = cluster.settings_of(specs.load(project.spec))
    findings: list[Finding] = []
    with ExitStack() as stack:
        tokens: dict[Role, client.Api] = {}
        for role in Role:
            try:
                tokens[role] = stack.enter_context(cluster.connect(settings, role, secrets))
            except GoldsmithError as error:
                # Not every site replaces machines.
                if role is not Role.REPLACER or not isinstance(error, cluster.NoToken):
                    findings.append(Finding(f"token: {role}", error.brief, error.hint))
        if not tokens:
            return findings
        view = preflight.look(
            next(iter(tokens.values())), settings, nodes=settings.nodes, need=_need(project), tokens=tokens
        )  # fmt: skip
        return [*findings, *view.findings]


def _need(project: Project) -> preflight.Need:
    try:
        image = find.newest(project).manifest.image
    except SpecError:
        return USUAL
    return preflight.Need(image.bytes, image.virtual_mib << 20)


def _major(project: Project, secrets: Path | None) -> int:
    """Request the major version of the cluster, with the first token that works."""
    settings = cluster.settings_of(specs.load(project.spec))
    problem: GoldsmithError | None = None
    for role in Role:
        try:
            with cluster.connect(settings, role, secrets) as api:
                return api.major()
        except GoldsmithError as error:
            problem = problem or error
    raise SpecError(
        "the cluster's version is not known", details=problem.brief if problem else "", hint="give it: --pve 8, or --pve 9"
    )
