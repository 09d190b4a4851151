"""Removes templates that nobody needs any more, by reachability: with a reason for each one, kept or not.

Kept is what a channel points at, what a rollback would go to, what something unfinished is about, what a linked clone reads
its disk from, a revoked version of which machines are left, the newest candidate, and what is young. What cannot be judged
is kept. The record of a revocation outlives its template: it moves to the mirror of one that stays.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from build import channels, clone_source, labels, log, publish_machine, release_mirror, release_moves
from build.channels import REVOKED, Template
from build.errors import GoldsmithError, StepFailed
from build.preflight import MOST_CONNECTIONS
from build.pve import Api, ApiError, each
from build.release_entry import LONGEST_REASON, NOBODY, Action, Assignment, Entry, assignment, seconds
from build.release_moves import Outcome, Report
from build.release_policy import CANDIDATE
from build.release_view import Job, View, look

SECONDS_PER_DAY = 86_400
SHOWN = 4


@dataclass(frozen=True)
class Verdict:
    """A template, whether it stays, and why; ``problem``: why it could not be removed."""

    template: Template
    keep: bool
    reason: str
    removed: bool = False
    problem: str = ""


def prune(job: Job, viewer: Api, *, days: int, apply: bool = False) -> list[Verdict]:
    """Return a verdict on each template; with ``apply``, those that nobody needs are removed.

    ``viewer`` sees operators' machines, which ``job.api`` does not; ``days``: how long a version is kept after it was
    published, or last moved. Raises ApiError when something that decides cannot be seen: then nothing was removed.
    """
    with job.book.held():
        view = look(job)
        verdicts = _judged(job, view, viewer, days=days)
        if not apply:
            return verdicts
        removed = {one.template.vmid: one for image in _images(view, verdicts) for one in _remove(job, image, verdicts)}
        return [removed.get(one.template.vmid, one) for one in verdicts]


# --- judging ----------------------------------------------------------------------------------------------------------


def _judged(job: Job, view: View, viewer: Api, *, days: int) -> list[Verdict]:
    candidates = [one for one in view.templates if CANDIDATE in one.tags and REVOKED not in one.tags and one.label]
    # As clone chooses, when it is told neither a template nor a channel.
    newest = max(candidates, key=lambda one: clone_source.order(one.tags), default=None)
    reasons = {one.vmid: _why_kept(job, view, one, newest, days=days) for one in view.templates}
    users = _users(viewer, [one for one in view.templates if not reasons[one.vmid]])
    for one in view.templates:
        reasons[one.vmid] = reasons[one.vmid] or _why_used(view, one, users.get(one.vmid, []))
    unneeded = "no channel, rollback, revocation or clone needs it; "
    return [
        Verdict(one, keep=bool(reasons[one.vmid]), reason=reasons[one.vmid] or unneeded + _age(job, view, one))
        for one in view.templates
    ]


def _why_kept(job: Job, view: View, one: Template, newest: Template | None, *, days: int) -> str:
    """Return why a template stays, whatever was made of it; empty when nothing speaks for it."""
    if one.label is None:
        return f"it cannot be judged: {one.problem or 'its description bears no label that this Goldsmith understands'}"
    image = _image(one)
    if reason := _pointed(job, view, one, image):
        return reason
    if newest is not None and image == _image(newest):
        return "it is the newest candidate"
    young = _days(job, view, one) < days
    return f"it is younger than {days} days: {_age(job, view, one)}" if young else ""


def _why_used(view: View, one: Template, users: Sequence[tuple[str, bool]]) -> str:
    """Return which machines keep a template."""
    if linked := [name for name, is_linked in users if is_linked]:
        return f"linked clones read their disks from it: {_named(linked)}"
    if users and (view.state.revocation(_image(one).digest) or REVOKED in one.tags):
        return f"it is revoked, and machines made of it are left: {_named([name for name, _ in users])}"
    return ""


def _image(one: Template) -> Assignment:
    assert one.label is not None
    return Assignment(one.label.version, one.label.digest)


def _pointed(job: Job, view: View, one: Template, image: Assignment) -> str:
    state = view.state
    for channel in dict.fromkeys([*job.policy.channels, *state.stacks]):
        if image in (state.current(channel), state.goal(channel)) or channel in one.tags:
            return f"{channel} points at it"
        if image == state.back(channel):
            return f"a rollback of {channel} would go to it"
    for begun in state.open.values():
        if begun.action is not Action.PRUNE and image in (begun.subject, assignment(begun.before)):
            return f"something unfinished is about it: {channels.told(begun)}"
    return ""


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(sorted(names)[:SHOWN]) + more


def _since(view: View, one: Template) -> float:
    """Return when a version was published, or last moved, in seconds since 1970."""
    assert one.label is not None
    told = [one.label.published, view.state.touched.get(one.label.digest, "")]
    return max(seconds(text) for text in told if text)


def _days(job: Job, view: View, one: Template) -> float:
    """Return the age in days; one that lies in the future counts as none: then a clock is wrong."""
    return max(0.0, (job.clock().timestamp() - _since(view, one)) / SECONDS_PER_DAY)


def _age(job: Job, view: View, one: Template) -> str:
    return f"published or moved {_days(job, view, one):.0f} days ago" if one.label else ""


def _users(viewer: Api, wanted: Sequence[Template]) -> dict[int, list[tuple[str, bool]]]:
    """Return the machines that were made of each template, by its number, and whether each is a linked clone.

    Looked at are the machines that bear a template's digest, by their tags, and the volumes of its storages on its node:
    the name of a linked clone's volume has the base volume in it, whatever the clone's tags say. (LVM-thin has no such
    names, and needs no base volume: its snapshots stand by themselves.)
    """
    found: dict[int, list[tuple[str, bool]]] = {one.vmid: [] for one in wanted}
    if not wanted:
        return found
    digests = {labels.digest_tag(_image(one).digest) for one in wanted}
    made = [
        one for one in viewer.get("/cluster/resources", type="vm")
        if one.get("type") == "qemu" and not one.get("template") and labels.split_tags(str(one.get("tags", ""))) & digests
    ]  # fmt: skip
    for guest, config in zip(made, each(viewer, channels.config_of, made, most=MOST_CONNECTIONS), strict=True):
        tags = labels.split_tags(str(guest.get("tags", "")))
        for one in wanted:
            if labels.digest_tag(_image(one).digest) in tags:
                name = f"{guest.get('name', '?')} ({guest['node']}/{guest['vmid']})"
                found[one.vmid].append((name, _is_linked(guest, config, one)))
    for one, volumes in zip(wanted, each(viewer, _volumes, wanted, most=MOST_CONNECTIONS), strict=True):
        found[one.vmid] += [(volume, True) for volume in volumes]
    return found


def _is_linked(guest: Mapping[str, Any], config: Mapping[str, Any] | ApiError, template: Template) -> bool:
    """Say whether a machine may read its disk from a template; what cannot be read, or is silent, may."""
    if isinstance(config, ApiError):
        return True
    label = labels.parse_clone(str(config.get("description", "")))
    if label is not None:
        return label.linked
    disks = [str(value) for key, value in config.items() if clone_source.DRIVE.fullmatch(key)]
    # Cloned by other means: its node is all that tells one node's template from another's.
    return any(f"base-{template.vmid}-disk-" in disk for disk in disks) or str(guest["node"]) == template.node


def _volumes(viewer: Api, template: Template) -> list[str]:
    """Return the volumes that are based on a template's, on the storages of its disks, as its node sees them."""
    drives = [str(value) for key, value in template.config.items() if clone_source.DRIVE.fullmatch(key)]
    based = re.compile(rf"\bbase-{template.vmid}-disk-\d+(\.\w+)?")
    found: list[str] = []
    for storage in sorted({drive.partition(":")[0] for drive in drives if ":" in drive}):
        for one in viewer.get(f"/nodes/{template.node}/storage/{storage}/content", content="images"):
            name, parent = str(one["volid"]), str(one.get("parent") or "")
            # As in storage:base-9000-disk-0/vm-101-disk-0; some storages name what a volume is based on apart.
            if re.search(based.pattern + "/.", name) or (based.search(parent) and not based.search(name)):
                found.append(name)
    return found


