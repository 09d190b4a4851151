"""Malicious requests: foreign host names, ambiguous ends of requests (smuggling), and paths out of the site."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from testinfra.host import Host

from .journal import AccessLog
from .traffic import Reply, Traffic

FOREIGN = "attacker.example.net"
# The body of a request that is hidden in another one.
HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: %s\r\nContent-Length: 0\r\n\r\n"
# Answers that let nothing through: bad request, not implemented, length required, misdirected.
REFUSED = {400, 411, 421, 501}
SECRETS = (b"root:x:0", b"secret", b"import os", b"django", b"begin ")
PATHS = (
    "/.env", "/.git/config", "/app/.env", "/settings.py", "/manage.py", "/project/settings.py", "/static/.env",
    "/static../project/settings.py", "/static/../../../etc/passwd", "/static/%2e%2e/%2e%2e/etc/passwd",
    "/static/..%2f..%2f..%2fetc%2fpasswd", "/static/%252e%252e/etc/passwd", "/media/../../../etc/passwd",
    "/media../opt/app/manage.py", "/..%c0%af..%c0%afetc/passwd", "/....//....//etc/passwd", "/%2e%2e%2f%2e%2e%2fetc/passwd",
    "/..\\..\\etc\\passwd", "/etc/passwd", "//etc/passwd", "/static/pages/site.css/../../../../etc/passwd",
    "/backup.sql", "/db.bak", "/app.key", "/app.pem", "/config.yaml", "/access.log", "/manage.pyc", "/a.old", "/a.swp",
)  # fmt: skip


@pytest.mark.req("F25", "R59", "R49")
def test_foreign_names(traffic: Traffic, access_log: AccessLog) -> None:
    """A request for another name is refused in every form, and the name never comes back"""
    own = traffic.name
    forms = {
        "host": f"GET / HTTP/1.1\r\nHost: {FOREIGN}\r\n",
        "absolute URI": f"GET https://{FOREIGN}/ HTTP/1.1\r\nHost: {own}\r\n",
        "two hosts": f"GET / HTTP/1.1\r\nHost: {own}\r\nHost: {FOREIGN}\r\n",
        "no host": "GET / HTTP/1.1\r\n",
        "host with a blank": f"GET / HTTP/1.1\r\nHost: {own} {FOREIGN}\r\n",
        "host with an at": f"GET / HTTP/1.1\r\nHost: {own}@{FOREIGN}\r\n",
        "folded host": f"GET / HTTP/1.1\r\nHost: {own}\r\n {FOREIGN}\r\n",
        "address": "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n",
    }
    payloads = {name: f"{text}Connection: close\r\n\r\n".encode() for name, text in forms.items()}
    replies = traffic.wire(payloads) | {f"plain {name}": one for name, one in traffic.wire(payloads, tls=False).items()}
    for name, reply in replies.items():
        assert FOREIGN.encode() not in reply.data, f"{name}: {reply.data!r}"
        # 444 closes the connection without a word.
        assert not reply.statuses or set(reply.statuses) <= REFUSED, f"{name}: {reply.statuses}"
    access_log.expect('"status":(400|421|444)')


@pytest.mark.req("F25", "R49")
def test_forwarded_name(traffic: Traffic) -> None:
    """A client's headers about forwarding have no effect and are never returned"""
    names = ("X-Forwarded-Host", "X-Host", "X-Original-URL", "X-Rewrite-URL", "Forwarded", "X-Forwarded-Server")
    headers = "".join(f"{name}: {FOREIGN}\r\n" for name in names)
    for reply in (traffic.get("/", headers=headers), traffic.get("/nothing-here", headers=headers)):
        assert FOREIGN.encode() not in reply.data
        assert reply.statuses in ([200], [404])


