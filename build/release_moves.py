"""How a release is done so that it can be cut anywhere: the intent is written down, then tags move, then it is done.

A new template gets the channel's tag before the old one loses it: readers see both for a moment, and never none. What is
cut in the middle is found by its intent, and finished by the same command.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from build import channels, log
from build.channels import REVOKED, Missed, Overtaken, Template
from build.errors import GoldsmithError, SpecError, StepFailed
from build.release_entry import Action, Assignment, Entry, Phase
from build.release_gates import Gate
from build.release_ledger import LedgerError
from build.release_state import State
from build.release_view import Job, View

TRIES = 5


class Outcome(StrEnum):
    """What became of an operation."""

    DONE = "done"
    FINISHED = "was begun before, and is finished now"
    THERE = "was so already"
    PLANNED = "would be done"


@dataclass(frozen=True)
class Report:
    """What was done, to which image, on which templates; ``gates``: what was asked of it."""

    action: Action
    channel: str
    subject: Assignment
    before: Assignment
    outcome: Outcome
    places: tuple[str, ...] = ()
    gates: tuple[Gate, ...] = ()
    entry: Entry | None = None


def concluded(report: Report, outcome: Outcome, entry: Entry | None = None) -> Report:
    """Return the report with its outcome, and the entry that says so."""
    return Report(**{**vars(report), "outcome": outcome, "entry": entry})


def move(job: Job, view: View, report: Report, *, reason: str, commit: str) -> Report:
    """Set the channel's tag on the new templates, then take it from all others."""
    channel = report.channel
    begun = view.state.open.get(channel)
    targets = view.of(report.subject)
    # What an operation in the middle was moving learns of this one, so that its run stops when it still goes on.
    touched = [*view.of(begun.subject), *view.of(report.before)] if begun else view.of(report.before)
    others = [one for one in view.templates if one not in targets and (channel in one.tags or one in touched)]
    intent, resumed = begin(job, view, report, reason=reason, commit=commit)
    missed = channels.swap_all(job.api, targets, lambda now: channels.written(now, intent, add=[channel]))
    if len(missed) == len(targets) > 0 or any(not one.down for one in missed):
        # The old ones keep the tag: without it nobody would find anything.
        raise _unfinished(report, missed)
    missed += channels.swap_all(job.api, others, lambda now: channels.written(now, intent, drop=[channel]))
    _require_all(job, report, missed)
    return _finish(job, report, intent, [*targets, *others], resumed=resumed)


def mark(job: Job, view: View, report: Report, *, reason: str, commit: str) -> Report:
    """Set the tag of the revoked on the templates of a version, or take it away."""
    found = view.of(report.subject)
    intent, resumed = begin(job, view, report, reason=reason, commit=commit)
    add, drop = ([REVOKED], []) if report.action is Action.REVOKE else ([], [REVOKED])
    missed = channels.swap_all(job.api, found, lambda now: channels.written(now, intent, add=add, drop=drop))
    _require_all(job, report, missed)
    return _finish(job, report, intent, found, resumed=resumed)


def begin(job: Job, view: View, report: Report, *, reason: str, commit: str) -> tuple[Entry, bool]:
    """Write the intent to cluster and ledger; return it, and whether it was there already.

    Raises SpecError when another operation on the same thing is unfinished, Overtaken when somebody else was first.
    """
    facts = {
        "who": job.who, "action": report.action, "phase": Phase.INTENT, "channel": report.channel,
        "version": report.subject.version, "digest": report.subject.digest, "before": str(report.before),
        "reason": reason, "commit": commit,
    }  # fmt: skip
    intent = view.ledger.next(job.clock(), **facts)
    begun = view.state.open.get(intent.key)
    if begun is not None and begun.operation == intent.operation:
        log.info(f"continuing with what {begun.who} began at {begun.time} (entry {begun.number})")
        return begun, True
    _require_free(view.state, intent)
    if (pending := job.book.proposed()) is not None:
        if pending.operation != intent.operation or pending.phase is not Phase.INTENT:
            raise StepFailed(
                f"a run that was killed may have noted entry {pending.number} on a template that cannot be read now",
                details="\n".join([channels.told(pending), *(f"{one.place}: {one.problem}" for one in view.templates)]),
                hint="when its node is back, run this again; or run that command again first",
            )
        intent = pending
    return _record(job, view.templates, intent), False


