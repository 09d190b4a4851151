"""The packet filter: rules for incoming, forwarded and outgoing packets, limits, and the isolation in an incident."""

from __future__ import annotations

import ipaddress
import json
from types import SimpleNamespace
from typing import Any

import pytest
from testinfra.host import Host

from .facts import Fact, gather, properties
from .neighbours import play

POLICIES = {"input": "drop", "forward": "drop", "output": "drop"}
STRANGER = [22, 25, 80, 111, 443, 5432, 8000]
IDLE = 130
LIMIT = 100

SCENE = r"""
def leave(user, port):
    # In a child, because a process cannot change back to root.
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        account = pwd.getpwnam(user)
        os.setgroups([])
        os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
        os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)
        os.write(writing, outcomes([begin("", THERE["stranger"], port)], SECONDS)[0].encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        outcome = stream.read()
    os.waitpid(child, 0)
    return outcome

def answer(connection):
    connection.setblocking(True)
    connection.settimeout(SECONDS)
    try:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: unknown\r\n\r\n")
        return "closed" if connection.recv(1) == b"" else "answered"
    except OSError as error:
        return type(error).__name__

from golden import firewall

def state():
    listed = subprocess.run(["nft", "-j", "list", "table", "inet", "golden"], check=True, capture_output=True)
    return firewall.describe(json.loads(listed.stdout))

def scene(questions, facts):
    facts["before"] = state()
    ports = questions["ports"]
    facts["asked"], _, sockets = ask(stranger=ports, stranger6=ports, admin=[22, 80], admin6=[22, 80])
    close(sockets)
    facts["out"] = [leave(user, port) for user, port in questions["out"]]
    _, words, crowd = ask(stranger=[80] * questions["idle"])
    facts["crowd"] = words.count("open")
    facts["beside the crowd"], _, sockets = ask(admin=[80])
    close(crowd + sockets)
    facts["counted"] = state()["dropped"]
    _, _, (held,) = ask(admin=[questions["held"]])
    run("golden-firewall", "isolate")
    # On a slow machine nginx may close an idle connection before the rules are there; behind them nothing arrives.
    readable = select.select([held], [], [], 0)[0]
    facts["held until then"] = not readable or held.recv(1, socket.MSG_PEEK) != b""
    facts["isolated"] = state()["isolated"]
    facts["isolation lasts"] = os.path.exists("/etc/golden/isolation.nft")
    run("systemctl", "reload", "nftables")
    facts["isolated after reload"] = state()["isolated"]
    run("nft", "add element inet golden admin_inet4 { %s }" % THERE["admin"])
    facts["held"] = answer(held)
    facts["fenced"], _, sockets = ask(stranger=[22, 80, 443], admin=[22, 80])
    close(sockets)
    facts["out, isolated"] = leave("_apt", 80)
    facts["counted, isolated"] = state()["dropped"]
    run("golden-firewall", "release")
    facts["released"], _, sockets = ask(stranger=[443])
    close(sockets)
    run("systemctl", "reload", "golden-firewall")
    facts["after"] = state()
"""


@pytest.fixture(scope="module")
def facts(host: Host) -> dict[str, Fact]:
    """The rules in the kernel, the units, and the settings."""
    return gather(
        host,
        {
            "table": "nft -j list table inet golden",
            "order": "for unit in nftables systemd-networkd golden-firewall; do "
            "systemctl show -p ActiveEnterTimestampMonotonic --value $unit; done",
            "needs": "systemctl show -p Requires --value systemd-networkd",
            "stop": "systemctl show -p ExecStop --value nftables",
            "settings": "cat /run/golden/site.json 2>/dev/null || echo '{}'",
            "state": "golden-firewall --json status",
            "exposure": "for unit in golden-firewall nftables; do "
            "systemd-analyze security $unit.service --no-pager | tail -1; done",
            "access": "stat -c '%a %U:%G %n' /run/golden-firewall /run/golden-firewall/site.nft /etc/nftables.conf "
            "$(ls -d /etc/nftables.d/*.nft 2>/dev/null)",
            "usage": "golden-firewall; echo $?; runuser -u nobody -- golden-firewall status; echo $?",
        },
    )


