"""The cloud-init drive, as Proxmox makes it of a configuration: NoCloud, label cidata.

After qemu-server's PVE/QemuServer/Cloudinit.pm, version 9: user data with the name, the administrator and the keys, and
``package_upgrade`` unless ``ciupgrade`` is 0; network data of version 1, cards found by hardware address; an instance id
that is the SHA-1 of both, so that a changed name or address makes cloud-init work once more.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from build.core import run
from tests.lab import values
from tests.lab.values import Unknown

LABEL = "cidata"
ISO_SECONDS = 60.0
# What makes the drive on a node is not in the lab; the file system is the same.
NOT_HERE = ("cicustom",)


@dataclass(frozen=True)
class Dns:
    """The content of a node's own resolv.conf: Proxmox gives it to guests without other name servers."""

    servers: Sequence[str] = ()
    search: str = ""


def documents(config: Mapping[str, object], vmid: int, dns: Dns) -> dict[str, str]:
    """Return the files of the drive by name. Raises Unknown for what the lab cannot make."""
    for key in NOT_HERE:
        if key in config:
            raise Unknown(f"{key}: the lab has no snippets")
    if config.get("citype", "nocloud") != "nocloud":
        raise Unknown(f"citype: {config['citype']}: the lab makes drives for Linux only")
    user, network = user_data(config, vmid), network_config(config, dns)
    instance = hashlib.sha1((user + network).encode(), usedforsecurity=False).hexdigest()
    return {"user-data": user, "network-config": network, "meta-data": f"instance-id: {instance}\n", "vendor-data": ""}


def user_data(config: Mapping[str, object], vmid: int) -> str:
    """Return the user data that Proxmox writes for a configuration."""
    name = str(config.get("name", f"VM{vmid}"))
    hostname, _, domain = name.partition(".")
    search = str(config.get("searchdomain", ""))
    fqdn = f"{name}.{search}" if search and not domain else name
    lines = ["#cloud-config", f"hostname: {hostname}", "manage_etc_hosts: true", f"fqdn: {fqdn}"]
    user = config.get("ciuser")
    if user is not None:
        lines.append(f"user: {user}")
    if user == "root":
        lines.append("disable_root: False")
    if "cipassword" in config:
        lines.append(f"password: {config['cipassword']}")
    if "sshkeys" in config:
        keys = unquote(str(config["sshkeys"])).split("\n")
        lines += ["ssh_authorized_keys:", *(f"  - {key}" for key in keys if key.strip())]
    lines += ["chpasswd:", "  expire: False"]
    if user != "root":
        lines += ["users:", "  - default"]
    if str(config.get("ciupgrade", "1")) not in ("0", "False"):
        lines.append("package_upgrade: true")
    return "\n".join(lines) + "\n"


def status(config: Mapping[str, object]) -> tuple[int, str]:
    """Return how ``cloud-init status --long`` ends on a clone with that drive: exit code and extended status.

    Measured with Debian 13's cloud-init on a drive of Proxmox VE 9.2: it calls the key ``user`` deprecated.
    """
    return (2, "degraded done") if "ciuser" in config else (0, "done")


def network_config(config: Mapping[str, object], dns: Dns) -> str:
    """Return the network data that Proxmox writes: each card with its own ``ipconfig``, then the name servers."""
    lines = ["version: 1", "config:"]
    for card in values.cards(config):
        told = values.split(config.get(f"ipconfig{card.number}", ""))[1]
        if told:
            lines += ["    - type: physical", f"      name: eth{card.number}", f"      mac_address: '{card.mac.lower()}'"]
            lines += ["      subnets:", *(f"      {line}" for line in (*_version4(told), *_version6(told)))]
    servers = str(config["nameserver"]).split() if "nameserver" in config else list(dns.servers)
    search = str(config.get("searchdomain", dns.search)).split()
    lines.append("    - type: nameserver")
    for title, entries in (("address", servers), ("search", search)):
        if entries:
            lines += [f"      {title}:", *(f"      - '{entry}'" for entry in entries)]
    return "\n".join(lines) + "\n"


def _version4(told: Mapping[str, str]) -> list[str]:
    if "ip" not in told:
        return []
    if told["ip"] == "dhcp":
        return ["- type: dhcp4"]
    interface = ipaddress.IPv4Interface(told["ip"])
    gateway = [f"  gateway: '{told['gw']}'"] if "gw" in told else []
    return ["- type: static", f"  address: '{interface.ip}'", f"  netmask: '{interface.netmask}'", *gateway]


def _version6(told: Mapping[str, str]) -> list[str]:
    if "ip6" not in told:
        return []
    if told["ip6"] in ("dhcp", "auto"):
        return ["- type: dhcp6" if told["ip6"] == "dhcp" else "- type: ipv6_slaac"]
    gateway = [f"  gateway: '{told['gw6']}'"] if "gw6" in told else []
    return ["- type: static6", f"  address: '{told['ip6']}'", *gateway]


def write(target: Path, files: Mapping[str, str]) -> None:
    """Write the drive as an ISO 9660 file system with Rock Ridge names."""
    source = target.with_suffix(".files")
    source.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (source / name).write_text(content, encoding="utf-8")
    target.unlink(missing_ok=True)
    run.run(
        [
            "xorriso", "-as", "mkisofs", "-quiet", "-iso-level", "3", "-rational-rock", "-volid", LABEL,
            "-output", target, source,
        ],
        timeout=ISO_SECONDS,
    )  # fmt: skip
