"""Bans: addresses of repeated attacks or excessive requests are banned, and those of administrators are not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from testinfra.host import Host

from .facts import Fact, gather, properties
from .neighbours import ADMINISTRATOR, STRANGER, play
from .remote import until
from .wire import send, wire

pytestmark = pytest.mark.story

# With the web server, and without.
JAILS, SSHD_ONLY = {"golden-limit", "golden-probes", "sshd"}, {"sshd"}
# A line of the log of refused requests; then requests, and whether they count against the sending address.
REFUSED = '{"ts":"2026-01-02T03:04:05+00:00","net":"%s","ip":"%s","status":%d,"machine":%d,"uri":"%s"}'
LOOKED_FOR = {
    "/.env": True,
    "/app/.git/config": True,
    "/wp-login.php?x=1": True,
    "/phpMyAdmin/index": True,
    "/cgi-bin/x": True,
    "/a/../../etc/passwd": True,
    "/%2e%2e/etc/passwd": True,
    "/": False,
    "/environment": False,
    "/favicon.ico": False,
    "/search?q=/.env": False,
    "/phpunits-and-more": False,
}
# Programs that log failed logins: of OpenSSH 10, and of older versions.
SSHD = ("sshd-session", "sshd")
INNOCENT = "192.0.2.99"
FORGED = rf"/x\",\"net\":\"{INNOCENT}\",\"ip\":\"{INNOCENT}\",\"status\":429,\"machine\":1,\"uri\":\"/.env"
# Headers of a request that a page of another site makes its visitor's browser send: over TLS it names the kind of site, and
# always the languages of its user. Methods and versions that no page can make a browser send.
EMBEDDED = ["Accept-Language: de", "Sec-Fetch-Site: cross-site"]
MACHINES = {"PUT": "HTTP/1.1", "TRACE": "HTTP/1.1", "GET": "HTTP/1.0"}
NETWORK6 = "2001:db8:77::/64"

SCENE = r"""
def banned():
    listed = subprocess.run(["nft", "-j", "list", "table", "inet", "f2b-table"], capture_output=True).stdout
    items = json.loads(listed)["nftables"] if listed else []
    return {one["set"]["name"]: one["set"].get("elem", []) for one in items if "set" in one}

def send(who, path, times, *headers, method="GET", version="HTTP/1.1", addresses=()):
    for number in range(times):
        with there():
            one = socket.socket(socket.AF_INET6 if "6" in who else socket.AF_INET)
            one.settimeout(10 * PACE)
            one.bind(((addresses or [THERE[who]] * times)[number], 0))
        lines = [method + " " + path + " " + version, "Host: unknown.invalid", "Connection: close", *headers, "", ""]
        try:
            # A socket stays in the network namespace in which it was created.
            one.connect((HERE[who], 80))
            one.sendall("\r\n".join(lines).encode())
            while one.recv(4096):
                pass
        except TimeoutError:
            # On a slow machine the ban starts before the last of these requests; the remaining ones are dropped as well.
            return
        except ConnectionError:
            pass
        finally:
            one.close()

def knock(times):
    argv = ["ip", "netns", "exec", PLACE, "ssh", "-F", "/dev/null", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no",
            "-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=%d" % (20 * PACE), "-b", THERE["admin"],
            "nosuchuser@" + HERE["admin"], "true"]
    children = [subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                for _ in range(times)]
    return [child.wait(timeout=30 * PACE) for child in children]

