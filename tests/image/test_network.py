"""Listening sockets, network configuration and name resolution."""

from __future__ import annotations

import ipaddress
import json
import re
from typing import Any

import pytest
from testinfra.host import Host

from .facts import Fact, gather

# UDP: the DHCP clients of systemd-networkd, which must receive responses.
UDP = {("systemd-network", 68), ("systemd-network", 546)}


@pytest.fixture(scope="module")
def facts(host: Host, expected: dict[str, Any]) -> dict[str, Fact]:
    """Sockets, addresses and names."""
    return gather(
        host,
        {
            "sockets": "ss -Hlntup",
            "unix": f"for path in {' '.join(expected['sockets'])}; do stat -c '%F %n' $path; done",
            "named": "ss -Hlx | awk '$5 ~ /^[/@]/ { print $5 }' | sort -u",
            "vsock": "ss -Hl --vsock; ls /run/ssh-unix-local 2>/dev/null",
            "addresses": "ip -json address",
            "links": "networkctl --json=short list",
            "resolver": "readlink /etc/resolv.conf; systemd-analyze cat-config systemd/resolved.conf | grep -v '^#'",
            "names": "getent hosts $(hostname) | head -1; getent hosts localhost | head -1; grep ^hosts: /etc/nsswitch.conf",
            "time": "systemctl is-active chrony; ls /run/systemd/timesync 2>/dev/null; chronyc -n tracking",
            "guest agent": "systemctl show -p LoadState --value qemu-guest-agent; "
            "dpkg-query -W -f '${Status}' qemu-guest-agent",
        },
    )


def _listeners(fact: Fact) -> set[tuple[str, str, int, str]]:
    """Return (protocol, address, port, program) of every socket that waits for connections or datagrams."""
    found = set()
    for line in fact.lines:
        fields = line.split()
        address, _, port = fields[4].rpartition(":")
        program = re.search(r'users:\(\("([^"]+)"', line)
        found.add((fields[0], address, int(port), program.group(1) if program else ""))
    return found


def _covers(known: str, path: str) -> bool:
    return path.startswith(known) if known.endswith("/") else path == known


@pytest.mark.req("R3", "R10", "R11", "R90")
def test_tcp_listeners_are_known(facts: dict[str, Fact], expected: dict[str, Any]) -> None:
    """Only the ports that the layers name listen, on IPv4 and IPv6, and none on the loopback interface"""
    found = {(address, port) for protocol, address, port, _ in _listeners(facts["sockets"]) if protocol == "tcp"}
    assert found == {(address, port) for port in expected["ports"] for address in ("0.0.0.0", "[::]")}


@pytest.mark.req("R10")
def test_udp_listeners_are_known(facts: dict[str, Fact]) -> None:
    """No UDP ports are open except those of the DHCP client"""
    found = {(program, port) for protocol, _, port, program in _listeners(facts["sockets"]) if protocol == "udp"}
    assert {(name[:15], port) for name, port in found} <= UDP


@pytest.mark.req("R11", "R20")
def test_services_listen_on_unix_sockets(facts: dict[str, Fact], expected: dict[str, Any]) -> None:
    """Application, database and log listen on UNIX sockets"""
    assert facts["unix"].lines == [f"socket {path}" for path in expected["sockets"]]


@pytest.mark.req("R10")
def test_unix_listeners_are_known(facts: dict[str, Fact], expected: dict[str, Any]) -> None:
    """Every named UNIX socket that listens is in the list, and none listens for the hypervisor (AF_VSOCK)"""
    strangers = [
        path for path in facts["named"].lines if not any(_covers(known, path) for known in expected["unix_sockets"])
    ]
    assert strangers == []
    assert facts["vsock"].lines == []


@pytest.mark.req("R10")
def test_no_name_resolution_by_broadcast(facts: dict[str, Fact]) -> None:
    """Names are resolved by DNS only, and without a listener on this machine"""
    link, *lines = facts["resolver"].lines
    assert link == "../run/systemd/resolve/resolv.conf"
    assert {"LLMNR=no", "MulticastDNS=no", "DNSStubListener=no"} <= set(lines)


@pytest.mark.req("F33")
def test_own_name_resolves(facts: dict[str, Fact]) -> None:
    """The machine's own name resolves without a network"""
    own, local, order = facts["names"].lines
    assert ipaddress.ip_address(own.split()[0]).version in (4, 6)
    assert ipaddress.ip_address(local.split()[0]).is_loopback
    assert order.split()[1] == "files"


@pytest.mark.vm
@pytest.mark.req("R1")
def test_address_by_dhcp(facts: dict[str, Fact]) -> None:
    """The network card got its address by DHCP from systemd-networkd"""
    addresses = [
        address
        for link in json.loads(facts["addresses"].text)
        if link["ifname"] != "lo"
        for address in link["addr_info"]
        if address["scope"] == "global" and address["family"] == "inet"
    ]
    assert addresses
    assert all(address.get("dynamic") for address in addresses)
    links = json.loads(facts["links"].text)["Interfaces"]
    states = {link["Name"]: link["AdministrativeState"] for link in links if link["Type"] == "ether"}
    assert set(states.values()) == {"configured"}


@pytest.mark.vm
@pytest.mark.req("R29")
def test_time_service(facts: dict[str, Fact]) -> None:
    """chrony is the only time service, and it is queried over its UNIX socket"""
    active, *rest = facts["time"].lines
    assert active == "active"
    assert any(line.startswith("Reference ID") for line in rest)
    assert facts["time"].status == 0


@pytest.mark.req("R1")
def test_guest_agent_is_ready(facts: dict[str, Fact]) -> None:
    """The guest agent is installed, and starts if the hypervisor provides its channel"""
    assert facts["guest agent"].lines == ["loaded", "install ok installed"]
