"""Bans: who keeps breaking in or asking for too much is kept out, and who administers the machine is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from testinfra.host import Host

from .facts import Fact, gather, properties
from .neighbours import ADMINISTRATOR, STRANGER, play

pytestmark = pytest.mark.story

JAILS = {"golden-limit", "golden-probes", "sshd"}
# What the log holds of a request, and whether it counts against the address that sent it.
REFUSED = '{"ts":"2026-01-02T03:04:05+00:00","ip":"%s","status":%d,"uri":"%s"}'
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
# sshd of OpenSSH 10 and older ones.
SSHD = ("sshd-session", "sshd")
INNOCENT = "192.0.2.99"
FORGED = rf'/x\",\"ip\":\"{INNOCENT}\",\"status\":429,\"uri\":\"/.env'

SCENE = r"""
def banned():
    said = subprocess.run(["nft", "-j", "list", "table", "inet", "f2b-table"], capture_output=True).stdout
    items = json.loads(said)["nftables"] if said else []
    return {one["set"]["name"]: one["set"].get("elem", []) for one in items if "set" in one}

def send(who, path, times):
    for _ in range(times):
        with there():
            one = socket.socket()
            one.settimeout(10)
            one.bind((THERE[who], 0))
            one.connect((HERE[who], 80))
        one.sendall(("GET " + path + " HTTP/1.1\r\nHost: nobody.invalid\r\nConnection: close\r\n\r\n").encode())
        try:
            while one.recv(4096):
                pass
        except ConnectionError:
            pass
        one.close()

def knock(times):
    argv = ["ip", "netns", "exec", PLACE, "ssh", "-F", "/dev/null", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no",
            "-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=60", "-b", THERE["admin"],
            "nosuchuser@" + HERE["admin"], "true"]
    children = [subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                for _ in range(times)]
    return [child.wait(timeout=90) for child in children]

def wait_until(done, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if done():
            return True
        time.sleep(0.5)
    return False

def holds(word, address):
    return any(word in name and address in elements for name, elements in banned().items())

def scene(questions, facts):
    client = ["fail2ban-client"]
    try:
        send("admin", "/.env", 6)
        send("stranger", "/.env", 6)
        facts["scanner"] = wait_until(lambda: holds("golden-probes", THERE["stranger"]), 40)
        facts["administrator"] = holds("golden-probes", THERE["admin"])
        facts["asked"], _, sockets = ask(stranger=[80, 443], admin=[80])
        close(sockets)
        facts["ssh"] = knock(5)
        facts["guesser"] = wait_until(lambda: holds("sshd", THERE["admin"]), 40)
        run("fail2ban-client", "set", "sshd", "banip", questions["by hand"])
        facts["by hand"] = holds("sshd", questions["by hand"])
        run("fail2ban-client", "set", "sshd", "banip", "2001:db8::66")
        facts["by hand 6"] = holds("sshd", "2001:db8::66")
    finally:
        subprocess.run(["fail2ban-client", "unban", THERE["admin"], THERE["stranger"], questions["by hand"], "2001:db8::66"],
                       stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    facts["left"] = [element for elements in banned().values() for element in elements]
"""


def _address(number: int) -> str:
    """Return the address that the line of that number is about."""
    return f"192.0.2.{number + 1}"


def _found(lines: Sequence[str], filter_name: str) -> str:
    """Return a command that shows the addresses that fail2ban finds in lines of a log."""
    return f"file=$(mktemp) && cat >$file <<'END' && fail2ban-regex --out ip $file {filter_name}; rm $file\n" + "\n".join(
        (*lines, "END")
    )


def _refused(number: int, status: int, uri: str) -> str:
    return REFUSED % (_address(number), status, uri)


@pytest.fixture(scope="module")
def facts(host: Host) -> dict[str, Fact]:
    """The service, its jails, and what its filters find in lines of logs."""
    probes = [_refused(number, 404, uri) for number, uri in enumerate([*LOOKED_FOR, FORGED])]
    limits = [_refused(0, 429, "/"), _refused(1, 404, "/"), _refused(2, 404, FORGED), REFUSED % ("2001:db8::1", 429, "/")]
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
            "limits": _found(limits, "golden-limit"),
            "logins": _found(logins, "sshd"),
        },
    )


@pytest.fixture(scope="module")
def scene(host: Host) -> dict[str, Any]:
    """What becomes of a scanner, of one who guesses, and of an administrator who does the same as the scanner."""
    return play(host, SCENE, {"by hand": "192.0.2.66"})


@pytest.mark.req("R50", "R66")
def test_jails_run(facts: dict[str, Fact]) -> None:
    """fail2ban watches sshd and the refused requests of nginx"""
    listed = facts["jails"].lines[-1].partition("Jail list:")[2]
    assert {name.strip() for name in listed.split(",")} == JAILS


@pytest.mark.req("R66")
def test_service_can_do_little(facts: dict[str, Fact]) -> None:
    """fail2ban is a user with one capability, in a sandbox, and starts again after a crash"""
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
    assert facts["access"].text == "640 root:adm"


@pytest.mark.req("R50", "R66")
def test_scanners_are_told_from_visitors(facts: dict[str, Fact]) -> None:
    """What only a scanner asks for counts against it, and what a visitor may ask for does not"""
    found = facts["probes"].lines
    assert {uri: _address(number) in found for number, uri in enumerate(LOOKED_FOR)} == LOOKED_FOR


@pytest.mark.req("R50")
def test_too_many_requests_count(facts: dict[str, Fact]) -> None:
    """An answer 429 counts against its address, also an IPv6 one; another answer does not"""
    assert facts["limits"].lines == [_address(0), "2001:db8::1"]


@pytest.mark.req("R66")
def test_nobody_can_blame_another(facts: dict[str, Fact]) -> None:
    """An address that a client writes into its request is never banned"""
    assert facts["probes"].lines
    assert INNOCENT not in facts["probes"].text
    assert INNOCENT not in facts["limits"].text


@pytest.mark.req("R66", "F24")
def test_messages_of_sshd_are_known(facts: dict[str, Fact]) -> None:
    """A failed login is found in the messages of sshd, also of OpenSSH 10, where another program writes them"""
    assert facts["logins"].lines == [_address(number) for number in range(len(SSHD))]


@pytest.mark.req("R50", "R66", "F24")
def test_scanner_is_banned(scene: dict[str, Any]) -> None:
    """A scanner's packets are dropped, at the web server's ports, within seconds"""
    assert scene["scanner"]
    assert scene["asked"]["stranger"] == {"80": "silent", "443": "silent"}


@pytest.mark.req("R66")
def test_administrator_is_not_locked_out_of_the_site(scene: dict[str, Any]) -> None:
    """An administrator who scans the site is not banned from it"""
    assert not scene["administrator"]
    assert scene["asked"]["admin"] == {"80": "open"}


@pytest.mark.req("R66", "R80", "F24")
def test_guesser_is_banned(scene: dict[str, Any]) -> None:
    """Whoever tries accounts on port 22 is banned from it, also from an administrator's network"""
    assert 0 not in scene["ssh"]
    assert scene["guesser"]


@pytest.mark.req("F24")
def test_ban_by_hand_reaches_the_packet_filter(scene: dict[str, Any]) -> None:
    """`fail2ban-client set sshd banip` is a rule of nftables at once, for IPv4 and IPv6, and an unban ends it"""
    assert scene["by hand"]
    assert scene["by hand 6"]
    assert scene["left"] == []
    assert {STRANGER, ADMINISTRATOR}.isdisjoint(scene["left"])
