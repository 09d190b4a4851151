"""Where images are published: the section ``proxmox`` of golden.yaml, and the tokens, which are never in it.

A token comes from the environment or from a file that only its owner may read. It is never an argument, never logged,
and never in an artifact.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from build.core.errors import SpecError
from build.core.yaml_table import Table, load_yaml, raise_problems

# The API's own format (pve-access-control, RPCEnvironment): user@realm!tokenid=secret.
TOKEN = re.compile(
    r"(?P<user>[^\s:/@!]+@[A-Za-z][A-Za-z0-9._-]*)!(?P<name>[A-Za-z][A-Za-z0-9._-]+)=(?P<secret>[0-9a-fA-F-]{36})"
)
TOKEN_VARIABLE = "GOLDSMITH_PVE_TOKEN"  # noqa: S105 (the variable's name)
# Proxmox VE's own rule (pve-storage-id), which does not mind capitals.
STORAGE = r"[A-Za-z][A-Za-z0-9._-]*[A-Za-z0-9]"
POOL = r"[A-Za-z0-9._/-]+"
NODE = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
ABOUT = "the Proxmox VE cluster that images are published on; without this section nothing can be published"
LOWEST_VMID, HIGHEST_VMID = 100, 999_999_999


class Role(StrEnum):
    """Who does what on the cluster; each has a separate token."""

    PUBLISHER = "publisher"
    VERIFIER = "verifier"
    OPERATOR = "operator"
    REPLACER = "replacer"


class Firmware(StrEnum):
    """What a template boots with."""

    BIOS = "bios"
    UEFI = "uefi"


@dataclass(frozen=True)
class Settings:
    """A cluster and the places on it. ``vmids``: first and last VM id that Goldsmith may take; sizes in MiB."""

    host: str
    port: int
    ca: Path | None
    nodes: tuple[str, ...]
    storage: str
    media: str
    bridge: str
    vlan: int
    pool: str
    # Operators' machines: apart from the templates, so that who makes machines cannot change what they are made of.
    clones: str
    vmids: tuple[int, int]
    firmware: Firmware
    cores: int
    memory_mib: int


def read(table: Table) -> Settings:
    """Read the section ``proxmox`` of golden.yaml; problems go onto the table's list."""
    ca = table.text(
        "ca", r".*", "write the path of a PEM file, or leave it out", default="",
        about="the certificate authority of the cluster, a PEM file; without it the host's authorities are used",
    )  # fmt: skip
    first, last = _vmids(table)
    pool = table.text("pool", POOL, "write the pool that the templates belong to")
    clones = table.text(
        "clones", POOL, "write the pool that operators' machines belong to", default="",
        about="the pool of clones; without it the name of `pool` with -clones",
    )  # fmt: skip
    settings = Settings(
        host=table.text("host", r"[A-Za-z0-9.:\[\]-]+", "write the name or address of one node of the cluster"),
        port=table.number("port", 1, 65535, default=8006, about="the port of the API"),
        ca=Path(ca) if ca else None,
        nodes=table.strings(
            "nodes", NODE, "write the name of a node", needed="name at least one node", about="nodes that get the template"
        ),
        storage=table.text("storage", STORAGE, "write the id of the storage that takes the disks"),
        media=table.text(
            "media", STORAGE, "write the id of a file storage with content type import", about="the storage of uploads"
        ),
        bridge=table.text(
            "bridge", r"[A-Za-z][A-Za-z0-9_.-]{0,14}", "write a bridge such as vmbr0", default="vmbr0",
            about="the bridge of the network card",
        ),
        vlan=table.number("vlan", 1, 4094, default=0, about="the VLAN tag of the network card; without it no tag"),
        pool=pool,
        clones=clones or f"{pool}-clones",
        vmids=(first, last),
        firmware=_firmware(table),
        cores=table.number("cores", 1, 512, default=2, about="processor cores of a template"),
        memory_mib=table.size("memory", default="2G", about="memory of a template"),
    )  # fmt: skip
    table.finish()
    return settings


def _firmware(table: Table) -> Firmware:
    words = "|".join(Firmware)
    return Firmware(
        table.text("firmware", words, "write bios or uefi", default="uefi", about="the firmware of a template") or "uefi"
    )


def _vmids(table: Table) -> tuple[int, int]:
    text = table.text(
        "vmids", r"[0-9]{3,9}-[0-9]{3,9}", "write a range of VM ids such as 9000-9099", default="9000-9099",
        about="first and last VM id that Goldsmith may use",
    )  # fmt: skip
    first, last = (int(part) for part in (text or "9000-9099").split("-"))
    if not LOWEST_VMID <= first <= last <= HIGHEST_VMID:
        table.problem("vmids", text, f"write a range within {LOWEST_VMID}-{HIGHEST_VMID}, the lower id first")
    return first, last


class NoToken(SpecError):
    """There is no token for a role."""


@dataclass(frozen=True)
class Token:
    """An API token in its parts; ``secret`` is not shown."""

    user: str
    name: str
    secret: str

    def __repr__(self) -> str:
        return f"Token({self.user}!{self.name})"

    @property
    def identity(self) -> str:
        """Who acts, in Proxmox's own form."""
        return f"{self.user}!{self.name}"


def token(role: Role, *, secrets: Path, environment: Mapping[str, str]) -> Token:
    """Return the token of a role: from ``$GOLDSMITH_PVE_TOKEN_<ROLE>``, ``$GOLDSMITH_PVE_TOKEN`` or the secrets file.

    Raises SpecError when there is none, when it is malformed (without showing it), or when others may read the file.
    """
    for name in (f"{TOKEN_VARIABLE}_{role.upper()}", TOKEN_VARIABLE):
        if name in environment:
            return _parse(environment[name].strip(), where=f"${name}")
    if not secrets.exists():
        raise NoToken(
            f"there is no token for the {role}",
            hint=f"set ${TOKEN_VARIABLE}_{role.upper()}, or write it to {secrets} (mode 0600): "
            f"tokens: {{{role}: user@realm!name=secret}}",
        )  # fmt: skip
    status = secrets.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise SpecError(f"{secrets} can be read by others", hint=f"chmod 600 {secrets}, owned by the user who runs this")
    problems: list[str] = []
    table = Table(load_yaml(secrets), where="", problems=problems)
    inner = Table(table.take("tokens"), where="tokens", problems=problems)
    text = inner.take(role.value)
    for other in Role:
        inner.known.add(other.value)
    inner.finish()
    table.finish()
    # What stands in the file is not repeated: it may be a secret with a typing error.
    raise_problems(secrets, [re.sub(r": .*?: ", ": ", problem, count=1) for problem in problems])
    return _parse(str(text), where=f"{secrets}: tokens.{role}")


def _parse(text: str, *, where: str) -> Token:
    match = TOKEN.fullmatch(text)
    if not match:
        raise SpecError(f"{where} is no API token", hint="write user@realm!tokenname=00000000-0000-0000-0000-000000000000")
    return Token(match["user"], match["name"], match["secret"])


def default_secrets(environment: Mapping[str, str]) -> Path:
    """Return where the secrets file is looked for (XDG base directory specification)."""
    return Path(environment.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "goldsmith" / "proxmox.yaml"
