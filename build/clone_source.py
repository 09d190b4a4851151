"""Which template a machine is made of: a given one, or the newest of a channel, on the node or where it can be reached from.

One list of the cluster's guests is enough to choose. Only while a channel's pointer moves do two versions bear its tag: then
the mirror of the ledger says which one it is. What bears our tag and is not what was published, or is revoked, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from build import channels, labels, log, release_policy, release_state
from build.clone_request import Request
from build.errors import SpecError
from build.labels import Label, State
from build.pve import Api

DRIVE = re.compile(r"(ide|sata|scsi|virtio|efidisk|tpmstate)\d+")
VERSION = re.compile(r"v(?P<numbers>\d+\.\d+\.\d+)(-(?P<before>[a-z0-9]+))?")
SEEN = 8


@dataclass(frozen=True)
class Source:
    """A template and its label; ``target`` is the node for the clone when that is another one."""

    node: str
    vmid: int
    label: Label
    config: Mapping[str, Any]
    target: str = ""

    @property
    def place(self) -> str:
        """The node that the clone shall run on."""
        return self.target or self.node


def templates(guests: Sequence[Mapping[str, Any]], product: str) -> list[Mapping[str, Any]]:
    """Return the templates of a product."""
    return [
        one for one in guests
        if one.get("template") and labels.PRODUCT_TAG in _tags(one) and str(one.get("name")).startswith(f"{product}-")
    ]  # fmt: skip


def choose(api: Api, guests: Sequence[Mapping[str, Any]], request: Request, product: str) -> Mapping[str, Any]:
    """Return the template to clone, the one on the wanted node first. Raises SpecError that says what there is."""
    there = templates(guests, product)
    if request.template:
        name, wanted = request.template, f"called {request.template}"
    else:
        name = _of_channel(api, there, request.channel)
        wanted = f"in the channel {request.channel}"
    found = [one for one in there if one["name"] == name]
    if not found:
        shown = sorted({f"{one['name']} ({', '.join(sorted(_tags(one)))})" for one in there})
        raise SpecError(
            f"there is no template of {product} {wanted}", details="\n".join(shown[-SEEN:]),
            hint="publish one: nox -s publish" if not there else "name one of these with --template, or its --channel",
        )  # fmt: skip
    if len({_digest(one) for one in found}) > 1:
        places = ", ".join(f"{one['node']}/{one['vmid']}" for one in found)
        raise SpecError(
            f"the templates called {name} are not of the same image: {places}", hint="python -m build drift says more"
        )
    return min(found, key=lambda one: (one["node"] != request.node, int(one["vmid"])))


def _of_channel(api: Api, there: Sequence[Mapping[str, Any]], channel: str) -> str:
    """Return the name of the template that a channel points at; empty when there is none."""
    found = [one for one in there if channel in _tags(one)]
    if channel == release_policy.CANDIDATE:
        # Nobody moves this one: the newest version that is not revoked. When all are, the newest says why.
        good = [one for one in found if labels.REVOKED_TAG not in _tags(one)]
        if good and good != found and (newest := max(found, key=_version))["name"] != max(good, key=_version)["name"]:
            log.warn(f"{newest['name']} is newer, and revoked: it is passed over")
        found = good or found
    elif len({one["name"] for one in found}) > 1:
        seen = [channels.read(api, one) for one in found]
        goal = release_state.fold(channels.mirrored(seen)).goal(channel)
        pointed = [one for one, template in zip(found, seen, strict=True) if template.is_of(goal)]
        found = pointed or found
    return str(max(found, key=_version)["name"]) if found else ""


def source(api: Api, found: Mapping[str, Any], request: Request) -> Source:
    """Read a template's label, and look whether it can be cloned to the wanted node. Raises SpecError when not."""
    node, vmid = str(found["node"]), int(found["vmid"])
    config = api.get(f"/nodes/{node}/qemu/{vmid}/config")
    label = labels.parse(str(config.get("description", "")))
    if label is None or label.state is not State.TEMPLATE or labels.digest_tag(label.digest) != _digest(found):
        raise SpecError(
            f"{found['name']} on {node} (VM {vmid}) is not what publish left: its description and tags do not fit",
            hint="python -m build drift says what was changed; clone another one with --template",
        )
    _require_unrevoked(channels.template_of(found, config))
    if request.node in ("", node):
        return Source(node, vmid, label, config)
    _require_shared(api, node, config, request, str(found["name"]))
    return Source(node, vmid, label, config, target=request.node)


def _require_unrevoked(template: channels.Template) -> None:
    """Raise SpecError that says why a template is revoked."""
    why = channels.own_revocation(template)
    if why or labels.REVOKED_TAG in template.tags:
        said = f": {why.reason} ({why.who}, {why.time})" if why else ": it bears that tag, and no reason"
        raise SpecError(
            f"{template.name} is revoked{said}", hint="clone another version: nox -s history shows where the channels point"
        )


def _require_shared(api: Api, node: str, config: Mapping[str, Any], request: Request, name: str) -> None:
    """Raise SpecError unless every disk is on a storage that the wanted node has too, and so is the new one's."""
    used = {str(value).partition(":")[0] for key, value in config.items() if DRIVE.fullmatch(key) and ":" in str(value)}
    storages = {one["storage"]: one for one in api.get(f"/nodes/{node}/storage")}
    wanted = used | ({request.storage} if request.storage else set())
    if local := sorted(one for one in wanted if not storages.get(one, {}).get("shared")):
        raise SpecError(
            f"{name} is on {node} and not on {request.node}, and {', '.join(local)} is not shared between them",
            hint=f"publish it there: nox -s publish -- --node {request.node}; or clone on {node}: --node {node}",
        )


def _tags(guest: Mapping[str, Any]) -> frozenset[str]:
    return labels.split_tags(str(guest.get("tags", "")))


def _digest(guest: Mapping[str, Any]) -> str:
    return ";".join(sorted(tag for tag in _tags(guest) if tag.startswith("sha256-")))


def _version(guest: Mapping[str, Any]) -> tuple[tuple[int, ...], bool, str]:
    return order(_tags(guest))


def order(tags: Collection[str]) -> tuple[tuple[int, ...], bool, str]:
    """Order versions by a template's tags: 1.10.0 is newer than 1.9.0, and 1.0.0 than 1.0.0-rc1."""
    found = next((match for tag in tags if (match := VERSION.fullmatch(tag))), None)
    if found is None:
        return (), False, ""
    numbers = tuple(int(part) for part in found["numbers"].split("."))
    return numbers, not found["before"], found["before"] or ""
