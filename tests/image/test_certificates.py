"""Certificates: checked before use, replaced without a lost request, renewed automatically, and monitored."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from testinfra.host import Host

from .facts import Fact, ask, browse, gather
from .remote import seconds, until
from .under_load import Load, under_load

pytestmark = pytest.mark.story

# On the clone, in memory: the files of the tests, and copies of the original files.
WORK = "/run/test-certificates"
SERVED_SECONDS = 5
# Pairs that must be refused, and the rule that each violates.
BAD = {
    "other-key": "the key belongs to the certificate",
    "weak-rsa": "RSA of 2048 bits",
    "curve": "P-256 or P-384",
    "sha1": "SHA-1",
    "expired": "valid now",
    "early": "valid now",
    "other-name": "names of this machine",
    "authority": "a server's certificate",
    "client": "a server's certificate",
    "staple": "OCSP",
    "disorder": "signed by the next",
    "locked-key": "without a passphrase",
    "no-certificate": "no certificate",
}

MAKE = r"""
set -eu
umask 077
name=$1
rm -rf /run/test-certificates
mkdir /run/test-certificates
cd /run/test-certificates
mkdir keep
cp -a /etc/ssl/private/app.key /etc/ssl/certs/app.pem keep/
cp -a /run/golden/site.json keep/
cp -a /var/lib/golden-certificates keep/state

key() { openssl genpkey -quiet -algorithm EC -pkeyopt "ec_paramgen_curve:${2:-P-256}" -out "$1.key"; }
# $1: file, $2: signer, then options of openssl x509; extensions from standard input.
signed() {
    file=$1 signer=$2
    shift 2
    cat >"$file.ext"
    openssl req -new -key "$file.key" -subj "/CN=$file" -out "$file.csr"
    openssl x509 -req -in "$file.csr" -CA "$signer.pem" -CAkey "$signer.key" -extfile "$file.ext" "$@" \
        -out "$file.pem" 2>/dev/null
}
server() {
    printf 'basicConstraints=CA:FALSE\nsubjectAltName=DNS:%s\nextendedKeyUsage=%s\n%s\n' "$1" "${2:-serverAuth}" "${3:-}"
}

key root
openssl req -x509 -new -key root.key -subj '/CN=test root' -days 30 -addext keyUsage=critical,keyCertSign -out root.pem
key authority
printf 'basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\n' | signed authority root -days 30
for file in good short expired early other-name client staple disorder sha1 other-key; do key $file; done
server "$name" | signed good authority -days 90
server "$name" | signed short authority -days 5
server "$name" | signed expired authority -not_before 20240101000000Z -not_after 20240201000000Z
server "$name" | signed early authority -not_before 20990101000000Z -not_after 20990201000000Z
server other.test | signed other-name authority -days 90
server "$name" clientAuth | signed client authority -days 90
server "$name" serverAuth tlsfeature=status_request | signed staple authority -days 90
server "$name" | signed disorder authority -days 90
server "$name" | signed sha1 authority -days 90 -sha1
server "$name" | signed other-key authority -days 90
key other-key
openssl genpkey -quiet -algorithm RSA -pkeyopt rsa_keygen_bits:1024 -out weak-rsa.key
server "$name" | signed weak-rsa authority -days 90
key curve P-521
server "$name" | signed curve authority -days 90
for file in good short; do cat authority.pem >>$file.pem; done
cat root.pem authority.pem >>disorder.pem
# As Windows saves a file: a byte order mark, CRLF, no end of the last line.
for file in short.pem short.key; do
    printf '\357\273\277' >windows
    awk 'NR > 1 { printf "\r\n" } { printf "%s", $0 }' $file >>windows
    mv windows $file
done
cp authority.pem no-certificate.pem; cp authority.key no-certificate.key; echo nothing >no-certificate.pem
cp good.pem locked-key.pem
openssl pkey -in good.key -aes128 -passout pass:secret -out locked-key.key

