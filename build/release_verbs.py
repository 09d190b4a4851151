"""The verbs of releases: from golden.yaml and the operator's words to what is told, and the exit code."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from build import channels, proof, prune, release_git, release_rebuild, release_state, release_tag, releases, ship
from build import spec as specs
from build.cluster import Role
from build.errors import SpecError, StepFailed
from build.project import Project
from build.release_entry import LONGEST_WHO, Entry
from build.release_ledger import Book, Ledger
from build.release_moves import Outcome, Report
from build.release_policy import Policy
from build.release_request import HISTORY, PROMOTE, PRUNE, REVOKE, ROLLBACK, Request
from build.release_view import Job

Told = tuple[str, int]


def run(project: Project, request: Request, *, key: Callable[[], str]) -> Told:
    """Do what is asked for, with the publisher's token; return what there is to tell, and the exit code.

    ``key``: computes the artifact key of this checkout, for ``promote --tag``.
    """
    spec = specs.load(project.spec)
    book = Book(project.root / spec.releases.ledger)
    if request.verb == HISTORY and not request.rebuild:
        return _history(book, spec.releases, request), 0
    settings = ship.settings_of(spec)
    with ExitStack() as stack:
        api = stack.enter_context(ship.connect(settings, Role.PUBLISHER, request.secrets))
        job = Job(
            api=api, settings=settings, product=spec.name, policy=spec.releases, book=book,
            who=(release_git.who(project.root) or api.token.identity)[:LONGEST_WHO], artifacts=project.artifacts,
            clock=lambda: datetime.now(UTC),
            signatures=lambda found, policy: proof.signatures_of(found, policy, project.root),
        )  # fmt: skip
        if request.verb == HISTORY:
            return _rebuilt(job, request), 0
        if request.verb == PRUNE:
            viewer = stack.enter_context(ship.connect(settings, Role.OPERATOR, request.secrets))
            return _pruned(prune.prune(job, viewer, days=request.days, apply=request.apply), request)
        report = _moved(project, job, request, key)
    return (_json(facts_of(report)) if request.as_json else text_of(report)), 0


def _moved(project: Project, job: Job, request: Request, key: Callable[[], str]) -> Report:
    reason, dry_run = request.reason, request.dry_run
    if request.verb == PROMOTE and request.tag:
        images = release_tag.artifacts_of(
            project.root, project.artifacts, request.tag, ledger=job.policy.ledger, key=key
        )  # fmt: skip
        version = str(images[0].manifest["version"])
        return releases.promote(job, version, request.channel, reason=reason, images=images, dry_run=dry_run)
    if request.verb == PROMOTE:
        return releases.promote(job, request.version, request.channel, reason=reason, dry_run=dry_run)
    if request.verb == ROLLBACK:
        return releases.rollback(job, request.channel, reason=reason, dry_run=dry_run)
    judge = releases.revoke if request.verb == REVOKE else releases.restore
    return judge(job, request.version, reason=reason, dry_run=dry_run)


# --- what is told -----------------------------------------------------------------------------------------------------


def _json(facts: Any) -> str:
    return json.dumps(facts, indent=1, sort_keys=True)


def facts_of(report: Report) -> dict[str, Any]:
    """Return what was done, for programs."""
    return {
        "action": report.action, "channel": report.channel, "version": report.subject.version,
        "image_sha256": report.subject.digest, "before": report.before.version, "outcome": report.outcome.value,
        "templates": list(report.places), "gates": [asdict(one) for one in report.gates],
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
    lines = [headline, *(f"  {one.name}: {one.text}" for one in report.gates)]
    if report.places:
        lines.append(f"  templates: {', '.join(report.places)}")
    if report.entry:
        lines.append(f"  ledger: entry {report.entry.number}, {report.entry.hash[:12]}")
    if report.outcome is Outcome.PLANNED:
        lines.append("  nothing was changed")
    return "\n".join(lines)


def _pruned(verdicts: Sequence[prune.Verdict], request: Request) -> Told:
    failed = any(one.problem for one in verdicts)
    code = StepFailed.exit_code if failed else 0
    if request.as_json:
        return _json([_verdict_facts(one) for one in verdicts]), code
    lines = [f"{one.template.place} {one.template.name}: {_said(one, request)}" for one in verdicts]
    gone = sum(not one.keep for one in verdicts)
    if gone and not request.apply:
        lines.append(f"nothing was removed; to remove {'it' if gone == 1 else f'these {gone}'}: nox -s prune -- --apply")
    return "\n".join(lines) or "there is no published template", code


def _said(verdict: prune.Verdict, request: Request) -> str:
    if verdict.problem:
        return f"NOT REMOVED: {verdict.problem}"
    kind = "keep" if verdict.keep else "removed" if request.apply else "remove"
    return f"{kind}: {verdict.reason}"


def _verdict_facts(one: prune.Verdict) -> dict[str, Any]:
    return {
        "node": one.template.node, "vmid": one.template.vmid, "name": one.template.name, "keep": one.keep,
        "reason": one.reason, "removed": one.removed, "problem": one.problem,
    }  # fmt: skip


def _history(book: Book, policy: Policy, request: Request) -> str:
    if not book.exists():
        raise SpecError(
            f"there is no ledger of releases at {book.path}",
            hint="fetch it from where it is kept (git pull), or from the cluster: nox -s history -- --rebuild",
        )
    ledger = book.read()
    known = {*policy.channels, *(one.channel for one in ledger.entries)} - {""}
    if request.channel and request.channel not in known:
        raise SpecError(f"there is no channel {request.channel}", hint=f"there are: {', '.join(sorted(known))}")
    return _json(ledger_facts(ledger, request.channel)) if request.as_json else "\n".join(_lines(ledger, request.channel))


def _shown(ledger: Ledger, channel: str) -> list[Entry]:
    return [one for one in ledger.entries if channel in ("", one.channel)]


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
        "entries": [asdict(one) | {"hash": one.hash} for one in _shown(ledger, channel)],
        "head": ledger.head, "missing": [[one.first, one.number] for one in ledger.gaps],
        "revoked": [asdict(one) for one in state.revoked.values()],
        "unfinished": [asdict(one) | {"command": channels.command(one)} for one in state.open.values()],
    }  # fmt: skip


def _lines(ledger: Ledger, channel: str) -> Iterator[str]:
    facts: Mapping[str, Any] = ledger_facts(ledger, channel)
    for name, one in facts["channels"].items():
        back = f", a rollback goes to {one['back']}" if one["back"] else ""
        yield f"{name} -> {one['version'] or 'nothing'}{back}"
    for one in facts["revoked"]:
        yield f"revoked: {one['version']}: {one['reason']}"
    for one in facts["unfinished"]:
        where = f" in {one['channel']}" if one["channel"] else ""
        what = f"{one['action']} of {one['version'] or 'nothing'}{where}"
        yield f"NOT FINISHED: {what}, begun by {one['who']} at {one['time']} -> {one['command']}"
    for gap in ledger.gaps:
        yield f"MISSING: {gap}: this ledger was rebuilt from the cluster, which did not have them any more"
    yield from (channels.told(one) for one in _shown(ledger, channel))


def _rebuilt(job: Job, request: Request) -> str:
    made = release_rebuild.rebuild(job)
    if request.as_json:
        facts = ledger_facts(made.ledger, request.channel)
        return _json(facts | {"kept": str(made.kept or ""), "dropped": [asdict(one) for one in made.dropped]})
    lines = [f"{job.book.path} has {len(made.ledger.entries)} entries, as the cluster mirrors them"]
    lines += [f"the ledger that was there is kept as {made.kept}"] if made.kept else []
    lines += [f"not on the chain, and left out: {channels.told(one)}" for one in made.dropped]
    return "\n".join([*lines, *_lines(made.ledger, request.channel)])
