"""Channels on a cluster: a channel's tag on a template is the pointer, and it moves by compare-and-swap.

Proxmox gives each configuration a digest and refuses a change that names another one. So nothing that somebody else has
changed is overwritten: it is read again, and decided again. Order between hosts: an entry of the ledger is first written to
one template that all hosts choose alike (the readable one with the lowest number). Whoever comes second finds it there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from build import labels, release_mirror, release_state
from build.errors import GoldsmithError, StepFailed
from build.labels import Label, State
from build.preflight import MOST_CONNECTIONS
from build.pve import Api, ApiError, each
from build.release_entry import Action, Assignment, Entry
from build.release_ledger import REBUILD, Ledger, LedgerError

REVOKED = labels.REVOKED_TAG
SWAPS = 6
# qemu-server, PVE/API2/Qemu.pm (update_vm_api), and PVE::Tools::assert_if_modified.
CHANGED = re.compile(r"checksum miss?match|modified configuration|changed? by other user")
GONE = ("does not exist", "no such VM")


class Overtaken(StepFailed):
    """Somebody else wrote to the ledger first."""

    def __init__(self, theirs: Entry) -> None:
        super().__init__(
            f"{theirs.who} was first: {theirs.action} of {theirs.version or 'nothing'}"
            f"{f' in {theirs.channel}' if theirs.channel else ''}, at {theirs.time}",
            details=f"reason: {theirs.reason}" if theirs.reason else "",
            hint="nothing of yours was changed since; bring the ledger up to date (nox -s history -- --rebuild) and decide "
            "again",
        )  # fmt: skip
        self.theirs = theirs


@dataclass(frozen=True)
class Template:
    """A template as the cluster shows it; ``problem``: why its configuration could not be read."""

    node: str
    vmid: int
    name: str
    tags: frozenset[str]
    config: Mapping[str, Any]
    problem: str = ""

    @property
    def place(self) -> str:
        return f"{self.node}/{self.vmid}"

    @property
    def path(self) -> str:
        return f"/nodes/{self.node}/qemu/{self.vmid}"

    @property
    def description(self) -> str:
        return str(self.config.get("description", ""))

    @cached_property
    def label(self) -> Label | None:
        """What publish wrote of it; None when it is not finished, or not readable."""
        found = labels.parse(self.description)
        return found if found and found.state is State.TEMPLATE else None

    @cached_property
    def mirrored(self) -> tuple[list[Entry], list[str]]:
        """The entries of the ledger that it mirrors, and what is wrong with others."""
        return release_mirror.entries_of(self.description)

    def is_of(self, wanted: Assignment) -> bool:
        """Say whether it is a template of that image, by its tags: these are seen when its node is down, too."""
        return {labels.version_tag(wanted.version), labels.digest_tag(wanted.digest)} <= self.tags


def look(api: Api, product: str, guests: Sequence[Mapping[str, Any]] | None = None) -> list[Template]:
    """Return the templates of a product by number: one list of the cluster's guests, one configuration for each template.

    Raises ApiError when the cluster does not answer, or the token is not taken; a node that is down hides only its own.
    """
    listed = api.get("/cluster/resources", type="vm") if guests is None else guests
    ours = sorted((one for one in listed if _is_template(one, product)), key=lambda one: int(one["vmid"]))
    return each(api, read, ours, most=MOST_CONNECTIONS)


def _is_template(guest: Mapping[str, Any], product: str) -> bool:
    tags = labels.split_tags(str(guest.get("tags", "")))
    if guest.get("type", "qemu") != "qemu" or labels.PRODUCT_TAG not in tags:
        return False
    # Of a node that has been down for long, the cluster tells neither names nor what is a template; tags it does.
    return (bool(guest.get("template")) and str(guest.get("name")).startswith(f"{product}-")) or "name" not in guest


def read(api: Api, guest: Mapping[str, Any]) -> Template:
    """Return a template of the list with its configuration, or why that cannot be read."""
    config = config_of(api, guest)
    if isinstance(config, ApiError):
        return replace(template_of(guest, {}), tags=labels.split_tags(str(guest.get("tags", ""))), problem=config.brief)
    return template_of(guest, config)


def template_of(guest: Mapping[str, Any], config: Mapping[str, Any]) -> Template:
    """Return a template of the list of guests with its configuration."""
    tags = labels.split_tags(str(config.get("tags", "")))
    return Template(str(guest["node"]), int(guest["vmid"]), str(guest.get("name", "")), tags, config)


def config_of(api: Api, guest: Mapping[str, Any]) -> Mapping[str, Any] | ApiError:
    """Return a configuration, or why it cannot be read: a node that is down does not hide the others.

    Raises ApiError when the cluster does not answer at all, or does not take the token.
    """
    try:
        config: Mapping[str, Any] = api.get(f"/nodes/{guest['node']}/qemu/{guest['vmid']}/config")
    except ApiError as error:
        if error.status in (0, 401):
            raise
        return error
    return config


def mirrored(templates: Sequence[Template]) -> list[Entry]:
    """Return every entry that some template mirrors, by number."""
    found = {one.hash: one for template in templates for one in template.mirrored[0]}
    return sorted(found.values(), key=lambda one: one.number)


def revocation(
    api: Api, product: str, guests: Sequence[Mapping[str, Any]], image: Assignment, known: Sequence[Entry]
) -> str:
    """Return why an image is revoked, by ``known`` entries of a ledger and by the cluster; empty when it is not.

    Of the cluster, the image's own templates are read, and the one with the lowest number: it keeps the records of those
    that were removed.
    """
    ours = sorted((one for one in guests if _is_template(one, product)), key=lambda one: int(one["vmid"]))
    digest = labels.digest_tag(image.digest)
    asked = [one for one in ours if digest in labels.split_tags(str(one.get("tags", ""))) or one is ours[0]]
    seen = each(api, read, asked, most=MOST_CONNECTIONS)
    entries = {one.hash: one for one in [*known, *mirrored(seen)]}
    why = release_state.fold(sorted(entries.values(), key=lambda one: one.number)).revocation(image.digest)
    if why:
        return f"{why.reason} ({why.who}, {why.time})"
    tagged = [one.place for one in seen if one.is_of(image) and REVOKED in one.tags]
    return f"the tag {REVOKED} is on {', '.join(tagged)}" if tagged else ""


def own_revocation(template: Template) -> Entry | None:
    """Return why a template is revoked, by its own mirror of the ledger."""
    if template.label is None:
        return None
    return release_state.fold(template.mirrored[0]).revocation(template.label.digest)


def require_up_to_date(ledger: Ledger, entries: Sequence[Entry], where: str) -> None:
    """Raise LedgerError when the cluster mirrors entries that the ledger lacks, or others in their place."""
    ahead = [one for one in entries if one.number > ledger.head]
    others = [one for one in entries if (ours := ledger.get(one.number)) is not None and ours.hash != one.hash]
    if others:
        raise LedgerError(
            f"{where} and the cluster tell different stories: entry {others[0].number} is not the same",
            details="\n".join(f"the cluster has: {told(one)}" for one in others), hint=REBUILD,
        )  # fmt: skip
    if ahead:
        raise LedgerError(
            f"{where} ends with entry {ledger.head}, and the cluster knows entry {ahead[-1].number}, of another machine",
            details="\n".join(told(one) for one in ahead),
            hint="fetch the ledger from where it is kept (git pull), or: nox -s history -- --rebuild",
        )


def told(entry: Entry) -> str:
    """Return an entry for people, in one line."""
    what = f"{entry.action} {entry.version or 'nothing'}{f' -> {entry.channel}' if entry.channel else ''}"
    why = f": {entry.reason}" if entry.reason else ""
    return f"{entry.number}  {entry.time}  {entry.phase:<6}  {what}  {entry.who}{why}"


def command(entry: Entry) -> str:
    """Return the command that does again what an entry is about."""
    words = {
        Action.PROMOTE: f"{entry.version} {entry.channel}", Action.ROLLBACK: entry.channel, Action.PRUNE: "--apply",
    }.get(entry.action, f"{entry.version} --reason TEXT")  # fmt: skip
    return f"nox -s {entry.action} -- {words}"


Decide = Callable[[Template], Mapping[str, Any] | None]


def swap(api: Api, template: Template, decide: Decide) -> Template:
    """Change a template by compare-and-swap: ``decide`` says which keys to set for what is there now, or None.

    It is read first, and again whenever somebody else was quicker or the answer was lost. Returns it as it is then. Raises
    what ``decide`` raises, ApiError, and StepFailed when it never stood still.
    """
    for _ in range(SWAPS):
        now = reread(api, template)
        keys = decide(now)
        if not keys:
            return now
        try:
            api.put(f"{template.path}/config", **keys, digest=str(now.config.get("digest", "")))
        except ApiError as error:
            if error.status != 0 and not CHANGED.search(error.brief):
                raise
        else:
            return template_of(vars(template), {**now.config, **keys})
    raise StepFailed(
        f"{template.place} {template.name} was changed by somebody else again and again, {SWAPS} times",
        hint="see in Proxmox's task list who works on it; then run the same command again",
    )


def reread(api: Api, template: Template) -> Template:
    """Return a template as it is now; raise StepFailed when it is no template of the same image any more."""
    config = api.get(f"{template.path}/config")
    now = template_of(vars(template), config)
    if template.label is not None and (now.label is None or now.label.digest != template.label.digest):
        raise StepFailed(
            f"{template.place} is not {template.name} of the same image any more: somebody changed it meanwhile",
            hint="nox -s drift says what was changed",
        )
    return now


def written(now: Template, entry: Entry, *, add: Collection[str] = (), drop: Collection[str] = ()) -> dict[str, Any]:
    """Return the keys that set and take tags and mirror an entry, as far as they are not so already.

    Raises Overtaken when the template knows a later intent about the same thing: then this run is not the one to move it.
    """
    entries, _ = now.mirrored
    for theirs in entries:
        if theirs.number > entry.number and theirs.key == entry.key and theirs.operation != entry.operation:
            raise Overtaken(theirs)
    tags = (now.tags - set(drop)) | set(add)
    keys: dict[str, Any] = {}
    if tags != now.tags:
        keys["tags"] = ";".join(sorted(tags))
    if entry.hash not in {one.hash for one in entries}:
        version = now.label.version if now.label else ""
        keys["description"] = release_mirror.with_entries(now.description, [*entries, entry], version)
    return keys


def claim(api: Api, templates: Sequence[Template], entry: Entry) -> Template:
    """Write an entry to the template that decides the order; return that template.

    Raises Overtaken when another entry has its number already, StepFailed when no template can be read.
    """

    def decide(now: Template) -> Mapping[str, Any] | None:
        later = [one for one in now.mirrored[0] if one.number >= entry.number and one.hash != entry.hash]
        if later:
            raise Overtaken(later[0])
        return written(now, entry)

    for template in templates:
        if template.label is None:
            continue
        try:
            return swap(api, template, decide)
        except ApiError as error:
            # Removed by hand, or its node went down, since the list was read: the next one decides.
            if not (595 <= error.status <= 599 or any(words in error.brief for words in GONE)):
                raise
    raise StepFailed(
        "no template can be read, so that there is nowhere to note what is to be done",
        details="\n".join(f"{one.place}: {one.problem or 'it bears no label'}" for one in templates),
        hint="are the nodes online? python -m build doctor --proxmox",
    )  # fmt: skip


@dataclass(frozen=True)
class Missed:
    """A template that could not be changed, and why; ``down``: its node does not answer, or it is gone."""

    template: Template
    error: GoldsmithError

    @property
    def down(self) -> bool:
        return isinstance(self.error, ApiError) and 595 <= self.error.status <= 599

    def __str__(self) -> str:
        return f"{self.template.place} {self.template.name}: {self.error.brief}"


def swap_all(api: Api, templates: Sequence[Template], decide: Decide) -> list[Missed]:
    """Change templates at the same time, with a bounded number of connections; return those that could not be.

    Raises Overtaken when one of them told so, and ApiError when the cluster does not answer or does not take the token.
    """

    def one(own: Api, template: Template) -> Missed | None:
        try:
            swap(own, template, decide)
        except GoldsmithError as error:
            return Missed(template, error)
        return None

    missed = [found for found in each(api, one, templates, most=MOST_CONNECTIONS) if found]
    for found in missed:
        fatal = isinstance(found.error, ApiError) and found.error.status in (0, 401)
        if fatal or isinstance(found.error, Overtaken):
            raise found.error
    return missed


def pointed(templates: Sequence[Template], channel: str) -> set[Assignment]:
    """Return the images that bear a channel's tag, by what their labels say."""
    return {Assignment(one.label.version, one.label.digest) for one in templates if one.label and channel in one.tags}
