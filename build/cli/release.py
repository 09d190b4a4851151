"""What the commands of releases share: their options, the connection as publisher, and the report of a moved channel."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from build.artifact import verification
from build.cli import cluster
from build.cli import options as common
from build.core import git
from build.core.errors import SpecError
from build.core.project import Project
from build.proxmox import client
from build.release import channels
from build.release import state as release_state
from build.release.entry import LONGEST_WHO, Entry, one_line
from build.release.ledger import Ledger, LedgerFile
from build.release.operation import Outcome, Report
from build.release.preconditions import Job
from build.spec import golden_yaml as specs
from build.spec.cluster import Role

VERSION = re.compile(r"\d+\.\d+\.\d+(-[A-Za-z0-9.]+)?")


# --- options ----------------------------------------------------------------------------------------------------------


def add_cluster(parser: argparse.ArgumentParser) -> None:
    """Add what every command of releases has."""
    common.add_project(parser)
    common.add_secrets(parser)
    common.add_json(parser)


def add_move(parser: argparse.ArgumentParser, *, reason_required: bool = False) -> None:
    """Add the options of a command that changes a channel or a version."""
    add_cluster(parser)
    parser.add_argument(
        "--reason", default="", required=reason_required, metavar="TEXT", help="reason text, which is kept in the ledger"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be done, and change nothing")


def add_version(parser: argparse.ArgumentParser) -> None:
    """Add the options of a command that revokes a version or undoes that."""
    add_move(parser, reason_required=True)
    parser.add_argument("version", metavar="VERSION", help="version of the image")


def version_of(text: str) -> str:
    """Return a version; raise SpecError for another text."""
    if not VERSION.fullmatch(text):
        raise SpecError(
            f"{text!r} is not a valid version", hint="write such as 1.4.0; a release tag is given with --tag v1.4.0"
        )
    return text


def reason_of(arguments: argparse.Namespace) -> str:
    """Return the reason text; raise SpecError when it has more than one line."""
    return one_line("--reason", arguments.reason)


def required_reason_of(arguments: argparse.Namespace) -> str:
    """Return the reason text; raise SpecError when it is empty."""
    if reason := reason_of(arguments):
        return reason
    raise SpecError("--reason is empty", hint="give the reason in one sentence: it is shown to whoever is stopped by it")


# --- the cluster ------------------------------------------------------------------------------------------------------


def connect(stack: ExitStack, project: Project, role: Role, secrets: Path | None) -> client.Api:
    """Connect to the cluster of golden.yaml until ``stack`` is closed."""
    return stack.enter_context(cluster.connect(cluster.settings_of(specs.load(project.spec)), role, secrets))


def open_job(stack: ExitStack, project: Project, secrets: Path | None) -> Job:
    """Connect as publisher until ``stack`` is closed; return what a change of the releases needs."""
    spec = specs.load(project.spec)
    settings = cluster.settings_of(spec)
    api = connect(stack, project, Role.PUBLISHER, secrets)
    return Job(
        api=api, settings=settings, product=spec.name, policy=spec.releases,
        book=LedgerFile(project.root / spec.releases.ledger),
        who=(git.user(project.root) or api.token.identity)[:LONGEST_WHO], artifacts=project.artifacts,
        clock=lambda: datetime.now(UTC),
        signatures=lambda found, policy: verification.signatures_of(found, policy, project.root),
    )  # fmt: skip


# --- results ----------------------------------------------------------------------------------------------------------


def move_version(arguments: argparse.Namespace, move: Callable[..., Report]) -> int:
    """Revoke a version or undo that, by ``move`` of build.release.promote; print the result, return 0."""
    version, reason = version_of(arguments.version), required_reason_of(arguments)
    with ExitStack() as stack:
        job = open_job(stack, common.project_of(arguments), arguments.secrets)
        report = move(job, version, reason=reason, dry_run=arguments.dry_run)
    return show(report, as_json=arguments.json)


def to_json(facts: Any) -> str:
    """Return facts as JSON text."""
    return json.dumps(facts, indent=1, sort_keys=True)


def show(report: Report, *, as_json: bool) -> int:
    """Print what was done; return 0."""
    print(to_json(facts_of(report)) if as_json else text_of(report))
    return 0


def facts_of(report: Report) -> dict[str, Any]:
    """Return what was done, for programs."""
    return {
        "action": report.action, "channel": report.channel, "version": report.subject.version,
        "image_sha256": report.subject.digest, "before": report.before.version, "outcome": report.outcome.value,
        "templates": list(report.places), "gates": [asdict(gate) for gate in report.gates],
        "entry": asdict(report.entry) | {"hash": report.entry.hash} if report.entry else None,
    }  # fmt: skip


def text_of(report: Report) -> str:
    """Return what was done, for people."""
    version = report.subject.version or "nothing"
    if report.channel:
        before = f" (before: {report.before.version})" if report.before and report.before != report.subject else ""
        headline = f"{report.channel} -> {version}{before}: {report.outcome}"
    else:
        headline = f"{report.action} of {version}: {report.outcome}"
    lines = [headline, *(f"  {gate.name}: {gate.text}" for gate in report.gates)]
    if report.places:
        lines.append(f"  templates: {', '.join(report.places)}")
    if report.entry:
        lines.append(f"  ledger: entry {report.entry.number}, {report.entry.hash[:12]}")
    if report.outcome is Outcome.PLANNED:
        lines.append("  nothing was changed")
    return "\n".join(lines)


def _shown(ledger: Ledger, channel: str) -> list[Entry]:
    return [entry for entry in ledger.entries if channel in ("", entry.channel)]


def ledger_facts(ledger: Ledger, channel: str) -> dict[str, Any]:
    """Return the ledger, of one channel or of all, for programs."""
    state = release_state.fold(ledger.entries)
    names = [channel] if channel else sorted(state.stacks)
    return {
        "channels": {
            name: {"version": state.current(name).version, "image_sha256": state.current(name).digest,
                   "back": state.back(name).version}
            for name in names
        },
        "entries": [asdict(entry) | {"hash": entry.hash} for entry in _shown(ledger, channel)],
        "head": ledger.head, "missing": [[gap.first, gap.number] for gap in ledger.gaps],
        "revoked": [asdict(entry) for entry in state.revoked.values()],
        "unfinished": [asdict(entry) | {"command": channels.command(entry)} for entry in state.open.values()],
    }  # fmt: skip


def ledger_lines(ledger: Ledger, channel: str) -> Iterator[str]:
    """Yield the ledger, of one channel or of all, for people."""
    facts: Mapping[str, Any] = ledger_facts(ledger, channel)
    for name, current in facts["channels"].items():
        back = f", a rollback goes to {current['back']}" if current["back"] else ""
        yield f"{name} -> {current['version'] or 'nothing'}{back}"
    for entry in facts["revoked"]:
        yield f"revoked: {entry['version']}: {entry['reason']}"
    for entry in facts["unfinished"]:
        where = f" in {entry['channel']}" if entry["channel"] else ""
        what = f"{entry['action']} of {entry['version'] or 'nothing'}{where}"
        yield f"NOT FINISHED: {what}, begun by {entry['who']} at {entry['time']} -> {entry['command']}"
    for gap in ledger.gaps:
        yield f"MISSING: {gap}: this ledger was rebuilt from the cluster, which no longer had them"
    yield from (channels.describe(entry) for entry in _shown(ledger, channel))
