"""Holds the pointers on the cluster against the ledger: which template should bear which tag, and which is revoked.

The ledger here is compared with its mirror first. Where there is none, the mirror speaks for it.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from build import channels, labels, release_state
from build.channels import Template
from build.drift_config import Change
from build.pve import ApiError
from build.release_entry import Assignment, Entry
from build.release_ledger import Book, LedgerError
from build.release_policy import Policy
from build.release_state import State


@dataclass
class Told:
    """What is to say: of templates, by number, and of none in particular; ``problem``: why it could not be compared."""

    changes: dict[int, list[Change]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problem: str = ""


def compared(
    book: Book | None, policy: Policy, nodes: Sequence[str], guests: Sequence[Mapping[str, Any]],
    read: Sequence[Mapping[str, Any] | ApiError],
) -> Told:  # fmt: skip
    """Compare the tags of templates with the ledger in ``book``.

    ``nodes``: those that shall have every version; ``read``: the guests' configurations, or why they are not.
    """
    told = Told()
    seen = [
        channels.template_of(guest, config) for guest, config in zip(guests, read, strict=True)
        if not isinstance(config, ApiError)
    ]  # fmt: skip
    entries: Sequence[Entry] = channels.mirrored(seen)
    told.notes += [f"{one.place}: {problem}" for one in seen for problem in one.mirrored[1]]
    if book is not None and book.exists():
        try:
            ledger = book.read()
            channels.require_up_to_date(ledger, entries, str(book.path))
        except LedgerError as error:
            told.problem = f"{error.brief} ({'; '.join(error.details.splitlines())}): {error.hint}"
            return told
        entries = ledger.entries
    if not entries:
        return told
    state = release_state.fold(entries)
    told.notes += [f"not finished: {channels.told(one)} -> {channels.command(one)}" for one in state.open.values()]
    told.notes += _lacking(policy, state, nodes, seen, unread=len(read) > len(seen))
    for one in seen:
        if one.label is not None:
            told.changes[one.vmid] = list(_changes(one, Assignment(one.label.version, one.label.digest), state, policy))
    return told


def _lacking(
    policy: Policy, state: State, nodes: Sequence[str], seen: Sequence[Template], *, unread: bool
) -> Iterator[str]:
    """Say where a channel points at a template that is not there: it was removed by hand."""
    for channel in policy.channels:
        goal = state.goal(channel)
        there = {one.node for one in seen if goal and one.is_of(goal)}
        lacking = [node for node in nodes if node not in there]
        # One template is enough where the storage is shared; what cannot be read is told already.
        if goal and lacking and not unread and (not there or len(there) > 1):
            yield (
                f"{channel} points at {goal.version}, which has no template on {', '.join(lacking)}: publish it again "
                "(nox -s publish), or roll back"
            )


def _changes(one: Template, image: Assignment, state: State, policy: Policy) -> Iterator[Change]:
    for channel in policy.channels:
        goal = state.goal(channel)
        if not goal and channel not in state.open:
            # The ledger knows nothing of this channel: a tag that was set by hand is no contradiction.
            continue
        begun = state.open.get(channel)
        remedy = channels.command(begun) if begun else f"nox -s promote -- {goal.version} {channel}"
        yield from _tag(one, channel, wanted=goal == image, remedy=remedy)
    revoked = state.revocation(image.digest) is not None
    verb = "revoke" if revoked else "restore"
    yield from _tag(one, labels.REVOKED_TAG, wanted=revoked, remedy=f"nox -s {verb} -- {image.version} --reason TEXT")


def _tag(one: Template, tag: str, *, wanted: bool, remedy: str) -> Iterator[Change]:
    if wanted != (tag in one.tags):
        said = {True: f"the tag {tag}, by the ledger of releases", False: f"no tag {tag}, by the ledger of releases"}
        tags = ";".join(sorted(one.tags | {tag} if wanted else one.tags - {tag}))
        by_hand = f"qm set {one.vmid} --tags {shlex.quote(tags)}"
        yield Change(tag, said[wanted], "none" if wanted else "the tag", f"{remedy}; or by hand, on {one.node}: {by_hand}")
