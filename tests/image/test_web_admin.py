"""Access to the application's administration, and headers with which a client claims access: they have no effect."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from testinfra.host import Host

from .facts import Fact, gather
from .remote import until
from .wire import Reply, reloading, send, wire

pytestmark = pytest.mark.story

WORK = "/run/test-admin"
# An address to which the test grants access, and one without access.
INSIDE, OUTSIDE = "127.0.3.1", "127.0.3.2"
# Spellings of the path; the administration answers only to the first, and the others grant no access.
PATHS = [
    "/admin/", "/admin", "/admin/login/", "/admin/auth/user/1/change/", "/django-admin/", "//admin/", "/./admin/",
    "/x/../admin/", "/%61dmin/", "/%61%64%6d%69%6e/", "/health/..%2fadmin/", "/admin/..;/admin/", "/admin%2f", "/admin/.",
]  # fmt: skip
# Headers that a server would accept if it trusted its clients.
CLAIMS = [
    f"X-Forwarded-For: {INSIDE}", f"X-Real-IP: {INSIDE}", f"Forwarded: for={INSIDE}", "X-Original-URL: /admin/",
    "X-Rewrite-URL: /admin/", "PATH_INFO: /admin/", "SCRIPT_NAME: /admin", "X-Client-Verify: SUCCESS",
    "SSL-Client-Verify: SUCCESS", "X-Forwarded-Host: localhost", "X-HTTP-Method-Override: GET",
]  # fmt: skip

AUTHORITY = r"""
set -eu
umask 077
rm -rf /run/test-admin
mkdir /run/test-admin
cd /run/test-admin
# $1: name
made() {
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -keyout "$1.key" -subj "/CN=$1" -out "$1.csr" 2>/dev/null
    shift
}
for name in authority other; do
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -keyout $name.key -subj "/CN=$name" -days 2 \
        -addext keyUsage=critical,keyCertSign -out $name.pem 2>/dev/null
done
for client in good stranger; do
    made $client
    [ $client = good ] && signer=authority || signer=other
    openssl x509 -req -in $client.csr -CA $signer.pem -CAkey $signer.key -days 2 -out $client.pem 2>/dev/null
    cat $client.key >>$client.pem
done
"""


def apply(client_ca: str, cidrs: list[str]) -> str:
    """Return a command that applies the given settings as golden-proxy.service does at boot."""
    given = json.dumps({"client_ca": client_ca or None, "cidrs": cidrs})
    program = "import json, sys; from golden import proxy; print(proxy.apply(json.loads(sys.argv[1])))"
    return reloading(f"python3 -c \"{program}\" '{given}' && systemctl reload nginx")


def get(path: str, name: str, *claims: str) -> str:
    """Return a request that ends its connection."""
    return "\r\n".join([f"GET {path} HTTP/1.1", f"Host: {name}", *claims, "Connection: close", "", ""])


@pytest.fixture(scope="module")
def closed(host: Host, spec: SimpleNamespace) -> dict[str, Reply]:
    """Responses to any client on a clone whose settings do not open the administration."""
    name = spec.application.server_name
    paths = {f"path {path}": wire(get(path, name), name=name, source=OUTSIDE) for path in PATHS}
    claims = {claim: wire(get("/admin/", name, claim), name=name, source=OUTSIDE) for claim in CLAIMS}
    return send(host, paths | claims)


@pytest.fixture(scope="module")
def opened(host: Host, spec: SimpleNamespace, closed: dict[str, Reply]) -> Iterator[dict[str, Reply]]:
    """Responses when one network and one authority have access; afterwards the administration is closed again."""
    name = spec.application.server_name
    host.check_output("sh -c %s", AUTHORITY)
    host.check_output(apply(f"{WORK}/authority.pem", [f"{INSIDE}/32"]))
    clients = {
        "both": (INSIDE, f"{WORK}/good.pem", ()),
        "no certificate": (INSIDE, "", ()),
        "certificate of another": (INSIDE, f"{WORK}/stranger.pem", ()),
        "other address": (OUTSIDE, f"{WORK}/good.pem", ()),
        "address by a header": (OUTSIDE, f"{WORK}/good.pem", (f"X-Forwarded-For: {INSIDE}",)),
        "neither": (OUTSIDE, "", ()),
    }
    yield send(
        host,
        {
            case: wire(get("/admin/", name, *claims), name=name, source=source, certificate=certificate)
            for case, (source, certificate, claims) in clients.items()
        },
    )
    host.check_output(apply("", []) + f"; rm -r {WORK}")


@pytest.fixture(scope="module")
def facts(host: Host, opened: dict[str, Reply]) -> dict[str, Fact]:
    """The log line of the administrator's request, and the results of incomplete settings."""
    identity = opened["both"].header("X-Request-ID")[0]
    log = "/var/log/nginx/access.log"
    return gather(
        host,
        {
            "log": until(f"grep {identity} {log}", 20, pause=0.5),
            "half": apply("", [f"{INSIDE}/32"]),
            "after half": "ls /run/golden",
            "no authority": apply(f"{WORK}/good.pem", [f"{INSIDE}/32"]),
            "broken": apply(f"{WORK}/authority.key", [f"{INSIDE}/32"]),
            "after broken": "ls /run/golden",
            "unit": "systemctl show -p ActiveState -p Result -p ConditionResult golden-proxy.service",
        },
    )