def _require_free(state: State, intent: Entry) -> None:
    """Raise SpecError while something unfinished stands in the way; only a rollback takes a promotion's place."""
    for begun in state.open.values():
        same_channel = begun.channel and begun.channel == intent.channel
        if same_channel and intent.action is Action.ROLLBACK:
            continue
        if same_channel or (begun.digest and begun.digest == intent.digest):
            raise SpecError(
                f"the {begun.action} of {begun.version or 'nothing'} that {begun.who} began at {begun.time} is not finished",
                hint=f"wait for it, or finish it: {channels.command(begun)}"
                + (f"; or take it back: nox -s rollback -- {begun.channel}" if begun.channel else ""),
            )


def _record(job: Job, templates: Sequence[Template], entry: Entry) -> Entry:
    """Show an entry to the cluster, which decides who is first, then add it to the ledger."""
    job.book.propose(entry)
    try:
        channels.claim(job.api, templates, entry)
    except Overtaken:
        job.book.withdraw()
        raise
    job.book.append(entry)
    return entry


def _require_all(job: Job, report: Report, missed: Sequence[Missed]) -> None:
    """Raise StepFailed that names what is missing; a node that is not golden.yaml's any more is only told."""
    lost = [one for one in missed if one.template.node in job.settings.nodes or not one.down]
    for one in missed:
        if one not in lost:
            log.warn(f"{one}; golden.yaml does not name its node any more")
    if lost:
        raise _unfinished(report, lost)


def _unfinished(report: Report, lost: Sequence[Missed]) -> StepFailed:
    where = f" in {report.channel}" if report.channel else ""
    return StepFailed(
        f"the {report.action} of {report.subject.version or 'nothing'}{where} is not finished: missing is "
        + ", ".join(sorted({one.template.node for one in lost})),
        details="\n".join(_rendered(one) for one in lost),
        hint="the ledger knows it as begun; run the same command again when that is mended, and it continues"
        + (f"; or take it back: nox -s rollback -- {report.channel}" if report.channel else ""),
    )


def _rendered(missed: Missed) -> str:
    return f"{missed}" + (f" -> {missed.error.hint}" if missed.error.hint else "")


def _finish(job: Job, report: Report, intent: Entry, touched: Sequence[Template], *, resumed: bool) -> Report:
    """Write to ledger and mirrors that it is done."""
    done = done_of(job, intent)
    try:
        missed = channels.swap_all(job.api, touched, lambda now: channels.written(now, done))
    except GoldsmithError as error:
        # It is done, and noted where the order is decided: the mirrors are copies.
        log.warn(f"it is done, but not every template could be told: {error.brief}")
        missed = []
    for one in missed:
        log.warn(f"{one}: it does not mirror entry {done.number}")
    return concluded(report, Outcome.FINISHED if resumed else Outcome.DONE, done)


def done_of(job: Job, intent: Entry, *, reason: str | None = None) -> Entry:
    """Write to cluster and ledger that an intent is done; return the entry, also when somebody else was quicker with it."""
    for _ in range(TRIES):
        ledger = job.book.read()
        theirs = [one for one in ledger.entries if one.number > intent.number and one.key == intent.key]
        if theirs and theirs[0].operation != intent.operation:
            raise Overtaken(theirs[0])
        if theirs:
            # Somebody continued with the same operation on another machine, and finished first.
            return theirs[0]
        facts = {**vars(intent), "phase": Phase.DONE, "who": job.who, "reason": intent.reason if reason is None else reason}
        for own in ("number", "previous", "time"):
            facts.pop(own)
        templates = channels.look(job.api, job.product)
        try:
            return _record(job, templates, ledger.next(job.clock(), **facts))
        except Overtaken as error:
            # Another channel's operation of another machine: ours goes after it.
            _absorb(job, templates, error)
    raise StepFailed("the ledger was written to by somebody else again and again", hint="run the same command again")


def _absorb(job: Job, templates: Sequence[Template], error: Overtaken) -> None:
    """Take what other machines have added to the ledger meanwhile; raises LedgerError when it does not follow."""
    ledger = job.book.read()
    found = {(one.number, one.previous): one for one in [*channels.mirrored(templates), error.theirs]}
    while (one := found.get((ledger.head + 1, ledger.head_hash))) is not None:
        ledger = job.book.append(one)
    if ledger.get(error.theirs.number) is None:
        raise LedgerError(
            f"another machine added entry {error.theirs.number}, which does not follow ours",
            details=channels.told(error.theirs), hint="nox -s history -- --rebuild",
        )  # fmt: skip
