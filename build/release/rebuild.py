"""Rebuilds the ledger from its mirror on the cluster, and reports missing entries. The old file is kept beside it.

A ledger that is intact and agrees with the cluster is updated. From a ledger that was modified or disagrees, only those
entries are used that the cluster's entries name by their hash.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from build.core import log
from build.core.errors import SpecError
from build.release import channels, mirror
from build.release.channels import Template
from build.release.entry import Entry
from build.release.ledger import Ledger, LedgerError, rebuilt, salvaged
from build.release.preconditions import Job


@dataclass(frozen=True)
class Rebuilt:
    """The new ledger; ``kept``: the path of the old one, ``dropped``: entries that are not on its chain."""

    ledger: Ledger
    kept: Path | None
    dropped: tuple[Entry, ...]


def rebuild(job: Job) -> Rebuilt:
    """Rebuild the ledger. Raises SpecError if neither cluster nor file has an entry."""
    with job.book.held():
        templates = channels.look(job.api, job.product)
        for template in templates:
            if template.problem:
                log.warn(f"{template.place} and its mirror cannot be read: {template.problem}")
        entries = channels.mirrored(templates)
        local, trusted = _own(job, entries)
        ledger, dropped = rebuilt([*entries, *local], trusted=[*entries, *(local if trusted else [])])
        if not ledger.lines:
            raise SpecError(
                f"neither {job.book.path} nor the cluster has a release",
                hint="start the ledger with the first promotion: nox -s promote -- VERSION",
            )
        for template in templates:
            _clean(job, template, dropped)
        return Rebuilt(ledger, job.book.replace(ledger), tuple(dropped))


def _own(job: Job, entries: Sequence[Entry]) -> tuple[list[Entry], bool]:
    """Return the entries of the local file, and whether they are trusted if the cluster does not have them."""
    try:
        ledger = job.book.read()
    except LedgerError as error:
        log.warn(error.render())
        newest = entries[-1].number if entries else 0
        return [entry for entry in salvaged(job.book.path) if entry.number <= newest], False
    theirs = {entry.number: entry.hash for entry in entries}
    agrees = all(theirs.get(entry.number, entry.hash) == entry.hash for entry in ledger.entries)
    return list(ledger.entries), agrees


def _clean(job: Job, template: Template, dropped: Sequence[Entry]) -> None:
    """Remove entries from a mirror that are not on the chain: they would always contradict the ledger."""
    lost = {entry.hash for entry in dropped}
    if not lost & {entry.hash for entry in template.mirrored[0]}:
        return

    def decide(now: Template) -> dict[str, str]:
        kept = [entry for entry in now.mirrored[0] if entry.hash not in lost]
        version = now.label.version if now.label else ""
        return {"description": mirror.with_entries(now.description, kept, version)}

    channels.swap(job.api, template, decide)
    log.warn(f"{template.place} {template.name} mirrored entries that are not on the ledger's chain: they were removed")
