"""Alerts by mail: TLS from the first byte or by STARTTLS, a login, several recipients, an address of IPv6."""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl
import threading
from pathlib import Path

import pytest

from build.core import run
from tests.patience import PATIENCE_SECONDS
from tests.unit.golden_modules import golden_module

alerting = golden_module("golden.alert")
ALERT = {
    "unit": "test", "host": "web1.example.org", "time": 0.0, "suppressed": 0, "result": "exit-code", "status": "1",
    "restarts": "0", "lines": ["the reason"], "delivered": [],
}  # fmt: skip
ANSWERS = {
    "EHLO": b"250-relay\r\n250-STARTTLS\r\n250 AUTH PLAIN\r\n", "AUTH": b"235 in\r\n", "DATA": b"354 go on\r\n",
    "STARTTLS": b"220 go on\r\n", "QUIT": b"221 bye\r\n",
}  # fmt: skip


class Relay(threading.Thread):
    """A mail server for one connection; it records the mail, and whether TLS was used."""

    def __init__(self, context: ssl.SSLContext, *, implicit: bool, address: str) -> None:
        super().__init__(daemon=True)
        self.context, self.implicit, self.seen = context, implicit, list[str]()
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.listener = socket.create_server((address, 0), family=family)
        self.port = int(self.listener.getsockname()[1])
        self.start()

    def run(self) -> None:
        with self.listener:
            connection, _peer = self.listener.accept()
        connection.settimeout(PATIENCE_SECONDS)
        try:
            if self.implicit:
                connection = self.context.wrap_socket(connection, server_side=True)
            connection.sendall(b"220 relay\r\n")
            connection = self.talk(connection)
        except OSError as error:
            self.seen.append(f"{type(error).__name__}")
        finally:
            connection.close()

    def talk(self, connection: socket.socket) -> socket.socket:
        data, waiting = False, b""
        while received := connection.recv(4096):
            waiting += received
            while b"\r\n" in waiting:
                line, waiting = waiting.split(b"\r\n", 1)
                self.seen.append(f"{'TLS' if isinstance(connection, ssl.SSLSocket) else 'clear'} {line.decode()}")
                word = line.decode().split(" ")[0].upper()
                if data and word != ".":
                    continue
                data = word == "DATA"
                connection.sendall(ANSWERS.get(word, b"250 yes\r\n"))
                if word == "STARTTLS":
                    connection = self.context.wrap_socket(connection, server_side=True)
                if word == "QUIT":
                    return connection
        return connection


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for both addresses of the loopback interface, its key behind it."""
    path = tmp_path_factory.mktemp("relay") / "relay.pem"
    run.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=relay",
         "-addext", "subjectAltName=IP:127.0.0.1,IP:::1", "-keyout", path.with_suffix(".key"), "-out", path],
        timeout=60,
    )  # fmt: skip
    return path


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_mail_goes_over_tls_with_a_login_to_all(
    pair: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    implicit: bool,  # noqa: FBT001
    address: str,
) -> None:
    (tmp_path / "mail-password").write_text("pass word")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair, pair.with_suffix(".key"))
    relay = Relay(context, implicit=implicit, address=address)
    settings = {
        "server": f"[{address}]:{relay.port}" if ":" in address else f"{address}:{relay.port}", "from": "golden@example.org",
        "to": ["a@example.org", "b@example.org"], "tls": "implicit" if implicit else "starttls", "user": "relay-user",
        "password_file": "/etc/golden/mail-password",
    }  # fmt: skip
    alerting.mail(ALERT, settings, ssl.create_default_context(cafile=str(pair)))
    relay.join(PATIENCE_SECONDS)
    login = base64.b64encode(b"\0relay-user\0pass word").decode()
    seen = [line.lower() for line in relay.seen]
    assert f"TLS AUTH PLAIN {login}" in relay.seen
    assert "tls rcpt to:<a@example.org>" in seen
    assert "tls rcpt to:<b@example.org>" in seen
    assert "TLS To: a@example.org, b@example.org" in relay.seen
    clear = [line.split(" ")[1] for line in seen if line.startswith("clear")]
    assert clear == ([] if implicit else ["ehlo", "starttls"])


@pytest.mark.parametrize("implicit", [True, False])
def test_a_server_that_cannot_prove_its_name_gets_nothing(pair: Path, implicit: bool) -> None:  # noqa: FBT001
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair, pair.with_suffix(".key"))
    relay = Relay(context, implicit=implicit, address="127.0.0.1")
    settings = {
        "server": f"127.0.0.1:{relay.port}", "from": "golden@example.org", "to": ["a@example.org"], "user": None,
        "tls": "implicit" if implicit else "starttls", "password_file": None,
    }  # fmt: skip
    with pytest.raises(ssl.SSLCertVerificationError):
        alerting.mail(ALERT, settings, ssl.create_default_context())
    relay.join(PATIENCE_SECONDS)
    assert not [line for line in relay.seen if "mail from" in line.lower()]


def test_a_bad_file_of_the_spool_costs_only_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The spool is the sender's: a link, a pipe, or anything that is not an alert, must not stop root's commands."""
    outgoing = tmp_path / "outgoing"
    outgoing.mkdir()
    alerting.keep(ALERT, spool=tmp_path)
    secret = tmp_path / "secret"
    secret.write_text(json.dumps(ALERT | {"unit": "secret"}))
    (outgoing / "1.json").symlink_to(secret)
    os.mkfifo(outgoing / "2.json")
    for number, text in enumerate(["", "[]", "{}", "[" * 100_000, json.dumps(ALERT | {"time": "x"}), "1" * 5000], 3):
        (outgoing / f"{number}.json").write_text(text)
    assert [alert["unit"] for alert in alerting.listed(spool=tmp_path)["outgoing"]] == ["test"]
    assert capsys.readouterr().err.count("is not an alert") == 8


@pytest.mark.parametrize("text", ["[]", '{"sent": "x"}', "[" * 100_000, '{"sent": 5}'])
def test_a_bad_state_of_a_unit_is_no_state(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerting, "describe", lambda unit: {**ALERT, "unit": unit})
    (tmp_path / "units").mkdir()
    (tmp_path / "units" / "x.service").write_text(text)
    assert alerting.new("x.service", now=1e9, spool=tmp_path)[1]
