"""Keys, certificates and configuration that are broken, rotated or installed again while requests come in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from build.faults.machines import Machine
from tests.image.remote import seconds

from .conftest import wait_until
from .freight import give
from .journal import Journal
from .traffic import Traffic

KEY, CERTIFICATE = "/etc/ssl/private/app.key", "/etc/ssl/certs/app.pem"
KEPT = "/root/kept"
# A new key and certificate for the clone's names, whole when they have their names. Arguments for openssl: the days.
ROTATE = f"""set -eu; cd /root; umask 077
names=$(sed 's/ /,DNS:/g; s/^/DNS:/' /run/golden/names)
openssl req -x509 -sha256 {{days}} -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -subj "/CN=rotated" \\
    -addext "subjectAltName=$names" -keyout rotated.key -out rotated.pem 2>/dev/null
chmod 0644 rotated.pem
mv rotated.key {KEY}; mv rotated.pem {CERTIFICATE}
"""
SERVED_SECONDS = 5
EXPIRY = "golden-certificate-expiry.service"
# Everything that an upgrade of the package could put back: paths, modes, owners, contents.
STATE = """find /etc/nginx /etc/systemd/system/nginx.service.d /etc/systemd/system/nginx.* /etc/logrotate.d /var/log/nginx \\
    -not -name '*.log*' -printf '%p %m %u:%g %l\\n' | sort
find /etc/nginx /etc/systemd/system/nginx.service.d /etc/systemd/system/nginx.* /etc/logrotate.d -type f \\
    -exec sha256sum {} + | sort
