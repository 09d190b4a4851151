"""Clients of the database on other machines: with TLS, a certificate and an address of the settings, and not otherwise."""

from __future__ import annotations

import re
from typing import Any

import pytest
from testinfra.host import Host

from .facts import Fact, gather, properties
from .neighbours import STRANGER, play
from .remote import until
from .site_file import BACK, KEEP, applied

pytestmark = [pytest.mark.story, pytest.mark.layers("25-firewall")]

WORK = "/etc/golden/test-clients"
UNIT = "postgresql@17-main.service"
NAME = "app1.example.org"
SETTINGS = (
    f"database_clients: {{certificate: {WORK}/server.pem, key: {WORK}/%s.key, authority: {WORK}/authority.pem, "
    f"clients: [{{name: {NAME}, address: {STRANGER}}}]}}"
)
# The restart of the server is queued when the command has ended.
SETTLED = until("! systemctl list-jobs --no-legend | grep -q postgresql@", 30, pause=0.2)
STATE = f"{SETTLED}; systemctl show -p ActiveState -p PrivateNetwork -p IPAddressAllow -p RestrictAddressFamilies {UNIT}"
AUTHORITIES = f"""
set -eu
umask 077
rm -rf {WORK}
mkdir {WORK}
cd {WORK}
for name in authority other; do
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -keyout $name.key -subj "/CN=$name" -days 2 \
        -addext keyUsage=critical,keyCertSign -out $name.pem 2>/dev/null
done
# $1: file, $2: common name, $3: authority, $4: extension
signed() {{
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -keyout "$1.key" -subj "/CN=$2" -addext "$4" \
        -out "$1.csr" 2>/dev/null
    openssl x509 -req -in "$1.csr" -CA "$3.pem" -CAkey "$3.key" -days 2 -copy_extensions copy -out "$1.pem" 2>/dev/null
}}
signed server db.example.org authority subjectAltName=IP:198.51.100.1,IP:203.0.113.1
signed good {NAME} authority subjectAltName=DNS:{NAME}
signed another app2.example.org authority subjectAltName=DNS:{NAME}
signed foreign {NAME} other subjectAltName=DNS:{NAME}
"""
# golden-verify with a server's certificate that ends in a week; the server reads the file only when it starts.
ENDING = f"""
set -eu
file=/run/golden/database-server.pem
cp -p $file {WORK}/kept.pem
openssl x509 -req -in {WORK}/server.csr -CA {WORK}/authority.pem -CAkey {WORK}/authority.key \
    -not_before 20260101000000Z -not_after $(date -u -d '+7 days' +%Y%m%d%H%M%SZ) 2>/dev/null >$file
status=0
golden-verify || status=$?
cp -p {WORK}/kept.pem $file
exit $status
"""
QUERY = "SELECT current_user, ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
# What each attempt changes of a good one: source, certificate, connection parameters.
ATTEMPTS = {
    "the application": {},
    "the owner of the tables": {"user": "app_owner"},
    "the superuser": {"user": "postgres", "dbname": "postgres"},
    "the superuser in the database": {"user": "postgres"},
    "another database": {"dbname": "postgres"},
    "another name": {"certificate": "another"},
    "another authority": {"certificate": "foreign"},
    "no certificate": {"certificate": ""},
    "no TLS": {"certificate": "", "sslmode": "disable"},
    "TLS 1.2": {"ssl_max_protocol_version": "TLSv1.2", "ssl_min_protocol_version": "TLSv1.2"},
    "a server of another authority": {"sslrootcert": f"{WORK}/other.pem"},
    "another address": {"from": "admin"},
}
# How the refused ones end.
REFUSED = {
    "the superuser": "no pg_hba.conf entry|rejects connection",
    "the superuser in the database": "no pg_hba.conf entry|rejects connection",
    "another database": "no pg_hba.conf entry|rejects connection",
    "another name": "certificate authentication failed",
    "another authority": "unknown ca|certificate verify failed",
    "no certificate": "requires a valid client certificate",
    "no TLS": "no pg_hba.conf entry|rejects connection",
    "TLS 1.2": "protocol version|unsupported protocol",
    "a server of another authority": "certificate verify failed",
    "another address": "timeout expired|no response",
}
SCENE = r"""
def attempt(work, query, change):
    words = {"user": "app", "dbname": "app", "sslmode": "verify-full", "sslrootcert": work + "/authority.pem",
             "connect_timeout": str(int(SECONDS) + 3)} | change
    name, source = words.pop("certificate", "good"), words.pop("from", "stranger")
    words |= {"sslcert": "%s/%s.pem" % (work, name), "sslkey": "%s/%s.key" % (work, name)} if name else {}
    words["host"] = HERE[source]
    place = " ".join("%s=%s" % pair for pair in words.items())
    argv = ["ip", "netns", "exec", PLACE, "/usr/lib/postgresql/17/bin/psql", "-XAtq", "-w", "-d", place, "-c", query]
    done = subprocess.run(argv, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"})
    return {"status": done.returncode, "text": (done.stdout + done.stderr).strip()}

def scene(questions, facts):
    facts["ports"] = ask(stranger=[5432], admin=[5432])[0]
    facts["attempts"] = {
        case: attempt(questions["work"], questions["query"], change) for case, change in questions["attempts"].items()
    }
"""


