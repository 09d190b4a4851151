"""Makes the ledger anew from its mirror on the cluster, and says what is missing. The old file is kept beside it.

A ledger that is whole and agrees with the cluster is brought up to date. Of one that was changed, or tells another story,
only that is taken which the cluster's entries name by its hash.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from build import channels, log, release_mirror
from build.channels import Template
from build.errors import SpecError
from build.release_entry import Entry
from build.release_ledger import Ledger, LedgerError, rebuilt, salvaged
from build.release_view import Job


@dataclass(frozen=True)
class Rebuilt:
    """The new ledger; ``kept``: where the old one is, ``dropped``: entries that are not on its chain."""

    ledger: Ledger
    kept: Path | None
    dropped: tuple[Entry, ...]


def rebuild(job: Job) -> Rebuilt:
    """Write the ledger anew. Raises SpecError when neither cluster nor file has an entry."""
    with job.book.held():
        templates = channels.look(job.api, job.product)
        for one in templates:
            if one.problem:
                log.warn(f"{one.place} cannot be read, nor what it mirrors: {one.problem}")
        entries = channels.mirrored(templates)
        own, trusted = _own(job, entries)
        ledger, dropped = rebuilt([*entries, *own], trusted=[*entries, *(own if trusted else [])])
        if not ledger.lines:
            raise SpecError(
                f"neither {job.book.path} nor the cluster knows of a release",
                hint="the first promotion begins the ledger: nox -s promote -- VERSION",
            )
        for one in templates:
            _clean(job, one, dropped)
        return Rebuilt(ledger, job.book.replace(ledger), tuple(dropped))


def _own(job: Job, entries: Sequence[Entry]) -> tuple[list[Entry], bool]:
    """Return the entries of the file here, and whether they are to be trusted where the cluster says nothing."""
    try:
        ledger = job.book.read()
    except LedgerError as error:
        log.warn(error.render())
        newest = entries[-1].number if entries else 0
        return [one for one in salvaged(job.book.path) if one.number <= newest], False
    theirs = {one.number: one.hash for one in entries}
    agrees = all(theirs.get(one.number, one.hash) == one.hash for one in ledger.entries)
    return list(ledger.entries), agrees


def _clean(job: Job, template: Template, dropped: Sequence[Entry]) -> None:
    """Take entries from a mirror that are not on the chain: they would contradict the ledger for ever."""
    lost = {one.hash for one in dropped}
    if not lost & {one.hash for one in template.mirrored[0]}:
        return

    def decide(now: Template) -> dict[str, str]:
        kept = [one for one in now.mirrored[0] if one.hash not in lost]
        version = now.label.version if now.label else ""
        return {"description": release_mirror.with_entries(now.description, kept, version)}

    channels.swap(job.api, template, decide)
    log.warn(f"{template.place} {template.name} mirrored entries that are not on the ledger's chain: they are taken away")
