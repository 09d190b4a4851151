"""What an operator asks for: the options of ``clone``, read, checked, and told all at once when they are wrong.

Nothing is asked of the cluster here: what cannot work is refused before anything is made.
"""

from __future__ import annotations

import argparse
import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from build import cluster, release_policy
from build.errors import SpecError

NAME = re.compile(r"(?=.{1,253}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
PUBLIC_KEY = re.compile(r"(ssh-(ed25519|rsa)|ecdsa-sha2-nistp\d+|sk-[a-z0-9@.-]+) [A-Za-z0-9+/=]+( .*)?")
MORE = re.compile(r"\+(?P<number>[1-9][0-9]{0,5})(?P<unit>[GT])")
GIB_PER_UNIT = {"G": 1, "T": 1024}
BRIDGE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,14}")
DHCP = "dhcp"
# As publishing's own clones are told.
DHCP_CONFIG = "ip=dhcp,ip6=auto"
LOWEST_MIB, WAIT_SECONDS = 512, 900


@dataclass(frozen=True)
class Request:
    """A machine as an operator wants it; what is 0 or empty stays as the template has it."""

    name: str
    addresses: str
    keys: str
    admin_cidrs: tuple[str, ...] = ()
    server_names: tuple[str, ...] = ()
    node: str = ""
    template: str = ""
    channel: str = release_policy.CANDIDATE
    linked: bool = False
    storage: str = ""
    bridge: str = ""
    vlan: int = 0
    memory_mib: int = 0
    cores: int = 0
    more_disk_gib: int = 0
    nameservers: tuple[str, ...] = ()
    wait: bool = True
    keep: bool = False
    timeout: float = WAIT_SECONDS

    @property
    def site(self) -> dict[str, object]:
        """The site's settings that travel in the SMBIOS."""
        given = {"admin_cidrs": list(self.admin_cidrs), "server_names": list(self.server_names)}
        return {key: value for key, value in given.items() if value}

    @property
    def main_name(self) -> str:
        """A name that the machine answers to over HTTPS: the first server name, else its own."""
        return (self.server_names or (self.name,))[0]

    @property
    def fixed(self) -> tuple[str, ...]:
        """The addresses that the machine was given, without their networks; none with DHCP."""
        return tuple(re.findall(r"\bip6?=([0-9a-f.:]+)/", self.addresses))


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``clone`` to its parser."""
    add = parser.add_argument
    add("--name", required=True, metavar="NAME", help="of the machine; its host name too")
    add("--ip", action="append", required=True, metavar="ADDRESS", help="dhcp, or ADDRESS/PREFIX[,gw=ADDRESS]; a v4, a v6")
    add("--ssh-key", action="append", type=Path, required=True, metavar="FILE", help="public keys of the administrator")
    add("--admin-cidr", action="append", default=[], metavar="CIDR", help="a network that may reach SSH; may be repeated")
    add("--server-name", action="append", default=[], metavar="NAME", help="a name the web site answers to, main one first")
    add("--node", default="", metavar="NAME", help="where it shall run (default: where the template is)")
    add("--template", default="", metavar="NAME", help="this template (default: the newest of the channel)")
    add("--channel", default=release_policy.CANDIDATE, metavar="NAME", help="default: %(default)s")
    add("--linked", action="store_true", help="share the template's disk: made at once, and needs the template for ever")
    add("--storage", default="", metavar="NAME", help="for the disks (default: the template's)")
    add("--bridge", default="", metavar="NAME", help="for the network card (default: the template's)")
    add("--vlan", type=int, default=0, metavar="N", help="tag of the network card")
    add("--memory", type=int, default=0, metavar="MIB", help="default: the template's")
    add("--cores", type=int, default=0, metavar="N", help="default: the template's")
    add("--disk", default="", metavar="+SIZE", help="a larger disk, such as +20G; the root file system grows at first boot")
    add("--nameserver", action="append", default=[], metavar="ADDRESS", help="default: the node's; may be repeated")
    add("--wait", action=argparse.BooleanOptionalAction, default=True, help="until it answers over HTTPS (default: wait)")
    add("--timeout", type=float, default=WAIT_SECONDS, metavar="SECONDS", help="how long to wait (default: %(default)s)")
    add("--keep", action="store_true", help="do not remove the machine when something fails")
    add("--secrets", type=Path, metavar="FILE", help="with the tokens, mode 0600 (see golden.yaml)")


def read(given: argparse.Namespace) -> Request:
    """Return the request that the options make; raise SpecError that names every problem."""
    problems: list[str] = []
    _patterns(given, problems)
    _numbers(given, problems)
    if given.linked and given.storage:
        problems.append("--storage: a linked clone's disk lies beside the template's: leave --storage or --linked out")
    request = Request(
        name=given.name, addresses=addresses(given.ip, problems), keys=_keys(given.ssh_key, problems),
        admin_cidrs=_networks(given.admin_cidr, problems), server_names=tuple(given.server_name), node=given.node,
        template=given.template, channel=given.channel, linked=given.linked, storage=given.storage, bridge=given.bridge,
        vlan=given.vlan, memory_mib=given.memory, cores=given.cores, more_disk_gib=_more(given.disk, problems),
        nameservers=_nameservers(given.nameserver, problems), wait=given.wait, keep=given.keep, timeout=given.timeout,
    )  # fmt: skip
    if problems:
        raise SpecError("the clone cannot be made as it is asked for", details="\n".join(problems), hint="nothing was made")
    return request


def _patterns(given: argparse.Namespace, problems: list[str]) -> None:
    for option, text, pattern, hint in (
        ("--name", given.name, NAME, "write a host name in lower case, such as web1"),
        *(("--server-name", name, NAME, "write a host name in lower case") for name in given.server_name),
        ("--node", given.node, re.compile(cluster.NODE), "write the name of a node"),
        ("--storage", given.storage, re.compile(cluster.STORAGE), "write the id of a storage"),
        ("--bridge", given.bridge, BRIDGE, "write a bridge such as vmbr0"),
        ("--channel", given.channel, re.compile(r"[a-z0-9_][a-z0-9_+.-]*"), "write a channel such as candidate"),
    ):
        if (text or option == "--name") and not pattern.fullmatch(text):
            problems.append(f"{option}: {text!r}: {hint}")


def _numbers(given: argparse.Namespace, problems: list[str]) -> None:
    for option, number, least, most in (
        ("--vlan", given.vlan, 1, 4094), ("--memory", given.memory, LOWEST_MIB, 4 << 20), ("--cores", given.cores, 1, 512),
        ("--timeout", given.timeout, 1, 86400),
    ):  # fmt: skip
        if number and not least <= number <= most:
            problems.append(f"{option}: {number}: write a number from {least} to {most}")


def addresses(given: Sequence[str], problems: list[str]) -> str:
    """Return ``ipconfig0`` for what was given: dhcp, or one fixed address of each version."""
    if list(given) == [DHCP]:
        return DHCP_CONFIG
    found: dict[int, str] = {}
    for text in given:
        try:
            version, config = _address(text)
        except ValueError as error:
            problems.append(f"--ip: {text!r}: {error}; write dhcp, or such as 192.0.2.10/24,gw=192.0.2.1")
            continue
        if version in found:
            problems.append(f"--ip: {text!r}: a second address of version {version}: give one of each at most")
        found[version] = config
    return ",".join(found[version] for version in sorted(found))


def _address(text: str) -> tuple[int, str]:
    """Return the version of an address with its network, and its part of ``ipconfig0``. Raises ValueError."""
    own, _, rest = text.partition(",")
    if "/" not in own:
        raise ValueError("no address with a prefix")
    found = ipaddress.ip_interface(own)
    if found.network.num_addresses > 2 and found.ip in (found.network.network_address, _last(found.network)):
        raise ValueError(f"{found.ip} stands for the whole network {found.network}")
    suffix = "6" if found.version == 6 else ""
    config = f"ip{suffix}={found}"
    if not rest:
        return found.version, config
    key, _, value = rest.partition("=")
    if key not in ("gw", f"gw{suffix}"):
        raise ValueError(f"{rest!r} is no gateway")
    gateway = ipaddress.ip_address(value)
    if gateway == found.ip or (gateway not in found.network and not gateway.is_link_local):
        raise ValueError(f"the gateway {gateway} is not in {found.network}, or is the machine itself")
    return found.version, f"{config},gw{suffix}={gateway}"


def _last(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> object:
    return network.broadcast_address if network.version == 4 else network.network_address


def _networks(given: Iterable[str], problems: list[str]) -> tuple[str, ...]:
    found = []
    for text in given:
        try:
            found.append(str(ipaddress.ip_network(text)))
        except ValueError as error:
            problems.append(f"--admin-cidr: {error}; write such as 192.0.2.0/24")
    return tuple(found)


def _nameservers(given: Iterable[str], problems: list[str]) -> tuple[str, ...]:
    found = []
    for text in given:
        try:
            found.append(str(ipaddress.ip_address(text)))
        except ValueError as error:
            problems.append(f"--nameserver: {error}")
    return tuple(found)


def _more(text: str, problems: list[str]) -> int:
    found = MORE.fullmatch(text)
    if text and not found:
        problems.append(f"--disk: {text!r}: write how much larger, such as +20G; a disk never shrinks")
    return int(found["number"]) * GIB_PER_UNIT[found["unit"]] if found else 0


def _keys(paths: Iterable[Path], problems: list[str]) -> str:
    """Return the public keys of the files, one a line."""
    found: list[str] = []
    for path in paths:
        try:
            text = path.expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"--ssh-key: {path}: {getattr(error, 'strerror', None) or 'it is no text'}")
            continue
        if "PRIVATE KEY" in text:
            problems.append(f"--ssh-key: {path}: this is a private key: give {path.name}.pub, and keep this one to yourself")
            continue
        lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
        bad = [number for number, line in enumerate(lines, 1) if not PUBLIC_KEY.fullmatch(line)]
        if bad or not lines:
            problems.append(f"--ssh-key: {path}: " + (f"key {bad[0]} is no public SSH key" if bad else "it holds no key"))
        found += lines
    return "\n".join(dict.fromkeys(found))
