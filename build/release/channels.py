"""Channels on a cluster: a channel is a tag on a template, and it is updated with compare-and-swap.

Proxmox gives each configuration a digest and rejects a change with a different digest. So a concurrent change is never
overwritten: the configuration is read again, and the change is computed again. Order between hosts: an entry of the
ledger is first written to one template that all hosts choose alike (the readable one with the lowest number). The
second host finds the entry there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from build.core.errors import GoldsmithError, StepFailed
from build.proxmox import guest_list, labels, vms
from build.proxmox.api_errors import CHANGED, UNREACHABLE
from build.proxmox.client import Api, ApiError, each
from build.proxmox.labels import Label, State
from build.proxmox.preflight import MOST_CONNECTIONS
from build.release import mirror, state
from build.release.entry import Action, Assignment, Entry
from build.release.ledger import REBUILD, Ledger, LedgerError

REVOKED = labels.REVOKED_TAG
SWAPS = 6


class ConcurrentUpdate(StepFailed):
    """A concurrent update of the ledger came first."""

    def __init__(self, theirs: Entry) -> None:
        super().__init__(
            f"concurrent update by {theirs.who}: {theirs.action} of {theirs.version or 'nothing'}"
            f"{f' in {theirs.channel}' if theirs.channel else ''}, at {theirs.time}",
            details=f"reason: {theirs.reason}" if theirs.reason else "",
            hint="your operation was stopped; update the ledger (nox -s history -- --rebuild), then decide "
            "whether to run it again",
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
        """The label that publish wrote; None if the template is incomplete or its label is not readable."""
        label = labels.parse(self.description)
        return label if label and label.state is State.TEMPLATE else None

    @cached_property
    def mirrored(self) -> tuple[list[Entry], list[str]]:
        """The entries of the ledger that it mirrors, and the problems of entries that cannot be read."""
        return mirror.entries_of(self.description)

    def is_of(self, image: Assignment) -> bool:
        """Return True if it is a template of that image, by its tags: the cluster lists tags even while the node is down."""
        return {labels.version_tag(image.version), labels.digest_tag(image.digest)} <= self.tags


def look(api: Api, product: str, guests: Sequence[Mapping[str, Any]] | None = None) -> list[Template]:
    """Return the templates of a product by number.

    Reads one list of the cluster's guests, and one configuration for each template.

    Raises ApiError if the cluster does not answer or rejects the token; a node that is down hides only its own
    templates.
    """
    listed = guest_list.listed(api) if guests is None else guests
    ours = sorted((guest for guest in listed if _is_template(guest, product)), key=lambda guest: int(guest["vmid"]))
    return each(api, read, ours, most=MOST_CONNECTIONS)


def _is_template(guest: Mapping[str, Any], product: str) -> bool:
    tags = labels.split_tags(str(guest.get("tags", "")))
    if guest.get("type", "qemu") != "qemu" or labels.PRODUCT_TAG not in tags:
        return False
    # For a node that has been down for long, the cluster lists tags, but neither names nor the template flag.
    return (bool(guest.get("template")) and labels.product_of(str(guest.get("name"))) == product) or "name" not in guest


def read(api: Api, guest: Mapping[str, Any]) -> Template:
    """Return a template of the list with its configuration, or with the reason why that cannot be read."""
    config = config_of(api, guest)
    if isinstance(config, ApiError):
        return replace(template_of(guest, {}), tags=labels.split_tags(str(guest.get("tags", ""))), problem=config.brief)
    return template_of(guest, config)


def template_of(guest: Mapping[str, Any], config: Mapping[str, Any]) -> Template:
    """Return a template of the list of guests with its configuration."""
    tags = labels.split_tags(str(config.get("tags", "")))
    return Template(str(guest["node"]), int(guest["vmid"]), str(guest.get("name", "")), tags, config)


def config_of(api: Api, guest: Mapping[str, Any]) -> Mapping[str, Any] | ApiError:
    """Return a configuration, or the error why it cannot be read: a node that is down does not hide the others.

    Raises ApiError if the cluster does not answer at all, or rejects the token.
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
    by_hash = {entry.hash: entry for template in templates for entry in template.mirrored[0]}
    return sorted(by_hash.values(), key=lambda entry: entry.number)


