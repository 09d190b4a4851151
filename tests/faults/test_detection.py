"""Changes by an intruder are detected; clients that guess passwords are banned."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from testinfra.host import Host

from tests.image.remote import seconds

from .conftest import wait_until
from .journal import Journal

TAMPERED = (
    "/etc/nginx/nginx.conf", "/etc/ssl/certs/app.pem", "/etc/systemd/system/nginx.service.d/hardening.conf",
)  # fmt: skip
AIDE_SECONDS = 300
GUESSER = "203.0.113.77"


@pytest.mark.req("F23", "R31")
def test_tampering_is_found(
    host: Host, journal: Journal, needs: Callable[..., None], patience: Callable[[float], float]
) -> None:
    """A changed configuration, certificate or drop-in is listed by AIDE, and an alert reports it"""
    needs("aide", "golden-aide")
    # Created in the background after the first boot, by one process: a second one is refused with a message.
    wait_until(
        lambda: host.run("golden-aide first").rc == 0, seconds=patience(AIDE_SECONDS), what="a database of AIDE", pause=5
    )
    host.check_output("golden-aide renew")
    kept = {path: f"/run/kept-by-faults.{number}" for number, path in enumerate(TAMPERED)}
    host.check_output("; ".join(f"cp -a {path} {kept[path]}; echo '# changed' >>{path}" for path in TAMPERED))
    try:
        assert host.run(f"timeout {int(patience(AIDE_SECONDS))} systemctl start golden-aide.service").rc != 0
        for path in TAMPERED:
            journal.expect(f"changed: {path}$", unit="golden-aide.service")
    finally:
        host.check_output("; ".join(f"mv {kept[path]} {path}" for path in TAMPERED))
    journal.expect("golden-alert.*golden-aide")


@pytest.mark.vm
@pytest.mark.req("F23", "R9")
def test_tampering_is_audited(
    host: Host, needs: Callable[..., None], record_property: Callable[[str, object], None]
) -> None:
    """A write to a watched file is an audit event with a key, and the rules cannot be changed"""
    needs("auditctl", "ausearch")
    assert host.check_output("auditctl -s | sed -n 's/^enabled //p'") == "2"
    for path in TAMPERED:
        kept = f"{path}.kept-by-faults"
        host.check_output(f"cp -a {path} {kept} && echo '# changed' >>{path}; mv {kept} {path}")

    def events() -> str:
        # From its log: it would read its standard input, which is none.
        return str(host.run("ausearch --input-logs --start recent --raw 2>/dev/null | grep -E 'type=(PATH|SYSCALL)'").stdout)

    for path in TAMPERED:
        wait_until(lambda path=path: path in events(), seconds=seconds(host, 20), what=f"an audit event of {path}", pause=2)  # type: ignore[misc]
    keyed = [line for line in events().splitlines() if 'key="golden-' in line]
    assert keyed, events()[-2000:]
    record_property("evidence", keyed[-1][:300])


@pytest.mark.req("F24", "R66")
def test_ban_reaches_the_packet_filter(host: Host, journal: Journal, needs: Callable[..., None]) -> None:
    """A banned address is in the packet filter at once, and is removed when the ban is lifted"""
    needs("fail2ban-client", "nft")
    limit = seconds(host, 20)

    def rules() -> str:
        return str(host.check_output("nft list ruleset"))

    host.check_output(f"fail2ban-client set sshd banip {GUESSER}")
    try:
        wait_until(lambda: GUESSER in rules(), seconds=limit, what="the ban in nftables")
    finally:
        host.check_output(f"fail2ban-client set sshd unbanip {GUESSER}")
    wait_until(lambda: GUESSER not in rules(), seconds=limit, what="the end of the ban")
    journal.expect(f"Ban {GUESSER}", unit="fail2ban")


@pytest.mark.req("F24", "R66")
def test_failed_logins_are_recognised(host: Host, needs: Callable[..., None]) -> None:
    """The filter recognises what this image's sshd logs about a failed login, sshd-session included"""
    needs("fail2ban-regex")
    start = "Nov 22 07:00:00 clone sshd-session[4711]: "
    line = f"{start}Connection closed by authenticating user root {GUESSER} port 4242 [preauth]"
    invalid = f"{start}Invalid user guess from {GUESSER} port 4242"
    said = host.check_output("fail2ban-regex %s 'sshd[mode=aggressive]'; fail2ban-regex %s sshd", line, invalid)
    assert said.count("1 matched") == 2, said