@pytest.fixture(scope="module")
def probe(host: Host, expected: dict[str, Any]) -> dict[str, Any]:
    """How other machines see this one."""
    questions = {"ports": STRANGER, "out": [[way["user"], way["port"]] for way in expected["outgoing"]], "idle": IDLE}
    # A connection that is open before the isolation: to the web server if there is one.
    questions["held"] = 80 if 80 in expected["ports"] else 22
    return play(host, SCENE, questions)


def _from_outside(expected: dict[str, Any], port: int) -> str:
    """Return the result of a connection from any address: the web server's ports are open, SSH is not."""
    return "open" if port in expected["ports"] and port != 22 else "silent"


@pytest.mark.req("R3", "R30")
def test_everything_is_refused_by_default(facts: dict[str, Fact]) -> None:
    """Incoming, forwarded and outgoing packets without a matching rule are dropped"""
    chains = [one["chain"] for one in json.loads(facts["table"].text)["nftables"] if "chain" in one]
    assert {chain["hook"]: chain["policy"] for chain in chains if "hook" in chain} == POLICIES


@pytest.mark.req("R30")
def test_rules_come_before_the_network(facts: dict[str, Fact]) -> None:
    """The rules are loaded before the network, which requires them, and stay when the unit is stopped"""
    rules, network, networks_of_administrators = map(int, facts["order"].lines)
    assert 0 < rules < network
    assert networks_of_administrators > rules
    assert "nftables.service" in facts["needs"].words
    assert facts["stop"].text == ""


@pytest.mark.req("R3", "R30", "R80")
def test_administrators_are_the_settings(facts: dict[str, Fact], spec: SimpleNamespace) -> None:
    """Port 22 is open to the networks of the site settings, or else to those of the spec, or else closed"""
    wanted = json.loads(facts["settings"].text).get("admin_cidrs") or spec.admin.cidrs
    found = json.loads(facts["state"].text)["administrators"]
    assert {ipaddress.ip_network(one) for one in found} == {ipaddress.ip_network(one) for one in wanted}


@pytest.mark.vm
@pytest.mark.req("R3", "R80")
def test_administrators_come_in(host: Host, facts: dict[str, Fact]) -> None:
    """This test's own connection comes from one of the administrators' networks"""
    peers = {line.split()[-1].rpartition(":")[0] for line in host.check_output("ss -Htn 'sport = 22'").splitlines()}
    networks = [ipaddress.ip_network(one) for one in json.loads(facts["state"].text)["administrators"]]
    assert peers
    for peer in peers:
        address = ipaddress.ip_address(peer.strip("[]"))
        assert any(address in network for network in networks), peer


@pytest.mark.req("R3", "R10", "R30", "R90")
@pytest.mark.parametrize("who", ["stranger", "stranger6"])
def test_strangers_reach_the_web_server_only(probe: dict[str, Any], expected: dict[str, Any], who: str) -> None:
    """From any other address only the ports of the web server are open, and other ports do not answer"""
    assert probe["asked"][who] == {str(port): _from_outside(expected, port) for port in STRANGER}


@pytest.mark.req("R30", "R80")
@pytest.mark.parametrize("who", ["admin", "admin6"])
def test_administrators_reach_ssh(probe: dict[str, Any], expected: dict[str, Any], who: str) -> None:
    """Port 22 is also open from an administrator's network"""
    assert probe["asked"][who] == {"22": "open", "80": _from_outside(expected, 80)}


@pytest.mark.layers("50-nginx")
@pytest.mark.req("R14")
def test_connections_per_address_are_limited(probe: dict[str, Any]) -> None:
    """The number of idle connections of one address is limited; another address is served meanwhile"""
    assert LIMIT - 5 <= probe["crowd"] <= LIMIT + 1
    assert probe["beside the crowd"] == {"admin": {"80": "open"}}


