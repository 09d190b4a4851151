"""Proxies: only they can name the client, each client is counted and banned separately, and others are not trusted."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from testinfra.host import Host

from .facts import Fact, gather
from .neighbours import play
from .remote import seconds, until
from .site_file import BACK, KEEP, applied
from .wire import Reply, send, wire

pytestmark = [pytest.mark.story, pytest.mark.layers("application", "25-firewall", "26-bans")]

# The proxies and a stranger have addresses of the loopback interface; the clients have addresses for documentation.
PROXY, SECOND, STRANGER = "127.0.7.1", "127.0.7.2", "127.0.7.9"
CLIENT, OTHER, SCANNER = "198.51.100.77", "198.51.100.78", "198.51.100.79"
# Headers of requests, and the client that is counted: the last address that is not a proxy's.
NAMED = {
    "one": (PROXY, [f"X-Forwarded-For: {CLIENT}"], CLIENT),
    "IPv6": (PROXY, ["X-Forwarded-For: 2001:db8:9::77"], "2001:db8:9::77"),
    "with a port": (PROXY, [f"X-Forwarded-For: {CLIENT}:4711"], CLIENT),
    "what the client wrote before it": (PROXY, [f"X-Forwarded-For: 127.0.0.1, {PROXY}, 203.0.113.9, {CLIENT}"], CLIENT),
    "two proxies": (PROXY, [f"X-Forwarded-For: {CLIENT}, {SECOND}"], CLIENT),
    "two headers": (PROXY, ["X-Forwarded-For: 203.0.113.9", f"X-Forwarded-For: {CLIENT}"], CLIENT),
    "nonsense": (PROXY, ["X-Forwarded-For: unknown"], PROXY),
    "nothing": (PROXY, [], PROXY),
    "another header": (PROXY, [f"X-Real-IP: {CLIENT}", f"Forwarded: for={CLIENT}"], PROXY),
    "a stranger": (STRANGER, [f"X-Forwarded-For: {CLIENT}"], STRANGER),
    "a stranger as a proxy": (STRANGER, [f"X-Forwarded-For: {CLIENT}, {PROXY}"], STRANGER),
    "a stranger with the PROXY protocol": (STRANGER, ["PROXY"], ""),
}  # fmt: skip
SETTINGS = "proxies: {{addresses: [{addresses}], client: {client}}}"
SCENE = r"""
import ssl

HEADER = "PROXY TCP4 %s 198.51.100.1 4711 443\r\n"

def request(who, name, header):
    # Any error of a connection is its result.
    try:
        with there():
            plain = socket.create_connection((HERE[who], 443), timeout=10 * PACE, source_address=(THERE[who], 0))
        plain.sendall(header)
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with context.wrap_socket(plain, server_hostname=name) as connection:
            connection.sendall(("GET /no-such?" + who + "-protocol HTTP/1.1\r\nHost: " + name
                                + "\r\nX-Forwarded-For: 203.0.113.99\r\nConnection: close\r\n\r\n").encode())
            return connection.recv(4096).split(b"\r\n")[0].decode()
    except (OSError, ssl.SSLError) as error:
        return type(error).__name__

def crowd(who, count):
    with there():
        sockets = [begin(THERE[who], HERE[who], 443) for _ in range(count)]
    found = outcomes(sockets, SECONDS).count("open")
    close(sockets)
    return found

def scene(questions, facts):
    name, client = questions["name"], questions["client"]
    # As golden-firewall does for the site's proxies; the sets of administrators are restored at the end.
    facts["proxy"] = request("stranger", name, (HEADER % client).encode())
    facts["proxy without"] = request("stranger", name, b"")
    facts["other"] = request("admin", name, (HEADER % client).encode())
    facts["other without"] = request("admin", name, b"")
    facts["crowds"] = {who: crowd(who, 140) for who in ("stranger", "admin")}
"""


def settings(addresses: str, client: str) -> str:
    """Return the command that adds proxies to the site's settings and applies them."""
    return f"{KEEP}; {applied(SETTINGS.format(addresses=addresses, client=client))}"


