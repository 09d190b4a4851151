"""golden-certificate: each command with the results of its modules, the scan of the web server, the ACME client."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.golden_modules import golden_module
from tests.unit.overlays.conftest import Programs, Result

core = golden_module("golden.core")
certificates = golden_module("golden.certificates")
scan = golden_module("golden.scan")
Command = Callable[..., Result]
REFUSED = "error: SSL alert number 70\nCipher is (NONE)\n"
SPOKEN = "New, TLSv1.3, Cipher is TLS_AES_256_GCM_SHA384\nCompression: NONE\nSecure Renegotiation IS supported\n"
LEAF = SimpleNamespace(serial="01", pem=b"pem", subject="CN=a", summary=lambda _now: {"subject": "CN=a"})


@pytest.fixture
def server(programs: Programs) -> Programs:
    """A correct web server: handshakes with old, weak or unknown parameters are refused with an alert."""
    programs.answer("s_client", out=SPOKEN)
    for word in ("-tls1", "-tls1_1", scan.WEAK, "not-a.example", "-noservername"):
        programs.answer(word, status=1, err=REFUSED)
    return programs


def handshakes() -> dict[str, bool]:
    return {one.rule: one.ok for part in ("_protocols", "_sessions", "_names") for one in getattr(scan, part)("a.example")}


def test_a_good_server_passes_every_rule(server: Programs) -> None:
    assert handshakes() == dict.fromkeys(handshakes(), True)
    assert all("127.0.0.1:443" in argv for argv in server.started)


@pytest.mark.parametrize(
    ("words", "answer", "rule"),
    [
        (["-tls1_1"], {"out": SPOKEN}, "TLS 1.1 is refused"),
        # openssl gave up by itself, which shows nothing about the server.
        (["-tls1"], {"status": 1, "err": "no protocols available\n"}, "TLS 1.0 is refused"),
        (["-tls1_3", "X25519MLKEM768"], {"status": 1, "err": REFUSED}, "the post-quantum group X25519MLKEM768 is offered"),
        ([scan.WEAK], {"out": SPOKEN}, "ciphers without forward secrecy or authentication are refused"),
        (["-noservername"], {"out": SPOKEN}, "no name is refused"),
        (["not-a.example"], {"out": SPOKEN}, "another name is refused"),
    ],
)
def test_what_a_scan_finds(server: Programs, words: list[str], answer: dict[str, Any], rule: str) -> None:
    server.answer(*words, **answer)
    assert [name for name, good in handshakes().items() if not good] == [rule]


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"x-frame-options": ["DENY", "DENY"]}, "every security header is there once"),
        ({"referrer-policy": []}, "every security header is there once"),
        ({"server": ["nginx/1.26"]}, "the server does not name itself"), ({}, "plain HTTP leads to HTTPS"),
    ],
)  # fmt: skip
def test_headers(monkeypatch: pytest.MonkeyPatch, change: dict[str, list[str]], rule: str) -> None:
    good = {name.lower(): ["x"] for name in scan.HEADERS}
    location = "https://b.example/" if not change else "https://a.example/health"

    def answer(connection: object, _name: str) -> dict[str, list[str]]:
        return good | change if isinstance(connection, scan._Secured) else {"location": [location]}

    monkeypatch.setattr(scan, "_answer", answer)
    assert [one.rule for one in scan._headers("a.example") if not one.ok] == [rule]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The command with its files in a directory of the test, and a site with one name."""
    module = golden_module("golden.commands.certificate")
    for name in ("SCAN", "HSTS", "HSTS_LINE", "REQUESTED"):
        monkeypatch.setattr(module, name, tmp_path / name)
    monkeypatch.setattr(core, "SITE", tmp_path / "site.json")
    (tmp_path / "site.json").write_text('{"server_names": ["a.example"], "certificate": {"acme": null}}')
    monkeypatch.setattr(certificates, "read_chain", lambda _path: [LEAF])
    return module


def test_a_pair_with_a_fault_is_not_installed(
    machine: Any, monkeypatch: pytest.MonkeyPatch, command: Command, tmp_path: Path
) -> None:
    verdicts = [certificates.Verdict("it covers the names", ok=False, found="b.example")]
    installed: list[Any] = []

    def install(*words: object, **options: object) -> float:
        installed.append((words, options))
        return 0.5

    monkeypatch.setattr(golden_module("golden.install"), "install", install)
    monkeypatch.setattr(certificates, "judge", lambda *_words, **_options: verdicts)
    words = ("certificate", "install", "--certificate", tmp_path / "new.pem", "--key", tmp_path / "new.key")
    found = command(*words)
    assert found.code == core.CHECK_FAILED
    assert found.err == "error: the pair is not taken: not so: it covers the names (b.example)\nhint: nothing was changed\n"
    assert command("certificate", "check", "--days", "3").code == core.CHECK_FAILED
    assert installed == []
    verdicts.clear()
    assert command(*words).out == "serial: 01\nserved_after: 0.5\n"
    assert installed == [(([LEAF], tmp_path / "new.key"), {"name": "a.example"})]