def revocation(
    api: Api, product: str, guests: Sequence[Mapping[str, Any]], image: Assignment, known: Sequence[Entry]
) -> str:
    """Return why an image is revoked, by ``known`` entries of a ledger and by the cluster; empty when it is not.

    On the cluster, the image's own templates are read, and the template with the lowest number: it keeps the records of
    removed templates.
    """
    ours = sorted((guest for guest in guests if _is_template(guest, product)), key=lambda guest: int(guest["vmid"]))
    digest = labels.digest_tag(image.digest)
    candidates = [guest for guest in ours if digest in labels.split_tags(str(guest.get("tags", ""))) or guest is ours[0]]
    templates = each(api, read, candidates, most=MOST_CONNECTIONS)
    entries = {entry.hash: entry for entry in [*known, *mirrored(templates)]}
    revoked = state.fold(sorted(entries.values(), key=lambda entry: entry.number)).revocation(image.digest)
    if revoked:
        return f"{revoked.reason} ({revoked.who}, {revoked.time})"
    tagged = [template.place for template in templates if template.is_of(image) and REVOKED in template.tags]
    return f"the tag {REVOKED} is on {', '.join(tagged)}" if tagged else ""


def own_revocation(template: Template) -> Entry | None:
    """Return why a template is revoked, by its own mirror of the ledger."""
    if template.label is None:
        return None
    return state.fold(template.mirrored[0]).revocation(template.label.digest)


def require_up_to_date(ledger: Ledger, entries: Sequence[Entry], where: str) -> None:
    """Raise LedgerError if the cluster mirrors entries that the ledger lacks, or different entries with the same numbers."""
    ahead = [entry for entry in entries if entry.number > ledger.head]
    others = [entry for entry in entries if (ours := ledger.get(entry.number)) is not None and ours.hash != entry.hash]
    if others:
        raise LedgerError(
            f"{where} and the cluster disagree: entry {others[0].number} differs",
            details="\n".join(f"the cluster has: {describe(entry)}" for entry in others), hint=REBUILD,
        )  # fmt: skip
    if ahead:
        raise LedgerError(
            f"{where} ends with entry {ledger.head}, and the cluster has entry {ahead[-1].number}, written by another host",
            details="\n".join(describe(entry) for entry in ahead),
            hint="update the ledger with git pull, or rebuild it: nox -s history -- --rebuild",
        )


def describe(entry: Entry) -> str:
    """Return an entry as one line of text."""
    operation = f"{entry.action} {entry.version or 'nothing'}{f' -> {entry.channel}' if entry.channel else ''}"
    reason = f": {entry.reason}" if entry.reason else ""
    return f"{entry.number}  {entry.time}  {entry.phase:<6}  {operation}  {entry.who}{reason}"


def command(entry: Entry) -> str:
    """Return the command that repeats the operation of an entry."""
    arguments = {
        Action.PROMOTE: f"{entry.version} {entry.channel}", Action.ROLLBACK: entry.channel, Action.PRUNE: "--apply",
    }.get(entry.action, f"{entry.version} --reason TEXT")  # fmt: skip
    return f"nox -s {entry.action} -- {arguments}"


Decide = Callable[[Template], Mapping[str, Any] | None]


