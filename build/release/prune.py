"""Removes unused templates, with a reason for each template, kept or removed.

A template is kept if a channel points at it, if a rollback would use it, if an unfinished operation is about it, if a
linked clone reads its disk, if its version is revoked and still has clones, if it is the newest candidate, or if it is
young. A template that cannot be evaluated is kept. The record of a revocation outlives its template: it moves to the
mirror of a template that stays.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from build.core import log
from build.core.errors import GoldsmithError, StepFailed
from build.core.units import seconds_of
from build.proxmox import guest_list, labels, vms
from build.proxmox.client import Api, ApiError, each
from build.proxmox.preflight import MOST_CONNECTIONS
from build.release import channels, mirror, operation
from build.release.channels import REVOKED, Template
from build.release.entry import LONGEST_REASON, NONE, Action, Assignment, Entry, assignment
from build.release.operation import Outcome, Report
from build.release.preconditions import Job, View, look
from build.spec.release_policy import CANDIDATE

SECONDS_PER_DAY = 86_400
SHOWN = 4


@dataclass(frozen=True)
class Decision:
    """A template, whether it is kept, and the reason; ``problem``: why it could not be removed."""

    template: Template
    keep: bool
    reason: str
    removed: bool = False
    problem: str = ""


def prune(job: Job, viewer: Api, *, days: int, apply: bool = False) -> list[Decision]:
    """Return the decision for each template; with ``apply``, unused templates are removed.

    ``viewer`` can read operators' clones, which ``job.api`` cannot; ``days``: how long a version is kept after it was
    published or last moved. Raises ApiError if information for the decision cannot be read: then nothing was removed.
    """
    with job.book.held():
        view = look(job)
        decisions = _decide_all(job, view, viewer, days=days)
        if not apply:
            return decisions
        removed = {
            decision.template.vmid: decision
            for image in _images(view, decisions) for decision in _remove(job, image, decisions)
        }  # fmt: skip
        return [removed.get(decision.template.vmid, decision) for decision in decisions]


# --- deciding ---------------------------------------------------------------------------------------------------------


def _decide_all(job: Job, view: View, viewer: Api, *, days: int) -> list[Decision]:
    candidates = [
        template for template in view.templates
        if CANDIDATE in template.tags and REVOKED not in template.tags and template.label
    ]  # fmt: skip
    # The default choice of clone, without a template and a channel.
    newest = max(candidates, key=lambda template: labels.order(template.tags), default=None)
    reasons = {template.vmid: _why_kept(job, view, template, newest, days=days) for template in view.templates}
    users = _users(viewer, [template for template in view.templates if not reasons[template.vmid]])
    for template in view.templates:
        reasons[template.vmid] = reasons[template.vmid] or _why_used(view, template, users.get(template.vmid, []))
    unneeded = "no channel, rollback, revocation or clone needs it; "
    return [
        Decision(
            template,
            keep=bool(reasons[template.vmid]),
            reason=reasons[template.vmid] or unneeded + _age(job, view, template),
        )
        for template in view.templates
    ]


def _why_kept(job: Job, view: View, template: Template, newest: Template | None, *, days: int) -> str:
    """Return the reason to keep a template, regardless of its clones; empty if there is none."""
    if template.label is None:
        return f"it cannot be evaluated: {template.problem or 'its description has no label that this Goldsmith can read'}"
    image = _image(template)
    if reason := _pointed(job, view, template, image):
        return reason
    if newest is not None and image == _image(newest):
        return "it is the newest candidate"
    young = _days(job, view, template) < days
    return f"it is younger than {days} days: {_age(job, view, template)}" if young else ""


def _why_used(view: View, template: Template, users: Sequence[tuple[str, bool]]) -> str:
    """Return the reason to keep a template because of its clones; empty if there is none."""
    if linked := [name for name, is_linked in users if is_linked]:
        return f"linked clones read their disks from it: {_named(linked)}"
    if users and (view.state.revocation(_image(template).digest) or REVOKED in template.tags):
        return f"it is revoked, and still has clones: {_named([name for name, _ in users])}"
    return ""


def _image(template: Template) -> Assignment:
    assert template.label is not None
    return Assignment(template.label.version, template.label.digest)


def _pointed(job: Job, view: View, template: Template, image: Assignment) -> str:
    state = view.state
    for channel in dict.fromkeys([*job.policy.channels, *state.stacks]):
        if image in (state.current(channel), state.goal(channel)) or channel in template.tags:
            return f"{channel} points at it"
        if image == state.back(channel):
            return f"a rollback of {channel} would go to it"
    for unfinished in state.open.values():
        if unfinished.action is not Action.PRUNE and image in (unfinished.subject, assignment(unfinished.before)):
            return f"an unfinished operation is about it: {channels.describe(unfinished)}"
    return ""


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(sorted(names)[:SHOWN]) + more


def _since(view: View, template: Template) -> float:
    """Return when a version was published, or last moved, in seconds since 1970."""
    assert template.label is not None
    times = [template.label.published, view.state.touched.get(template.label.digest, "")]
    return max(seconds_of(text) for text in times if text)


def _days(job: Job, view: View, template: Template) -> float:
    """Return the age in days; a time in the future counts as 0: then a clock is wrong."""
    return max(0.0, (job.clock().timestamp() - _since(view, template)) / SECONDS_PER_DAY)


def _age(job: Job, view: View, template: Template) -> str:
    return f"published or moved {_days(job, view, template):.0f} days ago" if template.label else ""


def _users(viewer: Api, templates: Sequence[Template]) -> dict[int, list[tuple[str, bool]]]:
    """Return the clones of each template, by its number, and whether each is a linked clone.

    Checked are the VMs that have a template's digest in their tags, and the volumes of its storages on its node: the
    name of a linked clone's volume contains the base volume, regardless of the clone's tags. (LVM-thin has no such
    names, and needs no base volume: its snapshots are independent.)
    """
    users: dict[int, list[tuple[str, bool]]] = {template.vmid: [] for template in templates}
    if not templates:
        return users
    digests = {labels.digest_tag(_image(template).digest) for template in templates}
    clones = [
        guest for guest in guest_list.listed(viewer)
        if guest.get("type") == "qemu" and not guest.get("template")
        and labels.split_tags(str(guest.get("tags", ""))) & digests
    ]  # fmt: skip
    for guest, config in zip(clones, each(viewer, channels.config_of, clones, most=MOST_CONNECTIONS), strict=True):
        tags = labels.split_tags(str(guest.get("tags", "")))
        for template in templates:
            if labels.digest_tag(_image(template).digest) in tags:
                name = f"{_name(guest)} ({guest['node']}/{guest['vmid']})"
                users[template.vmid].append((name, _is_linked(guest, config, template)))
    for template, volumes in zip(templates, each(viewer, _volumes, templates, most=MOST_CONNECTIONS), strict=True):
        users[template.vmid] += [(volume, True) for volume in volumes]
    return users


def _name(guest: Mapping[str, Any]) -> str:
    """Return a guest's name; for a guest on a node that has been down for long, only its tags are known."""
    return str(guest.get("name", "a guest whose node does not answer (only its tags are known)"))


