"""Alerts: every failure of a service is logged in one clear line, and a message is queued until it can be delivered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from testinfra.host import Host

from .facts import Fact, gather, properties
from .remote import until

pytestmark = pytest.mark.story

WORK = "/run/goldentest-alerts"
MAIL_PORT, HOOK_PORT = 2525, 2443
SITE = "alerts: {mail: {server: 'localhost:%d', from: golden@example.org, to: admin@example.org}, webhook: 'https://localhost:%d/x'%s}"

# A mail server that requires STARTTLS, and a web hook, for this test only. They write their messages to a file.
SERVERS = r"""
import http.server, json, socketserver, ssl, sys, threading
from typing import Any

work = sys.argv[1]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(work + "/pem", work + "/key")

def got(**what):
    with open(work + "/got", "a") as stream:
        stream.write(json.dumps(what) + "\n")

class Mail(socketserver.BaseRequestHandler):
    def handle(self):
        secure, stream = False, self.request.makefile("rwb", 0)
        say = lambda text: stream.write(text + b"\r\n")
        say(b"220 ready")
        while line := stream.readline():
            word = line.split()[0].upper()
            if word == b"EHLO":
                say(b"250 localhost" if secure else b"250-localhost\r\n250 STARTTLS")
            elif word == b"STARTTLS":
                say(b"220 go")
                stream = context.wrap_socket(self.request, server_side=True).makefile("rwb", 0)
                secure = True
            elif word == b"DATA":
                say(b"354 go")
                lines = []
                while (line := stream.readline()) != b".\r\n":
                    lines.append(line.decode())
                got(way="mail", secure=secure, text="".join(lines))
                say(b"250 thanks")
            else:
                say(b"221 bye" if word == b"QUIT" else b"250 fine")

