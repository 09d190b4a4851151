"""Checks a cluster before anything is changed there: requirements of publishing, and the fix for each missing one.

Read-only: a few calls for the cluster and two for each node, for any number of guests.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from build.core.errors import GoldsmithError, HostError
from build.core.units import GIB
from build.proxmox import roles
from build.proxmox.client import Api, each
from build.spec.cluster import Role, Settings

# pve-storage 8.3.6: the upload of qcow2 as content type import.
IMPORT_SINCE = (8, 4)
OLDEST = (8, 0)
# The maximum of concurrent connections, for any number of nodes.
MOST_CONNECTIONS = 32
# Storages that allocate the full size of a disk at once: for the template, and two clones during verification.
THICK, THICK_COPIES = frozenset({"lvm", "iscsi", "iscsidirect"}), 3


@dataclass(frozen=True)
class Finding:
    """The result of one check; ``remedy`` is empty if nothing is missing."""

    what: str
    text: str
    remedy: str = ""

    @property
    def good(self) -> bool:
        return not self.remedy


@dataclass
class View:
    """The result of all checks: the version, which of the configured storages all nodes share, and every finding."""

    version: tuple[int, int] = (0, 0)
    disks_shared: bool = False
    media_shared: bool = False
    findings: list[Finding] = field(default_factory=list)

    @property
    def misses(self) -> list[Finding]:
        return [finding for finding in self.findings if not finding.good]

    def require(self) -> None:
        """Raise HostError that lists every missing requirement with its fix."""
        if misses := self.misses:
            raise HostError(
                f"the cluster is not ready: {len(misses)} of {len(self.findings)} checks failed",
                details="\n".join(f"{finding.what}: {finding.text}\n  -> {finding.remedy}" for finding in misses),
                hint="nothing was changed; list all checks with nox -s doctor -- --proxmox",
            )  # fmt: skip


@dataclass(frozen=True)
class Need:
    """The space that an image needs, in bytes: the uploaded file, and its disk; 0 if there is no image yet."""

    upload: int = 0
    disk: int = 0


def look(
    api: Api,
    settings: Settings,
    *,
    nodes: Sequence[str],
    need: Need,
    tokens: Mapping[Role, Api],
    ssh: bool = False,
    medium: str = "import",
) -> View:
    """Check the cluster with the tokens of the roles; ``ssh``: images may be copied over SSH if the version is too old.

    ``medium``: the content type of the upload, an image or an ISO.
    """
    view = View(version=api.version())
    view.findings.append(_version(view.version, imports=medium == "import" and not ssh))
    for role, role_api in tokens.items():
        view.findings += _privileges(role, role_api, settings, major=view.version[0])
    states = {entry["node"]: entry.get("status", "unknown") for entry in api.get("/nodes")}
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
        return Finding(
            "version", f"{text} does not accept images over its API", "upgrade to 8.4 or newer, or publish with --ssh"
        )
    return Finding("version", text)


def _privileges(role: Role, api: Api, settings: Settings, *, major: int) -> list[Finding]:
    what = f"token: {role}"
    try:
        effective = api.get("/access/permissions")
    except GoldsmithError as error:
        return [Finding(what, error.brief, error.hint or "create a token: nox -s doctor -- --roles")]
    grants = roles.grants(role, settings, major=major)
    lacking = roles.missing(grants, effective)
    if not lacking:
        return [Finding(what, f"{api.token.identity} may {', '.join(grant.purpose for grant in grants)}")]
    return [
        Finding(
            what,
            f"{api.token.identity} lacks {', '.join(sorted(names))} on {grant.path}, to {grant.purpose}{_calls(names)}",
            f"run the commands of nox -s doctor -- --roles --pve {major} on a node (they can be repeated)",
        )
        for grant, names in lacking
    ]  # fmt: skip


def _calls(privileges: Collection[str]) -> str:
    """Return the calls that need each privilege, one a line."""
    return "".join(f"\n  {name}: {roles.NEEDS[name]}" for name in sorted(privileges))


def _node(node: str, states: Mapping[str, str]) -> Finding:
    if node not in states:
        return Finding(f"node {node}", "the cluster has no such node", f"choose from: {', '.join(sorted(states))}")
    if states[node] != "online":
        return Finding(f"node {node}", f"it is {states[node]}", "start it, or omit it: --node NAME for each other node")
    return Finding(f"node {node}", "online")


def _look_at_nodes(api: Api, settings: Settings, view: View, nodes: Sequence[str], need: Need, *, medium: str) -> None:
    def one(own: Api, node: str) -> tuple[list[Finding], bool, bool]:
        return _look_at_node(own, settings, node, need, medium=medium)

    for findings, disks_shared, media_shared in each(api, one, nodes, most=MOST_CONNECTIONS):
        view.findings += findings
        view.disks_shared, view.media_shared = disks_shared, media_shared


def _look_at_node(api: Api, settings: Settings, node: str, need: Need, *, medium: str) -> tuple[list[Finding], bool, bool]:
    try:
        storages = {storage["storage"]: storage for storage in api.get(f"/nodes/{node}/storage")}
        bridges = [interface["iface"] for interface in api.get(f"/nodes/{node}/network", type="any_bridge")]
    except GoldsmithError as error:
        return [Finding(f"node {node}", error.brief, error.hint or "check the node")], False, False
    disks, media = storages.get(settings.storage, {}), storages.get(settings.media, {})
    copies = THICK_COPIES if disks.get("type") in THICK else 1
    findings = [_storage(settings.storage, disks, node, "images", need.disk * copies)]
    if medium:
        findings.append(_storage(settings.media, media, node, medium, need.upload))
    findings.append(_bridge(settings.bridge, bridges, node))
    return findings, bool(disks.get("shared")), bool(media.get("shared"))


def _storage(name: str, facts: Mapping[str, Any], node: str, content: str, need: int) -> Finding:
    what = f"storage {name} on {node}"
    if not facts:
        return Finding(
            what, "it does not exist, or the token may not see it",
            f"compare golden.yaml with pvesm status on {node}; nox -s doctor -- --roles prints the commands "
            "that grant access",
        )  # fmt: skip
    types = str(facts.get("content", "")).split(",")
    if content not in types:
        listed = ",".join(sorted({*filter(None, types), content}))
        return Finding(what, f"its content does not include {content}", f"pvesm set {name} --content {listed}")
    if not facts.get("enabled", 1) or not facts.get("active", 1):
        return Finding(what, "it is not active", f"check pvesm status on {node}, then run pvesm set {name} --disable 0")
    free = int(facts.get("avail", 0))
    if free < need:
        text = f"{free / GIB:.1f} GiB free, {need / GIB:.1f} GiB needed"
        return Finding(what, text, "free space on it, or set another storage in golden.yaml")
    shared = ", shared" if facts.get("shared") else ""
    return Finding(what, f"{facts.get('type', '?')}{shared}, {free / GIB:.1f} GiB free, takes {content}")


def _bridge(name: str, bridges: Sequence[str], node: str) -> Finding:
    what = f"bridge {name} on {node}"
    if name in bridges:
        return Finding(what, "exists")
    listed = ", ".join(sorted(bridges)) or "none"
    text = f"it does not exist, or the token may not use it; visible are: {listed}"
    return Finding(what, text, "set one of them in golden.yaml, or grant SDN.Use: nox -s doctor -- --roles")
