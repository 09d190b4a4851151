"""The path that the web server checks is the path that the application gets: two hundred forms of ambiguous paths.

A request with a path that programs may interpret differently is refused before a location is chosen. Other requests reach
the application with the path that the web server has checked.
"""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
from testinfra.host import Host

from .facts import Fact, gather
from .remote import until
from .wire import Reply, send, wire

pytestmark = pytest.mark.story

# A dot: plain, encoded once, twice and three times, with an encoded digit, overlong in UTF-8, in other encodings, and
# letters that are normalized to it.
DOTS = [
    ".", "%2e", "%2E", "%252e", "%25252e", "%%32%65", "%c0%ae", "%c0%2e", "%e0%80%ae", "%f0%80%80%ae", "%u002e",
    "%ef%bc%8e", "%e2%80%a4",
]  # fmt: skip
# A slash or a backslash, likewise. Overlong ones, and letters that look like one.
SLASHES = [
    "/", "%2f", "%2F", "\\", "%5c", "%5C", "%252f", "%255c", "%c0%af", "%c1%9c", "%e0%80%af", "%u2215", "%ef%bc%8f",
    "%ef%bc%bc", "%e2%88%95",
]  # fmt: skip
# Other known attacks on servers and applications.
FORMS = [
    # Dot segments, also at the end, with parameters, and more of them than there are directories.
    "/..", "/.", "/admin/..", "/admin/.", "/./admin/", "/../admin/", "/health/./../admin/", "/health/.../admin/",
    "/health/..../admin/", "/health/..;/admin/", "/health/..;x=1/admin/", "/health/.;/admin/", "/health/..%3b/admin/",
    "/health/%2e;/admin/", "/admin/..;/health", "/../../../../../../etc/passwd", "/health/..?/admin/", "/static/../admin/",
    "/media/../admin/", "/static/..%2fadmin/", "/.well-known/../admin/", "/health//../admin/", "/health/..//admin/",
    "/health/.%2e/admin/", "/health/%2e./admin/", "/..%2f..%2f..%2fetc%2fpasswd", "/admin/%2e%2e", "/admin/%2e",
    # Encoded slashes and backslashes without dots.
    "/admin%2f", "/admin%2F", "/%2fadmin/", "/admin%5c", "/admin\\", "/\\admin/", "\\admin\\", "/health%2f", "/a%2fb",
    "/%5c%5cother.test/", "/%2f%2fother.test/", "/\\/other.test/", "/admin%5c..%5cx",
    # Second encodings.
    "/%2561dmin/", "/admin%252f", "/%252e/", "/%25", "/100%25", "/%25%32%66", "/%2500", "/%25252f",
    # NUL and other control characters, encoded and as they are.
    "/%00", "/admin%00", "/admin%00/", "/health%00.css", "/health%00/../admin/", "/%0d%0aX-A:b", "/health%0a", "/health%0d",
    "/a%09b", "/a%0bb", "/a%1fb", "/a%7fb", "/health\x00", "/health\x01", "/health\x0b", "/health\x7f", "/he\talth",
    # Not ASCII, not UTF-8, malformed.
    "/\xe4", "/\xc0\xae\xc0\xae/admin/", "/\xff", "/%ff", "/%fe", "/%c0%80", "/%f8%80%80%80%ae", "/%fc%80%80%80%80%ae",
    "/%f4%90%80%80", "/%", "/%2", "/%zz", "/%u0041", "/health%", "/%g0/admin/", "/%-1",
    # Clients never send a fragment; some programs would use the text after it and others would not.
    "/health#/../admin/", "/health#", "/#/admin/", "/health?x#/admin/",
    # Not a path.
    "health", "admin/", "", "*", "/health /admin/", "http:/admin/", "//", "file:///etc/passwd",
]  # fmt: skip
REFUSED = list(
    dict.fromkeys(
        [
            *(f"/health{slash}{dot}{dot}{slash}admin/" for dot in DOTS for slash in SLASHES if (dot, slash) != (".", "/")),
            *(f"/admin/{dot}{dot}/health" for dot in DOTS),
            *(f"/admin/{dot}/" for dot in DOTS),
            *(f"/admin{slash}login/" for slash in SLASHES[1:]),
            *(form for form in FORMS if form != "//"),
        ]
    )
)
# Equivalent forms of a path: the application gets the form that the web server has checked.
PASSED = {
    "/no-such": "/no-such",
    "/no-such//x": "/no-such/x",
    "//no-such": "/no-such",
    "///no-such///": "/no-such/",
    "/%6e%6f-such": "/no-such",
    "/no-such/%61%62": "/no-such/ab",
    "/no-such/a%20b": "/no-such/a b",
    "/no-such/a+b": "/no-such/a+b",
    "/no-such/a%2Bb": "/no-such/a+b",
    "/no-such/a;b=c": "/no-such/a;b=c",
    "/no-such/a%3Bb": "/no-such/a;b",
    "/no-such/a%3Fb": "/no-such/a?b",
    "/no-such/a%23b": "/no-such/a#b",
    "/no-such/a..b": "/no-such/a..b",
    "/no-such/a..": "/no-such/a..",
    "/no-such/a%2e%2eb": "/no-such/a..b",
    "/no-such/%C3%A9": "/no-such/\u00e9",
    "/no-such/%E2%82%AC": "/no-such/\u20ac",
    "/no-such/%F0%9F%98%80": "/no-such/\U0001f600",
    "/no-such/%22%3C%3E": '/no-such/"<>',
    "/no-such/(a)'b,c": "/no-such/(a)'b,c",
    "/no-such/a:b@c": "/no-such/a:b@c",
    "/no-such?x=../../%2e%2e%2f%00&y=%25": "/no-such",
    "/ADMIN/": "/ADMIN/",
    "/health/admin/": "/health/admin/",
    # Paths of the application: names that only start like others, suffixes of data files, and names of RFC 8615.
    "/administration-guide/": "/administration-guide/",
    "/administrator": "/administrator",
    "/api/openapi.yaml": "/api/openapi.yaml",
    "/exports/list.toml": "/exports/list.toml",
    "/.well-known/security.txt": "/.well-known/security.txt",
}
# The administration is closed with any spelling of its name; these requests do not reach the application.
CLOSED = [
    "/admin", "/admin/", "//admin/", "/%61dmin/", "/%61%64%6d%69%6e/", "/admin//login/", "/admin;x/", "/admin%3b/",
    "/admin%3f", "/admin%23", "/admin%20/", "/admin.", "/admin..", "/admin...", "/django-admin",
    "/django-admin/", "/django-admin/login/", "//django-admin/", "/django-admin;x/",
]  # fmt: skip