@pytest.mark.req("R67", "R73", "R10")
@pytest.mark.parametrize("path", PATHS)
def test_closed_to_everybody(closed: dict[str, Reply], path: str) -> None:
    """Without settings for it, no client can reach the administration, with any spelling of the path"""
    reply = closed[f"path {path}"]
    assert reply.statuses in ([404], [400]), reply
    # The web server's error page: the request did not reach the application.
    assert f"<h1>Error {reply.statuses[0]}</h1>" in reply.text


@pytest.mark.req("R67", "R49")
@pytest.mark.parametrize("claim", CLAIMS)
def test_claims_open_nothing(closed: dict[str, Reply], claim: str) -> None:
    """No header gives access to the administration"""
    assert closed[claim].statuses in ([404], [400]), closed[claim]


@pytest.mark.minutes
@pytest.mark.req("R67", "R73")
def test_certificate_and_address_open(opened: dict[str, Reply], facts: dict[str, Fact]) -> None:
    """A client with a certificate of the site's authority and an address of its network reaches the application"""
    logged = json.loads(facts["log"].lines[-1])
    assert logged["upstream_status"] == str(opened["both"].statuses[0])
    assert (logged["client_certificate"], logged["ip"]) == ("SUCCESS", INSIDE)


@pytest.mark.minutes
@pytest.mark.req("R67", "R73", "R49")
@pytest.mark.parametrize(
    "case", ["no certificate", "certificate of another", "other address", "address by a header", "neither"]
)
def test_one_of_the_two_is_not_enough(opened: dict[str, Reply], case: str) -> None:
    """A certificate without the address, or an address without the certificate, gives no access"""
    assert opened[case].statuses in ([404], [400]), opened[case]


@pytest.mark.minutes
@pytest.mark.req("R67", "R9")
def test_half_a_setting_opens_nothing(facts: dict[str, Fact]) -> None:
    """Incomplete or invalid settings close the administration and report an error"""
    for case in ("half", "no authority", "broken"):
        assert facts[case].status != 0, facts[case]
        assert "Problem" in facts[case].text
    for case in ("after half", "after broken"):
        assert not {"admin-access.conf", "client-certificates.conf"} & set(facts[case].words)


@pytest.fixture(scope="module")
def spoofed(host: Host, spec: SimpleNamespace) -> dict[str, Reply]:
    """Requests that name more than one host."""
    name = spec.application.server_name
    requests = {
        "absolute": f"GET http://other.test/ HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n",
        "absolute and own": f"GET https://{name}/health HTTP/1.1\r\nHost: other.test\r\nConnection: close\r\n\r\n",
        "twice": f"GET / HTTP/1.1\r\nHost: {name}\r\nHost: other.test\r\n\r\n",
        "twice the same": f"GET / HTTP/1.1\r\nHost: {name}\r\nHost: {name}\r\n\r\n",
        "none": "GET / HTTP/1.1\r\nConnection: close\r\n\r\n",
        "folded": f"GET / HTTP/1.1\r\nHost: {name}\r\n other.test\r\nConnection: close\r\n\r\n",
        "with a path": f"GET / HTTP/1.1\r\nHost: {name}/other.test\r\nConnection: close\r\n\r\n",
        "with an account": f"GET / HTTP/1.1\r\nHost: {name}@other.test\r\nConnection: close\r\n\r\n",
        "forwarded": f"GET /no-such HTTP/1.1\r\nHost: {name}\r\nX-Forwarded-Host: other.test\r\nConnection: close\r\n\r\n",
    }
    secured = {case: wire(data, name=name) for case, data in requests.items()}
    plain = {f"plain {case}": wire(data) for case, data in requests.items() if case in ("absolute", "twice", "forwarded")}
    return send(host, secured | plain)


@pytest.mark.req("R49", "R59", "F25")
@pytest.mark.parametrize(
    "case",
    [
        "absolute", "absolute and own", "twice", "twice the same", "none", "folded", "with a path", "with an account",
        "forwarded", "plain absolute", "plain twice", "plain forwarded",
    ],
)  # fmt: skip
def test_host_cannot_be_spoofed(spoofed: dict[str, Reply], case: str) -> None:
    """A request that names another host in any place is refused, and the response never contains that name"""
    reply = spoofed[case]
    assert "other.test" not in reply.text, reply
    # Without another host's name in a place that is used, the request is a normal one.
    ordinary = {"absolute and own": [200], "forwarded": [404], "plain forwarded": [308]}
    assert reply.statuses in ([ordinary[case]] if case in ordinary else [[400], [421], []]), reply
