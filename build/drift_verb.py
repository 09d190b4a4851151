"""The verb ``drift``: what is told of the templates on the cluster, and the exit code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from build import drift, qm, ship
from build import spec as specs
from build.cache import Cache
from build.cluster import Role
from build.drift import Verdict
from build.drift_disk import Disks
from build.errors import StepFailed, VerificationFailed
from build.project import Project
from build.release_ledger import Book


def run(project: Project, cache: Cache, *, secrets: Path | None, over_ssh: bool, as_json: bool) -> tuple[str, int]:
    """Compare, with the operator's token; return what there is to tell, and the exit code."""
    spec = specs.load(project.spec)
    settings = ship.settings_of(spec)
    disks = Disks(qm.Ssh(), cache.root / "drift") if over_ssh else None
    with ship.connect(settings, Role.OPERATOR, secrets) as api:
        verdicts = drift.drift(
            drift.Job(
                api=api, settings=settings, product=spec.name, artifacts=project.artifacts, disks=disks,
                policy=spec.releases, book=Book(project.root / spec.releases.ledger),
            )
        )  # fmt: skip
    facts = {"drift": any(one.changes for one in verdicts), "guests": [asdict(one) for one in verdicts]}
    return (json.dumps(facts, indent=1, sort_keys=True) if as_json else text_of(verdicts)), exit_code(verdicts)


def exit_code(verdicts: Sequence[Verdict]) -> int:
    """Return 3 when something was changed, 1 when something could not be read, else 0."""
    if any(one.changes for one in verdicts):
        return VerificationFailed.exit_code
    return StepFailed.exit_code if any(one.problem for one in verdicts) else 0


def text_of(verdicts: Sequence[Verdict]) -> str:
    """Return what there is to tell, for people."""
    lines: list[str] = []
    for one in verdicts:
        lines.append(f"{one.node}/{one.vmid} {one.name}: {_headline(one)}")
        for change in one.changes:
            lines += [f"  {change.key}: expected {change.expected}, found {change.found}", f"    -> {change.remedy}"]
        lines += [f"  {note}" for note in one.notes]
    return "\n".join(lines)


def _headline(verdict: Verdict) -> str:
    counted = len(verdict.changes)
    if counted:
        said = f"{counted} change{'s' * (counted > 1)}"
        return f"{said}; {verdict.problem}" if verdict.problem else said
    if verdict.problem:
        return f"not compared: {verdict.problem}"
    return "as it was published" if verdict.judged else "no template"
