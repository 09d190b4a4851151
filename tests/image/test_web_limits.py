"""Limits of the web server for one client: rate, concurrency, slowness; and request smuggling."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace
from typing import Any

import pytest
from testinfra.host import Host

from .facts import ask, browse
from .remote import seconds
from .wire import Reply, send, wire

pytestmark = pytest.mark.story

PHONE = "Mozilla/5.0 (Linux; Android 13; {}) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0 Mobile Safari/537.36"
# User agents, and whether they count as robots.
AGENTS = {
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)": True,
    "Mozilla/5.0 (compatible; SeznamBot)": True,
    "Baiduspider/2.0": True,
    "Mozilla/5.0 (compatible; Yahoo! Slurp; http://help.yahoo.com/help/us/ysearch/slurp)": True,
    "Scrapy/2.11 (+https://scrapy.org)": True,
    "my crawler": True,
    PHONE.format("CUBOT P30 Build/PPR1.180610.011"): False,
    PHONE.format("CUBOT_X18_Plus"): False,
    PHONE.format("Talbot Monitor ScanSnap"): False,
    "okhttp/4.12.0": False,
    "python-requests/2.32.3": False,
    "Java/17.0.9": False,
    "Go-http-client/2.0": False,
    "Abbott LibreLink/2.8": False,
}

# Runs on the clone, every part from a separate address: {"name": ..., "path": a static file}.
STRESS = r"""
import json, os, re, socket, ssl, sys, time

PACE = int(os.environ["PACE"])
options = json.loads(sys.argv[1])
found = {}

def connect(source):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    raw = socket.create_connection(("127.0.0.1", 443), timeout=20 * PACE, source_address=(source, 0))
    return context.wrap_socket(raw, server_hostname=options["name"])

def get(path, **headers):
    lines = ["GET %s HTTP/1.1" % path, "Host: " + options["name"]]
    lines += ["%s: %s" % (key.replace("_", "-"), value) for key, value in headers.items()]
    return "\r\n".join(lines + ["", ""]).encode()

def read_all(connection, wanted):
    data = b""
    while len(re.findall(rb"HTTP/1\.1 \d{3} ", data)) < wanted:
        part = connection.recv(65536)
        if not part:
            break
        data += part
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", data)]

def burst(source, count, headers, batch=50, path=options["path"]):
    # Batches, so that the responses fit the buffers; one thread, because a TLS connection must not be shared.
    connection, statuses = connect(source), []
    for first in range(0, count, batch):
        numbers = range(first, min(first + batch, count))
        connection.sendall(b"".join(get(path, **headers(number)) for number in numbers))
        statuses += read_all(connection, len(numbers))
    return statuses

def requests():
    # A new X-Forwarded-For each time: the limit ignores it. nginx answers this path itself: on a slow machine the
    # application answers fewer requests per second than the limit allows.
    headers = lambda number: {"X_Forwarded_For": "203.0.113.%d" % (number % 250)}
    found["burst"] = burst("127.0.0.9", 500, headers, path="/admin/")
    began = time.monotonic()
    while time.monotonic() - began < 15 * PACE:
        connection = connect("127.0.0.9")
        connection.sendall(get(options["path"]))
        if read_all(connection, 1) == [200]:
            break
        time.sleep(0.2)
    found["recovered"] = time.monotonic() - began

def bots():
    found["bot"] = burst("127.0.0.10", 60, lambda number: {"User_Agent": "ExampleBot/1.0"})
    # One address for each: a robot gets 11 responses at once, and no more.
    found["agents"] = {
        agent: burst("127.0.9.%d" % (number + 1), 20, lambda _number: {"User_Agent": agent}, path="/admin/").count(429)
        for number, agent in enumerate(options["agents"])
    }
    found["beside the bot"] = burst("127.0.0.10", 5, lambda number: {"User_Agent": "Mozilla/5.0"})

def files():
    # Files that nginx serves itself: more than the limit for requests.
    found["files"] = burst("127.0.0.15", 400, lambda number: {}, path=options["static"])