# --- removing ---------------------------------------------------------------------------------------------------------


def _images(view: View, verdicts: Sequence[Verdict]) -> list[Assignment]:
    """Return the images to remove, each once, and those that a killed run was removing."""
    begun = [one.subject for one in view.state.open.values() if one.action is Action.PRUNE]
    return list(dict.fromkeys([*begun, *(_image(one.template) for one in verdicts if not one.keep)]))


def _remove(job: Job, image: Assignment, verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Remove the templates of an image, between an intent and a note of what became of it."""
    gone = [one for one in verdicts if not one.keep and _image(one.template) == image]
    view = look(job)
    report = Report(Action.PRUNE, "", image, NOBODY, Outcome.DONE)
    intent, _ = release_moves.begin(job, view, report, reason=gone[0].reason if gone else "", commit="")
    stays = [one.template for one in verdicts if one.keep and one.template.label is not None]
    try:
        _carry(job, view, intent, stays)
    except GoldsmithError as error:
        done = [replace(one, problem=f"its records have no other place: {error.brief}") for one in gone]
    else:
        done = each(job.api, _remove_one, gone, most=MOST_CONNECTIONS)
    told = [f"{one.template.place} removed" if one.removed else f"{one.template.place} kept: {one.problem}" for one in done]
    release_moves.done_of(job, intent, reason="; ".join(told)[:LONGEST_REASON])
    return done


def _carry(job: Job, view: View, intent: Entry, stays: Sequence[Template]) -> None:
    """Bring to the first template that stays what only those that go may mirror: the intent, and revocations that hold.

    Raises StepFailed when there is none, or no room.
    """
    if not stays:
        raise StepFailed("no other template can be read")
    records = [*view.state.revoked.values(), intent]

    def decide(now: Template) -> Mapping[str, Any] | None:
        there = now.mirrored[0]
        version = now.label.version if now.label else ""
        return {
            "description": release_mirror.with_entries(now.description, [*there, *records], version)
        } if {one.hash for one in records} - {one.hash for one in there} else None

    kept = {one.hash for one in channels.swap(job.api, stays[0], decide).mirrored[0]}
    if lost := [one for one in records if one.hash not in kept]:
        raise StepFailed(f"{stays[0].place} {stays[0].name} has no room for entry {lost[0].number} of the ledger")


def _remove_one(api: Api, verdict: Verdict) -> Verdict:
    """Remove a template; one that is refused is protected again."""
    template = verdict.template

    def unprotect(now: Template) -> Mapping[str, Any] | None:
        if now.tags != template.tags:
            raise StepFailed("its tags were changed meanwhile")
        return {"protection": 0} if int(now.config.get("protection", 0)) else None

    try:
        channels.swap(api, template, unprotect)
        try:
            publish_machine.remove(api, template.node, template.vmid)
        except GoldsmithError:
            api.configure(template.path, protection=1)
            raise
    except GoldsmithError as error:
        return replace(verdict, problem=error.brief)
    log.info(f"{template.place} {template.name} is removed")
    return replace(verdict, removed=True)
