"""Sites with separate names: static files are served, upstreams are reachable, and nothing else is opened for them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from testinfra.host import Host

from .facts import Fact, gather, properties
from .neighbours import STRANGER, play
from .site_file import BACK, KEEP, KEPT, applied

pytestmark = [pytest.mark.story, pytest.mark.layers("25-firewall")]

WWW, API = "www.sites.example", "api.sites.example"
TOP = "/var/www/sites/goldentest"
PORT, OTHER_PORT = 8080, 8081
# An account without privileges.
UNPRIVILEGED = "nobody"
SITES = f'sites: [{{name: {WWW}, root: {TOP}}}, {{name: {API}, upstream: "http://{STRANGER}:{PORT}", body: 2M}}]'
WRONG = f'sites: [{{name: {WWW}, root: {TOP}}}, {{name: {API}, upstream: "http://backend:{PORT}"}}]'
FILES = (
    f"umask 022; mkdir -p {TOP}/docs {TOP}/empty {TOP}/.git && "
    f"echo start >{TOP}/index.html && echo page >{TOP}/docs/index.html && "
    f"echo secret | tee {TOP}/.env {TOP}/.git/config {TOP}/old.sql >{TOP}/app.py && ln -s /etc/passwd {TOP}/link.txt"
)
STATE = "systemctl show -p PrivateNetwork -p RestrictAddressFamilies -p ActiveState nginx.service"
SCENE = r"""
import http.client, http.server, ssl, threading

class Upstream(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        seen = {"path": self.path, "host": self.headers["Host"], "client": self.headers["X-Forwarded-For"]}
        body = json.dumps(seen).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_words):
        pass

def fetch(name, path, method, tls, body):
    # Any error of a connection is its result.
    try:
        connection = socket.create_connection(("127.0.0.1", 443 if tls else 80), timeout=20 * PACE)
        if tls:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            connection = context.wrap_socket(connection, server_hostname=name)
        head = "%s %s HTTP/1.1\r\nHost: %s\r\nX-Forwarded-For: 203.0.113.99\r\nConnection: close\r\n" % (method, path, name)
        connection.sendall((head + "Content-Length: %d\r\n\r\n" % body).encode() + b"x" * body)
        response = http.client.HTTPResponse(connection, method=method)
        response.begin()
        return {"status": response.status, "headers": dict(response.getheaders()), "body": response.read().decode()}
    except (OSError, ssl.SSLError, http.client.HTTPException) as error:
        return {"status": 0, "headers": {}, "body": type(error).__name__}

def reach(user, port):
    program = "import socket; socket.create_connection((%r, %d), %d)" % (THERE["stranger"], port, SECONDS)
    argv = ["runuser", "-u", user, "--", "python3", "-c", program]
    return subprocess.run(argv, check=False, stdin=subprocess.DEVNULL, capture_output=True).returncode == 0

def scene(questions, facts):
    with there():
        listeners = {port: socket.create_server((THERE["stranger"], port)) for port in questions["ports"]}
    server = http.server.ThreadingHTTPServer((THERE["stranger"], questions["ports"][0]), Upstream, bind_and_activate=False)
    server.socket.close()
    server.socket = listeners[questions["ports"][0]]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    facts["answers"] = {case: fetch(*question) for case, question in questions["requests"].items()}
    facts["reached"] = {"%s %d" % (user, port): reach(user, port) for user, port in questions["reach"]}
    server.shutdown()