def streams():
    # A page with 60 pictures in a browser: 60 streams at once on one connection of HTTP/2 (RFC 9113), headers
    # without Huffman coding and tables (RFC 7541).
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    raw = socket.create_connection(("127.0.0.1", 443), timeout=20 * PACE, source_address=("127.0.0.16", 0))
    connection = context.wrap_socket(raw, server_hostname=options["name"])
    def frame(kind, flags, stream, payload=b""):
        return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
    def text(value):
        return bytes([len(value)]) + value.encode()
    # :method GET, :scheme https, :path and :authority with their values.
    head = b"\x82\x87" + b"\x04" + text("/") + b"\x01" + text(options["name"])
    streams = range(1, 121, 2)
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0) + frame(8, 0, 0, (1 << 24).to_bytes(4, "big"))
                       + b"".join(frame(1, 5, stream, head) for stream in streams))
    statuses, ended, data = [], set(), b""
    while len(ended) < len(streams):
        part = connection.recv(65536)
        if not part:
            break
        data += part
        while len(data) >= 9 and len(data) >= 9 + int.from_bytes(data[:3], "big"):
            length, kind, flags, stream = int.from_bytes(data[:3], "big"), data[3], data[4], int.from_bytes(data[5:9], "big")
            payload, data = data[9:9 + length].lstrip(b"\x20"), data[9 + length:]
            if kind == 1:
                # 200 is in the static table; other codes are literals.
                statuses.append(200 if payload[:1] == b"\x88" else int(payload[2:5]))
            if kind in (0, 1) and flags & 1 or kind == 3:
                ended.add(stream)
    found["streams"] = statuses

def logins():
    # A wrong password each time, without the form's token: the application refuses them all.
    connection = connect("127.0.0.14")
    body = "username=admin&password=guess"
    request = "POST /login HTTP/1.1\r\nHost: %s\r\nContent-Type: application/x-www-form-urlencoded\r\n" % options["name"]
    connection.sendall((request + "Content-Length: %d\r\n\r\n%s" % (len(body), body)).encode() * 40)
    found["logins"] = read_all(connection, 40)

def connections():
    # A slow body keeps its connection open: a byte now and then, until all connections are open.
    body = ("POST / HTTP/1.1\r\nHost: %s\r\nContent-Length: 1000\r\n\r\n" % options["name"]).encode()
    opened, fed = [], time.monotonic()
    for _ in range(55):
        opened.append(connect("127.0.0.11"))
        opened[-1].sendall(body)
        if time.monotonic() - fed > 2:
            fed = time.monotonic()
            for connection in opened:
                try:
                    connection.sendall(b"x")
                except OSError:
                    pass
    refused, waiting, began = 0, list(opened), time.monotonic()
    # Ends before the timeout of the other bodies.
    while time.monotonic() - began < 6:
        for connection in list(waiting):
            connection.setblocking(False)
            try:
                refused += connection.recv(1000).startswith(b"HTTP/1.1 429")
                waiting.remove(connection)
            except ssl.SSLWantReadError:
                pass
            except OSError:
                # The timeout of its body.
                waiting.remove(connection)
        time.sleep(0.2)
    found["connections refused"] = refused
    for connection in opened:
        connection.close()

def slow():
    # Headers that never end, one byte at a time.
    opened = [connect("127.0.0.12") for _ in range(40)]
    for connection in opened:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: %s\r\nX-Slow: " % options["name"].encode())
        connection.setblocking(False)
    began, alive = time.monotonic(), list(opened)
    slow_health = 0.0
    while alive and time.monotonic() - began < 45 * PACE:
        for connection in list(alive):
            try:
                connection.sendall(b"x")
                if connection.recv(1000) == b"":
                    alive.remove(connection)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                pass
            except OSError:
                alive.remove(connection)
        asked = time.monotonic()
        other = connect("127.0.0.13")
        other.sendall(get("/health"))
        if read_all(other, 1) != [200]:
            slow_health = 999.0
        slow_health = max(slow_health, time.monotonic() - asked)
        time.sleep(1)
    found.update({"slow ended": time.monotonic() - began, "slow left": len(alive), "slow health": slow_health})

for part in (requests, bots, files, streams, logins, connections, slow):
    part()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def stress(host: Host, spec: SimpleNamespace) -> dict[str, Any]:
    """Responses to a client with too many requests, too many at once, or too slow ones."""
    name = spec.application.server_name
    page = browse(host, {"page": ask(name, "/")})["page"]
    static = re.search(r'href="(/static/[^"]+)"', page.body)
    assert static, page
    options = {"name": name, "path": "/", "static": static.group(1), "agents": AGENTS}
    output = host.check_output("python3 -c %s %s", STRESS, json.dumps(options))
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


@pytest.mark.req("R14", "R50", "R57")
def test_requests_of_one_address_are_limited(host: Host, stress: dict[str, Any]) -> None:
    """Of 500 requests at once some are refused with 429, with any X-Forwarded-For; the client is served again soon"""
    assert len(stress["burst"]) == 500
    assert set(stress["burst"]) == {404, 429}
    assert stress["burst"].count(404) >= 100
    assert stress["recovered"] <= seconds(host, 5)