def test_the_key_is_found_by_the_certificate(
    machine: Any, monkeypatch: pytest.MonkeyPatch, programs: Programs, tmp_path: Path
) -> None:
    machine.REQUESTED.mkdir()
    key = machine.REQUESTED / certificates.KEY.name
    monkeypatch.setattr(certificates, "KEY", tmp_path / "none" / key.name)
    programs.answer("x509", out="PUBLIC")
    with pytest.raises(core.Problem, match="no key of this machine"):
        machine._key_of(LEAF)
    key.touch()
    monkeypatch.setattr(certificates, "public_half", lambda path: b"PUBLIC" if path == key else b"")
    assert machine._key_of(LEAF) == key


def test_two_years_of_hsts_need_a_good_scan_and_trust(
    machine: Any, monkeypatch: pytest.MonkeyPatch, command: Command, programs: Programs
) -> None:
    result = {"ok": False, "trusted": True, "verdicts": [{"rule": "r", "ok": False, "found": "f"}]}
    monkeypatch.setattr(scan, "scan", lambda _name, **_options: dict(result))
    monkeypatch.setattr(golden_module("golden.install"), "finish", lambda: False)
    assert "the scan found something" in command("certificate", "hsts", "--on").err
    assert json.loads(machine.SCAN.read_text())["ok"] is False
    result |= {"ok": True, "trusted": False}
    assert "no browser trusts the certificate" in command("certificate", "hsts", "--on").err
    assert not machine.HSTS.exists()
    assert programs.started == []
    result["trusted"] = True
    assert command("certificate", "hsts", "--on", "--subdomains").out == "hsts: max-age=63072000; includeSubDomains\n"
    assert machine.HSTS_LINE.read_text() == 'on "max-age=63072000; includeSubDomains";\n'
    assert programs.named("systemctl") == [["reload", "nginx.service"]]
    # The next start of the machine writes the same line.
    machine.HSTS_LINE.unlink()
    assert command("certificate", "boot").code == 0
    assert machine.HSTS_LINE.exists()
    assert command("certificate", "hsts", "--off").out == "hsts: max-age=300\n"
    assert not machine.HSTS_LINE.exists()


def test_a_request_is_for_the_names_of_the_site(machine: Any, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    def make(directory: Path, names: list[str]) -> Path:
        (directory / "request.csr").write_text(f"request for {names}\n")
        return directory / "app.key"

    monkeypatch.setattr(golden_module("golden.renewal"), "make_request", make)
    assert command("certificate", "request").out == "request for ['a.example']\n"
    assert command("certificate", "request", "--name", "b", "--name", "c").out == "request for ['b', 'c']\n"


@pytest.fixture
def acme(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Any, list[dict[str, Any]]]:
    """The program of golden-acme.service beside an ACME client of the test."""
    asked: list[dict[str, Any]] = []

    def get_crt(*words: str, **options: Any) -> str:
        asked.append({"words": words, **options})
        if options["contact"] == ["broken"]:
            raise ValueError("the authority does not answer")
        return "chain\n"

    monkeypatch.setitem(sys.modules, "acme_tiny", SimpleNamespace(get_crt=get_crt))
    module = golden_module("golden.commands.acme")
    monkeypatch.setattr(module, "acme_tiny", sys.modules["acme_tiny"])
    for name, path in {"ORDER": "order", "ACCOUNT": "account.key", "ANSWER": "certificate.pem"}.items():
        monkeypatch.setattr(module, name, tmp_path / path)
    (tmp_path / "order").mkdir()
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    return module, asked


def test_the_acme_client(
    acme: tuple[Any, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch, command: Command, tmp_path: Path
) -> None:
    module, asked = acme
    monkeypatch.setattr(
        module, "subprocess", SimpleNamespace(run=lambda argv, check: Path(argv[-1]).write_text("key") if check else None)
    )
    order = {"directory": "https://ca.example/dir", "contact": []}
    (tmp_path / "order/order.json").write_text(json.dumps(order))
    assert command("acme").code == 0
    assert asked[0]["words"] == (str(module.ACCOUNT), f"{tmp_path}/order/request.csr", "/run/golden-challenges")
    assert (asked[0]["directory_url"], asked[0]["contact"]) == ("https://ca.example/dir", None)
    assert (module.ANSWER.read_text(), module.ANSWER.stat().st_mode & 0o777) == ("chain\n", 0o644)
    assert module.ACCOUNT.stat().st_mode & 0o777 == 0o600
    assert "SSL_CERT_FILE" not in module.os.environ
    # An authority of the site's own is believed for the directory.
    (tmp_path / "order/authority.pem").touch()
    (tmp_path / "order/order.json").write_text(json.dumps(order | {"contact": ["broken"]}))
    failed = command("acme")
    assert (failed.code, failed.err) == (1, "error: the authority does not answer\n")
    assert module.os.environ["SSL_CERT_FILE"] == f"{tmp_path}/order/authority.pem"
    monkeypatch.delenv("SSL_CERT_FILE")
    # The former answer stays.
    assert module.ANSWER.read_text() == "chain\n"