ls -A /var/www
systemctl is-enabled nginx.service nginx.socket"""
# Process id and program of nginx; a program that was replaced since its start has the suffix "(deleted)".
RUNNING = "pid=$(systemctl show --value --property MainPID nginx); echo $pid $(readlink /proc/$pid/exe)"


@pytest.fixture
def _pair(host: Host) -> Iterator[None]:
    """Put key and certificate back after the test."""
    host.check_output(f"rm -rf {KEPT} && mkdir -m 0700 {KEPT} && cp -a {KEY} {CERTIFICATE} {KEPT}/")
    yield
    host.check_output(
        f"cp -a {KEPT}/app.key {KEY} && cp -a {KEPT}/app.pem {CERTIFICATE} && rm -f /etc/nginx/conf.d/99-broken.conf && "
        "systemctl reset-failed; systemctl reload-or-restart nginx"
    )


@pytest.mark.req("F14", "R76")
@pytest.mark.usefixtures("_pair")
@pytest.mark.parametrize(
    ("breaking", "line"),
    [
        pytest.param(f"echo broken >{KEY}", "cannot load certificate key|PEM", id="corrupt-key"),
        pytest.param("echo 'nonsense on;' >/etc/nginx/conf.d/99-broken.conf", "unknown directive", id="bad-directive"),
    ],
)
def test_reload_of_something_broken(
    host: Host, load: Callable[..., Any], journal: Journal, breaking: str, line: str
) -> None:
    """A reload with a corrupt key or a bad directive is refused, and what was served goes on being served"""
    host.check_output(breaking)
    with load() as going:
        before = list(going.look()["certificates"])
        assert host.run("systemctl reload nginx").rc != 0
        going.more()
    going.lost()
    assert going.count["certificates"] == before
    journal.expect(line, unit="nginx")


@pytest.mark.req("F14", "R87", "R63")
@pytest.mark.usefixtures("_pair")
def test_rotate_certificate(
    host: Host, load: Callable[..., Any], journal: Journal, numbers: Callable[..., None], patience: Callable[[float], float]
) -> None:
    """A new certificate is served within 5 s of the reload, and no request is lost"""
    took = 0.0
    with load() as going:
        for _round in range(3):
            before = len(going.look()["certificates"])
            host.check_output(ROTATE.format(days="-days 90"))
            host.check_output("systemctl reload nginx")
            took = wait_until(
                lambda before=before: len(going.look()["certificates"]) > before,  # type: ignore[misc]
                seconds=patience(SERVED_SECONDS), what="the new certificate", pause=0.1,
            )  # fmt: skip
        going.more()
    numbers(new_certificate_after_s=round(took, 1))
    going.lost()
    journal.expect("Reloaded nginx.service", unit="nginx")


@pytest.mark.req("F15")
@pytest.mark.usefixtures("_pair")
@pytest.mark.parametrize("also", ["", "golden-tls"], ids=["first-run", "later-run"])
@pytest.mark.parametrize(
    "breaking", [pytest.param(f"rm {KEY}", id="missing"), pytest.param(f"echo broken >{KEY}", id="corrupt")]
)
def test_restart_without_a_key(host: Host, traffic: Traffic, journal: Journal, breaking: str, also: str) -> None:
    """Without a good key nothing is served: no plain text, no certificate that the machine made up"""
    before = host.check_output(f"sha256sum {CERTIFICATE}")
    # What made the first certificate was not started in a later run of the machine.
    host.check_output(f"systemctl stop nginx {also}; {breaking}")
    host.run("timeout $((20 * PACE)) systemctl start nginx")
    secure, plain = traffic.get("/"), traffic.get("/", tls=False)
    assert not secure.statuses, secure
    assert not set(plain.statuses) - {308}, plain
    assert b"This page came from" not in plain.data
    assert host.check_output(f"sha256sum {CERTIFICATE}") == before
    journal.expect("cannot load certificate key|PEM|cannot stat|Failed with result", unit="nginx")


@pytest.mark.req("F15", "R63")
@pytest.mark.usefixtures("_pair")
def test_certificate_that_ends_soon(host: Host, journal: Journal, needs: Callable[..., None]) -> None:
    """Three weeks before a certificate expires a unit fails and an alert reports it"""
    needs("golden-certificate", f"/etc/systemd/system/{EXPIRY}")
    host.check_output(ROTATE.format(days="-days 5") + "systemctl reload nginx")
    assert host.run(f"systemctl start {EXPIRY}").rc != 0
    journal.expect(f"golden-alert.*{EXPIRY}|{EXPIRY}: Failed")


@pytest.mark.req("F16", "R64", "R94")
def test_rotate_logs(
    host: Host, load: Callable[..., Any], needs: Callable[..., None], numbers: Callable[..., None],
    record_property: Callable[[str, object], None],
) -> None:  # fmt: skip
    """Rotating the logs under load loses no request and no line; the new file has the old one's owner and mode"""
    needs("logrotate", "/etc/logrotate.d/nginx")
    mark = "faultsrotation"
    log = "/var/log/nginx/access.log"
    with load(f"/?{mark}") as going:
        for _round in range(3):
            host.check_output("logrotate --force /etc/logrotate.d/nginx")
            going.more(24)
    going.lost()
    count = f"cat {log} {log}.1 {log}.2 {log}.3 2>/dev/null | grep -c {mark}; zcat {log}.*.gz 2>/dev/null | grep -c {mark}"

    def lines() -> int:
        return sum(map(int, host.run(f"{count}; :").stdout.split()))

    wanted = going.count["sent"]
    what = f"all {wanted} lines ({lines()} are there)"
    wait_until(lambda: lines() >= wanted, seconds=seconds(host, 20), what=what, pause=1)
    numbers(lines=lines())
    fresh, *access = host.check_output(f"grep -c {mark} {log}; stat --format '%a %U:%G' {log}*").splitlines()
    assert int(fresh) > 0, "nothing is written to the new file"
    assert len(access) >= 2, "nothing was rotated"
    assert set(access) == {"640 root:adm"}
    record_property("evidence", host.check_output(f"grep {mark} {log} | tail -n 1"))


@pytest.mark.req("F19", "R35", "R36")
def test_install_again(host: Host, machine: Machine, context: dict[str, Any], load: Callable[..., Any]) -> None:
    """Installing nginx's packages again adds no default site and changes no mode, drop-in or configuration"""
    debs = [Path(path) for path in context["debs"]]
    missing = [path.name for path in debs if not path.is_file()]
    assert debs, "no package of nginx is in the lock"
    assert not missing, f"not in the cache: {missing}"
    host.check_output("mkdir -p /root/debs")
    for path in debs:
        give(machine, path.read_bytes(), f"/root/debs/{path.name}.deb")
    before = host.check_output(STATE)
    ran = host.check_output(RUNNING)
    with load() as going:
        host.check_output("DEBIAN_FRONTEND=noninteractive dpkg --install /root/debs/*.deb")
        going.more()
    going.lost()
    changed = sorted(set(host.check_output(STATE).splitlines()) ^ set(before.splitlines()))
    assert not changed, changed
    assert host.run("ls /etc/nginx/sites-enabled/default /var/www/html").rc != 0
    assert host.check_output("grep -c ' configure nginx' /var/log/dpkg.log") != "0"
    # The package's own way to start a new binary wants a file with nginx's number; then it restarts the unit.
    now = host.check_output(RUNNING)
    assert now != ran
    assert now.endswith("/usr/sbin/nginx"), now