@pytest.mark.req("R72")
def test_bots_are_limited_more(stress: dict[str, Any]) -> None:
    """A bot, recognized by its user agent, has a lower limit, which does not affect other clients at its address"""
    assert stress["bot"].count(429) >= 30
    assert stress["bot"].count(200) >= 5
    assert stress["beside the bot"] == [200] * 5


@pytest.mark.req("R72")
@pytest.mark.parametrize("agent", AGENTS)
def test_what_counts_as_a_robot(stress: dict[str, Any], agent: str) -> None:
    """Robots are recognized by complete words: telephones, browsers and HTTP libraries do not count as robots"""
    assert (stress["agents"][agent] > 0) is AGENTS[agent]


@pytest.mark.req("R14")
def test_a_page_with_many_files(stress: dict[str, Any]) -> None:
    """Sixty requests at once on one connection of HTTP/2, and 400 static files, do not exceed a limit"""
    assert stress["streams"] == [200] * 60
    assert stress["files"] == [200] * 400


@pytest.mark.req("R14", "R66", "R98")
def test_attempts_to_log_in_are_limited(stress: dict[str, Any]) -> None:
    """Password guesses are limited long before the limit for all requests"""
    assert len(stress["logins"]) == 40
    assert stress["logins"].count(429) >= 10
    assert stress["logins"][0] != 429


@pytest.mark.req("R14")
def test_connections_of_one_address_are_limited(stress: dict[str, Any], spec: SimpleNamespace) -> None:
    """Of 55 incomplete requests, those beyond 40 are refused"""
    if "55-waf" in spec.layers:
        pytest.skip("the request filter waits for bodies before nginx counts connections; the packet filter's limit holds")
    assert stress["connections refused"] == 15


@pytest.mark.req("R48")
def test_slow_headers_are_cut(host: Host, stress: dict[str, Any]) -> None:
    """Forty clients with slow headers are disconnected in time, and the health check is answered meanwhile"""
    assert stress["slow left"] == 0
    assert stress["slow ended"] <= seconds(host, 35)
    assert stress["slow health"] < seconds(host, 3)


CHUNKED = "Transfer-Encoding: chunked\r\n"
NEXT = "GET /smuggled HTTP/1.1\r\nHost: {name}\r\n\r\n"


def post(headers: str, body: str, *, version: str = "1.1") -> str:
    """Return an ambiguous request, followed by a second one that must not be answered."""
    return f"POST / HTTP/{version}\r\nHost: {{name}}\r\n{headers}\r\n{body}"


SMUGGLING = {
    "length and chunks": post("Content-Length: 4\r\n" + CHUNKED, "0\r\n\r\n" + NEXT),
    "chunks and length": post(CHUNKED + "Content-Length: 4\r\n", "0\r\n\r\n" + NEXT),
    "space before the colon": post("Transfer-Encoding : chunked\r\n", "0\r\n\r\n" + NEXT),
    "tab before the colon": post("Transfer-Encoding\t: chunked\r\n", "0\r\n\r\n" + NEXT),
    "vertical tab": post("Transfer-Encoding: \x0bchunked\r\n", "0\r\n\r\n" + NEXT),
    "chunked twice": post(CHUNKED + CHUNKED, "0\r\n\r\n" + NEXT),
    "chunked and another": post(CHUNKED + "Transfer-Encoding: x\r\n", "0\r\n\r\n" + NEXT),
    "another and chunked": post("Transfer-Encoding: x\r\n" + CHUNKED, "0\r\n\r\n" + NEXT),
    "a list of codings": post("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n" + NEXT),
    "identity": post("Transfer-Encoding: identity\r\n", NEXT),
    "xchunked": post("Transfer-Encoding: xchunked\r\n", NEXT),
    "quoted": post('Transfer-Encoding: "chunked"\r\n', "0\r\n\r\n" + NEXT),
    "chunks in HTTP/1.0": post(CHUNKED, "0\r\n\r\n" + NEXT, version="1.0"),
    "length twice": post("Content-Length: 0\r\nContent-Length: 60\r\n", NEXT),
    "same length twice": post("Content-Length: 0\r\nContent-Length: 0\r\n", NEXT),
    "list of lengths": post("Content-Length: 0, 60\r\n", NEXT),
    "length with a sign": post("Content-Length: +0\r\n", NEXT),
    "negative length": post("Content-Length: -1\r\n", NEXT),
    "hexadecimal length": post("Content-Length: 0x0\r\n", NEXT),
    "empty length": post("Content-Length:\r\n", NEXT),
    "two numbers": post("Content-Length: 0 60\r\n", NEXT),
    "length too long": post("Content-Length: 18446744073709551616\r\n", NEXT),
    "bad chunk size": post(CHUNKED, "zz\r\n" + NEXT),
    "chunk size with 0x": post(CHUNKED, "0x5\r\nabcde\r\n0\r\n\r\n" + NEXT),
    "negative chunk size": post(CHUNKED, "-5\r\nabcde\r\n0\r\n\r\n" + NEXT),
    "chunk longer than its size": post(CHUNKED, "2\r\nabcdef\r\n0\r\n\r\n" + NEXT),
    "folded header": post("X-A: b\r\n Transfer-Encoding: chunked\r\n", "0\r\n\r\n" + NEXT),
    "header without a name": post(": chunked\r\n", NEXT),
    "zero byte": post("X-A: b\x00c\r\n", NEXT),
}


