"""The options of ``clone``: reads and checks them, and reports all errors at once.

They are checked before the cluster is queried.
"""

from __future__ import annotations

import argparse
import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from build.clone import data_disk
from build.core import run
from build.core.errors import SpecError
from build.core.units import GIB, size_bytes
from build.core.yaml_table import HOST, network_problem
from build.spec import cluster, release_policy

NAME = re.compile(HOST)
# What the image's sshd takes (PubkeyAcceptedAlgorithms, RequiredRSASize of 10-base; a test compares them).
KEY_KINDS = ("ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521",
             "sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com")  # fmt: skip
LEAST_RSA_BITS = 3072
KEYGEN_SECONDS = 30
MORE = re.compile(r"\+(?P<number>[1-9][0-9]{0,5})(?P<unit>[GT])")
DATA = re.compile(r"(?P<number>[1-9][0-9]{0,5})(?P<unit>[GT])")
# The database of the image, its releases and their copies; the largest ext4 file system of 4 KiB blocks.
LEAST_DATA_GIB, MOST_DATA_GIB = 2, 16 << 10
BRIDGE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,14}")
DHCP = "dhcp"
# The same as for the test clones of publishing.
DHCP_CONFIG = "ip=dhcp,ip6=auto"
LOWEST_MIB, WAIT_SECONDS = 512, 900


