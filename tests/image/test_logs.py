"""Logs: they stay local without a collector; with one, all lines arrive over TLS, also those of a downtime."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from testinfra.host import Host

from .facts import Fact, gather
from .remote import until

pytestmark = pytest.mark.story

WORK = "/run/goldentest-logs"
SETTINGS = "/etc/rsyslog.d/76-collector.conf"
PORT = 6599
MANY = 200
REFUSED = "no permited name|name not permitted"
FORM = r"<\d+>1 \d{{4}}-\d\d-\d\dT\S+ \S+ goldentest \d+ - - {}"

# A collector of both protocols: each message becomes a line of its file. RELP: TXNR SP COMMAND SP LENGTH [SP DATA] LF, and
# a response to each; syslog over TLS (RFC 5425): LENGTH SP MESSAGE, and no response.
COLLECTOR = r"""
import os, socket, socketserver, ssl, sys

work, port, protocol = sys.argv[1], int(sys.argv[2]), sys.argv[3]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(work + "/pem", work + "/key")

def word(stream):
    text = b""
    while (one := stream.read(1)) not in (b" ", b"\n", b""):
        text += one
    return text, one

def keep(message):
    with open(work + "/got", "ab") as file:
        file.write(message.replace(b"\n", b" ") + b"\n")

class Collector(socketserver.StreamRequestHandler):
    def handle(self):
        stream = context.wrap_socket(self.request, server_side=True).makefile("rwb")
        (self.relp if protocol == "relp" else self.syslog)(stream)

    def syslog(self, stream):
        while length := word(stream)[0]:
            keep(stream.read(int(length)))

    def relp(self, stream):
        while number := word(stream)[0]:
            command, (length, end) = word(stream)[0], word(stream)
            data = stream.read(int(length))
            if end == b" ":
                stream.read(1)
            if command == b"syslog":
                keep(data)
            answer = b"200 OK" + (b"\n" + data if command == b"open" else b"")
            stream.write(b"%s rsp %d %s\n" % (number, len(answer), answer))
            stream.flush()

socketserver.ThreadingTCPServer.allow_reuse_address = True
socketserver.ThreadingTCPServer.daemon_threads = True
server = socketserver.ThreadingTCPServer(("127.0.0.1", port), Collector)
socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
server.serve_forever()
"""


def start(protocol: str) -> str:
    """Return the shell command that starts the collector."""
    unit = "systemd-run --quiet --unit=goldentest-collector --service-type=notify"
    return f"{unit} python3 {WORK}/collector {WORK} {PORT} {protocol}"


def collector(peer: str, more: str = "") -> str:
    """Return the shell command that configures a collector, whose certificate must name ``peer``."""
    text = f"log_collector: {{host: 127.0.0.1, port: {PORT}, ca: {WORK}/pem, peer: {peer}{more}}}"
    restart = "systemctl restart golden-site.service; systemctl restart golden-logs.service"
    return f'echo "{text}" >/etc/golden/site.yaml; {restart}'


def log(word: str, count: int) -> str:
    """Return the shell command that logs lines WORD-1-end to WORD-COUNT-end: in the journal, like any program."""
    return f"seq -f '{word}-%g-end' {count} | systemd-cat -t goldentest"


def arrives(word: str, count: int) -> str:
    """Return the shell command that waits until that many different lines have arrived, and prints their number."""
    counted = f"grep -aoE '{word}-[0-9]+-end' {WORK}/got 2>/dev/null | sort -u | wc -l"
    return until(f"n=$({counted}); test $n -ge {count}", 20, pause=0.2) + "; echo $n"


@pytest.fixture(scope="module")
def facts(host: Host) -> Iterator[dict[str, Fact]]:
    """A collector with the wrong name, then the right one, then one that is down for a while."""
    stop = "systemctl stop goldentest-collector"
    request = (
        'python3 -c \'import http.client as h; c = h.HTTPConnection("127.0.0.1", 80); '
        'c.request("GET", "/web-1-end", headers={"Host": open("/run/golden/names").read().split()[0]}); c.getresponse()\''
    )
    host.check_output(f"mkdir -p {WORK}; printf %%s %s >{WORK}/collector", COLLECTOR)
    try:
        yield gather(
            host,
            {
                "silent": f"test ! -e {SETTINGS} || cat {SETTINGS}; ss -Hntp state established | grep rsyslogd; true",
                "keep": f"test ! -e /etc/golden/site.yaml || cp -p /etc/golden/site.yaml {WORK}/kept",
                "certificate": f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -keyout {WORK}/key "
                f"-out {WORK}/pem -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost 2>/dev/null",
                "start": start("relp"),
                "stranger": collector("other.example.org")
                + f"; {log('stranger', 1)}; "
                + until(f"journalctl -b -q -o cat -u rsyslog --since=-$((1 + PACE))min -g '{REFUSED}'", 20, pause=0.2)
                + f"; cat {WORK}/got",
                "right": f"{collector('localhost')}; {log('early', MANY)}; {request}; {arrives('early', MANY)}",
                "web": arrives("web", 1),
                "down": f"{stop}; {log('down', MANY)}; sleep 1; {log('later', MANY)}",
                "restarted": f"systemctl restart rsyslog.service; {log('after', MANY)}; ls /var/spool/rsyslog",
                "up": f"{start('relp')}; {arrives('after', MANY)}; {arrives('down', MANY)}; {arrives('later', MANY)}",
                "form": f"grep -a -m1 early-1-end {WORK}/got",
                "plain": f"{stop}; {start('syslog')}; {collector('localhost', ', protocol: syslog')}; {log('plain', MANY)}; "
                f"{arrives('plain', MANY)}; grep -a -m1 plain-1-end {WORK}/got",
                "config": f"stat -c '%a %U' {SETTINGS}; rsyslogd -N1 2>&1 | tail -1",
                "same": "systemctl show -p MainPID --value rsyslog; systemctl restart golden-logs.service; "
                "systemctl show -p MainPID --value rsyslog",
            },
        )
    finally:
        host.run(
            f"rm -f /etc/golden/site.yaml; test ! -e {WORK}/kept || mv {WORK}/kept /etc/golden/site.yaml; "
            # The second restart waits for the one that golden-logs requests: later tests count lines.
            "systemctl restart golden-site.service; systemctl restart golden-logs.service rsyslog.service; "
            f"systemctl stop goldentest-collector.service; rm -rf {WORK}"
        )


@pytest.mark.req("R65", "R93")
def test_nothing_is_sent_without_a_collector(facts: dict[str, Fact]) -> None:
    """A clone without a collector does not send its logs"""
    assert facts["silent"].lines == []


@pytest.mark.req("R65")
def test_a_stranger_gets_nothing(facts: dict[str, Fact]) -> None:
    """Nothing is sent to a collector whose certificate has another name, and the refusal is logged in the journal"""
    assert re.search(REFUSED, facts["stranger"].text), facts["stranger"].text
    assert "stranger-1-end" not in facts["stranger"].text


@pytest.mark.req("R65", "R93")
def test_logs_arrive_over_tls(facts: dict[str, Fact]) -> None:
    """Lines of the journal arrive at the collector, with time, host and program"""
    assert facts["right"].lines[-1] == str(MANY)
    assert re.match(FORM.format("early-1-end"), facts["form"].text), facts["form"].text


@pytest.mark.layers("50-nginx")
@pytest.mark.req("R65", "R93")
def test_requests_arrive_over_tls(facts: dict[str, Fact]) -> None:
    """A line of the web server's log arrives at the collector"""
    assert facts["web"].text == "1"


