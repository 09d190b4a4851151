"""Which template a machine is made of: a given one, or the newest of a channel, on the node or where it can be reached from.

One list of the cluster's guests is enough to choose. What bears our tag and is not what was published is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from build import labels
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


def choose(guests: Sequence[Mapping[str, Any]], request: Request, product: str) -> Mapping[str, Any]:
    """Return the template to clone, the one on the wanted node first. Raises SpecError that says what there is."""
    there = templates(guests, product)
    if request.template:
        name, wanted = request.template, f"called {request.template}"
    else:
        in_channel = [one for one in there if request.channel in _tags(one)]
        name = str(max(in_channel, key=_version)["name"]) if in_channel else ""
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
    if request.node in ("", node):
        return Source(node, vmid, label, config)
    _require_shared(api, node, config, request, str(found["name"]))
    return Source(node, vmid, label, config, target=request.node)


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
    """Order versions: 1.10.0 is newer than 1.9.0, and 1.0.0 than 1.0.0-rc1."""
    found = next((match for tag in _tags(guest) if (match := VERSION.fullmatch(tag))), None)
    if found is None:
        return (), False, ""
    numbers = tuple(int(part) for part in found["numbers"].split("."))
    return numbers, not found["before"], found["before"] or ""
