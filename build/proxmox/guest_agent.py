"""Cloud-init settings, IP addresses and SSH host key of a guest on Proxmox VE.

Addresses and the host key come from the guest agent, over the API's verified TLS: there is no trust on first use.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from build.core.errors import HostError, StepFailed
from build.proxmox.api_errors import NO_ANSWER
from build.proxmox.client import Api, ApiError, Denied

HOST_KEY = "/etc/ssh/ssh_host_ed25519_key.pub"
PUBLIC_KEY = re.compile(r"ssh-ed25519 [A-Za-z0-9+/=]+")
MAC = re.compile(r"(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}")
POLL_SECONDS = 2.0
# qemu-server: PVE::QemuServer, smbios1 has at most 512 characters.
SMBIOS_LENGTH = 512
SITE_MARK = "golden:"


class NoHostKey(StepFailed):
    """A guest has no SSH host key: its first boot has not created one yet."""


def cloud_init(*, user: str, default: str, keys: str, addresses: str = "ip=dhcp,ip6=auto") -> dict[str, Any]:
    """Return the keys of a configuration that set a clone's administrator and its addresses.

    ``default``: the image's own administrator, who gets the keys without ``ciuser``. Proxmox writes ``ciuser`` as the
    key ``user`` of the user data, which cloud-init 25.1 calls deprecated: its status is "degraded done" then, and its
    exit code 2. Proxmox decodes ``sshkeys`` once more after the form, and rejects a plus sign: everything is quoted.
    """
    named = {"ciuser": user} if user != default else {}
    return {**named, "sshkeys": quote(keys.strip(), safe=""), "ipconfig0": addresses, "ciupgrade": 0}


def smbios(old: str, site: Mapping[str, object], *, family: str = "") -> str:
    """Return ``smbios1`` with the site's settings, which cloud-init on Proxmox cannot pass, and its old UUID.

    ``family``: the value of that field, in base64.
    """
    compact = json.dumps(site, sort_keys=True, separators=(",", ":"))
    sku = base64.b64encode(f"{SITE_MARK}{compact}".encode()).decode()
    identity = [part for part in old.split(",") if part.startswith("uuid=")]
    text = ",".join([*identity, "base64=1", *([f"family={family}"] if family else []), f"sku={sku}"])
    if len(text) > SMBIOS_LENGTH:
        raise HostError(
            f"the settings of the site need {len(text)} characters, and Proxmox allows {SMBIOS_LENGTH}",
            hint="reduce networks and names, and write the rest to /etc/golden/site.yaml on the clone",
        )
    return text


def require_fits(site: Mapping[str, object], *, family: str = "") -> None:
    """Raise HostError if the settings of a site do not fit with a UUID: Proxmox would reject them after cloning."""
    smbios(f"uuid={uuid.UUID(int=0)}", site, family=family)


def mac(config: Mapping[str, Any], card: str = "net0") -> str:
    """Return the hardware address of a network card in a configuration."""
    match = MAC.search(str(config.get(card, "")))
    if not match:
        raise StepFailed(f"the VM has no network card {card}", hint="check that the template was published by Goldsmith")
    return match[0].lower()


def pick_address(interfaces: Sequence[Mapping[str, Any]], wanted_mac: str) -> str:
    """Return the address of the card with that hardware address: a global IPv4 address, else IPv6.

    Empty if there is none.
    """
    by_version: dict[int, str] = {}
    for interface in interfaces:
        if str(interface.get("hardware-address", "")).lower() != wanted_mac:
            continue
        for entry in interface.get("ip-addresses", []):
            address = ipaddress.ip_address(str(entry["ip-address"]).split("%")[0])
            if not (address.is_link_local or address.is_loopback or address.is_multicast):
                by_version.setdefault(address.version, str(address))
    return by_version.get(4) or by_version.get(6) or ""


def wait_address(api: Api, node: str, vmid: int, *, timeout: float, tell: Callable[[str], None]) -> str:
    """Wait until the guest agent reports the address of the first network card.

    A missing privilege is an error at once, not an agent that is still starting. Raises StepFailed with the three
    causes.
    """
    path = f"/nodes/{node}/qemu/{vmid}"
    card_mac, deadline, last_problem = mac(api.get(f"{path}/config")), time.monotonic() + timeout, "the agent did not answer"
    while True:
        try:
            answer = api.get(f"{path}/agent/network-get-interfaces")
            if address := pick_address(answer["result"], card_mac):
                return address
            last_problem = f"the agent answers, but {card_mac} has no address"
        except Denied:
            raise
        except ApiError as error:
            if error.status == 0:
                raise
            last_problem = error.details or error.brief
        tell(last_problem)
        if time.monotonic() > deadline:
            raise StepFailed(
                f"VM {vmid} on {node} reported no address within {timeout:.0f} s", details=last_problem,
                hint="check the DHCP server on the bridge, the guest agent in the image, and whether the VM booted; "
                f"open its console: qm terminal {vmid}",
            )  # fmt: skip
        time.sleep(POLL_SECONDS)


def wait_host_key(api: Api, node: str, vmid: int, *, timeout: float, tell: Callable[[str], None]) -> str:
    """Wait for the guest's host key: its agent may answer before the first boot has created one. Raises StepFailed."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return host_key(api, node, vmid)
        except Denied:
            raise
        except (ApiError, NoHostKey) as error:
            if (isinstance(error, ApiError) and error.status == NO_ANSWER) or time.monotonic() > deadline:
                raise
            tell(f"no host key yet: {error.brief}")
        time.sleep(POLL_SECONDS)


def host_key(api: Api, node: str, vmid: int) -> str:
    """Return the guest's SSH host key, read through its agent."""
    answer = api.get(f"/nodes/{node}/qemu/{vmid}/agent/file-read", file=HOST_KEY)
    match = PUBLIC_KEY.search(str(answer.get("content", "")))
    if not match or not _is_base64(match[0].split()[1]):
        raise NoHostKey(f"VM {vmid} on {node} has no host key in {HOST_KEY}", hint=f"open its console: qm terminal {vmid}")
    return match[0]


def _is_base64(text: str) -> bool:
    """Return whether a text can be decoded: the file of a key may be half written."""
    try:
        return bool(base64.b64decode(text, validate=True))
    except ValueError:
        return False