@pytest.mark.req("R65")
def test_logs_arrive_at_a_collector_of_plain_syslog(facts: dict[str, Fact]) -> None:
    """The same lines arrive at a collector that only supports RFC 5425"""
    count, line = facts["plain"].lines[-2:]
    assert count == str(MANY)
    assert re.match(FORM.format("plain-1-end"), line), line


@pytest.mark.req("R65", "R93")
def test_a_collector_that_is_down_loses_nothing(facts: dict[str, Fact]) -> None:
    """Every line logged while the collector is down arrives later, also across a restart of the log service"""
    assert facts["up"].lines == [str(MANY)] * 3
    assert any(name.startswith("collector") for name in facts["restarted"].words), facts["restarted"].text


@pytest.mark.req("R65")
def test_log_settings_are_whole_and_restart_nothing_in_vain(facts: dict[str, Fact]) -> None:
    """The log service accepts its settings, only root can read them, and unchanged settings do not restart it"""
    assert facts["config"].lines[0] == "600 root"
    assert "End of config validation run" in facts["config"].text
    before, after = facts["same"].lines
    assert before == after != "0"


@pytest.mark.req("R94")
def test_logs_are_turned_over_daily(host: Host) -> None:
    """logrotate runs daily and keeps two weeks of compressed logs, in files that only root can write"""
    found = gather(
        host,
        {
            "dry": "logrotate -d /etc/logrotate.conf",
            "timer": "systemctl is-active logrotate.timer; systemctl cat logrotate.timer",
            "rules": "cat /etc/logrotate.conf",
            "exposure": "systemd-analyze security --no-pager rsyslog.service golden-logs.service | grep -i overall; "
            "systemd-analyze security --no-pager rsyslog.service | tail -1; "
            "systemd-analyze security --no-pager golden-logs.service | tail -1",
        },
    )
    assert found["dry"].status == 0
    assert "error" not in found["dry"].text.lower().replace("error.log", "")
    assert found["timer"].lines[0] == "active"
    assert "OnCalendar=daily" in found["timer"].text
    for rule in ("daily", "rotate 14", "compress", "missingok", "notifempty", "create 0640 root adm"):
        assert rule in found["rules"].lines
    for line in found["exposure"].lines:
        assert float(line.split(".service: ")[1].split()[0]) <= 2.0, line