# The web server of the authority.
key server
server localhost | signed server root -days 30
cat root.pem >>server.pem
"""

# Restore the original files in any case; no unit stays failed.
RESTORE = f"""
cd {WORK}/keep
systemctl stop test-authority.service
cp -a app.key /etc/ssl/private/; cp -a app.pem /etc/ssl/certs/; cp -a site.json /run/golden/
rm -rf /run/golden/site-has-certificate /var/lib/golden-certificates /etc/nginx/conf.d/99-broken.conf /run/golden/hsts.conf
cp -a state /var/lib/golden-certificates
systemctl reset-failed 'golden-certificate-*' golden-acme.service nginx.service
systemctl reload-or-restart nginx.service
rm -rf {WORK}
"""


@pytest.fixture(scope="module")
def facts(host: Host) -> dict[str, Fact]:
    """The output of the command and the state of its units on a clone with its first certificate."""
    return gather(
        host,
        {
            "show": "golden-certificate show --json",
            "check": "golden-certificate check --json",
            "scan": "golden-certificate scan --json",
            "stored": "cat /var/lib/golden-certificates/scan.json",
            "help": "golden-certificate --help",
            "usage": "golden-certificate no-such-verb",
            "early": "golden-certificate check --days 4000 --json",
            "hsts": "golden-certificate hsts --on",
            "user": "runuser -u nobody -- golden-certificate scan",
            "exposure": "for unit in acme certificate-boot certificate-expiry certificate-renew certificate-scan proxy; do "
            "systemd-analyze security --no-pager golden-$unit.service | tail -1; done",
            "client": "systemctl show -p User -p CapabilityBoundingSet -p InaccessiblePaths golden-acme.service; "
            "getent passwd golden-acme",
            "timers": "systemctl show -p RandomizedDelayUSec -p Persistent -p ActiveState golden-certificate-renew.timer; "
            "systemctl is-active golden-certificate-expiry.timer golden-certificate-scan.timer",
            "orders": "stat -c '%a %U:%G' /run/golden-acme /run/golden-challenges",
        },
    )


@pytest.fixture(scope="module")
def made(host: Host, spec: SimpleNamespace, facts: dict[str, Fact]) -> Iterator[str]:
    """Valid and invalid pairs of an authority of the test; the clone is restored after the tests of the module."""
    name = str(spec.application.server_name)
    host.check_output("sh -c %s make %s", MAKE, name)
    yield name
    host.run("sh -c %s", RESTORE)


def install(pair: str) -> str:
    """Return the command that installs a pair of the test."""
    return f"golden-certificate install --json --certificate {WORK}/{pair}.pem --key {WORK}/{pair}.key"


def settings(changes: str) -> str:
    """Return a command that changes the site settings of this boot, as Python assignments to ``site``."""
    path = "/run/golden/site.json"
    edit = f"import json; site = json.load(open('{path}')); {changes}; json.dump(site, open('{path}', 'w'))"
    return f'python3 -c "{edit}" && touch /run/golden/site-has-certificate'


ACME = (
    "site['certificate']['acme'] = dict(directory='https://localhost:14000/directory', "
    f"email='hostmaster@example.org', ca='{WORK}/root.pem')"
)


@pytest.mark.req("R76", "R77")
def test_command(facts: dict[str, Fact]) -> None:
    """The command has a help text, prints JSON, and returns its result as the exit code"""
    assert facts["help"].status == 0
    assert {"show", "check", "install", "renew", "scan"} <= set(facts["help"].text.split())
    assert facts["usage"].status == 2
    assert facts["user"].status == 2
    assert json.loads(facts["show"].text)["certificate"]["key"] == "EC prime256v1"
    assert json.loads(facts["check"].text)["ok"] is True
    assert facts["early"].status == 3
    assert json.loads(facts["early"].text)["ok"] is False


@pytest.mark.req("R51", "R52", "R53", "R60", "R61", "R77")
def test_scan(facts: dict[str, Fact]) -> None:
    """The scan passes (TLS 1.2 and 1.3, forward secrecy, a post-quantum group, no tickets) and stores its result"""
    assert facts["scan"].status == 0, facts["scan"].text
    found = json.loads(facts["scan"].text)
    assert len(found["verdicts"]) >= 20
    assert [one["rule"] for one in found["verdicts"] if not one["ok"]] == []
    assert json.loads(facts["stored"].text) == found


@pytest.mark.req("R55")
def test_insisting_on_tls_needs_a_trusted_certificate(facts: dict[str, Fact]) -> None:
    """HSTS for two years is refused while the certificate is self-signed"""
    assert facts["hsts"].status == 3
    assert "HSTS stays short" in facts["hsts"].text


@pytest.mark.req("R9", "R63", "R77", "R87")
def test_units(facts: dict[str, Fact]) -> None:
    """Renewal, monitor and scan are timers; their services are sandboxed, and the ACME client has a dedicated user"""
    levels = [line.split("level for ")[1].split()[:2] for line in facts["exposure"].lines]
    assert len(levels) == 6
    assert {name: float(level) for name, level in levels if float(level) > 2.0} == {}
    assert "RandomizedDelayUSec=3h" in facts["timers"].lines
    assert facts["timers"].lines[-2:] == ["active", "active"]
    assert "User=golden-acme" in facts["client"].lines
    assert "CapabilityBoundingSet=" in facts["client"].lines
    assert "/etc/ssl/private" in facts["client"].text
    assert facts["client"].lines[-1].endswith(":/nonexistent:/usr/sbin/nologin")
    assert facts["orders"].lines == ["2750 root:golden-acme", "2750 golden-acme:nginx"]


@pytest.fixture(scope="module")
def refused(host: Host, made: str) -> dict[str, Fact]:
    """The output of the command for invalid pairs, and the installed pair before and after."""
    pair = "cat /etc/ssl/private/app.key /etc/ssl/certs/app.pem | sha256sum"
    return gather(host, {"before": pair} | {one: install(one) for one in BAD} | {"after": pair})


@pytest.mark.req("R61", "R87", "R54")
@pytest.mark.parametrize("pair", BAD)
def test_bad_pair_is_refused(refused: dict[str, Fact], pair: str) -> None:
    """A pair that violates a rule is refused, and the error names the rule"""
    fact = refused[pair]
    result = json.loads(fact.text[fact.text.index("{") : fact.text.rindex("}") + 1])
    assert fact.status in (1, 3)
    assert result["ok"] is False
    assert BAD[pair] in result["error"] + result["hint"]


@pytest.mark.req("R61", "R87")
def test_nothing_was_touched(refused: dict[str, Fact]) -> None:
    """The installed pair is unchanged after all refusals"""
    assert refused["before"].text == refused["after"].text


@pytest.fixture(scope="module")
def installed(host: Host, made: str, refused: dict[str, Fact]) -> tuple[Load, dict[str, Fact]]:
    """A pair of the operator's authority is installed under load."""
    load = under_load(host, made, install("good"))
    facts = gather(
        host,
        {
            "show": "golden-certificate show --json",
            "access": "stat -c '%a %U:%G' /etc/ssl/private/app.key /etc/ssl/certs/app.pem /run/nginx-tls/app.key",
        },
    )
    return load, facts