@pytest.fixture(scope="module")
def story(host: Host) -> dict[str, Any]:
    """The database before, with and after a client in the settings; afterwards the settings are restored."""
    facts: dict[str, Any] = {}
    questions = {"work": WORK, "query": QUERY, "attempts": ATTEMPTS}
    try:
        unit = "systemctl show -p UnitFileState -p ConditionResult golden-database-clients.service"
        facts |= gather(host, {"kept": KEEP, "state before": STATE, "unit before": unit})
        host.check_output("sh -c %s", AUTHORITIES)
        facts["before"] = play(host, SCENE, questions | {"attempts": {}})["ports"]
        facts |= gather(host, {"apply": applied(SETTINGS % "server"), "state with": STATE})
        facts["with"] = play(host, SCENE, questions)
        facts |= gather(
            host,
            {
                "wrong": applied(SETTINGS % "good"),
                "verify": "golden-verify",
                "ending": ENDING,
                "files": "stat -c '%a %U:%G %n' /run/golden/database-* /run/golden/postgresql-network.conf",
                "exposure": f"systemd-analyze security --no-pager {UNIT} | tail -1",
                "unit exposure": "systemd-analyze security --no-pager golden-database-clients.service | tail -1",
            },
        )
    finally:
        facts |= gather(host, {"back": BACK, "removed": f"rm -r {WORK}", "state after": STATE, "left": "ls /run/golden"})
    facts["after"] = play(host, SCENE, questions | {"attempts": {}})["ports"]
    return facts


@pytest.mark.req("R90", "R3")
def test_without_clients_there_is_no_network(story: dict[str, Any]) -> None:
    """Before and after, the server has no network, the port is closed, and no file of the setting is left"""
    for moment in ("before", "after"):
        assert story[moment] == {"stranger": {"5432": "silent"}, "admin": {"5432": "silent"}}
        state = properties(story[f"state {moment}"])
        assert (state["ActiveState"], state["PrivateNetwork"]) == ("active", "yes")
    assert not {word for word in story["left"].words if word.startswith(("database-", "postgresql-network"))}


@pytest.mark.req("R3", "R90", "R91")
def test_a_client_is_named(story: dict[str, Any]) -> None:
    """golden-site apply opens the port for the client's address only, in the unit and in the packet filter"""
    for case in ("kept", "apply", "back"):
        fact: Fact = story[case]
        assert fact.status == 0, fact.text
    state = properties(story["state with"])
    assert (state["ActiveState"], state["PrivateNetwork"]) == ("active", "no")
    assert state["IPAddressAllow"] == f"{STRANGER}/32"
    assert set(state["RestrictAddressFamilies"].split()) == {"AF_UNIX", "AF_INET", "AF_INET6"}
    assert story["with"]["ports"] == {"stranger": {"5432": "open"}, "admin": {"5432": "silent"}}


@pytest.mark.req("R89", "R91")
@pytest.mark.parametrize(("case", "role"), [("the application", "app"), ("the owner of the tables", "app_owner")])
def test_the_client_connects(story: dict[str, Any], case: str, role: str) -> None:
    """With its certificate the client connects as each of the two roles, over TLS 1.3"""
    assert story["with"]["attempts"][case] == {"status": 0, "text": f"{role}|t|TLSv1.3"}


@pytest.mark.req("R89", "R91", "R3")
@pytest.mark.parametrize("case", REFUSED)
def test_others_are_refused(story: dict[str, Any], case: str) -> None:
    """Without one part of it (role, database, name, authority, certificate, TLS, address) there is no connection"""
    found = story["with"]["attempts"][case]
    assert found["status"] == 2, found
    assert re.search(REFUSED[case], found["text"]), found["text"]


@pytest.mark.req("R35")
def test_a_wrong_key_changes_nothing(story: dict[str, Any]) -> None:
    """A key that does not belong to the certificate is refused with its file, and the clients stay"""
    assert story["wrong"].status == 3
    assert f"{WORK}/good.key" in story["wrong"].text
    assert "does not belong to the certificate" in story["wrong"].text


@pytest.mark.req("R35", "R60")
def test_files_are_closed(story: dict[str, Any]) -> None:
    """The server reads its key and rules through its group, cannot change them, and no other user reads them"""
    rights = {tuple(line.split()[:2]) for line in story["files"].lines}
    assert len(story["files"].lines) == 6
    assert rights == {("640", "root:postgres")}


@pytest.mark.req("R8", "R76")
def test_the_sandbox_holds(story: dict[str, Any]) -> None:
    """With clients, golden-verify has no complaint, and systemd rates the sandboxes 1.5 or better"""
    assert story["verify"].status == 0, story["verify"].text
    for case in ("exposure", "unit exposure"):
        found = re.search(r"level for \S+: ([0-9.]+)", story[case].text)
        assert found, story[case].text
        assert float(found.group(1)) <= 1.5


@pytest.mark.req("R63")
def test_a_certificate_that_ends_is_named(story: dict[str, Any]) -> None:
    """A week before the server's certificate ends, golden-verify has failed and names it"""
    assert story["ending"].status == 3
    assert re.search(r"database-server\.pem: CN ?= ?db\.example\.org ends on ", story["ending"].text), story["ending"].text


@pytest.mark.req("R35")
def test_settings_are_written_at_boot(story: dict[str, Any]) -> None:
    """Without clients the unit is skipped for its condition, and enabled for the next boot"""
    assert properties(story["unit before"]) == {"UnitFileState": "enabled", "ConditionResult": "no"}