class Hook(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        got(way="webhook", path=self.path, text=body["text"], unit=body["unit"])
        self.send_response(204)
        self.end_headers()

socketserver.ThreadingTCPServer.allow_reuse_address = True
mail = socketserver.ThreadingTCPServer(("127.0.0.1", int(sys.argv[2])), Mail)
hook = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[3])), Hook)
hook.socket = context.wrap_socket(hook.socket, server_side=True, do_handshake_on_connect=False)
threading.Thread(target=mail.serve_forever).start()
import os, socket
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
hook.serve_forever()
"""


def settings(ca: str) -> str:
    """Return the shell command that configures the two servers in the site settings, with or without their authority."""
    text = SITE % (MAIL_PORT, HOOK_PORT, f", ca: {ca}" if ca else "")
    return f'echo "{text}" >/etc/golden/site.yaml; systemctl restart golden-site.service'


def fails(name: str, *, times: int) -> str:
    """Return the shell command that runs a failing service, waits for its alert line, and starts the sender."""
    raised = f"journalctl -q -b -o cat -u golden-alert@{name}.service.service -p alert | grep -c ALERT"
    return (
        f"systemctl reset-failed {name} 2>/dev/null; "
        f"systemd-run --quiet --wait --unit={name} sh -c 'echo the reason stands here; exit 7'; "
        + until(f'test "$({raised})" = {times}', 10)
        + "; systemctl start golden-alert-send.service"
    )


@pytest.fixture(scope="module")
def facts(host: Host, expected: dict[str, Any]) -> Iterator[dict[str, Fact]]:
    """A service fails while the servers are down, while their certificates do not verify, while all is well, and again."""
    command = f"systemd-run --quiet --unit=goldentest-servers --service-type=notify python3 {WORK}/servers"
    host.check_output(f"mkdir -p {WORK}; printf %%s %s >{WORK}/servers", SERVERS)
    try:
        yield gather(
            host,
            {
                "keep": f"test ! -e /etc/golden/site.yaml || cp -p /etc/golden/site.yaml {WORK}/kept",
                "certificate": f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -keyout {WORK}/key "
                f"-out {WORK}/pem -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost 2>/dev/null",
                "configured": settings(f"{WORK}/pem"),
                "servers down": fails("goldentest-one", times=1),
                "waits": "golden-alert --list --json",
                "servers": f"{command} {WORK} {MAIL_PORT} {HOOK_PORT}",
                "not trusted": settings("") + "; systemctl start golden-alert-send.service; cat " + f"{WORK}/got",
                "trusted": settings(f"{WORK}/pem") + "; systemctl start golden-alert-send.service",
                "got": f"cat {WORK}/got",
                "done": "golden-alert --list --json",
                "again": fails("goldentest-one", times=2),
                "got again": f"cat {WORK}/got",
                "test": "golden-alert --test",
                "got test": f"cat {WORK}/got",
                "test fails": "systemctl stop goldentest-servers.service; golden-alert --test --json",
                "lines": "journalctl -b -q -o cat -p alert -t golden-alert",
                "sender": "systemctl show -p Result golden-alert-send.service",
                "every service": "systemctl show -p Id -p OnFailure chrony "
                f"{' '.join(expected['services'])} golden-site golden-disks golden-alert@x golden-alert-send",
                "exposure": "for u in golden-alert@x golden-alert-send golden-disks; do "
                "systemd-analyze security --no-pager $u.service | tail -1; done",
                "spool": "stat -c '%a %U' /var/lib/golden-alert /var/lib/golden-alert/outgoing",
            },
        )
    finally:
        host.run(
            f"systemctl stop goldentest-servers.service; rm -f /etc/golden/site.yaml; "
            f"test ! -e {WORK}/kept || mv {WORK}/kept /etc/golden/site.yaml; rm -rf {WORK}; "
            "systemctl reset-failed 'goldentest-*'; systemctl restart golden-site.service; "
            "rm -f /var/lib/golden-alert/outgoing/* /var/lib/golden-alert/units/goldentest*"
        )


@pytest.mark.minutes
@pytest.mark.req("R9")
def test_every_failure_is_one_clear_line(facts: dict[str, Fact]) -> None:
    """For a failed service the journal has a line of priority alert with its name, its status and where to look"""
    lines = [line for line in facts["lines"].lines if "goldentest-one.service" in line]
    assert len(lines) == 2
    assert all("status 7" in line and "journalctl -u goldentest-one.service" in line for line in lines)


@pytest.mark.minutes
@pytest.mark.req("R9", "R77", "R95")
def test_every_service_raises_an_alert(facts: dict[str, Fact]) -> None:
    """Every service of the image raises an alert when it fails; the services of the alerts do not"""
    for block in facts["every service"].text.split("\n\n"):
        unit = properties(Fact(0, block))
        expected = "" if unit["Id"].startswith("golden-alert") else f"golden-alert@{unit['Id']}.service"
        assert unit["OnFailure"] == expected


@pytest.mark.minutes
@pytest.mark.req("R95", "F33")
def test_an_alert_waits_for_the_network(facts: dict[str, Fact]) -> None:
    """An alert that cannot be delivered stays in the queue, and the sender does not count as failed"""
    waiting = json.loads(facts["waits"].text)["outgoing"]
    assert [one["unit"] for one in waiting] == ["goldentest-one.service"]
    assert "the reason stands here" in waiting[0]["lines"]
    assert properties(facts["sender"])["Result"] == "success"


@pytest.mark.minutes
@pytest.mark.req("R9", "R95")
def test_an_alert_goes_to_nobody_who_cannot_prove_his_name(facts: dict[str, Fact]) -> None:
    """No alert is sent to a mail server or web hook whose certificate does not verify"""
    assert facts["not trusted"].status != 0, facts["not trusted"].text


@pytest.mark.minutes
@pytest.mark.req("R95", "R77")
def test_an_alert_arrives_by_mail_and_web_hook(facts: dict[str, Fact]) -> None:
    """When the servers are up, the alert is sent once by mail (over TLS) and once to the web hook"""
    got = {one["way"]: one for one in map(json.loads, facts["got"].lines)}
    assert len(facts["got"].lines) == 2
    assert got["mail"]["secure"] is True
    assert "Subject:" in got["mail"]["text"]
    assert "the reason stands here" in got["mail"]["text"]
    assert got["webhook"]["unit"] == "goldentest-one.service"
    assert "goldentest-one.service failed" in got["webhook"]["text"]
    done = json.loads(facts["done"].text)
    assert done["outgoing"] == []
    assert sorted(done["history"][-1]["delivered"]) == ["mail", "webhook"]


@pytest.mark.minutes
@pytest.mark.req("R9")
def test_the_same_unit_is_not_told_about_at_once_again(facts: dict[str, Fact]) -> None:
    """A second failure of a unit within half an hour is logged in the journal, and no second message is sent"""
    assert facts["got again"].text == facts["got"].text


@pytest.mark.minutes
@pytest.mark.req("R95", "R100")
def test_the_way_to_the_operator_can_be_tried(facts: dict[str, Fact]) -> None:
    """golden-alert --test reports whether a message can be delivered"""
    assert facts["test"].status == 0, facts["test"].text
    assert len(facts["got test"].lines) == 4
    assert facts["test fails"].status == 3
    assert json.loads(facts["test fails"].text)["delivered"] == []


@pytest.mark.minutes
@pytest.mark.req("R9", "R28")
def test_alert_units_are_confined(facts: dict[str, Fact]) -> None:
    """The alert units run as a dedicated user in a sandbox, and no other user can read the queue"""
    for line in facts["exposure"].lines:
        assert float(line.split(".service: ")[1].split()[0]) <= 2.0, line
    assert facts["spool"].lines == ["700 golden-alert"] * 2


@pytest.mark.req("R95")
def test_a_service_reads_what_a_session_wrote(host: Host) -> None:
    """A service can read a file that a root session writes to a directory of root, as these tests require"""
    read = gather(host, {
        "read": f"mkdir -p {WORK}-read; echo text >{WORK}-read/written; "
        f"systemd-run --quiet --wait --pipe --collect --property=DynamicUser=yes cat {WORK}-read/written; rm -rf {WORK}-read"
    })["read"]  # fmt: skip
    assert (read.status, read.text) == (0, "text")


@pytest.mark.req("R9", "R95")
def test_a_full_file_system_is_told(host: Host) -> None:
    """The monitor fails and names a file system that is nearly full; when there is free space again, it succeeds"""
    found = gather(
        host,
        {
            "before": "systemctl start golden-disks.service; systemctl is-failed golden-disks.service",
            "full": "mkdir -p /mnt/goldentest && mount -t tmpfs -o size=1m,mode=755 goldentest /mnt/goldentest && "
            "head -c 980000 /dev/zero >/mnt/goldentest/x; systemctl start golden-disks.service",
            "journal": "journalctl -b -q -o cat -u golden-disks.service -p err --since=-$((1 + PACE))min",
            "alert": until("journalctl -b -q -o cat -p alert -t golden-alert --since=-$((1 + PACE))min -g golden-disks", 10),
            "after": "umount /mnt/goldentest; rmdir /mnt/goldentest; systemctl start golden-disks.service",
        },
    )
    assert found["before"].text == "inactive"
    assert found["full"].status != 0
    assert any(line.startswith("/mnt/goldentest: 9") for line in found["journal"].lines)
    assert found["alert"].lines
    assert found["after"].status == 0
