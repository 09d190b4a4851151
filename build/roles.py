"""Least privilege on Proxmox VE: what each of our tokens needs, where, and the commands that grant it.

Source: the permission checks of qemu-server (PVE/API2/Qemu.pm, Agent.pm) and pve-storage (PVE/API2/Storage). Version 9
split VM.Monitor; to ask the guest agent for addresses needs VM.GuestAgent.Audit there, to read a clone's host key
VM.GuestAgent.FileRead, and both VM.Monitor before. What a clone is told of its site travels in its SMBIOS: VM.Config.HWType.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from build.cluster import Role, Settings

GUEST_AGENT_SINCE = 9
_CONFIG = frozenset(
    f"VM.Config.{what}" for what in ("Disk", "CDROM", "CPU", "Memory", "Network", "HWType", "Options", "Cloudinit")
)


@dataclass(frozen=True)
class Grant:
    """Privileges that a role needs on one path of the access tree, and what for."""

    path: str
    privileges: frozenset[str]
    purpose: str


def agent_privileges(major: int) -> frozenset[str]:
    """Return the privileges to ask a guest agent for addresses and the host key on a major version of Proxmox VE."""
    return frozenset({"VM.GuestAgent.Audit", "VM.GuestAgent.FileRead"} if major >= GUEST_AGENT_SINCE else {"VM.Monitor"})


def grants(role: Role, settings: Settings, *, major: int) -> tuple[Grant, ...]:
    """Return what the token of ``role`` needs on a cluster of that major version."""
    pool, disks, media = f"/pool/{settings.pool}", f"/storage/{settings.storage}", f"/storage/{settings.media}"
    network = f"/sdn/zones/localnetwork/{settings.bridge}" + (f"/{settings.vlan}" if settings.vlan else "")
    clone = agent_privileges(major) | {"VM.Allocate", "VM.Audit", "VM.Clone", "VM.PowerMgmt"}
    shared = (
        Grant(disks, frozenset({"Datastore.AllocateSpace", "Datastore.Audit"}), "make disks"),
        Grant(network, frozenset({"SDN.Use"}), "attach the network card"),
    )
    if role is Role.PUBLISHER:
        # Allocate, to delete what was uploaded, is on the media storage alone.
        upload = frozenset(f"Datastore.{what}" for what in ("AllocateTemplate", "Allocate", "Audit", "AllocateSpace"))
        templates = Grant(pool, clone | _CONFIG, "make, mark and protect templates")
        return (templates, Grant(media, upload, "upload the image"), *shared)
    config = frozenset(f"VM.Config.{what}" for what in ("CDROM", "Cloudinit", "HWType", "Network", "Options"))
    if role is Role.VERIFIER:
        return (Grant(pool, clone | config | {"VM.Config.Disk"}, "start and remove clones of the template"), *shared)
    source = Grant(pool, frozenset({"VM.Audit", "VM.Clone"}), "clone templates")
    own = (clone | config | {"VM.Config.CPU", "VM.Config.Memory", "VM.Config.Disk"}) - {"VM.Clone"}
    return (source, Grant(f"/pool/{settings.clones}", own, "make and configure machines"), *shared)


def missing(wanted: Iterable[Grant], effective: Mapping[str, Mapping[str, int]]) -> list[tuple[Grant, frozenset[str]]]:
    """Compare with ``GET /access/permissions`` (path -> privilege -> propagates); return what is not granted.

    A privilege holds on a path if it is granted there, or on a parent with propagation. A path of its own entry replaces
    what its parents propagate (pve-access-control, RPCEnvironment::permissions); the API answers with effective values
    for the paths that have an entry, so that the longest one decides.
    """
    found = []
    for grant in wanted:
        have = _effective(grant.path, effective)
        if lacking := grant.privileges - have:
            found.append((grant, frozenset(lacking)))
    return found


def _effective(path: str, effective: Mapping[str, Mapping[str, int]]) -> frozenset[str]:
    if path in effective:
        return frozenset(effective[path])
    parents = [entry for entry in effective if entry == "/" or path.startswith(f"{entry}/")]
    if not parents:
        return frozenset()
    return frozenset(name for name, propagates in effective[max(parents, key=len)].items() if propagates)


def commands(settings: Settings, *, major: int, user: str = "goldsmith@pve") -> list[str]:
    """Return the shell commands that make the pools, user, roles, tokens and entries, to be run on one node as root."""
    lines = [f"pveum pool add {pool}" for pool in dict.fromkeys((settings.pool, settings.clones))]
    lines.append(f"pveum user add {user} --comment 'golden images'")
    tokens_at = len(lines)
    for role in Role:
        for index, grant in enumerate(grants(role, settings, major=major)):
            name = f"Golden{role.capitalize()}{index or ''}"
            lines.append(f"pveum role add {name} --privs {shlex.quote(' '.join(sorted(grant.privileges)))}")
            # With separated privileges a token may do what both it and its user may.
            for who in (f"--users {user}", f"--tokens {shlex.quote(f'{user}!{role}')}"):
                lines.append(f"pveum acl modify {grant.path} {who} --roles {name}")
        lines.insert(tokens_at, f"pveum user token add {user} {role} --privsep 1")
    return lines
