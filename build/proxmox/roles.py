"""Least privilege on Proxmox VE: privileges each API token needs, their paths, and the commands that grant them.

Source: the permission checks of qemu-server (PVE/API2/Qemu.pm, Agent.pm) and pve-storage (PVE/API2/Storage). Version 9
split VM.Monitor; since then querying addresses from the guest agent needs VM.GuestAgent.Audit, and reading a clone's
host key VM.GuestAgent.FileRead; both needed VM.Monitor before. A clone gets its site settings in its SMBIOS:
VM.Config.HWType.

Measured on Proxmox VE 9.2: each privilege was removed once from a token, and NEEDS lists the requests that failed then.
Two pairs are alternatives there: VM.Config.Network instead of VM.Config.Cloudinit to set a cloud-init key, and
Datastore.AllocateSpace instead of Datastore.Audit to read a storage.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from build.spec.cluster import Role, Settings

GUEST_AGENT_SINCE = 9
_CONFIG = frozenset(
    f"VM.Config.{what}" for what in ("Disk", "CDROM", "CPU", "Memory", "Network", "HWType", "Options", "Cloudinit")
)


# Each privilege, and the API calls of Goldsmith that need it (N: a node, ID: a VM, S: a storage).
NEEDS: Mapping[str, str] = {
    "Datastore.Allocate": "DELETE /nodes/N/storage/S/content/...",
    "Datastore.AllocateSpace": "POST /nodes/N/qemu, POST /nodes/N/qemu/ID/clone and move_disk, PUT /nodes/N/qemu/ID/resize",
    "Datastore.AllocateTemplate": "POST /nodes/N/storage/S/upload",
    "Datastore.Audit": "POST /nodes/N/qemu with import-from, GET /nodes/N/storage/S/content: the image, and disks for prune",
    "Pool.Audit": "GET /cluster/resources, for the pool of a guest: drift compares it, replace --pool asks for it",
    "SDN.Use": "POST /nodes/N/qemu and /clone, with a network card on the bridge",
    "VM.Allocate": "POST /nodes/N/qemu, POST .../clone (the new VM), POST .../template, DELETE /nodes/N/qemu/ID",
    "VM.Audit": "GET /nodes/N/qemu, GET /nodes/N/qemu/ID/config, GET .../status/current",
    "VM.Clone": "POST /nodes/N/qemu/ID/clone",
    "VM.Config.CDROM": "PUT /nodes/N/qemu/ID/config with ide2, the cloud-init drive (build --on proxmox)",
    "VM.Config.CPU": "POST /nodes/N/qemu and PUT .../config with cpu and cores",
    "VM.Config.Cloudinit": "PUT /nodes/N/qemu/ID/config with sshkeys, ipconfig0, ciupgrade, and with ide2",
    "VM.Config.Disk": "POST /nodes/N/qemu with scsi0, efidisk0 and boot, PUT .../resize, POST .../move_disk (both VMs)",
    "VM.Config.HWType": "POST /nodes/N/qemu with machine and scsihw, PUT .../config with smbios1",
    "VM.Config.Memory": "POST /nodes/N/qemu and PUT .../config with memory",
    "VM.Config.Network": "POST /nodes/N/qemu and PUT .../config with net0, sshkeys, ipconfig0, ciupgrade",
    "VM.Config.Options": "PUT /nodes/N/qemu/ID/config with tags, description, protection, onboot",
    "VM.GuestAgent.Audit": "GET /nodes/N/qemu/ID/agent/network-get-interfaces",
    "VM.GuestAgent.FileRead": "GET /nodes/N/qemu/ID/agent/file-read",
    "VM.Monitor": "GET /nodes/N/qemu/ID/agent/network-get-interfaces and file-read, before version 9",
    "VM.PowerMgmt": "POST /nodes/N/qemu/ID/status/start and stop",
}


@dataclass(frozen=True)
class Grant:
    """Privileges that a role needs on one path of the access tree, and their purpose."""

    path: str
    privileges: frozenset[str]
    purpose: str


def agent_privileges(major: int) -> frozenset[str]:
    """Return the privileges to read addresses and the host key through the guest agent on a major version of Proxmox VE."""
    return frozenset({"VM.GuestAgent.Audit", "VM.GuestAgent.FileRead"} if major >= GUEST_AGENT_SINCE else {"VM.Monitor"})


def grants(role: Role, settings: Settings, *, major: int) -> tuple[Grant, ...]:
    """Return the privileges that the token of ``role`` needs on a cluster of that major version."""
    pool, disks, media = f"/pool/{settings.pool}", f"/storage/{settings.storage}", f"/storage/{settings.media}"
    network = f"/sdn/zones/localnetwork/{settings.bridge}" + (f"/{settings.vlan}" if settings.vlan else "")
    machine = frozenset({"VM.Allocate", "VM.Audit", "VM.PowerMgmt"})
    clone = agent_privileges(major) | machine | {"VM.Clone"}
    space = frozenset({"Datastore.AllocateSpace"} | (set() if role is Role.VERIFIER else {"Datastore.Audit"}))
    shared = (Grant(disks, space, "make disks"), Grant(network, frozenset({"SDN.Use"}), "attach the network card"))
    if role is Role.PUBLISHER:
        # Allocate, to delete uploads, only on the media storage.
        upload = frozenset(f"Datastore.{what}" for what in ("AllocateTemplate", "Allocate", "Audit"))
        # The verifier handles clones and their agents; the publisher only stops and removes leftover clones.
        templates = Grant(pool, machine | _CONFIG, "make, mark and protect templates")
        return (templates, Grant(media, upload, "upload the image"), *shared)
    config = frozenset(f"VM.Config.{what}" for what in ("Disk", "HWType", "Options"))
    if role is Role.VERIFIER:
        return (Grant(pool, clone | config | {"VM.Config.Cloudinit"}, "start and remove clones of the template"), *shared)
    source = Grant(pool, frozenset({"Pool.Audit", "VM.Audit", "VM.Clone"}), "clone templates, and compare them")
    own = (clone | config | {"VM.Config.CPU", "VM.Config.Memory", "VM.Config.Network"}) - {"VM.Clone"}
    if role is Role.REPLACER:
        # What an operator's machine may have beyond the settings of clone, such as a search domain or a citype.
        # Pool.Audit: without it no guest is listed with its pool, and replace --pool finds none.
        own |= {"VM.Config.Cloudinit", "Pool.Audit"}
        return (source, Grant(f"/pool/{settings.clones}", own, "exchange machines and move their data disks"), *shared)
    return (source, Grant(f"/pool/{settings.clones}", own, "make and configure machines"), *shared)


def missing(required: Iterable[Grant], effective: Mapping[str, Mapping[str, int]]) -> list[tuple[Grant, frozenset[str]]]:
    """Compare with ``GET /access/permissions`` (path -> privilege -> propagates); return the missing privileges.

    A privilege is valid on a path if it is granted there, or on a parent with propagation. An entry for the path itself
    replaces the propagated ones (pve-access-control, RPCEnvironment::permissions); the API answers with effective
    values for the paths that have an entry, so the longest one applies.
    """
    lacking_grants = []
    for grant in required:
        have = _effective(grant.path, effective)
        if lacking := grant.privileges - have:
            lacking_grants.append((grant, frozenset(lacking)))
    return lacking_grants


def _effective(path: str, effective: Mapping[str, Mapping[str, int]]) -> frozenset[str]:
    if path in effective:
        return frozenset(effective[path])
    parents = [entry for entry in effective if entry == "/" or path.startswith(f"{entry}/")]
    if not parents:
        return frozenset()
    return frozenset(name for name, propagates in effective[max(parents, key=len)].items() if propagates)


def commands(settings: Settings, *, major: int, user: str = "goldsmith@pve") -> list[str]:
    """Return the shell commands that create the pools, user, roles, tokens and ACL entries.

    They are run on one node as root. If they are run again, after an update or a change of golden.yaml, they modify
    existing objects: a role has exactly these privileges afterwards.
    """
    comment = "--comment 'golden images'"
    lines = [
        _ensure(f"pool modify {pool} {comment}", f"pool add {pool} {comment}")
        for pool in dict.fromkeys((*_with_parents(settings.pool), *_with_parents(settings.clones)))
    ]
    lines.append(_ensure(f"user modify {user} {comment}", f"user add {user} {comment}"))
    tokens_at = len(lines)
    for role in Role:
        for index, grant in enumerate(grants(role, settings, major=major)):
            name = f"Golden{role.capitalize()}{index or ''}"
            privileges = f"{name} --privs {shlex.quote(' '.join(sorted(grant.privileges)))}"
            lines.append(_ensure(f"role modify {privileges}", f"role add {privileges}"))
            # With privilege separation a token has the privileges that both token and user have.
            for who in (f"--users {user}", f"--tokens {shlex.quote(f'{user}!{role}')}"):
                lines.append(f"pveum acl modify {grant.path} {who} --roles {name}")
        token = f"{user} {role} --privsep 1"
        lines.insert(tokens_at, _ensure(f"user token modify {token}", f"user token add {token}"))
    return lines


def _ensure(modify: str, add: str) -> str:
    """Return a command that modifies an existing object, or else creates it; the output of ``add`` is shown."""
    return f"pveum {modify} 2>/dev/null || pveum {add}"


def _with_parents(pool: str) -> list[str]:
    """Return a pool and its parents, the outermost first: Proxmox does not create parents automatically."""
    parts = pool.split("/")
    return ["/".join(parts[: number + 1]) for number in range(len(parts))]