def smuggled(name: str) -> dict[str, bytes]:
    """Return requests that two parsers may end at different places; each hides another one."""
    hidden = HIDDEN % name.encode()
    start = f"POST / HTTP/1.1\r\nHost: {name}\r\n".encode()
    chunked = b"0\r\n\r\n" + hidden

    def with_headers(headers: bytes, body: bytes = chunked, first: bytes = start) -> bytes:
        return first + headers + b"\r\n" + body

    length, te = b"Content-Length: %d\r\n", b"Transfer-Encoding: chunked\r\n"
    return {
        "CL.TE": with_headers(length % len(chunked) + te),
        "TE.CL": with_headers(te + b"Content-Length: 4\r\n"),
        "TE with a blank before the colon": with_headers(b"Transfer-Encoding : chunked\r\n"),
        "TE with a tab before the colon": with_headers(b"Transfer-Encoding\t: chunked\r\n"),
        "TE with a vertical tab": with_headers(b"Transfer-Encoding: \x0bchunked\r\n"),
        "TE of two words": with_headers(b"Transfer-Encoding: chunked, identity\r\n"),
        "TE unknown": with_headers(b"Transfer-Encoding: xchunked\r\n"),
        "TE quoted": with_headers(b'Transfer-Encoding: "chunked"\r\n'),
        "two TE": with_headers(te + b"Transfer-Encoding: identity\r\n"),
        "TE in HTTP/1.0": with_headers(te, first=start.replace(b"HTTP/1.1", b"HTTP/1.0")),
        "TE folded": with_headers(b"Transfer-Encoding:\r\n chunked\r\n"),
        "TE after a bare line feed": with_headers(b"X: y\nTransfer-Encoding : chunked\r\n"),
        "TE with a zero byte": with_headers(b"Transfer-Encoding: chunked\x00\r\n"),
        "two CL": with_headers(b"Content-Length: 0\r\n" + length % len(hidden), hidden),
        "CL list": with_headers(b"Content-Length: 0, %d\r\n" % len(hidden), hidden),
        "CL with a plus": with_headers(b"Content-Length: +0\r\n", hidden),
        "CL with a minus": with_headers(b"Content-Length: -1\r\n", hidden),
        "CL hexadecimal": with_headers(b"Content-Length: 0x0\r\n", hidden),
        "CL with a blank before the colon": with_headers(b"Content-Length : 0\r\n", hidden),
        "CL that overflows": with_headers(b"Content-Length: 18446744073709551616\r\n", hidden),
        "chunk size that is none": with_headers(te, b"zz\r\n\r\n0\r\n\r\n" + hidden),
        "chunk size that overflows": with_headers(te, b"ffffffffffffffff1\r\nx\r\n0\r\n\r\n" + hidden),
        "chunk size below zero": with_headers(te, b"-1\r\nx\r\n0\r\n\r\n" + hidden),
        "chunk longer than its size": with_headers(te, b"1\r\nxyz\r\n0\r\n\r\n" + hidden),
        "header that goes on": with_headers(b"X: y\r\n Content-Length: 5\r\nContent-Length: 0, 1\r\n", hidden),
    }  # fmt: skip


@pytest.mark.req("F26", "R48")
def test_smuggled_requests(traffic: Traffic, access_log: AccessLog) -> None:
    """A request whose end is in doubt is refused: never two answers, never the hidden one's"""
    vectors = smuggled(traffic.name)
    assert len(vectors) >= 18
    replies = traffic.wire(vectors)
    wrong = {name: reply.data[:200] for name, reply in replies.items() if not _is_one_refusal(reply)}
    assert not wrong, wrong
    access_log.expect('"status":400')
    access_log.never('"uri":"/hidden"')


def _is_one_refusal(reply: Reply) -> bool:
    return len(reply.statuses) <= 1 and set(reply.statuses) <= REFUSED


@pytest.mark.req("F27", "R48", "R69")
def test_enormous_upload(traffic: Traffic, access_log: AccessLog) -> None:
    """An upload that announces 1 GiB is refused before any of it is read"""
    text = f"POST /upload HTTP/1.1\r\nHost: {traffic.name}\r\nContent-Length: {1 << 30}\r\nContent-Type: image/png\r\n\r\n"
    reply = traffic.wire({"upload": text.encode()})["upload"]
    assert reply.statuses == [413], reply
    access_log.expect('"status":413')


@pytest.mark.req("F28", "R84", "R58")
def test_traversal(traffic: Traffic, host: Host, spec: SimpleNamespace, access_log: AccessLog) -> None:
    """No path leads to code, settings or the system's files"""
    requests = {path: f"GET {path} HTTP/1.1\r\nHost: {traffic.name}\r\nConnection: close\r\n\r\n".encode() for path in PATHS}
    replies = traffic.wire(requests)
    for path, reply in replies.items():
        assert set(reply.statuses) <= {400, 403, 404}, f"{path}: {reply.statuses}"
        assert reply.statuses or not reply.data, f"{path}: {reply}"
        leaked = [word for word in SECRETS if word in reply.body.lower()]
        assert not leaked, f"{path}: {reply.body!r}"
    access_log.expect('"uri":"/.env"')