def get(path: str, name: str, *headers: str) -> str:
    """Return a request that ends its connection; one with the PROXY protocol starts with its line."""
    first = f"PROXY TCP4 {CLIENT} 127.0.0.1 4711 443\r\n" if headers == ("PROXY",) else ""
    lines = [f"GET {path} HTTP/1.1", f"Host: {name}", "Connection: close", *(line for line in headers if line != "PROXY")]
    return first + "\r\n".join([*lines, "", ""])


@pytest.fixture(scope="module")
def story(host: Host, spec: SimpleNamespace) -> Iterator[dict[str, Any]]:
    """Responses with proxies of both kinds in the site settings; afterwards the settings are restored."""
    name = spec.application.server_name
    facts: dict[str, Any] = {}
    try:
        facts["applied"] = gather(host, {"apply": settings(f"{PROXY}, {SECOND}", "x-forwarded-for")})["apply"]
        facts["named"] = send(
            host,
            {
                case: wire(get(f"/no-such?proxies-{number}", name, *headers), name=name, source=source)
                for number, (case, (source, headers, _client)) in enumerate(NAMED.items())
            },
        )
        facts["administration"] = send(
            host, {"claimed": wire(get("/admin/", name, "X-Forwarded-For: 127.0.0.1"), name=name, source=STRANGER)}
        )["claimed"]
        # nginx answers this path itself: a slow machine's application answers fewer requests a second than the limit allows.
        crowd = "".join(
            f"GET /admin/?crowd HTTP/1.1\r\nHost: {name}\r\nX-Forwarded-For: {CLIENT}\r\nUser-Agent: Mozilla/5.0\r\n\r\n"
            for _ in range(400)
        )
        facts["limits"] = send(
            host,
            {
                "crowd": wire(crowd, name=name, source=PROXY),
                "beside": wire(get("/?beside", name, f"X-Forwarded-For: {OTHER}"), name=name, source=PROXY),
            },
        )
        probes = {
            f"{number}": wire(get(f"/.env?{number}", name, f"X-Forwarded-For: {SCANNER}"), name=name, source=PROXY)
            for number in range(8)
        }
        send(host, probes)
        banned = f"grep -qsx '{SCANNER} 1;' /run/golden/banned.conf"
        facts["bans"] = gather(host, {"written": until(banned, 40, pause=0.5), "held": "cat /run/golden/banned.conf"})
        # The web server has loaded the file when it refuses the client.
        deadline = time.monotonic() + seconds(host, 20)
        while True:
            facts["after the ban"] = send(
                host,
                {
                    who: wire(get("/health?banned", name, f"X-Forwarded-For: {who}"), name=name, source=PROXY)
                    for who in (SCANNER, OTHER)
                },
            )
            if facts["after the ban"][SCANNER].statuses == [403] or time.monotonic() > deadline:
                break
            time.sleep(0.5)
        facts["proxy banned"] = gather(
            host,
            {
                "table": "nft list table inet f2b-table",
                "exempt": f"nft get element inet golden proxy_inet4 '{{ {PROXY} }}'",
                "not": f"nft get element inet golden proxy_inet4 '{{ {CLIENT} }}'",
                "status": "golden-firewall --json status",
            },
        )
        host.check_output(f"fail2ban-client unban {SCANNER} {CLIENT}")
        facts["unbanned"] = gather(host, {"gone": until(f"! {banned}", 40, pause=0.5)})["gone"]
        facts["protocol applied"] = gather(host, {"apply": settings("198.51.100.2", "proxy-protocol")})["apply"]
        facts["protocol"] = play(host, SCENE, {"name": name, "client": CLIENT})
        facts["local"] = send(host, {"health": wire(get("/health", name), name=name)})["health"]
        facts["log"] = host.check_output(
            until("grep -q admin-protocol /var/log/nginx/access.log", 10, pause=0.5)
            + "; grep -hE 'proxies-[0-9]|-protocol' /var/log/nginx/access.log"
        )
        yield facts
    finally:
        facts["back"] = gather(host, {"back": BACK})["back"]