@pytest.fixture(scope="module")
def smuggled(host: Host, spec: SimpleNamespace) -> dict[str, Reply]:
    """The responses to these requests."""
    name = spec.application.server_name
    # Each from a separate address: other tests test the limits of an address.
    return send(
        host,
        {
            case: wire(data.replace("{name}", name), name=name, source=f"127.0.2.{number + 1}")
            for number, (case, data) in enumerate(SMUGGLING.items())
        },
    )


@pytest.mark.req("F26")
@pytest.mark.parametrize("case", SMUGGLING)
def test_nothing_is_smuggled(smuggled: dict[str, Reply], case: str) -> None:
    """A request with an ambiguous end is refused, the connection is closed, and no request after it is answered"""
    reply = smuggled[case]
    assert len(reply.statuses) <= 1, reply
    assert all(status in (400, 405, 408, 413, 501, 505) for status in reply.statuses), reply
    assert reply.closed, reply


@pytest.mark.req("F26")
def test_nothing_smuggled_was_logged(host: Host, smuggled: dict[str, Reply]) -> None:
    """Neither the web server nor the application has logged the requests after the ambiguous ones"""
    assert smuggled
    done = host.run(
        "journalctl --sync; grep -c /smuggled /var/log/nginx/access.log; "
        "journalctl -b -u gunicorn -o cat | grep -c /smuggled"
    )
    assert done.stdout.split() == ["0", "0"]


UPLOADS = {
    "length": "Content-Length: 8000000\r\n",
    "chunks": CHUNKED,
    "waits to be asked": "Content-Length: 8000000\r\nExpect: 100-continue\r\n",
    "form": "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 8000000\r\n",
    "made-up session": "Cookie: __Host-session=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\nContent-Length: 8000000\r\n",
}
QUESTIONS = ["/.upload-allowed", "/.upload-undecided", "/%2eupload-allowed", "/upload/../.upload-allowed"]


@pytest.fixture(scope="module")
def uploads(host: Host, spec: SimpleNamespace) -> dict[str, Reply]:
    """Responses to uploads of a client that is not logged in and sends no byte of its file."""
    name = spec.application.server_name
    line = "{method} {path} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n{headers}\r\n"
    requests = {
        case: line.format(method="POST", path="/upload", name=name, headers=headers) for case, headers in UPLOADS.items()
    }  # fmt: skip
    requests |= {path: line.format(method="GET", path=path, name=name, headers="") for path in QUESTIONS}
    return send(
        host,
        {
            case: wire(data, name=name, source=f"127.0.8.{number + 1}")
            for number, (case, data) in enumerate(requests.items())
        },
    )


@pytest.mark.req("R48", "R69")
@pytest.mark.parametrize("case", UPLOADS)
def test_upload_is_refused_before_it_is_read(uploads: dict[str, Reply], spec: SimpleNamespace, case: str) -> None:
    """An upload without a login is redirected to the log-in page before a byte of the file is read"""
    reply = uploads[case]
    assert reply.statuses == [303], reply
    assert reply.header("Location") == [f"https://{spec.application.server_name}/login?next=/upload"]


@pytest.mark.req("R69")
@pytest.mark.parametrize("path", QUESTIONS)
def test_question_is_the_web_servers(uploads: dict[str, Reply], path: str) -> None:
    """A client cannot send the web server's internal request that precedes an upload"""
    assert uploads[path].statuses in ([400], [404]), uploads[path]
