"""Translates error responses of Proxmox VE to errors with the cause in an administrator's terms, and the next step.

Sources: the error texts of qemu-server (AbstractConfig.pm, QemuServer.pm), pve-storage and pve-access-control, and
recorded responses of Proxmox VE 9.2 and 8.4 (tests/data/pve).
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import proxmoxer
import requests

from build.core.errors import GoldsmithError, StepFailed
from build.spec.cluster import Settings, Token

# pve-access-control: RPCEnvironment::check, "Permission check failed (/path, Privilege)".
DENIED = re.compile(r"Permission check failed \((?P<path>[^,)]+), (?P<privileges>[^)]+)\)")
# The response for a pool that does not exist has the same status.
NO_POOL = re.compile(r"pool '(?P<pool>[^']*)' does not exist")
NODE = re.compile(r"/nodes/(?P<node>[^/ ]+)")
POOLS = "check proxmox.pool and proxmox.clones in golden.yaml; nox -s doctor -- --roles prints the commands that create them"
# The status of a connection that failed before there was a response.
NO_ANSWER = 0
# 595 and its neighbours: the node that received the request could not reach the target node.
UNREACHABLE = range(595, 600)
REPEAT = "run the same command again"
# The digest in the request is no longer that of the configuration: qemu-server, PVE/API2/Qemu.pm (update_vm_api), and
# PVE::Tools::assert_if_modified.
CHANGED = re.compile(r"checksum miss?match|modified configuration|changed? by other user")
# qemu-server: the file lock of a configuration. The creation of a VM holds it, and each clone of the VM until its disks are
# copied. A request that waits ten seconds for it fails with this.
CONFIG_LOCK = "can't lock file '/var/lock/qemu-server/lock-{vmid}.conf'"


class ApiError(StepFailed):
    """The API returned an error; ``status`` is its HTTP status, 0 if there was no response."""

    def __init__(self, brief: str, *, status: int, details: str = "", hint: str = "") -> None:
        super().__init__(brief, details=details, hint=hint)
        self.status = status


class Denied(ApiError):
    """The token lacks a privilege; ``path`` and ``privileges`` are empty if Proxmox did not name them."""

    def __init__(self, brief: str, *, details: str = "", hint: str = "", path: str = "", privileges: str = "") -> None:
        super().__init__(brief, status=403, details=details, hint=hint)
        self.path, self.privileges = path, privileges


class TaskFailed(StepFailed):
    """A task of Proxmox failed, or exceeded its time limit."""


@dataclass(frozen=True)
class Cause:
    """The cause of an error: a pattern of Proxmox's message, the cause in an administrator's terms, and the next step.

    Groups of the pattern: ``by``, the name of a lock, and ``storage``, follow the cause. The hint may name ``{storage}``.
    """

    pattern: re.Pattern[str]
    name: str
    hint: str


_WAIT = f"another task holds the VM's lock: wait for it, then {REPEAT}"
# qemu-server: the locks of a configuration, and the work that holds each.
LOCKS = {
    "backup": "a backup", "clone": "a clone", "create": "its creation", "migrate": "a migration", "rollback": "a rollback",
    "snapshot": "a snapshot", "snapshot-delete": "the removal of a snapshot", "suspending": "a suspension",
    "suspended": "a suspension", "destroyed": "its removal",
}  # fmt: skip
# The first match is used.
CAUSES = tuple(
    Cause(re.compile(pattern), name, hint)
    for pattern, name, hint in (
        # Without quorum /etc/pve can be read and not written; the privileges of the API user are never the reason.
        (r"no quorum|unable to (?:open|write|create) (?:file |directory )?'/etc/pve/[^']*'.*Permission denied",
         "the cluster has no quorum",
         "the cluster has lost its quorum: nothing can be changed until it is back (pvecm status on a node)"),
        (r"file change[d]? by other user|detected modified configuration", "the configuration was changed at the same time",
         f"{REPEAT}; find the other user in Proxmox's task list"),
        (r"protection mode enabled", "the VM is protected",
         "to change it, run qm set VMID --protection 0 on its node, and --protection 1 afterwards"),
        (r"VM is locked \((?P<by>[a-z-]+)\)", "the VM is locked", _WAIT),
        (r"can't lock file|VM is locked", "the VM's configuration is locked", _WAIT),
        (r"(?:(?:storage|on) '(?P<storage>[^']+)'.*)?(?:No space left|not enough (?:free )?space)", "not enough free space",
         "free space on the storage {storage}"),
        (r"storage '(?P<storage>[^']+)' does not support (?:vm images|'images' content)", "no disks of VMs are allowed",
         "add images to its content types (pvesm set {storage} --content), or choose another storage"),
        (r"Linked clone feature is not supported", "linked clones are not supported",
         "this storage supports full clones only: omit --linked"),
        (r"checksum mismatch: got", "the upload arrived damaged", f"the upload was damaged during transfer: {REPEAT}"),
    )
)  # fmt: skip


def is_locked(error: ApiError) -> bool:
    """Return True if a request changed nothing because a task has locked the VM."""
    return bool(re.search(CONFIG_LOCK.format(vmid=r"\d+"), error.brief))


def cause(text: str) -> tuple[str, str]:
    """Return the cause of a message of Proxmox, and what to do next; both are empty if it is unknown."""
    for entry in CAUSES:
        if match := entry.pattern.search(text):
            groups = match.groupdict()
            if storage := groups.get("storage"):
                return f"{entry.name} on storage {storage}", entry.hint.format(storage=storage)
            by = f" by {LOCKS.get(groups['by'], groups['by'])}" if groups.get("by") else ""
            return entry.name + by, entry.hint.replace(" {storage}", "")
    return "", ""


def explained(text: str) -> tuple[str, str]:
    """Return the message of Proxmox with the cause before it, and what to do next."""
    name, hint = cause(text)
    return (f"{name}: {text}" if name else text), hint


@contextmanager
def translated(settings: Settings, token: Token, method: str, path: str) -> Iterator[None]:
    """Translate exceptions of proxmoxer and requests to errors with a hint."""
    where = f"{method.upper()} {path}"
    try:
        yield
    except requests.exceptions.RequestException as error:
        raise _unanswered(error, settings, where) from error
    except proxmoxer.ResourceException as error:
        raise refused(error, token, where) from error


def _unanswered(error: BaseException, settings: Settings, where: str) -> ApiError:
    """Return the error of a failed connection: the certificate is blamed only if its verification failed."""
    chain, server = list(_chain(error)), f"{settings.host}:{settings.port}"
    details = f"{type(chain[-1]).__name__}: {chain[-1]}"
    if any(isinstance(entry, ssl.SSLCertVerificationError) for entry in chain):
        return ApiError(
            f"the certificate of {settings.host} is not trusted", status=NO_ANSWER, details=details,
            hint="set the cluster's CA in golden.yaml: proxmox.ca (on a node: /etc/pve/pve-root-ca.pem)",
        )  # fmt: skip
    if any(isinstance(entry, (ssl.SSLEOFError, BrokenPipeError)) for entry in chain):
        return ApiError(
            f"{server} closed the connection before it answered ({where})", status=NO_ANSWER, details=details,
            hint=f"{REPEAT}; see the journal of pveproxy on that node",
        )  # fmt: skip
    if any(isinstance(entry, requests.exceptions.SSLError) for entry in chain):
        return ApiError(
            f"there is no TLS connection to {server} ({where})", status=NO_ANSWER, details=details,
            hint="check proxmox.port in golden.yaml: the port of the API is 8006",
        )  # fmt: skip
    return ApiError(
        f"{server} does not answer ({where})", status=NO_ANSWER, details=details,
        hint="check that the node is up, and proxmox.host in golden.yaml",
    )  # fmt: skip


def refused(error: Any, token: Token, where: str) -> GoldsmithError:
    """Return the error for an error response of the API."""
    text, status = words(error), int(error.status_code)
    if status == 401:
        return ApiError(
            f"Proxmox does not accept the token ({where})", status=status, details=text,
            hint="check that the token is complete, and neither expired nor deleted",
        )  # fmt: skip
    if status == 403:
        return denied(text, token, where)
    if status in UNREACHABLE:
        match = NODE.search(where)
        node = match["node"] if match else "of the cluster"
        return ApiError(
            f"node {node} does not answer ({where})", status=status, details=text,
            hint=f"check that it is online: nox -s doctor -- --proxmox; when it is back, {REPEAT}",
        )  # fmt: skip
    text, hint = explained(text)
    return ApiError(f"Proxmox refused: {text} ({where})", status=status, hint=hint)


def denied(text: str, token: Token, where: str) -> Denied:
    """Return the error for a privilege that is missing, or for a pool that does not exist."""
    if pool := NO_POOL.search(text):
        return Denied(f"Proxmox has no pool {pool['pool']} ({where})", details=text, hint=POOLS)
    match = DENIED.search(text)
    path, privileges = (match["path"], match["privileges"]) if match else ("", "")
    # Of several, one is enough.
    lacking = f"{privileges.replace('|', ' or ')} on {path}" if match else text
    return Denied(
        f"the token {token.identity} lacks a privilege: {lacking} ({where})", details=text, path=path, privileges=privileges,
        hint="run nox -s doctor -- --proxmox, which lists missing privileges and the commands that grant "
        "them; user and token "
        "both need them",
    )  # fmt: skip


def words(error: Any) -> str:
    """Return the response of Proxmox as one line: its reason, and each field that it rejected."""
    text = " ".join(str(error.content or error.status_message or "").split())
    fields = error.errors
    # For a response without JSON, proxmoxer returns its bytes, which are not printable.
    if isinstance(fields, Mapping) and not any(isinstance(value, bytes) for value in fields.values()):
        listed = "; ".join(f"{name}: {' '.join(str(value).split())}" for name, value in fields.items())
        text = f"{text} {listed}".strip()
    return text


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Return an error and its causes, the root last; urllib3 stores the cause in the attribute ``reason``."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        reason = getattr(current, "reason", None)
        inner = next((part for part in current.args if isinstance(part, BaseException)), None)
        current = current.__cause__ or current.__context__ or (reason if isinstance(reason, BaseException) else inner)
