"""A guest on Proxmox VE: what it is told at its first boot, where it is reached, and which host key is its own.

Addresses and the host key come from the guest agent, over the API's verified TLS: nothing is trusted at first sight.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from build.errors import HostError, StepFailed
from build.pve import Api, ApiError, Denied

HOST_KEY = "/etc/ssh/ssh_host_ed25519_key.pub"
PUBLIC_KEY = re.compile(r"ssh-ed25519 [A-Za-z0-9+/=]+")
MAC = re.compile(r"(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}")
POLL_SECONDS = 2.0
# qemu-server: PVE::QemuServer, smbios1 has at most 512 characters.
SMBIOS_LENGTH = 512
SITE_MARK = "golden:"


def cloud_init(*, user: str, keys: str, addresses: str = "ip=dhcp,ip6=auto") -> dict[str, Any]:
    """Return the keys of a configuration that tell a clone its administrator and its addresses.

    Proxmox decodes ``sshkeys`` once more after the form, and refuses a plus sign: everything is quoted.
    """
    return {"ciuser": user, "sshkeys": quote(keys.strip(), safe=""), "ipconfig0": addresses, "ciupgrade": 0}


def smbios(old: str, site: Mapping[str, object]) -> str:
    """Return ``smbios1`` with the site's settings, which cloud-init on Proxmox cannot carry, and its old UUID."""
    compact = json.dumps(site, sort_keys=True, separators=(",", ":"))
    sku = base64.b64encode(f"{SITE_MARK}{compact}".encode()).decode()
    uuid = [part for part in old.split(",") if part.startswith("uuid=")]
    text = ",".join([*uuid, "base64=1", f"sku={sku}"])
    if len(text) > SMBIOS_LENGTH:
        raise HostError(
            f"the settings of the site take {len(text)} characters, and Proxmox carries {SMBIOS_LENGTH}",
            hint="give fewer networks and names, and write the rest to /etc/golden/site.yaml on the clone",
        )
    return text


def mac(config: Mapping[str, Any], card: str = "net0") -> str:
    """Return the hardware address of a network card in a configuration."""
    found = MAC.search(str(config.get(card, "")))
    if not found:
        raise StepFailed(f"the machine has no network card {card}", hint="is the template one of Goldsmith's?")
    return found[0].lower()


def pick_address(interfaces: Sequence[Mapping[str, Any]], wanted_mac: str) -> str:
    """Return the address of the card with that hardware address: a global v4 first, then a v6; empty when none."""
    found: dict[int, str] = {}
    for interface in interfaces:
        if str(interface.get("hardware-address", "")).lower() != wanted_mac:
            continue
        for entry in interface.get("ip-addresses", []):
            address = ipaddress.ip_address(str(entry["ip-address"]).split("%")[0])
            if not (address.is_link_local or address.is_loopback or address.is_multicast):
                found.setdefault(address.version, str(address))
    return found.get(4) or found.get(6) or ""


def wait_address(api: Api, node: str, vmid: int, *, timeout: float, tell: Callable[[str], None]) -> str:
    """Wait until the guest's agent tells the address of its first network card.

    A missing privilege is told at once: it is no agent that is not up yet. Raises StepFailed with the three causes.
    """
    path = f"/nodes/{node}/qemu/{vmid}"
    wanted, deadline, seen = mac(api.get(f"{path}/config")), time.monotonic() + timeout, "the agent did not answer"
    while True:
        try:
            answer = api.get(f"{path}/agent/network-get-interfaces")
            if address := pick_address(answer["result"], wanted):
                return address
            seen = f"the agent answers, but {wanted} has no address"
        except Denied:
            raise
        except ApiError as error:
            if error.status == 0:
                raise
            seen = error.details or error.brief
        tell(seen)
        if time.monotonic() > deadline:
            raise StepFailed(
                f"VM {vmid} on {node} told no address within {timeout:.0f} s", details=seen,
                hint="no DHCP server on the bridge, no guest agent in the image, or a machine that did not boot: "
                f"look at its console: qm terminal {vmid}",
            )  # fmt: skip
        time.sleep(POLL_SECONDS)


def wait_host_key(api: Api, node: str, vmid: int, *, timeout: float, tell: Callable[[str], None]) -> str:
    """Wait for the guest's host key: its agent may answer before its first boot has made one. Raises StepFailed."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return host_key(api, node, vmid)
        except Denied:
            raise
        except StepFailed as error:
            if (isinstance(error, ApiError) and error.status == 0) or time.monotonic() > deadline:
                raise
            tell(f"no host key yet: {error.brief}")
        time.sleep(POLL_SECONDS)


def host_key(api: Api, node: str, vmid: int) -> str:
    """Return the guest's own SSH host key, read through its agent."""
    answer = api.get(f"/nodes/{node}/qemu/{vmid}/agent/file-read", file=HOST_KEY)
    found = PUBLIC_KEY.search(str(answer.get("content", "")))
    if not found:
        raise StepFailed(f"VM {vmid} on {node} has no host key in {HOST_KEY}", hint="look at its console: qm terminal")
    return found[0]
