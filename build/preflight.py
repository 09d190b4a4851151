"""Looks at a cluster before anything is changed there: what publishing needs, what is missing, and the remedy for each.

Reads only: a few calls for the cluster and two for each node, however many guests there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from build import roles
from build.cluster import Role, Settings
from build.errors import GoldsmithError, HostError
from build.pve import Api, each

# pve-storage 8.3.6: the upload of qcow2 as content type import.
IMPORT_SINCE = (8, 4)
OLDEST = (8, 0)
# The most connections at a time, whatever the number of nodes.
MOST_CONNECTIONS = 32
GIB = 1 << 30
# Storages that take the whole size of a disk at once: the template, and two clones while it is verified.
THICK, THICK_COPIES = frozenset({"lvm", "iscsi", "iscsidirect"}), 3


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; ``remedy`` is empty when nothing is missing."""

    what: str
    text: str
    remedy: str = ""

    @property
    def good(self) -> bool:
        return not self.remedy


@dataclass
class View:
    """What was seen: the version, which of our storages all nodes share, and every finding."""

    version: tuple[int, int] = (0, 0)
    disks_shared: bool = False
    media_shared: bool = False
    findings: list[Finding] = field(default_factory=list)

    @property
    def misses(self) -> list[Finding]:
        return [one for one in self.findings if not one.good]

    def require(self) -> None:
        """Raise HostError that names every miss with its remedy."""
        if misses := self.misses:
            raise HostError(
                f"the cluster is not ready: {len(misses)} of {len(self.findings)} things that were looked at are missing",
                details="\n".join(f"{one.what}: {one.text}\n  -> {one.remedy}" for one in misses),
                hint="python -m build doctor --proxmox shows everything that was looked at; nothing was changed",
            )  # fmt: skip


@dataclass(frozen=True)
class Need:
    """How much room an image needs, in bytes: the uploaded file, and its disk; 0 when there is no image yet."""

    upload: int = 0
    disk: int = 0


def look(
    api: Api, settings: Settings, *, nodes: Sequence[str], need: Need, tokens: Mapping[Role, Api], ssh: bool = False,
    medium: str = "import",
) -> View:
    """Look at the cluster with the tokens of the roles; ``ssh``: images may go over SSH when the version is too old.

    ``medium``: the content type that is uploaded, an image or an ISO.
    """
    view = View(version=api.version())
    view.findings.append(_version(view.version, imports=medium == "import" and not ssh))
    for role, own in tokens.items():
        view.findings += _privileges(role, own, settings, major=view.version[0])
    states = {one["node"]: one.get("status", "unknown") for one in api.get("/nodes")}
    for node in nodes:
        view.findings.append(_node(node, states))
    up = [node for node in nodes if states.get(node) == "online"]
    _look_at_nodes(api, settings, view, up, need, medium="" if ssh and view.version < IMPORT_SINCE else medium)
    return view


def _version(version: tuple[int, int], *, imports: bool) -> Finding:
    text = f"Proxmox VE {version[0]}.{version[1]}"
    if version < OLDEST:
        return Finding("version", f"{text} is not supported", "upgrade the cluster to Proxmox VE 8.4 or newer")
    if version < IMPORT_SINCE and imports:
        return Finding("version", f"{text} takes no images over its API", "upgrade to 8.4 or newer, or publish with --ssh")
    return Finding("version", text)


def _privileges(role: Role, api: Api, settings: Settings, *, major: int) -> list[Finding]:
    what = f"token: {role}"
    try:
        effective = api.get("/access/permissions")
    except GoldsmithError as error:
        return [Finding(what, error.brief, error.hint or "make a token: python -m build doctor --roles")]
    grants = roles.grants(role, settings, major=major)
    lacking = roles.missing(grants, effective)
    if not lacking:
        return [Finding(what, f"{api.token.identity} may {', '.join(grant.purpose for grant in grants)}")]
    return [
        Finding(what, f"{api.token.identity} lacks {', '.join(sorted(names))} on {grant.path}, to {grant.purpose}",
                "run on a node the commands of: python -m build doctor --roles")
        for grant, names in lacking
    ]  # fmt: skip


def _node(node: str, states: Mapping[str, str]) -> Finding:
    if node not in states:
        return Finding(f"node {node}", "the cluster has no such node", f"it has: {', '.join(sorted(states))}")
    if states[node] != "online":
        return Finding(f"node {node}", f"it is {states[node]}", "start it, or leave it out: --node NAME for each other one")
    return Finding(f"node {node}", "online")


def _look_at_nodes(api: Api, settings: Settings, view: View, nodes: Sequence[str], need: Need, *, medium: str) -> None:
    def one(own: Api, node: str) -> tuple[list[Finding], bool, bool]:
        return _look_at_node(own, settings, node, need, medium=medium)

    for findings, disks_shared, media_shared in each(api, one, nodes, most=MOST_CONNECTIONS):
        view.findings += findings
        view.disks_shared, view.media_shared = disks_shared, media_shared


def _look_at_node(
    api: Api, settings: Settings, node: str, need: Need, *, medium: str
) -> tuple[list[Finding], bool, bool]:
    try:
        storages = {one["storage"]: one for one in api.get(f"/nodes/{node}/storage")}
        bridges = [one["iface"] for one in api.get(f"/nodes/{node}/network", type="any_bridge")]
    except GoldsmithError as error:
        return [Finding(f"node {node}", error.brief, error.hint or "look at the node")], False, False
    disks, media = storages.get(settings.storage, {}), storages.get(settings.media, {})
    copies = THICK_COPIES if disks.get("type") in THICK else 1
    findings = [_storage(settings.storage, disks, node, "images", need.disk * copies)]
    if medium:
        findings.append(_storage(settings.media, media, node, medium, need.upload))
    findings.append(_bridge(settings.bridge, bridges, node))
    return findings, bool(disks.get("shared")), bool(media.get("shared"))


def _storage(name: str, found: Mapping[str, Any], node: str, content: str, need: int) -> Finding:
    what = f"storage {name} on {node}"
    if not found:
        return Finding(
            what, "it is not there, or the token may not see it",
            f"pvesm status on {node} shows its storages; golden.yaml names ours; doctor --roles shows how to grant it",
        )  # fmt: skip
    types = str(found.get("content", "")).split(",")
    if content not in types:
        listed = ",".join(sorted({*filter(None, types), content}))
        return Finding(what, f"its content does not include {content}", f"pvesm set {name} --content {listed}")
    if not found.get("enabled", 1) or not found.get("active", 1):
        return Finding(what, "it is not active", f"pvesm status on {node} says more; pvesm set {name} --disable 0")
    free = int(found.get("avail", 0))
    if free < need:
        text = f"{free / GIB:.1f} GiB free, {need / GIB:.1f} GiB needed"
        return Finding(what, text, "free space there, or name another storage in golden.yaml")
    shared = ", shared" if found.get("shared") else ""
    return Finding(what, f"{found.get('type', '?')}{shared}, {free / GIB:.1f} GiB free, takes {content}")


def _bridge(name: str, bridges: Sequence[str], node: str) -> Finding:
    what = f"bridge {name} on {node}"
    if name in bridges:
        return Finding(what, "there")
    listed = ", ".join(sorted(bridges)) or "none"
    text = f"it is not there, or the token may not use it; it sees: {listed}"
    return Finding(what, text, "name one of them in golden.yaml, or grant SDN.Use: python -m build doctor --roles")
