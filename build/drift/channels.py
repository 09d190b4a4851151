"""Compares the channel tags on the cluster with the ledger: the tags that each template should have, and revocations.

The local ledger is compared with its mirror first. If there is no local ledger, the mirror is used.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from build.drift.config import Change
from build.proxmox import labels
from build.proxmox.client import ApiError
from build.release import channels
from build.release import state as release_state
from build.release.channels import Template
from build.release.entry import Assignment, Entry
from build.release.ledger import LedgerError, LedgerFile
from build.release.state import State
from build.spec.release_policy import Policy


@dataclass
class Comparison:
    """The differences of templates, by VM id, and general notes.

    ``problem``: the reason if a comparison was not possible.
    """

    changes: dict[int, list[Change]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problem: str = ""


def compared(
    book: LedgerFile | None, policy: Policy, nodes: Sequence[str], guests: Sequence[Mapping[str, Any]],
    read: Sequence[Mapping[str, Any] | ApiError],
) -> Comparison:  # fmt: skip
    """Compare the tags of templates with the ledger in ``book``.

    ``nodes``: the nodes that should have every version; ``read``: the guests' configurations, or the errors.
    """
    comparison = Comparison()
    templates = [
        channels.template_of(guest, config) for guest, config in zip(guests, read, strict=True)
        if not isinstance(config, ApiError)
    ]  # fmt: skip
    entries: Sequence[Entry] = channels.mirrored(templates)
    comparison.notes += [f"{template.place}: {problem}" for template in templates for problem in template.mirrored[1]]
    if book is not None and book.exists():
        try:
            ledger = book.read()
            channels.require_up_to_date(ledger, entries, str(book.path))
        except LedgerError as error:
            comparison.problem = f"{error.brief} ({'; '.join(error.details.splitlines())}): {error.hint}"
            return comparison
        entries = ledger.entries
    if not entries:
        return comparison
    state = release_state.fold(entries)
    comparison.notes += [
        f"not finished: {channels.describe(template)} -> {channels.command(template)}" for template in state.open.values()
    ]
    comparison.notes += _lacking(policy, state, nodes, templates, unread=len(read) > len(templates))
    for template in templates:
        if template.label is not None:
            image = Assignment(template.label.version, template.label.digest)
            comparison.changes[template.vmid] = list(_changes(template, image, state, policy))
    return comparison


def _lacking(
    policy: Policy, state: State, nodes: Sequence[str], templates: Sequence[Template], *, unread: bool
) -> Iterator[str]:
    """Yield the channels that point at a missing template, which was removed manually."""
    for channel in policy.channels:
        goal = state.goal(channel)
        nodes_with_template = {template.node for template in templates if goal and template.is_of(goal)}
        lacking = [node for node in nodes if node not in nodes_with_template]
        # One template is enough on shared storage; unreadable templates are already reported.
        if goal and lacking and not unread and (not nodes_with_template or len(nodes_with_template) > 1):
            yield (
                f"{channel} points at {goal.version}, which has no template on {', '.join(lacking)}: publish it again "
                "(nox -s publish), or roll back"
            )


def _changes(template: Template, image: Assignment, state: State, policy: Policy) -> Iterator[Change]:
    for channel in policy.channels:
        goal = state.goal(channel)
        if not goal and channel not in state.open:
            # The ledger has no entry for this channel: a tag that was set manually is not a difference.
            continue
        unfinished = state.open.get(channel)
        remedy = channels.command(unfinished) if unfinished else f"nox -s promote -- {goal.version} {channel}"
        yield from _tag(template, channel, expected=goal == image, remedy=remedy)
    revoked = state.revocation(image.digest) is not None
    command = "revoke" if revoked else "restore"
    yield from _tag(
        template, labels.REVOKED_TAG, expected=revoked, remedy=f"nox -s {command} -- {image.version} --reason TEXT"
    )


def _tag(template: Template, tag: str, *, expected: bool, remedy: str) -> Iterator[Change]:
    if expected != (tag in template.tags):
        expectation = {True: f"the tag {tag}, by the ledger of releases", False: f"no tag {tag}, by the ledger of releases"}
        tags = ";".join(sorted(template.tags | {tag} if expected else template.tags - {tag}))
        by_hand = f"qm set {template.vmid} --tags {shlex.quote(tags)}"
        yield Change(
            tag,
            expectation[expected],
            "none" if expected else "the tag",
            f"{remedy}; or manually, on {template.node}: {by_hand}",
        )