@pytest.mark.req("R87", "F04")
def test_installed_without_a_lost_request(
    host: Host, installed: tuple[Load, dict[str, Fact]], spec: SimpleNamespace
) -> None:
    """A new pair is served within five seconds, and no request is lost during its installation"""
    load, facts = installed
    assert load.status == 0, load.output
    assert json.loads(load.output)["served_after"] <= seconds(host, SERVED_SECONDS)
    assert len(load.certificates) == 2
    # Without an application there are no pages: every response is 404.
    if "40-app" in spec.layers:
        assert (load.lost, load.failures) == (0, ())
    assert load.sent >= 20
    shown = json.loads(facts["show"].text)
    assert (shown["certificate"]["self_signed"], shown["chain"]) == (False, ["CN=authority"])


@pytest.mark.req("R60", "R35")
def test_installed_key_is_closed(installed: tuple[Load, dict[str, Fact]]) -> None:
    """An installed key belongs to root, and its copy in memory to nginx"""
    assert installed[1]["access"].lines == ["600 root:root", "644 root:root", "400 nginx:nginx"]


@pytest.fixture(scope="module")
def after(host: Host, made: str, installed: tuple[Load, dict[str, Fact]]) -> dict[str, Fact]:
    """The monitor with five days left; installations that are interrupted, or that nginx refuses."""
    stage = (
        "from pathlib import Path; from golden import install; "
        f"install.stage(Path('{WORK}/good.pem').read_bytes(), Path('{WORK}/good.key').read_bytes())"
    )
    alerts = "journalctl -b -o cat -t golden-alert | grep golden-certificate-expiry"
    return gather(
        host,
        {
            "five days": install("short"),
            "expiry": "systemctl start golden-certificate-expiry.service",
            "alert": until(alerts, 20, pause=1),
            "monitor": "journalctl -b -o cat -u golden-certificate-expiry.service | grep FAILED",
            # A power failure between the two files.
            "power cut": f'python3 -c "{stage}"; cp {WORK}/good.key /etc/ssl/private/app.key',
            "boot": "systemctl restart golden-certificate-boot.service && systemctl reload nginx && "
            "golden-certificate check",
            "left": "ls /var/lib/golden-certificates",
            # A configuration that nginx refuses.
            "broken": f"echo no_such_directive >/etc/nginx/conf.d/99-broken.conf; {install('short')}",
            "rolled back": "golden-certificate check",
            "repaired": "rm /etc/nginx/conf.d/99-broken.conf; systemctl reload nginx && systemctl is-active nginx",
        },
    )


@pytest.mark.req("R63", "R9")
def test_monitor_warns(after: dict[str, Fact]) -> None:
    """A pair with Windows line endings is served; with five days left the monitor logs the reason and raises an alert"""
    assert after["five days"].status == 0, after["five days"].text
    assert after["expiry"].status != 0
    assert "at least 21 days are left" in after["monitor"].text
    assert after["alert"].status == 0
    assert after["alert"].lines