def wait_until(done, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if done():
            return True
        time.sleep(0.5)
    return False

def holds(word, address):
    # For IPv6 clients networks are banned.
    shown = {json.dumps(address)}
    if "/" in address:
        network, length = address.split("/")
        shown.add(json.dumps({"prefix": {"addr": network, "len": int(length)}}))
    return any(word in name and json.dumps(element) in shown for name, elements in banned().items() for element in elements)

def scene(questions, facts):
    client = ["fail2ban-client"]
    try:
        # A page of another site that contains pictures with these names, in a visitor's browser.
        for header in questions["embedded"]:
            send("stranger", "/.env", 8, header)
            send("stranger6", "/.env", 8, header)
        time.sleep(3 * PACE)
        facts["visitor"] = holds("golden-probes", THERE["stranger"]) or holds("golden-probes", questions["network 6"])
        addresses = ["2001:db8:77::%x" % (number + 256) for number in range(6)]
        for address in addresses:
            run("ip", "-n", PLACE, "address", "add", address + "/64", "dev", PLUG, "nodad")
        send("stranger6", "/.env", 6, addresses=addresses)
        facts["network 6"] = wait_until(lambda: holds("golden-probes", questions["network 6"]), 20 * PACE)
        send("admin", "/.env", 6)
        send("stranger", "/.env", 6)
        facts["scanner"] = wait_until(lambda: holds("golden-probes", THERE["stranger"]), 20 * PACE)
        facts["administrator"] = holds("golden-probes", THERE["admin"])
        facts["asked"], _, sockets = ask(stranger=[80, 443], admin=[80])
        close(sockets)
        facts["ssh"] = knock(5)
        facts["guesser"] = wait_until(lambda: holds("sshd", THERE["admin"]), 20 * PACE)
        run("fail2ban-client", "set", "sshd", "banip", questions["by hand"])
        facts["by hand"] = holds("sshd", questions["by hand"])
        run("fail2ban-client", "set", "sshd", "banip", "2001:db8::66")
        facts["by hand 6"] = holds("sshd", "2001:db8::/64")
    finally:
        subprocess.run(["fail2ban-client", "unban", THERE["admin"], THERE["stranger"], questions["by hand"], "2001:db8::66",
                        questions["network 6"]],
                       stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    facts["left"] = [element for elements in banned().values() for element in elements]
"""


def _address(number: int) -> str:
    """Return the address in the line of that number."""
    return f"192.0.2.{number + 1}"


def _found(lines: Sequence[str], filter_name: str) -> str:
    """Return a command that shows the addresses that fail2ban finds in lines of a log."""
    return f"file=$(mktemp) && cat >$file <<'END' && fail2ban-regex --out ip $file {filter_name}; rm $file\n" + "\n".join(
        (*lines, "END")
    )


def _refused(number: int, status: int, uri: str, *, machine: int = 1) -> str:
    return REFUSED % (_address(number), _address(number), status, machine, uri)


@pytest.fixture(scope="module")
def facts(host: Host) -> dict[str, Fact]:
    """The service, its jails, and what its filters find in lines of logs."""
    probes = [_refused(number, 404, uri) for number, uri in enumerate([*LOOKED_FOR, FORGED])]
    limits = [
        _refused(0, 429, "/"), _refused(1, 404, "/"), _refused(2, 404, FORGED), _refused(3, 429, "/", machine=0),
        REFUSED % ("2001:db8:1:2::/64", "2001:db8:1:2::7", 429, 1, "/"),
    ]  # fmt: skip
    embedded = [_refused(number, 404, uri, machine=0) for number, uri in enumerate(LOOKED_FOR)]
    logins = [
        f"Jan  2 03:04:05 clone {program}[7]: Invalid user guess from {_address(number)} port 4242"
        for number, program in enumerate(SSHD)
    ]
    return gather(
        host,
        {
            "jails": "fail2ban-client status",
            "unit": "systemctl show -p User -p Restart -p ActiveState -p NRestarts fail2ban",
            "process": "ps -o user= -p $(systemctl show -p MainPID --value fail2ban); "
            "grep ^CapEff /proc/$(systemctl show -p MainPID --value fail2ban)/status",
            "exposure": "systemd-analyze security fail2ban.service --no-pager | tail -1",
            "access": "stat -c '%a %U:%G' /var/log/nginx/refused.log",
            "probes": _found(probes, "golden-probes"),
            "embedded": _found(embedded, "golden-probes"),
            "limits": _found(limits, "golden-limit"),
            "ssh": "sshd -T | grep -i persourcenetblocksize",
            "logins": _found(logins, "sshd"),
        },
    )


@pytest.fixture(scope="module")
def scene(host: Host) -> dict[str, Any]:
    """The results of a scanner, of password guesses, and of an administrator who does the same as the scanner."""
    return play(host, SCENE, {"by hand": "192.0.2.66", "embedded": EMBEDDED, "network 6": NETWORK6})


@pytest.mark.req("R50", "R66")
def test_jails_run(facts: dict[str, Fact], spec: SimpleNamespace) -> None:
    """fail2ban monitors sshd and the refused requests of nginx"""
    listed = facts["jails"].lines[-1].partition("Jail list:")[2]
    assert {name.strip() for name in listed.split(",")} == (JAILS if "50-nginx" in spec.layers else SSHD_ONLY)


@pytest.mark.req("R66")
def test_service_can_do_little(facts: dict[str, Fact]) -> None:
    """fail2ban runs as a user with one capability, in a sandbox, and restarts after a crash"""
    assert properties(facts["unit"]) == {
        "User": "fail2ban",
        "Restart": "on-failure",
        "ActiveState": "active",
        "NRestarts": "0",
    }
    user, capabilities = facts["process"].lines
    assert user.strip() == "fail2ban"
    assert int(capabilities.split()[1], 16) == 1 << 12
    assert float(facts["exposure"].text.split()[-3]) <= 2.0


@pytest.mark.layers("50-nginx")
@pytest.mark.req("R66")
def test_refusals_are_closed(facts: dict[str, Fact]) -> None:
    """Only administrators and fail2ban may read the log of refused requests"""
    assert facts["access"].text == "640 root:adm"


@pytest.mark.layers("50-nginx")
@pytest.mark.req("R50", "R66")
def test_scanners_are_told_from_visitors(facts: dict[str, Fact]) -> None:
    """Requests that only a scanner sends count against it, and those that a visitor may send do not"""
    found = facts["probes"].lines
    assert {uri: _address(number) in found for number, uri in enumerate(LOOKED_FOR)} == LOOKED_FOR


@pytest.mark.layers("50-nginx")
@pytest.mark.req("R50")
def test_too_many_requests_count(facts: dict[str, Fact]) -> None:
    """A response 429 counts against the address, for IPv6 the /64; other responses do not, nor those to a browser"""
    assert facts["limits"].lines == [_address(0), "2001:db8:1:2::/64"]


@pytest.mark.layers("50-nginx")
@pytest.mark.req("R50", "R66")
def test_what_a_browser_can_be_made_to_send_does_not_count(facts: dict[str, Fact]) -> None:
    """A request that a page of another site can make a visitor's browser send does not count"""
    assert facts["embedded"].lines == []


@pytest.mark.req("R80")
def test_sshd_counts_networks(facts: dict[str, Fact]) -> None:
    """sshd's penalties apply to the /64 of an IPv6 client"""
    assert facts["ssh"].text == "persourcenetblocksize 32:64"


@pytest.mark.layers("50-nginx")
@pytest.mark.req("R50", "R66")
def test_visitor_of_a_hostile_page_is_not_banned(scene: dict[str, Any]) -> None:
    """A page of another site with pictures at paths that scanners request does not get its visitors banned"""
    assert not scene["visitor"]


@pytest.mark.layers("50-nginx")
@pytest.mark.req("R50", "R66")
def test_scanner_with_many_addresses_is_banned(scene: dict[str, Any]) -> None:
    """The network of a scanner that sends requests from six addresses of one /64 is banned"""
    assert scene["network 6"]


@pytest.fixture(scope="module")
def marked(host: Host, spec: SimpleNamespace) -> dict[str, int]:
    """Whether nginx logs requests of a program and of a browser, over TLS, as ones that may count."""
    name = spec.application.server_name
    requests = {
        "nothing": ("GET", "HTTP/1.1", []), "language": ("GET", "HTTP/1.1", EMBEDDED[:1]),
        "site": ("GET", "HTTP/1.1", EMBEDDED[1:]), "form": ("POST", "HTTP/1.1", [*EMBEDDED, "Content-Length: 0"]),
        **{method: (method, version, EMBEDDED) for method, version in MACHINES.items()},
    }  # fmt: skip
    send(
        host,
        {
            case: wire("\r\n".join([f"{method} /.env?marked-{case} {version}", f"Host: {name}", *headers,
                                     "Connection: close", "", ""]), name=name, source=f"127.0.7.{number + 1}")
            for number, (case, (method, version, headers)) in enumerate(requests.items())
        },
    )  # fmt: skip
    access, refused = "/var/log/nginx/access.log", "/var/log/nginx/refused.log"
    # The access log has all of them, the log of refusals those that count; the last one was sent by a program.
    wait = until(
        f"test $(grep -c env?marked- {access}) -ge {len(requests)} && "
        f"test $(grep -c env?marked- {refused}) -gt {len(MACHINES)}",
        10, pause=0.5,
    )  # fmt: skip
    lines = host.check_output(f"{wait}; grep -h env?marked- {refused}").splitlines()
    counted = {event["uri"].removeprefix("/.env?marked-"): event["machine"] for event in map(json.loads, lines)}
    return {case: counted.get(case, 0) for case in requests}


@pytest.mark.layers("50-nginx")
@pytest.mark.req("R50", "R66")
def test_browsers_are_known_by_what_no_page_can_take_away(marked: dict[str, int]) -> None:
    """A request with a browser's headers does not count, unless no page can make a browser use its method or version"""
    assert marked == {"nothing": 1, "language": 0, "site": 0, "form": 0, **dict.fromkeys(MACHINES, 1)}


@pytest.mark.layers("50-nginx")
@pytest.mark.req("R66")
def test_nobody_can_blame_another(facts: dict[str, Fact]) -> None:
    """An address that a client writes into its request is never banned"""
    assert facts["probes"].lines
    assert INNOCENT not in facts["probes"].text
    assert INNOCENT not in facts["limits"].text


@pytest.mark.req("R66", "F24")
def test_messages_of_sshd_are_known(facts: dict[str, Fact]) -> None:
    """A failed login is detected in the messages of sshd, also with OpenSSH 10, where another program logs them"""
    assert facts["logins"].lines == [_address(number) for number in range(len(SSHD))]


@pytest.mark.layers("50-nginx")
@pytest.mark.req("R50", "R66", "F24")
def test_scanner_is_banned(scene: dict[str, Any]) -> None:
    """The packets of a scanner to the web server's ports are dropped within seconds"""
    assert scene["scanner"]
    assert scene["asked"]["stranger"] == {"80": "silent", "443": "silent"}


@pytest.mark.layers("50-nginx")
@pytest.mark.req("R66")
def test_administrator_is_not_locked_out_of_the_site(scene: dict[str, Any]) -> None:
    """An administrator who scans the site is not banned from it"""
    assert not scene["administrator"]
    assert scene["asked"]["admin"] == {"80": "open"}


@pytest.mark.layers("50-nginx")
@pytest.mark.req("R66", "R80", "F24")
def test_guesser_is_banned(scene: dict[str, Any]) -> None:
    """An address that tries accounts on port 22 is banned from it, also in an administrator's network"""
    assert 0 not in scene["ssh"]
    assert scene["guesser"]


@pytest.mark.layers("50-nginx")
@pytest.mark.req("F24")
def test_ban_by_hand_reaches_the_packet_filter(scene: dict[str, Any]) -> None:
    """`fail2ban-client set sshd banip` adds a rule to nftables at once, for IPv4 and IPv6, and an unban removes it"""
    assert scene["by hand"]
    assert scene["by hand 6"]
    assert scene["left"] == []
    assert {STRANGER, ADMINISTRATOR}.isdisjoint(scene["left"])