@pytest.mark.req("R30")
@pytest.mark.expected("way", "outgoing")
def test_outgoing_by_user(probe: dict[str, Any], expected: dict[str, Any], way: dict[str, Any]) -> None:
    """A service can reach the outside ports that it needs; all other connections are refused at once"""
    # Nothing listens there: an allowed connection is refused by the other side.
    outcome = probe["out"][expected["outgoing"].index(way)]
    assert outcome == ("refused" if way["may"] else "rejected")


@pytest.mark.req("R100")
def test_isolation_leaves_administrators_only(probe: dict[str, Any], expected: dict[str, Any]) -> None:
    """An isolated machine answers only administrators on port 22, and also drops connections that were open before"""
    assert probe["isolated"]
    assert set(probe["fenced"]["stranger"].values()) == {"silent"}
    assert probe["fenced"]["admin"] == {"22": "open", "80": "silent"}
    assert probe["out, isolated"] == "silent"
    # Without a web server it is a connection of an administrator to port 22, which stays open.
    held = "TimeoutError" if 80 in expected["ports"] else "answered"
    assert probe["held"] == (held if probe["held until then"] else "closed")


@pytest.mark.req("R100")
def test_isolation_lasts_until_it_is_ended(probe: dict[str, Any], expected: dict[str, Any]) -> None:
    """An isolation lasts across a reload of the rules, is saved for the next boot, and ends with `release`"""
    assert probe["isolation lasts"]
    assert probe["isolated after reload"]
    assert not probe["after"]["isolated"]
    assert probe["released"] == {"stranger": {"443": _from_outside(expected, 443)}}


@pytest.mark.req("R9", "R30")
def test_refusals_are_counted(probe: dict[str, Any], facts: dict[str, Fact], expected: dict[str, Any]) -> None:
    """Each kind of refusal has a counter; afterwards the administrators' networks are unchanged"""
    gained = {name: packets - probe["before"]["dropped"][name] for name, packets in probe["counted"].items()}
    assert gained["in"] >= 2 * (len(STRANGER) - 2)
    assert gained["out"] >= len([way for way in expected["outgoing"] if not way["may"]])
    if 80 in expected["ports"]:
        assert gained["web_limit"] >= IDLE - LIMIT - 1
    assert probe["counted, isolated"]["isolated"] > 0
    assert probe["after"]["administrators"] == json.loads(facts["state"].text)["administrators"]


@pytest.mark.vm
@pytest.mark.req("R9", "R30")
def test_refusals_are_logged(probe: dict[str, Any], expected: dict[str, Any], host: Host) -> None:
    """Refused packets are logged in the journal, outgoing ones with their user"""
    lines = host.check_output("journalctl -k -b --no-pager -o cat --grep golden-firewall | tail -200")
    assert probe["after"]
    marks = ["golden-firewall in: ", "golden-firewall out: ", "golden-firewall isolated in: "]
    for mark in (*marks, "golden-firewall web limit: ") if 80 in expected["ports"] else marks:
        assert mark in lines, mark
    assert any("golden-firewall out: " in line and "UID=" in line for line in lines.splitlines())


@pytest.mark.req("R30")
def test_rules_are_roots(facts: dict[str, Fact]) -> None:
    """Only root can read the rules"""
    directory, *files = [line.split()[:2] for line in facts["access"].lines]
    assert directory == ["700", "root:root"]
    assert len(files) >= 2
    assert all(file == ["600", "root:root"] for file in files)


@pytest.mark.req("R38")
def test_units_are_sandboxed(facts: dict[str, Fact]) -> None:
    """systemd rates the sandbox of the units that change the packet filter 2.0 or better"""
    scores = [float(line.split()[-3]) for line in facts["exposure"].lines if "Overall exposure" in line]
    assert len(scores) == 2
    assert max(scores) <= 2.0


@pytest.mark.req("R30")
def test_command_explains_itself(facts: dict[str, Fact]) -> None:
    """golden-firewall prints its usage, and refuses users other than root"""
    assert facts["usage"].lines[0].startswith("usage: golden-firewall")
    assert [line for line in facts["usage"].lines if line.isdigit()] == ["2", "2"]
    assert properties(facts["usage"]) == {}