"""
REQUESTS = {
    "start": (WWW, "/", "GET", True, 0),
    "page": (WWW, "/docs/", "GET", True, 0),
    "no page": (WWW, "/none.html", "GET", True, 0),
    "listing": (WWW, "/empty/", "GET", True, 0),
    "hidden": (WWW, "/.env", "GET", True, 0),
    "repository": (WWW, "/.git/config", "GET", True, 0),
    "code": (WWW, "/app.py", "GET", True, 0),
    "database": (WWW, "/old.sql", "GET", True, 0),
    "link": (WWW, "/link.txt", "GET", True, 0),
    "encoded": (WWW, "/docs/..%2f.env", "GET", True, 0),
    "post": (WWW, "/", "POST", True, 1),
    "plain": (WWW, "/a?b=c", "GET", False, 0),
    "upstream": (API, "/v1/x?y=z", "GET", True, 0),
    "upload": (API, "/v1/x", "POST", True, 1536 * 1024),
    "large upload": (API, "/v1/x", "POST", True, 3 * 1024 * 1024),
    "two paths": (API, "/v1/../x", "GET", True, 0),
    "other": ("none.sites.example", "/", "GET", True, 0),
}  # fmt: skip


@pytest.fixture(scope="module")
def story(host: Host) -> Iterator[dict[str, Any]]:
    """Responses and open ports with two sites in the settings; afterwards the settings are restored."""
    found: dict[str, Any] = {}
    try:
        found |= gather(
            host,
            {
                "before": STATE,
                "kept": KEEP,
                "files": FILES,
                "apply": applied(SITES),
                "with": STATE,
                "names": "cat /run/golden/names; cat /run/golden/server-names.conf",
                "access": "stat -c '%a %U:%G' /run/golden/sites.conf /var/www/sites",
                "user": "id -u nginx",
                "filter": "nft list set inet golden upstream_out4; nft list set inet golden site_out",
                "exposure": "systemd-analyze security --no-pager golden-sites.service | tail -1",
                "wrong": applied(WRONG),
                "still": "cat /run/golden/sites.conf",
                "right": applied(SITES),
            },
        )
        reach = [("nginx", PORT), ("nginx", OTHER_PORT), (UNPRIVILEGED, PORT)]
        found |= play(host, SCENE, {"ports": [PORT, OTHER_PORT], "requests": REQUESTS, "reach": reach})
        rest = "ls /run/golden | grep -x 'sites.conf\\|site-.*-ca.pem'"
        found |= gather(host, {"back": BACK, "after": STATE, "rest": rest})
        yield found
    finally:
        host.run(f"rm -rf {TOP}; test ! -e {KEPT} || {{ {BACK}; }}")


@pytest.mark.req("R9")
def test_sites_are_applied(story: dict[str, Any]) -> None:
    """golden-site apply configures sites; their names are in the certificate's list, not among the machine's own"""
    for case in ("kept", "files", "apply", "right", "back"):
        fact: Fact = story[case]
        assert fact.status == 0, (case, fact.text)
    names, own = story["names"].lines
    assert {WWW, API} <= set(names.split())
    assert not {WWW, API} & set(own.rstrip(";").split())
    assert story["access"].lines == ["644 root:root", "755 root:root"]


@pytest.mark.req("R9")
def test_a_wrong_site_changes_nothing(story: dict[str, Any]) -> None:
    """golden-site apply reports the key of an invalid site and the fix, and does not change the sites"""
    assert story["wrong"].status == 3
    assert "sites[1].upstream" in story["wrong"].text
    assert "an IP address and a port" in story["wrong"].text
    assert API in story["still"].text


@pytest.mark.req("R12", "R37", "R56", "R58", "R84", "R86")
def test_static_sites(story: dict[str, Any]) -> None:
    """A static site serves its files with the headers of all servers, and no hidden files, code, listings or links"""
    answers = story["answers"]
    assert [answers[case]["body"] for case in ("start", "page")] == ["start\n", "page\n"]
    headers = {name.lower(): value for name, value in answers["start"]["headers"].items()}
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert headers["x-content-type-options"] == "nosniff"
    assert "server" not in headers
    closed = ("no page", "listing", "hidden", "repository", "code", "database", "link", "encoded", "post")
    statuses = {case: answers[case]["status"] for case in closed}
    assert set(statuses.values()) <= {400, 403, 404}, statuses
    assert not [case for case in closed if "secret" in answers[case]["body"] or "root:" in answers[case]["body"]]
    assert (answers["plain"]["status"], answers["plain"]["headers"]["Location"]) == (308, f"https://{WWW}/a?b=c")
    assert answers["other"]["status"] in (0, 421)


@pytest.mark.req("R49", "R57")
def test_upstreams(story: dict[str, Any]) -> None:
    """An upstream gets path, name and client address; a large or ambiguous request does not reach it"""
    answers = story["answers"]
    assert answers["upstream"]["status"] == 200, answers["upstream"]
    assert json.loads(answers["upstream"]["body"]) == {"path": "/v1/x?y=z", "host": API, "client": "127.0.0.1"}
    assert answers["upload"]["status"] == 200
    assert (answers["large upload"]["status"], answers["two paths"]["status"]) in ((413, 400), (0, 400))


@pytest.mark.req("R44")
def test_nothing_else_is_opened(story: dict[str, Any]) -> None:
    """The web server has a network while a site has an upstream, and only it can reach that address and port"""
    assert properties(story["before"])["PrivateNetwork"] == properties(story["after"])["PrivateNetwork"] == "yes"
    assert properties(story["with"])["PrivateNetwork"] == "no"
    assert properties(story["after"])["ActiveState"] == "active"
    assert properties(story["after"])["RestrictAddressFamilies"] == properties(story["before"])["RestrictAddressFamilies"]
    # nft prints the name of the user, or its number.
    assert re.search(rf"(nginx|{story['user'].text}) \. {re.escape(STRANGER)} \. {PORT}\b", story["filter"].text)
    assert story["reached"] == {f"nginx {PORT}": True, f"nginx {OTHER_PORT}": False, f"{UNPRIVILEGED} {PORT}": False}
    assert story["rest"].text == ""
    assert float(story["exposure"].text.split(".service: ")[1].split()[0]) <= 2.0