def swap(api: Api, template: Template, decide: Decide) -> Template:
    """Change a template by compare-and-swap: ``decide`` returns the keys to set, or None.

    The template is read first, and again after a concurrent update or a lost response. Returns the changed template.
    Raises the exceptions of ``decide``, ApiError, and StepFailed after too many concurrent updates.
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
        f"{template.place} {template.name} was modified concurrently {SWAPS} times",
        hint="find the other user in Proxmox's task list; then run the same command again",
    )


def reread(api: Api, template: Template) -> Template:
    """Return a template as it is now; raise StepFailed if it is no longer a template of the same image."""
    config = api.get(f"{template.path}/config")
    now = template_of(vars(template), config)
    if template.label is not None and (now.label is None or now.label.digest != template.label.digest):
        raise StepFailed(
            f"{template.place} is no longer {template.name} of the same image: it was modified concurrently",
            hint="run nox -s drift, which lists the changes",
        )
    return now


def written(now: Template, entry: Entry, *, add: Collection[str] = (), drop: Collection[str] = ()) -> dict[str, Any]:
    """Return the keys that add and remove tags and mirror an entry; only those that differ from the present ones.

    Raises ConcurrentUpdate if the template mirrors a later intent for the same channel or image.
    """
    entries, _ = now.mirrored
    for theirs in entries:
        if theirs.number > entry.number and theirs.key == entry.key and theirs.operation != entry.operation:
            raise ConcurrentUpdate(theirs)
    tags = (now.tags - set(drop)) | set(add)
    keys: dict[str, Any] = {}
    if tags != now.tags:
        keys["tags"] = ";".join(sorted(tags))
    if entry.hash not in {mirrored_entry.hash for mirrored_entry in entries}:
        version = now.label.version if now.label else ""
        keys["description"] = mirror.with_entries(now.description, [*entries, entry], version)
    return keys


def claim(api: Api, templates: Sequence[Template], entry: Entry) -> Template:
    """Write an entry to the template that decides the order; return that template.

    Raises ConcurrentUpdate if another entry has the same number, StepFailed if no template can be read.
    """

    def decide(now: Template) -> Mapping[str, Any] | None:
        conflicts = [theirs for theirs in now.mirrored[0] if theirs.number >= entry.number and theirs.hash != entry.hash]
        if conflicts:
            raise ConcurrentUpdate(conflicts[0])
        return written(now, entry)

    for template in templates:
        if template.label is None:
            continue
        try:
            return swap(api, template, decide)
        except ApiError as error:
            # Removed by hand, or its node went down, since the list was read: the next one decides.
            if error.status not in UNREACHABLE and not vms.is_gone(api, error, template.vmid):
                raise
    raise StepFailed(
        "no template can be read: cannot record the operation",
        details="\n".join(f"{template.place}: {template.problem or 'it has no Goldsmith label'}" for template in templates),
        hint="check that the nodes are online: nox -s doctor -- --proxmox",
    )  # fmt: skip


@dataclass(frozen=True)
class Missed:
    """A template that could not be changed, and the error.

    ``down``: its node does not answer, or the template was removed.
    """

    template: Template
    error: GoldsmithError

    @property
    def down(self) -> bool:
        return isinstance(self.error, ApiError) and self.error.status in UNREACHABLE

    def __str__(self) -> str:
        return f"{self.template.place} {self.template.name}: {self.error.brief}"


def swap_all(api: Api, templates: Sequence[Template], decide: Decide) -> list[Missed]:
    """Change templates in parallel, with a bounded number of connections; return those that could not be changed.

    Raises ConcurrentUpdate if one of them was updated concurrently, and ApiError if the cluster does not answer or
    rejects the token.
    """

    def change(own: Api, template: Template) -> Missed | None:
        try:
            swap(own, template, decide)
        except GoldsmithError as error:
            return Missed(template, error)
        return None

    missed = [failure for failure in each(api, change, templates, most=MOST_CONNECTIONS) if failure]
    for failure in missed:
        fatal = isinstance(failure.error, ApiError) and failure.error.status in (0, 401)
        if fatal or isinstance(failure.error, ConcurrentUpdate):
            raise failure.error
    return missed


def pointed(templates: Sequence[Template], channel: str) -> set[Assignment]:
    """Return the images that have a channel's tag, by the labels of their templates."""
    return {
        Assignment(template.label.version, template.label.digest)
        for template in templates if template.label and channel in template.tags
    }  # fmt: skip
