"""The command ``prune``: lists the templates that can be deleted, and why; ``--apply`` deletes them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from build.cli import options as common
from build.cli import release
from build.core.errors import SpecError, StepFailed
from build.release import prune
from build.spec.cluster import Role

DAYS = 30


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``prune``."""
    release.add_cluster(parser)
    parser.add_argument("--apply", action="store_true", help="delete them (default: only list them)")
    parser.add_argument("--dry-run", action="store_true", help="only list them, as without --apply")
    parser.add_argument(
        "--days", type=int, default=DAYS, metavar="N", help="keep templates that are younger (default: %(default)s)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print each template with the decision; return 1 when one could not be deleted."""
    if arguments.apply and arguments.dry_run:
        raise SpecError("--apply and --dry-run contradict each other", hint="leave one of them out")
    if arguments.days < 0:
        raise SpecError(f"--days: {arguments.days}: write a number of days", hint=f"without it, it is {DAYS}")
    project = common.project_of(arguments)
    with ExitStack() as stack:
        job = release.open_job(stack, project, arguments.secrets)
        viewer = release.connect(stack, project, Role.OPERATOR, arguments.secrets)
        verdicts = prune.prune(job, viewer, days=arguments.days, apply=arguments.apply)
    if arguments.json:
        print(release.to_json([_facts(verdict) for verdict in verdicts]))
    else:
        print(_text(verdicts, applied=arguments.apply))
    return StepFailed.exit_code if any(verdict.problem for verdict in verdicts) else 0


def _text(verdicts: Sequence[prune.Decision], *, applied: bool) -> str:
    lines = [
        f"{verdict.template.place} {verdict.template.name}: {_decision(verdict, applied=applied)}" for verdict in verdicts
    ]
    gone = sum(not verdict.keep for verdict in verdicts)
    if gone and not applied:
        lines.append(f"nothing was removed; to remove {'it' if gone == 1 else f'these {gone}'}: nox -s prune -- --apply")
    return "\n".join(lines) or "there is no published template"


def _decision(verdict: prune.Decision, *, applied: bool) -> str:
    if verdict.problem:
        return f"NOT REMOVED: {verdict.problem}"
    kind = "keep" if verdict.keep else "removed" if applied else "remove"
    return f"{kind}: {verdict.reason}"


def _facts(verdict: prune.Decision) -> dict[str, Any]:
    return {
        "node": verdict.template.node, "vmid": verdict.template.vmid, "name": verdict.template.name, "keep": verdict.keep,
        "reason": verdict.reason, "removed": verdict.removed, "problem": verdict.problem,
    }  # fmt: skip