def logged(story: dict[str, Any], mark: str) -> dict[str, Any]:
    """Return the access log entry of a request."""
    lines = [json.loads(line) for line in story["log"].splitlines() if mark in line]
    assert lines, mark
    found: dict[str, Any] = lines[-1]
    return found


@pytest.mark.req("R9", "R47")
@pytest.mark.parametrize("case", [case for case, (_source, _headers, client) in NAMED.items() if client])
def test_the_client_is_the_one_that_a_proxy_names(story: dict[str, Any], case: str) -> None:
    """The last address in X-Forwarded-For that is not a proxy's is the client, only on a connection from a proxy"""
    number = list(NAMED).index(case)
    source, _headers, client = NAMED[case]
    event = logged(story, f'proxies-{number}"')
    assert (event["ip"], event["peer"]) == (client, source)


@pytest.mark.req("R9")
def test_settings_are_applied(story: dict[str, Any]) -> None:
    """golden-site apply configures proxies of both kinds"""
    for case in ("applied", "protocol applied"):
        fact: Fact = story[case]
        assert fact.status == 0, fact.text


@pytest.mark.req("R49", "R67")
def test_nobody_else_is_believed(story: dict[str, Any]) -> None:
    """The PROXY protocol from another address is refused, and no header gives access to the administration"""
    reply: Reply = story["named"]["a stranger with the PROXY protocol"]
    assert 200 not in reply.statuses
    assert 404 not in reply.statuses
    assert story["administration"].statuses == [404]


@pytest.mark.req("R14", "R50")
def test_clients_behind_a_proxy_are_limited_each(story: dict[str, Any]) -> None:
    """A client with too many requests is refused; another one behind the same proxy is served"""
    assert set(story["limits"]["crowd"].statuses) == {404, 429}
    assert story["limits"]["beside"].statuses == [200]


@pytest.mark.req("R13", "R14")
def test_bans_hit_the_client_and_not_the_proxy(story: dict[str, Any]) -> None:
    """A scanner behind a proxy is refused by the web server, while the proxy and its other clients are served"""
    assert story["bans"]["written"].status == 0
    # The client with too many requests may be in the list too.
    assert f"{SCANNER} 1;" in story["bans"]["held"].lines
    assert not {f"{PROXY} 1;", f"{SECOND} 1;", f"{OTHER} 1;"} & set(story["bans"]["held"].lines)
    assert story["after the ban"][SCANNER].statuses == [403]
    assert "<h1>Error 403</h1>" in story["after the ban"][SCANNER].text
    assert story["after the ban"][OTHER].statuses == [200]
    assert PROXY not in story["proxy banned"]["table"].text
    assert story["proxy banned"]["exempt"].status == 0
    assert story["proxy banned"]["not"].status != 0
    assert json.loads(story["proxy banned"]["status"].text)["proxies"] == ["127.0.7.1-127.0.7.2"]
    assert story["unbanned"].status == 0


@pytest.mark.req("R9", "R47", "R49")
def test_proxy_protocol(story: dict[str, Any]) -> None:
    """With the PROXY protocol a proxy names the client; the line of another sender and all headers are not trusted"""
    seen = story["protocol"]
    assert seen["proxy"] == "HTTP/1.1 404 Not Found"
    assert (logged(story, "stranger-protocol")["ip"], logged(story, "stranger-protocol")["peer"]) == (CLIENT, "198.51.100.2")
    assert logged(story, "admin-protocol")["ip"] == "203.0.113.2"
    assert not seen["proxy without"].startswith("HTTP")
    assert not seen["other without"].startswith("HTTP")
    # The checks of the machine itself do not use the protocol.
    assert story["local"].statuses == [200]


@pytest.mark.req("R14")
def test_connections_of_a_proxy_are_not_counted(story: dict[str, Any]) -> None:
    """The connections of a proxy are not limited; another address is limited to a hundred"""
    crowds = story["protocol"]["crowds"]
    assert crowds["stranger"] == 140
    assert 95 <= crowds["admin"] <= 101