def _is_linked(guest: Mapping[str, Any], config: Mapping[str, Any] | ApiError, template: Template) -> bool:
    """Return True if a VM may read its disk from a template, also if its configuration or label cannot be read."""
    if isinstance(config, ApiError):
        return True
    label = labels.parse_clone(str(config.get("description", "")))
    if label is not None:
        return label.linked
    disks = [str(value) for key, value in config.items() if vms.DRIVE.fullmatch(key)]
    # Cloned by other means: only its node shows which node's template it was cloned from.
    return any(f"base-{template.vmid}-disk-" in disk for disk in disks) or str(guest["node"]) == template.node


def _volumes(viewer: Api, template: Template) -> list[str]:
    """Return the volumes that are based on a template's, on the storages of its disks, as its node sees them."""
    drives = [str(value) for key, value in template.config.items() if vms.DRIVE.fullmatch(key)]
    based = re.compile(rf"\bbase-{template.vmid}-disk-\d+(\.\w+)?")
    volumes: list[str] = []
    for storage in sorted({drive.partition(":")[0] for drive in drives if ":" in drive}):
        for volume in viewer.get(f"/nodes/{template.node}/storage/{storage}/content", content="images"):
            name, parent = str(volume["volid"]), str(volume.get("parent") or "")
            # As in storage:base-9000-disk-0/vm-101-disk-0; some storages list the base volume in a separate field.
            if re.search(based.pattern + "/.", name) or (based.search(parent) and not based.search(name)):
                volumes.append(name)
    return volumes