@dataclass(frozen=True)
class Request:
    """The settings of a clone; a value that is 0 or empty is taken from the template."""

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
    data_gib: int = 0
    nameservers: tuple[str, ...] = ()
    wait: bool = True
    keep: bool = False
    timeout: float = WAIT_SECONDS

    @property
    def site(self) -> dict[str, object]:
        """The site's settings that are passed in the SMBIOS."""
        settings = {"admin_cidrs": list(self.admin_cidrs), "server_names": list(self.server_names)}
        return {key: value for key, value in settings.items() if value}

    @property
    def family(self) -> str:
        """The field of the SMBIOS that names the site of the data disk; empty without one."""
        return data_disk.family(self.name) if self.data_gib else ""

    @property
    def main_name(self) -> str:
        """The name for HTTPS requests: the first server name, else the VM's name."""
        return (self.server_names or (self.name,))[0]

    @property
    def fixed(self) -> tuple[str, ...]:
        """The static addresses, without their networks; none with DHCP."""
        return tuple(re.findall(r"\bip6?=([0-9a-f.:]+)/", self.addresses))


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``clone`` to its parser."""
    add = parser.add_argument
    add("--name", required=True, metavar="NAME", help="VM name and hostname")
    add(
        "--ip", action="append", required=True, metavar="ADDRESS",
        help="dhcp, or ADDRESS/PREFIX[,gw=ADDRESS]; once for IPv4, once for IPv6",
    )  # fmt: skip
    add("--ssh-key", action="append", type=Path, required=True, metavar="FILE", help="public SSH keys of the administrator")
    add(
        "--admin-cidr", action="append", default=[], metavar="CIDR",
        help="network that may reach SSH; can be given several times",
    )  # fmt: skip
    add("--server-name", action="append", default=[], metavar="NAME", help="name of the web site, the main one first")
    add("--node", default="", metavar="NAME", help="node of the VM (default: that of the template)")
    add("--template", default="", metavar="NAME", help="template (default: the newest one of the channel)")
    add("--channel", default=release_policy.CANDIDATE, metavar="NAME", help="channel (default: %(default)s)")
    add("--linked", action="store_true", help="create a linked clone (fast; depends on the template's disk)")
    add("--storage", default="", metavar="NAME", help="storage of the disks (default: the template's)")
    add("--bridge", default="", metavar="NAME", help="bridge of the network card (default: the template's)")
    add("--vlan", type=int, default=0, metavar="N", help="VLAN tag of the network card")
    add("--memory", type=int, default=0, metavar="MIB", help="memory in MiB (default: the template's)")
    add("--cores", type=int, default=0, metavar="N", help="CPU cores (default: the template's)")
    add(
        "--disk", default="", metavar="+SIZE",
        help="enlarge the disk, such as +20G; the root file system grows at first boot",
    )  # fmt: skip
    add(
        "--data", default="", metavar="SIZE",
        help="add a data disk, such as 40G: it keeps what must outlive the system, which nox -s replace exchanges",
    )  # fmt: skip
    add(
        "--nameserver", action="append", default=[], metavar="ADDRESS",
        help="DNS server (default: the node's); can be given several times",
    )  # fmt: skip
    add(
        "--wait", action=argparse.BooleanOptionalAction, default=True,
        help="wait until it answers over HTTPS (default: wait)",
    )  # fmt: skip
    add(
        "--timeout", type=float, default=WAIT_SECONDS, metavar="SECONDS",
        help="timeout of --wait in seconds (default: %(default)s)",
    )  # fmt: skip
    add("--keep", action="store_true", help="keep the VM if a step fails")


def read(opts: argparse.Namespace) -> Request:
    """Return the request of the options; raise SpecError that lists every problem."""
    problems: list[str] = []
    _patterns(opts, problems)
    _numbers(opts, problems)
    if opts.linked and opts.storage:
        problems.append("--storage: a linked clone's disk is on the template's storage: omit --storage or --linked")
    request = Request(
        name=opts.name, addresses=addresses(opts.ip, problems), keys=_keys(opts.ssh_key, problems),
        admin_cidrs=_networks(opts.admin_cidr, problems), server_names=tuple(opts.server_name), node=opts.node,
        template=opts.template, channel=opts.channel, linked=opts.linked, storage=opts.storage, bridge=opts.bridge,
        vlan=opts.vlan, memory_mib=opts.memory, cores=opts.cores, more_disk_gib=_more(opts.disk, problems),
        data_gib=_data(opts.data, problems),
        nameservers=_nameservers(opts.nameserver, problems), wait=opts.wait, keep=opts.keep, timeout=opts.timeout,
    )  # fmt: skip
    if problems:
        raise SpecError(
            "the options of the clone are not valid", details="\n".join(problems), hint="correct them; nothing was created"
        )
    return request


def _patterns(opts: argparse.Namespace, problems: list[str]) -> None:
    for option, text, pattern, hint in (
        ("--name", opts.name, NAME, "write a host name in lower case, such as web1"),
        *(("--server-name", name, NAME, "write a host name in lower case, not an address") for name in opts.server_name),
        ("--node", opts.node, re.compile(cluster.NODE), "write the name of a node"),
        ("--storage", opts.storage, re.compile(cluster.STORAGE), "write the id of a storage"),
        ("--bridge", opts.bridge, BRIDGE, "write a bridge such as vmbr0"),
        ("--channel", opts.channel, re.compile(r"[a-z0-9_][a-z0-9_+.-]*"), "write a channel such as candidate"),
    ):
        if (text or option == "--name") and not pattern.fullmatch(text):
            problems.append(f"{option}: {text!r}: {hint}")


def _numbers(opts: argparse.Namespace, problems: list[str]) -> None:
    for option, number, least, most in (
        ("--vlan", opts.vlan, 1, 4094), ("--memory", opts.memory, LOWEST_MIB, 4 << 20), ("--cores", opts.cores, 1, 512),
        ("--timeout", opts.timeout, 1, 86400),
    ):  # fmt: skip
        if number and not least <= number <= most:
            problems.append(f"{option}: {number}: write a number from {least} to {most}")


def addresses(texts: Sequence[str], problems: list[str]) -> str:
    """Return ``ipconfig0`` for the addresses: dhcp, or one static address of each version."""
    if list(texts) == [DHCP]:
        return DHCP_CONFIG
    by_version: dict[int, str] = {}
    for text in texts:
        try:
            version, config = _address(text)
        except ValueError as error:
            problems.append(f"--ip: {text!r}: {error}; write dhcp, or an address such as 192.0.2.10/24,gw=192.0.2.1")
            continue
        if version in by_version:
            problems.append(f"--ip: {text!r}: a second address of version {version}: write at most one of each")
        by_version[version] = config
    return ",".join(by_version[version] for version in sorted(by_version))


def _address(text: str) -> tuple[int, str]:
    """Return the version of an address with its network, and its part of ``ipconfig0``. Raises ValueError."""
    address, _, rest = text.partition(",")
    if "/" not in address:
        raise ValueError("not an address with a prefix")
    interface = ipaddress.ip_interface(address)
    if interface.network.num_addresses > 2 and interface.ip in (interface.network.network_address, _last(interface.network)):
        raise ValueError(f"{interface.ip} is the network or broadcast address of {interface.network}")
    suffix = "6" if interface.version == 6 else ""
    config = f"ip{suffix}={interface}"
    if not rest:
        return interface.version, config
    key, _, value = rest.partition("=")
    if key not in ("gw", f"gw{suffix}"):
        raise ValueError(f"{rest!r} is not a gateway")
    gateway = ipaddress.ip_address(value)
    # A single address has no network to hold a gateway: cloud-init writes a route to the gateway itself (on-link).
    elsewhere = gateway not in interface.network and not gateway.is_link_local and interface.network.num_addresses > 1
    if gateway.version != interface.version:
        raise ValueError(f"the gateway {gateway} is of another version than {interface.ip}")
    if gateway == interface.ip or elsewhere:
        raise ValueError(f"the gateway {gateway} is not in {interface.network}, or is the VM's own address")
    return interface.version, f"{config},gw{suffix}={gateway}"


def _last(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> object:
    return network.broadcast_address if network.version == 4 else network.network_address


def _networks(texts: Iterable[str], problems: list[str]) -> tuple[str, ...]:
    networks = []
    for text in texts:
        if problem := network_problem(text):
            problems.append(f"--admin-cidr: {text!r}: {problem}")
        else:
            networks.append(str(ipaddress.ip_network(text)))
    return tuple(networks)


def _nameservers(texts: Iterable[str], problems: list[str]) -> tuple[str, ...]:
    servers = []
    for text in texts:
        try:
            servers.append(str(ipaddress.ip_address(text)))
        except ValueError as error:
            problems.append(f"--nameserver: {error}")
    return tuple(servers)


def _more(text: str, problems: list[str]) -> int:
    match = MORE.fullmatch(text)
    if text and not match:
        problems.append(f"--disk: {text!r}: write how much larger, such as +20G; a disk never shrinks")
    return size_bytes(match["number"], match["unit"]) // GIB if match else 0


def _data(text: str, problems: list[str]) -> int:
    match = DATA.fullmatch(text)
    gib = size_bytes(match["number"], match["unit"]) // GIB if match else 0
    if text and not LEAST_DATA_GIB <= gib <= MOST_DATA_GIB:
        problems.append(f"--data: {text!r}: write a size from {LEAST_DATA_GIB}G to {MOST_DATA_GIB >> 10}T, such as 40G")
    return gib


def _keys(paths: Iterable[Path], problems: list[str]) -> str:
    """Return the public keys of the files, one a line."""
    keys: list[str] = []
    for path in paths:
        try:
            text = path.expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"--ssh-key: {path}: {getattr(error, 'strerror', None) or 'it is not UTF-8 text'}")
            continue
        if "PRIVATE KEY" in text:
            problems.append(f"--ssh-key: {path}: this is a private key: use {path.name}.pub instead")
            continue
        lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
        keys += lines
        if not lines:
            problems.append(f"--ssh-key: {path}: it contains no key")
        for number, line in enumerate(lines, 1):
            if reason := key_problem(line):
                problems.append(f"--ssh-key: {path}: key {number} {reason}")
    return "\n".join(dict.fromkeys(keys))


def key_problem(line: str) -> str:
    """Return why the image's sshd would reject a public key; empty if it accepts it. ssh-keygen reads the key."""
    kind, _, rest = line.partition(" ")
    if not re.fullmatch(r"[a-z0-9@.-]+", kind) or not rest.strip():
        return "is not a public SSH key: write KIND BASE64 COMMENT, without options"
    if kind not in KEY_KINDS:
        return f"is of the kind {kind}, which the image rejects: create another one with ssh-keygen -t ed25519"
    shown = run.run(["ssh-keygen", "-l", "-f", "-"], stdin=f"{line}\n".encode(), timeout=KEYGEN_SECONDS, check=False)
    bits = re.match(r"(\d+) ", shown.stdout)
    if shown.returncode != 0 or not bits:
        return "is not a public SSH key that ssh-keygen can read: it is truncated or damaged; copy the whole file again"
    if kind == "ssh-rsa" and int(bits[1]) < LEAST_RSA_BITS:
        return (f"is RSA with {bits[1]} bits, and the image accepts {LEAST_RSA_BITS} or more (RequiredRSASize): "
                "create another one with ssh-keygen -t ed25519")  # fmt: skip
    return ""
