"""Resumable release operations: record the intent, move the tags, record completion.

A new template gets the channel's tag before the old one loses it: readers see both for a moment, and never none. An
interrupted operation is found by its intent, and completed by the same command.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from build.core import log
from build.core.errors import GoldsmithError, SpecError, StepFailed
from build.release import channels
from build.release.channels import REVOKED, ConcurrentUpdate, Missed, Template
from build.release.entry import Action, Assignment, Entry, Phase
from build.release.gates import Gate
from build.release.ledger import LedgerError
from build.release.preconditions import Job, View
from build.release.state import State

TRIES = 5


class Outcome(StrEnum):
    """The result of an operation."""

    DONE = "done"
    FINISHED = "was begun before, and is finished now"
    THERE = "was so already"
    PLANNED = "would be done"


@dataclass(frozen=True)
class Report:
    """A finished operation: action, image and templates; ``gates``: the evaluated gates."""

    action: Action
    channel: str
    subject: Assignment
    before: Assignment
    outcome: Outcome
    places: tuple[str, ...] = ()
    gates: tuple[Gate, ...] = ()
    entry: Entry | None = None


def concluded(report: Report, outcome: Outcome, entry: Entry | None = None) -> Report:
    """Return the report with its outcome, and the ledger's entry."""
    return Report(**{**vars(report), "outcome": outcome, "entry": entry})


def move(job: Job, view: View, report: Report, *, reason: str, commit: str) -> Report:
    """Set the channel's tag on the new templates, then remove it from all others."""
    channel = report.channel
    unfinished = view.state.open.get(channel)
    targets = view.of(report.subject)
    # Templates of an unfinished operation get this entry too, so that its run stops if it is still active.
    touched = [*view.of(unfinished.subject), *view.of(report.before)] if unfinished else view.of(report.before)
    others = [
        template for template in view.templates
        if template not in targets and (channel in template.tags or template in touched)
    ]  # fmt: skip
    intent, resumed = begin(job, view, report, reason=reason, commit=commit)
    missed = channels.swap_all(job.api, targets, lambda now: channels.written(now, intent, add=[channel]))
    if len(missed) == len(targets) > 0 or any(not failure.down for failure in missed):
        # The old ones keep the tag: without it no template of the channel would be found.
        raise _unfinished(report, missed)
    missed += channels.swap_all(job.api, others, lambda now: channels.written(now, intent, drop=[channel]))
    _require_all(job, report, missed)
    return _finish(job, report, intent, [*targets, *others], resumed=resumed)


def mark(job: Job, view: View, report: Report, *, reason: str, commit: str) -> Report:
    """Set the tag of revoked versions on the templates of a version, or remove it."""
    templates = view.of(report.subject)
    intent, resumed = begin(job, view, report, reason=reason, commit=commit)
    add, drop = ([REVOKED], []) if report.action is Action.REVOKE else ([], [REVOKED])
    missed = channels.swap_all(job.api, templates, lambda now: channels.written(now, intent, add=add, drop=drop))
    _require_all(job, report, missed)
    return _finish(job, report, intent, templates, resumed=resumed)


def begin(job: Job, view: View, report: Report, *, reason: str, commit: str) -> tuple[Entry, bool]:
    """Write the intent to cluster and ledger; return it, and whether it already existed.

    Raises SpecError if another operation on the same channel or image is unfinished, ConcurrentUpdate after a concurrent
    update.
    """
    facts = {
        "who": job.who, "action": report.action, "phase": Phase.INTENT, "channel": report.channel,
        "version": report.subject.version, "digest": report.subject.digest, "before": str(report.before),
        "reason": reason, "commit": commit,
    }  # fmt: skip
    intent = view.ledger.next(job.clock(), **facts)
    unfinished = view.state.open.get(intent.key)
    if unfinished is not None and unfinished.operation == intent.operation:
        log.info(f"continuing the operation that {unfinished.who} started at {unfinished.time} (entry {unfinished.number})")
        return unfinished, True
    _require_free(view.state, intent)
    if (pending := job.book.proposed()) is not None:
        if pending.operation != intent.operation or pending.phase is not Phase.INTENT:
            raise StepFailed(
                f"a killed run may have written entry {pending.number} to a template that cannot be read now",
                details="\n".join(
                    [channels.describe(pending), *(f"{template.place}: {template.problem}" for template in view.templates)]
                ),
                hint="run this again when its node is back, or repeat the command of that entry first",
            )
        intent = pending
    return _record(job, view.templates, intent), False