def get(path: str, name: str) -> str:
    """Return a request for a path without changing it."""
    return f"GET {path} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def replies(host: Host, spec: SimpleNamespace) -> dict[str, Reply]:
    """Responses to each form, over TLS and HTTP, each from a separate address: other tests test the limits."""
    name = spec.application.server_name
    forms = [*((form, True) for form in [*REFUSED, *PASSED, *CLOSED]), *((form, False) for form in REFUSED)]
    connections = {
        f"{'TLS' if secured else 'clear'} {form}": wire(
            get(form, name), name=name if secured else "", source=f"127.0.{4 + number // 250}.{1 + number % 250}"
        )
        for number, (form, secured) in enumerate(forms)
    }
    found: dict[str, Reply] = {}
    # As an argument of a command: no more than 128 KiB.
    for first in range(0, len(connections), 200):
        found |= send(host, dict(list(connections.items())[first : first + 200]))
    return found


@pytest.fixture(scope="module")
def handled(host: Host, replies: dict[str, Reply]) -> dict[str, str]:
    """The path that the application has logged, by the request id."""
    last = identity(replies[f"TLS {list(PASSED)[-1]}"])
    log = "journalctl -b -u gunicorn -o cat"
    output = host.check_output(f"journalctl --sync; {until(f'{log} | grep -q {last}', 10, pause=0.5)}; {log}")
    events = [json.loads(line) for line in output.splitlines() if line.startswith("{") and '"path"' in line]
    return {event["rid"]: event["path"] for event in events}


def identity(reply: Reply) -> str:
    """Return the request id that the web server assigned."""
    found = reply.header("X-Request-ID")
    assert len(found) == 1, reply
    return found[0]


def test_table_is_long() -> None:
    """At least two hundred forms are tested"""
    assert len(REFUSED) >= 200
    assert all("\r" not in form and "\n" not in form for form in [*REFUSED, *PASSED, *CLOSED])


@pytest.mark.req("R67", "R84", "F25", "F28")
@pytest.mark.parametrize("form", REFUSED)
def test_refused_before_anything_is_decided(replies: dict[str, Reply], handled: dict[str, str], form: str) -> None:
    """An ambiguous path is refused by the web server itself, over TLS and HTTP"""
    for way in ("TLS", "clear"):
        reply = replies[f"{way} {form}"]
        assert reply.statuses == [400], reply
        assert reply.closed
        assert not re.search(r"nginx|root:", reply.text)
    assert "<h1>Error 400</h1>" in replies[f"TLS {form}"].text
    assert identity(replies[f"TLS {form}"]) not in handled


@pytest.mark.req("R67", "R49")
@pytest.mark.parametrize("form", PASSED)
def test_passed_on_as_it_was_decided_on(replies: dict[str, Reply], handled: dict[str, str], form: str) -> None:
    """An equivalent form of a path reaches the application as the web server has decoded it"""
    assert replies[f"TLS {form}"].statuses == [404]
    assert handled[identity(replies[f"TLS {form}"])] == PASSED[form]


@pytest.mark.req("R67")
@pytest.mark.parametrize("form", CLOSED)
def test_administration_stays_closed(replies: dict[str, Reply], handled: dict[str, str], form: str) -> None:
    """No spelling of the administration's path gets past its access check"""
    reply = replies[f"TLS {form}"]
    assert reply.statuses == [404], reply
    assert "<h1>Error 404</h1>" in reply.text
    assert identity(reply) not in handled


@pytest.fixture(scope="module")
def configuration(host: Host) -> Fact:
    """The complete configuration of nginx."""
    return gather(host, {"all": "nginx -T 2>/dev/null"})["all"]


@pytest.mark.req("R57", "R67")
def test_every_location_passes_on_its_own_path(configuration: Fact) -> None:
    """Each server refuses such paths, and each location passes its own path to the application"""
    text = configuration.text
    site = text[text.index("# configuration file /etc/nginx/sites-enabled/10-app:") :]
    site = site[: site.find("\n# configuration file ", 1)]
    assert site.count("\n    include /etc/nginx/snippets/paths.conf;") == len(re.findall(r"^server \{", site, re.MULTILINE))
    targets = re.findall(r"^\s*proxy_pass\s+([^;]+);", text, re.MULTILINE)
    # The locations of the application are generated from its contract.
    assert len(targets) == len(re.findall(r"^\s*include /etc/nginx/snippets/application.conf;", text, re.MULTILINE)) > 5
    assert all(re.fullmatch(r"http://application/[a-z/-]*", target) for target in targets), targets
