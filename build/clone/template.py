"""Chooses the template of a clone: a given one, or the newest of a channel, on the node or on shared storage.

One list of the cluster's guests is enough to choose. Two versions have the tag of a channel only while it is moved:
then the mirror of the ledger decides. A template that was modified since it was published, or is revoked, is rejected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from build.clone.request import Request
from build.core import log
from build.core.errors import SpecError
from build.proxmox import labels, vms
from build.proxmox.client import Api
from build.proxmox.labels import Label, State
from build.release import channels, state
from build.spec import release_policy

SEEN = 8
NONE_SEEN = "publish one: nox -s publish; if one is published, check the token: nox -s doctor -- --proxmox"


@dataclass(frozen=True)
class Source:
    """A template and its label; ``target`` is the node for the clone if it is a different one."""

    node: str
    vmid: int
    label: Label
    config: Mapping[str, Any]
    target: str = ""

    @property
    def place(self) -> str:
        """The node that the clone will run on."""
        return self.target or self.node

    @property
    def administrator(self) -> str:
        """The image's own administrator; empty if the label is older than this field."""
        return self.label.provenance.get(labels.ADMINISTRATOR, "")


def templates(guests: Sequence[Mapping[str, Any]], product: str) -> list[Mapping[str, Any]]:
    """Return the templates of a product."""
    return [
        guest for guest in guests
        if guest.get("template") and labels.PRODUCT_TAG in _tags(guest)
        and labels.product_of(str(guest.get("name"))) == product
    ]  # fmt: skip


def choose(api: Api, guests: Sequence[Mapping[str, Any]], request: Request, product: str) -> Mapping[str, Any]:
    """Return the template to clone, preferably on the requested node. Raises SpecError that lists the templates."""
    available = templates(guests, product)
    if request.template:
        name, selection = request.template, f"called {request.template}"
    else:
        name = _of_channel(api, available, request.channel)
        selection = f"in the channel {request.channel}"
    matching = [guest for guest in available if guest["name"] == name]
    if not matching:
        shown = sorted({f"{guest['name']} ({', '.join(sorted(_tags(guest)))})" for guest in available})
        raise SpecError(
            f"there is no template of {product} {selection}", details="\n".join(shown[-SEEN:]),
            hint="choose one of these with --template or --channel" if available else NONE_SEEN,
        )  # fmt: skip
    if len({_digest(guest) for guest in matching}) > 1:
        places = ", ".join(f"{guest['node']}/{guest['vmid']}" for guest in matching)
        raise SpecError(
            f"the templates with the name {name} are of different images: {places}",
            hint="list the differences: nox -s drift",
        )
    return min(matching, key=lambda guest: (guest["node"] != request.node, int(guest["vmid"])))


def _of_channel(api: Api, available: Sequence[Mapping[str, Any]], channel: str) -> str:
    """Return the name of the template that a channel points at; empty if there is none."""
    tagged = [guest for guest in available if channel in _tags(guest)]
    if channel == release_policy.CANDIDATE:
        # This channel is not moved: it is the newest version that is not revoked. If all are, the newest one gives the
        # error.
        good = [guest for guest in tagged if labels.REVOKED_TAG not in _tags(guest)]
        if good and good != tagged and (newest := max(tagged, key=_version))["name"] != max(good, key=_version)["name"]:
            log.warn(f"{newest['name']} is newer, but revoked: it is skipped")
        tagged = good or tagged
    elif len({guest["name"] for guest in tagged}) > 1:
        read = [channels.read(api, guest) for guest in tagged]
        goal = state.fold(channels.mirrored(read)).goal(channel)
        pointed = [guest for guest, template in zip(tagged, read, strict=True) if template.is_of(goal)]
        tagged = pointed or tagged
    return str(max(tagged, key=_version)["name"]) if tagged else ""


def source(api: Api, guest: Mapping[str, Any], request: Request) -> Source:
    """Read a template's label, and check that it can be cloned to the requested node. Raises SpecError if not."""
    node, vmid = str(guest["node"]), int(guest["vmid"])
    config = api.get(f"/nodes/{node}/qemu/{vmid}/config")
    label = labels.parse(str(config.get("description", "")))
    if label is None or label.state is not State.TEMPLATE or labels.digest_tag(label.digest) != _digest(guest):
        raise SpecError(
            f"{guest['name']} on {node} (VM {vmid}) is not as published: its description and its tags disagree",
            hint="list the changes with nox -s drift; clone another one with --template",
        )
    _require_unrevoked(channels.template_of(guest, config))
    if request.node in ("", node):
        return Source(node, vmid, label, config)
    _require_shared(api, node, config, request, str(guest["name"]))
    return Source(node, vmid, label, config, target=request.node)


def _require_unrevoked(template: channels.Template) -> None:
    """Raise SpecError with the reason if a template is revoked."""
    revoked = channels.own_revocation(template)
    if revoked or labels.REVOKED_TAG in template.tags:
        reason = f": {revoked.reason} ({revoked.who}, {revoked.time})" if revoked else ": it has that tag, but no reason"
        raise SpecError(
            f"{template.name} is revoked{reason}",
            hint="clone another version: nox -s history lists the versions of the channels",
        )


def _require_shared(api: Api, node: str, config: Mapping[str, Any], request: Request, name: str) -> None:
    """Raise SpecError unless all disks, also the new one, are on storages that the requested node shares."""
    used = {str(value).partition(":")[0] for key, value in config.items() if vms.DRIVE.fullmatch(key) and ":" in str(value)}
    storages = {storage["storage"]: storage for storage in api.get(f"/nodes/{node}/storage")}
    needed = used | ({request.storage} if request.storage else set())
    if local := sorted(storage for storage in needed if not storages.get(storage, {}).get("shared")):
        raise SpecError(
            f"{name} is on {node} and not on {request.node}, and {', '.join(local)} is not shared between them",
            hint=f"publish it there: nox -s publish -- --node {request.node}; or clone on {node}: --node {node}",
        )


def _tags(guest: Mapping[str, Any]) -> frozenset[str]:
    return labels.split_tags(str(guest.get("tags", "")))


def _digest(guest: Mapping[str, Any]) -> str:
    return ";".join(sorted(tag for tag in _tags(guest) if tag.startswith("sha256-")))


def _version(guest: Mapping[str, Any]) -> tuple[tuple[int, ...], bool, str]:
    return labels.order(_tags(guest))
