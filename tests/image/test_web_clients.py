"""Counting clients: an IPv6 client has a complete network of addresses, and does not get higher limits by changing them.

Log-ins of all clients are limited too, so that password guesses do not delay the health check.
"""

from __future__ import annotations

import ipaddress
import json
import re
from types import SimpleNamespace
from typing import Any

import pytest
from testinfra.host import Host

from .remote import seconds, until

pytestmark = pytest.mark.story

# Addresses for documentation. All of them belong to the clone during the test.
PREFIX = "2001:db8::/32"
# Forms of addresses, and the network that is counted.
NETWORKS = {
    "2001:db8:1:2:3:4:5:6": "2001:db8:1:2::/64",
    "2001:db8:1:2::6": "2001:db8:1:2::/64",
    "2001:db8::6": "2001:db8::/64",
    "2001:db8:0:7::6": "2001:db8:0:7::/64",
    "2001:db8:0:0:1:2:3:4": "2001:db8::/64",
    "2001:db8:1:0:1:2:3:4": "2001:db8:1::/64",
    "2001:db8:1::6": "2001:db8:1::/64",
    "2001:db8:1:2:0:0:5:6": "2001:db8:1:2::/64",
}
ATTEMPTS = 45
PLAYER = r"""
import concurrent.futures, http.client, json, os, re, socket, ssl, subprocess, sys, threading, time, urllib.parse

PACE = int(os.environ["PACE"])
IPV6_FREEBIND = 78
options = {"agent": ""} | json.loads(sys.argv[1])
name, attempts = options["name"], options["attempts"]
found = {}

def connect(source):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    plain = socket.socket(socket.AF_INET6 if ":" in source else socket.AF_INET)
    plain.settimeout(60 * PACE)
    if ":" in source:
        plain.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
    plain.bind((source, 0))
    plain.connect(("2001:db8:ffff::1" if ":" in source else "127.0.0.1", 443))
    return context.wrap_socket(plain, server_hostname=name)

def ask(source, method, path, body=b"", headers={}):
    connection = http.client.HTTPConnection(name)
    try:
        connection.sock = connect(source)
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.getheaders(), response.read().decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        return 0, [], repr(error)
    finally:
        connection.close()

def form():
    # One token is valid for all clients: it belongs to the cookie.
    status, headers, text = ask("127.0.0.30", "GET", "/login")
    cookie = next(value.split(";")[0] for key, value in headers if key == "Set-Cookie" and "csrf" in value)
    token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', text).group(1)
    fields = {"csrfmiddlewaretoken": token, "username": "unknown", "password": "guess", "token": "000000"}
    return urllib.parse.urlencode(fields).encode(), {
        "Cookie": cookie, "Origin": "https://" + name, "Content-Type": "application/x-www-form-urlencoded",
    }

def guess(sources):
    begun = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(lambda source: ask(source, "POST", "/login", *login)[0], sources))
    return {"statuses": statuses, "seconds": time.monotonic() - begun}

def watched(sources):
    health, done = [], threading.Event()
    def watch():
        while not done.is_set():
            begun = time.monotonic()
            health.append([ask("127.0.0.31", "GET", "/health")[0], time.monotonic() - begun])
            time.sleep(0.2)
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        return guess(sources) | {"health": health}
    finally:
        done.set()
        watcher.join()

def burst(source, count, path):
    connection, data = connect(source), b""
    lines = "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: %s\r\n\r\n"
    connection.sendall((lines % (path, name, options["agent"])).encode() * count)
    while len(re.findall(rb"HTTP/1\.1 \d{3} ", data)) < count:
        part = connection.recv(65536)
        if not part:
            break
        data += part
    connection.close()
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", data)]

subprocess.run(["ip", "-6", "route", "add", "local", options["prefix"], "dev", "lo"], check=True)
try:
    login = form()
    found["one /64"] = guess(["2001:db8:1:1::%x" % (number + 1) for number in range(attempts)])
    found["one /56"] = guess(["2001:db8:2:%x::1" % (number + 1) for number in range(attempts)])
    found["everywhere"] = watched(["2001:db8:%x00::1" % (number + 16) for number in range(2 * attempts)])
    options["agent"] = "Mozilla/5.0"
    # nginx answers this path itself: a slow machine's application answers fewer requests a second than the limits allow.
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        found["requests"] = sum(pool.map(lambda n: burst("2001:db8:3:1::%x" % (n + 1), 50, "/admin/"), range(10)), [])
        options["agent"] = "ExampleBot/1.0"
        found["bots"] = sum(pool.map(lambda n: burst("2001:db8:4:1::%x" % (n + 1), 5, "/admin/"), range(10)), [])
    found["other"] = burst("2001:db8:3:2::1", 5, "/")
    for number, address in enumerate(options["addresses"]):
        ask(address, "GET", "/.env?network-%d" % number)
    found["method"] = ask("2001:db8:5::1", "PUT", "/.env?method")[0]
finally:
    subprocess.run(["ip", "-6", "route", "del", "local", options["prefix"], "dev", "lo"], check=True)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def played(host: Host, spec: SimpleNamespace) -> dict[str, Any]:
    """Responses to clients that change their addresses; the limits are reset before and after."""
    name = spec.application.server_name
    # Other tests use other addresses. Their password guesses count in the limit for all clients.
    host.check_output("systemctl restart nginx")
    options = {"name": name, "attempts": ATTEMPTS, "prefix": PREFIX, "addresses": list(NETWORKS)}
    output = host.check_output("python3 -c %s %s", PLAYER, json.dumps(options))
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    host.check_output("systemctl restart nginx")
    return found


def handled(guesses: dict[str, Any]) -> int:
    """Return the number of attempts that reached the application: 503 when the workers that may hash are busy."""
    return sum(status in (200, 503) for status in guesses["statuses"])


@pytest.mark.req("R14", "R66", "R98")
@pytest.mark.parametrize("case", ["one /64", "one /56"])
def test_addresses_of_a_network_are_one_client(played: dict[str, Any], case: str) -> None:
    """Password guesses from 45 addresses of one network have the limit of one address"""
    guesses = played[case]
    assert set(guesses["statuses"]) <= {200, 429, 503}
    assert guesses["statuses"].count(429) >= ATTEMPTS // 2
    # Ten per minute, and five at once.
    assert handled(guesses) <= 6 + guesses["seconds"] / 6 + 1


@pytest.mark.req("R14", "R48", "R66", "R98")
def test_guesses_of_all_together_are_limited(played: dict[str, Any]) -> None:
    """Guesses from 90 networks of providers are queued, and refused when the queue is full"""
    guesses = played["everywhere"]
    assert set(guesses["statuses"]) <= {200, 429, 503}
    assert guesses["statuses"].count(429) >= 1
    # Three per second, and a queue of fifteen.
    assert handled(guesses) <= 16 + 3 * guesses["seconds"] + 1


@pytest.mark.req("R48", "R95", "R98")
def test_guesses_do_not_keep_health_from_its_answer(host: Host, played: dict[str, Any]) -> None:
    """/health answers in time while passwords are hashed"""
    health = played["everywhere"]["health"]
    assert len(health) >= 2
    assert {status for status, _ in health} == {200}
    assert max(duration for _, duration in health) < seconds(host, 3)


@pytest.mark.req("R14", "R50", "R72")
def test_requests_of_a_network_are_limited(played: dict[str, Any]) -> None:
    """Of 500 requests from ten addresses of a /64 some are refused; another network is served meanwhile"""
    assert len(played["requests"]) == 500
    assert set(played["requests"]) == {404, 429}
    assert set(played["bots"]) == {404, 429}
    assert played["other"] == [200] * 5


@pytest.mark.req("R13", "R47", "R50")
def test_logs_name_the_network(host: Host, played: dict[str, Any]) -> None:
    """The access log and the log for bans contain each address with its network, in any form of the address"""
    assert played["method"] in (403, 404, 405)
    for log in ("access", "refused"):
        path = f"/var/log/nginx/{log}.log"
        host.run(until(f"grep -q 'env?method' {path}", 10, pause=0.5))
        lines = host.check_output(f"grep -h 'env?network-' {path}").splitlines()
        events = {event["uri"]: event for event in map(json.loads, lines) if event["ip"] != "127.0.0.1"}
        for number, (address, network) in enumerate(NETWORKS.items()):
            event = events[f"/.env?network-{number}"]
            assert ipaddress.ip_address(event["ip"]) == ipaddress.ip_address(address)
            assert ipaddress.ip_network(event["net"]) == ipaddress.ip_network(network), event
    assert '"method":"PUT"' in host.check_output("grep -h 'env?method' /var/log/nginx/access.log | tail -1")


@pytest.mark.req("R14", "R57")
def test_no_limit_counts_single_addresses(host: Host) -> None:
    """Every limit of the web server counts clients by the keys for networks"""
    text = host.check_output("nginx -T 2>/dev/null")
    zones = re.findall(r"^\s*limit_(?:req|conn)_zone (\S+) zone=(\w+):", text, re.MULTILINE)
    assert {zone: key for key, zone in zones} == {
        "requests": "$client_key", "files": "$client_key", "connections": "$connection_key", "streams": "$stream_key",
        "logins": "$attempt", "all_logins": "$any_attempt", "bots": "$bot",
    }  # fmt: skip
    used = re.findall(r"\$binary_remote_addr", re.sub(r"#.*", "", text))
    # The source and the default value of both keys.
    assert len(used) == 4