@pytest.mark.req("F18", "R87")
def test_power_cut_in_an_installation(after: dict[str, Fact]) -> None:
    """After a power failure between key and certificate, the next boot completes the installation"""
    assert after["boot"].status == 0, after["boot"].text
    assert "pending" not in after["left"].words


@pytest.mark.req("F14", "R87")
def test_refused_by_the_web_server(after: dict[str, Fact]) -> None:
    """If nginx refuses a pair, the previous one is restored, and nginx keeps running"""
    assert after["broken"].status == 1, after["broken"].text
    assert after["rolled back"].status == 0, after["rolled back"].text
    assert (after["repaired"].status, after["repaired"].text) == (0, "active")


@pytest.fixture(scope="module")
def renewed(host: Host, made: str, after: dict[str, Fact]) -> dict[str, Any]:
    """An ACME authority is configured; the renewal runs under load, then again, then for a name of another machine."""
    server = (Path(__file__).with_name("acme_server.py")).read_text()
    start = (
        f"cat >{WORK}/acme_server.py && "
        f"systemd-run --quiet --collect --unit test-authority --setenv=PACE=$PACE python3 {WORK}/acme_server.py {WORK}; "
        + until("ss -Hltn sport = 14000 | grep -q .", 10)
    )
    host.check_output(f"printf %s %s | ( {start} )", "%s", server)
    host.check_output(settings(f"{ACME}; site['server_names'] = ['{made}']"))
    load = under_load(host, made, "systemctl start golden-certificate-renew.service")
    facts = gather(
        host,
        {
            "show": "golden-certificate show --json",
            "access": "stat -c '%a %U:%G' /etc/ssl/private/app.key; ls -A /run/golden-challenges; echo state:; "
            "ls -A /var/lib/golden-certificates; stat -c '%a %U:%G %n' /var/lib/golden-acme/*",
            "again": "golden-certificate renew --json",
            "log": "journalctl --sync; journalctl -b -o cat -u golden-acme.service -u golden-certificate-renew.service",
            "hsts": "golden-certificate hsts --on --json; systemctl restart golden-certificate-boot.service; "
            "cat /run/golden/hsts.conf",
            "stranger": settings("site['server_names'] = ['other.test']") + "; golden-certificate renew --json",
            "after stranger": "golden-certificate show --json",
        },
    )
    secured = browse(host, {"page": ask(made, "/health")})["page"]
    off = host.run("golden-certificate hsts --off --json")
    return {"load": load, "facts": facts, "secured": secured, "off": off.stdout}


@pytest.mark.req("R87", "R13")
def test_renewed_by_acme(renewed: dict[str, Any], spec: SimpleNamespace) -> None:
    """The ACME client validates the names over HTTP; the certificate is served within 5 s, and no request is lost"""
    load, facts = renewed["load"], renewed["facts"]
    assert load.status == 0, facts["log"].text
    # Without an application there are no pages: every response is 404.
    if "40-app" in spec.layers:
        assert (load.lost, load.failures) == (0, ())
    assert len(load.certificates) == 2
    shown = json.loads(facts["show"].text)
    assert shown["issued_by_acme"] is True
    assert shown["trusted"] is True
    assert shown["certificate"]["issuer"] == "CN=authority"
    assert facts["access"].lines[0] == "600 root:root"
    # No challenge and no key of a request is left, and only the client can read the account's key.
    assert facts["access"].lines[1] == "state:"
    assert "renewal" not in facts["access"].words
    assert any(line.startswith("600 golden-acme:golden-acme") and "account.key" in line for line in facts["access"].lines)
    again = json.loads(facts["again"].text)
    assert (again["ok"], again["renewed"]) == (True, False)


@pytest.mark.req("R55")
def test_insisting_on_tls(renewed: dict[str, Any]) -> None:
    """With a trusted certificate and a passed scan, HSTS can be set to two years, and reset"""
    assert 'on "max-age=63072000";' in renewed["facts"]["hsts"].text, renewed["facts"]["hsts"].text
    assert renewed["secured"].header("Strict-Transport-Security") == ["max-age=63072000"]
    assert json.loads(renewed["off"])["hsts"] == "max-age=300"


@pytest.mark.req("R87", "R59")
def test_name_that_is_not_ours(renewed: dict[str, Any]) -> None:
    """No certificate is issued for a name that the machine cannot validate, and the previous one stays installed"""
    facts = renewed["facts"]
    assert facts["stranger"].status == 1
    assert "gave no certificate" in facts["stranger"].text
    assert json.loads(facts["after stranger"].text)["certificate"] == json.loads(facts["show"].text)["certificate"]