def _require_free(state: State, intent: Entry) -> None:
    """Raise SpecError while a conflicting operation is unfinished; only a rollback may replace a promotion."""
    for unfinished in state.open.values():
        same_channel = unfinished.channel and unfinished.channel == intent.channel
        if same_channel and intent.action is Action.ROLLBACK:
            continue
        if same_channel or (unfinished.digest and unfinished.digest == intent.digest):
            raise SpecError(
                f"the {unfinished.action} of {unfinished.version or 'nothing'} that {unfinished.who} started at "
                f"{unfinished.time} is not finished",
                hint=f"wait for it, or finish it: {channels.command(unfinished)}"
                + (f"; or undo it: nox -s rollback -- {unfinished.channel}" if unfinished.channel else ""),
            )


def _record(job: Job, templates: Sequence[Template], entry: Entry) -> Entry:
    """Write an entry to the cluster, which decides the order, then add it to the ledger."""
    job.book.propose(entry)
    try:
        channels.claim(job.api, templates, entry)
    except ConcurrentUpdate:
        job.book.withdraw()
        raise
    job.book.append(entry)
    return entry


def _require_all(job: Job, report: Report, missed: Sequence[Missed]) -> None:
    """Raise StepFailed that names the missing nodes; for a node that is no longer in golden.yaml, only log a warning."""
    lost = [failure for failure in missed if failure.template.node in job.settings.nodes or not failure.down]
    for failure in missed:
        if failure not in lost:
            log.warn(f"{failure}; its node is no longer in golden.yaml")
    if lost:
        raise _unfinished(report, lost)


def _unfinished(report: Report, lost: Sequence[Missed]) -> StepFailed:
    where = f" in {report.channel}" if report.channel else ""
    return StepFailed(
        f"the {report.action} of {report.subject.version or 'nothing'}{where} is not finished: missing is "
        + ", ".join(sorted({failure.template.node for failure in lost})),
        details="\n".join(_rendered(failure) for failure in lost),
        hint="it is recorded as unfinished; fix the problem and run the same command again to continue"
        + (f"; or undo it: nox -s rollback -- {report.channel}" if report.channel else ""),
    )


def _rendered(missed: Missed) -> str:
    return f"{missed}" + (f" -> {missed.error.hint}" if missed.error.hint else "")


def _finish(job: Job, report: Report, intent: Entry, touched: Sequence[Template], *, resumed: bool) -> Report:
    """Record completion in the ledger and in the mirrors."""
    done = done_of(job, intent)
    try:
        missed = channels.swap_all(job.api, touched, lambda now: channels.written(now, done))
    except GoldsmithError as error:
        # It is done, and recorded on the template that decides the order: the other mirrors are copies.
        log.warn(f"it is done, but not every template mirrors it: {error.brief}")
        missed = []
    for failure in missed:
        log.warn(f"{failure}: it does not mirror entry {done.number}")
    return concluded(report, Outcome.FINISHED if resumed else Outcome.DONE, done)


def done_of(job: Job, intent: Entry, *, reason: str | None = None) -> Entry:
    """Record on cluster and ledger that an intent is done; return the entry, even if another run recorded it first."""
    for _ in range(TRIES):
        ledger = job.book.read()
        theirs = [entry for entry in ledger.entries if entry.number > intent.number and entry.key == intent.key]
        if theirs and theirs[0].operation != intent.operation:
            raise ConcurrentUpdate(theirs[0])
        if theirs:
            # Another host continued the same operation, and finished first.
            return theirs[0]
        facts = {**vars(intent), "phase": Phase.DONE, "who": job.who, "reason": intent.reason if reason is None else reason}
        for name in ("number", "previous", "time"):
            facts.pop(name)
        templates = channels.look(job.api, job.product)
        try:
            return _record(job, templates, ledger.next(job.clock(), **facts))
        except ConcurrentUpdate as error:
            # An operation on another channel by another host: this entry follows it.
            _absorb(job, templates, error)
    raise StepFailed("the ledger was modified concurrently", hint="run the same command again")


def _absorb(job: Job, templates: Sequence[Template], error: ConcurrentUpdate) -> None:
    """Add the entries that other hosts have written meanwhile; raises LedgerError if they do not follow the ledger."""
    ledger = job.book.read()
    known = {(entry.number, entry.previous): entry for entry in [*channels.mirrored(templates), error.theirs]}
    while (entry := known.get((ledger.head + 1, ledger.head_hash))) is not None:
        ledger = job.book.append(entry)
    if ledger.get(error.theirs.number) is None:
        raise LedgerError(
            f"another host added entry {error.theirs.number}, which does not follow this ledger",
            details=channels.describe(error.theirs), hint="rebuild the ledger: nox -s history -- --rebuild",
        )  # fmt: skip