# --- removing ---------------------------------------------------------------------------------------------------------


def _images(view: View, decisions: Sequence[Decision]) -> list[Assignment]:
    """Return the images to remove, each once, with those that a killed run was removing."""
    unfinished = [decision.subject for decision in view.state.open.values() if decision.action is Action.PRUNE]
    return list(dict.fromkeys([*unfinished, *(_image(decision.template) for decision in decisions if not decision.keep)]))


def _remove(job: Job, image: Assignment, decisions: Sequence[Decision]) -> list[Decision]:
    """Remove the templates of an image, between an intent and an entry with the results."""
    gone = [decision for decision in decisions if not decision.keep and _image(decision.template) == image]
    view = look(job)
    report = Report(Action.PRUNE, "", image, NONE, Outcome.DONE)
    intent, _ = operation.begin(job, view, report, reason=gone[0].reason if gone else "", commit="")
    stays = [decision.template for decision in decisions if decision.keep and decision.template.label is not None]
    try:
        _carry(job, view, intent, stays)
    except GoldsmithError as error:
        done = [replace(decision, problem=f"its records cannot be moved: {error.brief}") for decision in gone]
    else:
        done = each(job.api, _remove_one, gone, most=MOST_CONNECTIONS)
    results = [
        f"{decision.template.place} " + ("removed" if decision.removed else f"kept: {decision.problem}") for decision in done
    ]
    operation.done_of(job, intent, reason="; ".join(results)[:LONGEST_REASON])
    return done


def _carry(job: Job, view: View, intent: Entry, stays: Sequence[Template]) -> None:
    """Copy the intent and valid revocations to the first template that stays.

    The removed templates may have the only mirror of them.

    Raises StepFailed if there is no such template, or no room.
    """
    if not stays:
        raise StepFailed("no other template can be read")
    records = [*view.state.revoked.values(), intent]

    def decide(now: Template) -> Mapping[str, Any] | None:
        mirrored = now.mirrored[0]
        version = now.label.version if now.label else ""
        return (
            {"description": mirror.with_entries(now.description, [*mirrored, *records], version)}
            if {entry.hash for entry in records} - {entry.hash for entry in mirrored}
            else None
        )

    kept = {entry.hash for entry in channels.swap(job.api, stays[0], decide).mirrored[0]}
    if lost := [entry for entry in records if entry.hash not in kept]:
        raise StepFailed(f"{stays[0].place} {stays[0].name} has no room for entry {lost[0].number} of the ledger")


def _remove_one(api: Api, decision: Decision) -> Decision:
    """Remove a template; if that fails, it is protected again."""
    template = decision.template

    def unprotect(now: Template) -> Mapping[str, Any] | None:
        if now.tags != template.tags:
            raise StepFailed("its tags were modified concurrently")
        return {"protection": 0} if int(now.config.get("protection", 0)) else None

    try:
        channels.swap(api, template, unprotect)
        try:
            vms.remove(api, template.node, template.vmid)
        except GoldsmithError:
            api.configure(template.path, protection=1)
            raise
    except GoldsmithError as error:
        return replace(decision, problem="; ".join(filter(None, (error.brief, error.hint))))
    log.info(f"{template.place} {template.name} was removed")
    return replace(decision, removed=True)
