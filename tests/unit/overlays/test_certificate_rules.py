"""The rules of golden-certificate and the output of golden-proxy: names, days, renewal, access to the administration."""

from __future__ import annotations

import os
import shutil
import ssl
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from build.core import run
from tests.unit.golden_modules import golden_module

NAMES = ("core", "certificates", "install", "renewal", "proxy")
NOW = datetime(2026, 6, 1, tzinfo=UTC)
OPENSSL_SECONDS = 60


@pytest.fixture(scope="module")
def modules() -> dict[str, ModuleType]:
    return {name: golden_module(f"golden.{name}") for name in NAMES}


@pytest.fixture
def leaf(modules: dict[str, ModuleType]) -> Any:
    """A certificate of ninety days, on its thirtieth."""
    return modules["certificates"].Certificate(
        pem=b"", subject="CN=a", issuer="CN=authority", serial="01", starts=NOW - timedelta(days=30),
        ends=NOW + timedelta(days=60), names=("www.example.org", "*.shop.example.org"), algorithm="EC",
        strength="prime256v1", digest="ecdsa-with-SHA256", authority=False, usages=(), ocsp="", must_staple=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "covered"),
    [
        ("www.example.org", True), ("a.shop.example.org", True), ("a.b.shop.example.org", False),
        ("shop.example.org", False), ("example.org", False), ("www", False),
    ],
)  # fmt: skip
def test_names_that_a_certificate_covers(leaf: Any, name: str, covered: bool) -> None:  # noqa: FBT001
    assert leaf.covers(name) is covered


@pytest.mark.parametrize(
    ("changes", "strong"),
    [
        ({}, True),
        ({"strength": "secp384r1"}, True),
        ({"strength": "secp521r1"}, False),
        ({"algorithm": "RSA", "strength": "2048"}, True),
        ({"algorithm": "RSA", "strength": "1024"}, False),
        ({"algorithm": "ED25519", "strength": ""}, False),
    ],
)
def test_keys_that_are_strong_enough(
    modules: dict[str, ModuleType],
    leaf: Any,
    changes: dict[str, str],
    strong: bool,  # noqa: FBT001
) -> None:
    assert modules["certificates"]._strong(replace(leaf, **changes)) is strong


@pytest.fixture
def issued(modules: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The record of the certificate that the authority issued last."""
    path = tmp_path / "issued.json"
    path.write_text('{"serial": "01", "directory": "https://ca.example.org/directory"}')
    monkeypatch.setattr(modules["renewal"], "ISSUED", path)
    return path


def renewal(modules: dict[str, ModuleType], leaf: Any, **changes: object) -> str:
    options = {"names": ["www.example.org"], "directory": "https://ca.example.org/directory", "now": NOW} | changes
    return str(modules["renewal"].reason_to_renew(leaf, **options))


def test_no_renewal_before_its_time(modules: dict[str, ModuleType], leaf: Any, issued: Path) -> None:
    assert renewal(modules, leaf) == ""
    assert renewal(modules, leaf, now=NOW + timedelta(days=29)) == ""


@pytest.mark.req("R62", "R63")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"now": NOW + timedelta(days=31)}, "29.0 days are left"),
        ({"names": ["new.example.org"]}, "not covered: new.example.org"),
        ({"directory": "https://other.example.org/directory"}, "the site names another authority"),
    ],
)
def test_reasons_to_renew(modules: dict[str, ModuleType], leaf: Any, issued: Path, changes: Any, reason: str) -> None:
    assert renewal(modules, leaf, **changes) == reason


def test_a_certificate_that_people_brought_is_replaced(modules: dict[str, ModuleType], leaf: Any, issued: Path) -> None:
    assert "not one that this machine got by ACME" in renewal(modules, replace(leaf, serial="02"))
    issued.unlink()
    assert "not one that this machine got by ACME" in renewal(modules, leaf)


def test_days_that_are_worth_an_alert(modules: dict[str, ModuleType], leaf: Any, issued: Path) -> None:
    warn = modules["renewal"].warn_days
    assert warn(leaf) == 21
    short = replace(leaf, starts=NOW, ends=NOW + timedelta(days=6))
    assert warn(short) == 1.5
    # No service renews this one.
    assert warn(replace(short, serial="02")) == 21


def test_names_to_ask_for(modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    renewing = modules["renewal"]
    monkeypatch.setattr(renewing, "own_names", lambda: ("golden.example.org", "clone"))
    assert renewing.public_names({"server_names": []}) == ["golden.example.org"]
    assert renewing.public_names({"server_names": ["a.example.org"]}) == ["a.example.org"]
    with pytest.raises(modules["core"].Problem, match="no authority signs a name without a domain: clone"):
        renewing.public_names({"server_names": ["clone"]})


# --- access to the administration -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        pytest.fail("openssl is not installed")
    path = tmp_path_factory.mktemp("authority") / "authority.pem"
    run.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=test",
         "-addext", "keyUsage=critical,keyCertSign", "-keyout", path.with_suffix(".key"), "-out", path],
        timeout=OPENSSL_SECONDS,
    )  # fmt: skip
    return path


# --- files of other systems -------------------------------------------------------------------------------------------

SPELLINGS: dict[str, Callable[[str], bytes]] = {
    "Windows": lambda text: text.replace("\n", "\r\n").encode(),
    "CR": lambda text: text.replace("\n", "\r").encode(),
    "UTF-8 with a byte order mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "UTF-16": lambda text: text.replace("\n", "\r\n").encode("utf-16"),
    "big-endian UTF-16": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
    "no last line end": lambda text: text.rstrip("\n").encode(),
    "blanks": lambda text: text.replace("\n", " \t\n\n  ").encode(),
    "text before": lambda text: f"Bag Attributes\n    localKeyID: 01\n{text}".encode(),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_files_as_other_systems_write_them(
    modules: dict[str, ModuleType], tmp_path: Path, authority: Path, spelling: str
) -> None:
    certificates, write = modules["certificates"], SPELLINGS[spelling]
    pem, key = tmp_path / "given.pem", tmp_path / "given.key"
    pem.write_bytes(write(authority.read_text()) + write(authority.read_text()))
    key.write_bytes(write(authority.with_suffix(".key").read_text()))
    assert [one.pem.decode() for one in certificates.read_chain(pem)] == [authority.read_text()] * 2
    assert certificates.public_half(key) == certificates.public_half(authority.with_suffix(".key"))
    # What the web server gets can be read by any program.
    run.run(["openssl", "pkey", "-noout"], stdin=certificates.read_key(key), timeout=OPENSSL_SECONDS)
    assert modules["proxy"].read_authority(pem).decode() == authority.read_text() * 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("der", "it is in DER form"),
        ("key", "it is a private key"),
        ("cut", "the certificate is cut off"),
        ("damaged", "certificate 1 is damaged"),
        ("empty", "it is empty"),
        ("request", "a request that has not been signed"),
        ("pkcs7", "PKCS #7"),
        ("second cut", "the certificate is cut off"),
    ],
)
def test_the_reason_why_a_file_holds_no_certificate(
    modules: dict[str, ModuleType], tmp_path: Path, authority: Path, content: str, reason: str
) -> None:
    text = authority.read_text()
    (tmp_path / "given.pem").write_bytes({
        "der": ssl.PEM_cert_to_DER_cert(text), "key": authority.with_suffix(".key").read_bytes(),
        "cut": text[: len(text) // 2].encode(), "damaged": text.replace("\n", "\n*", 1).encode(), "empty": b"\n",
        "request": b"-----BEGIN CERTIFICATE REQUEST-----\nAA==\n-----END CERTIFICATE REQUEST-----\n",
        "pkcs7": b"-----BEGIN PKCS7-----\nAA==\n-----END PKCS7-----\n",
        "second cut": (text + text[: len(text) // 2]).encode(),
    }[content])  # fmt: skip
    with pytest.raises(modules["core"].Problem, match=reason) as caught:
        modules["certificates"].read_chain(tmp_path / "given.pem")
    assert caught.value.hint


@pytest.mark.parametrize(
    ("content", "reason"), [("locked", "it has a passphrase"), ("certificate", "not a key in PEM form")]
)
def test_the_reason_why_a_file_holds_no_key(
    modules: dict[str, ModuleType], tmp_path: Path, authority: Path, content: str, reason: str
) -> None:
    key = tmp_path / "given.key"
    if content == "locked":
        run.run(["openssl", "pkey", "-in", authority.with_suffix(".key"), "-aes128", "-passout", "pass:secret", "-out", key],
                timeout=OPENSSL_SECONDS)  # fmt: skip
    else:
        key.write_bytes(authority.read_bytes())
    with pytest.raises(modules["core"].Problem, match=reason):
        modules["certificates"].public_half(key)


def test_administration_is_closed_by_default(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    (tmp_path / "admin-access.conf").write_text("allow all;")
    assert modules["proxy"].apply({"client_ca": None, "cidrs": []}, target=tmp_path)["open"] is False
    assert list(tmp_path.iterdir()) == []


def test_administration_opens_with_both(modules: dict[str, ModuleType], tmp_path: Path, authority: Path) -> None:
    given = {"client_ca": str(authority), "cidrs": ["192.0.2.0/24", "2001:db8::/64"]}
    assert modules["proxy"].apply(given, target=tmp_path)["open"] is True
    assert (tmp_path / "admin-access.conf").read_text().splitlines() == [
        "if ($ssl_client_verify != SUCCESS) { return 404; }", "allow 192.0.2.0/24;", "allow 2001:db8::/64;",
    ]  # fmt: skip
    assert (tmp_path / "client-authority.pem").read_text() == authority.read_text()
    assert "ssl_verify_client optional;" in (tmp_path / "client-certificates.conf").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cidrs": []}, "cidrs is not set"),
        ({"client_ca": None}, "client_ca is not set"),
        ({"cidrs": ["192.0.2.1/24"]}, "has host bits set"),
        ({"cidrs": ["192.0.2.0/24; allow all"]}, "does not appear to be"),
        ({"client_ca": "/no/such/file"}, "No such file"),
        ({"client_ca": "KEY"}, "holds no certificate"),
    ],
)
def test_administration_stays_closed(
    modules: dict[str, ModuleType], tmp_path: Path, authority: Path, changes: dict[str, Any], message: str
) -> None:
    given = {"client_ca": str(authority), "cidrs": ["192.0.2.0/24"]} | changes
    if given["client_ca"] == "KEY":
        given["client_ca"] = str(authority.with_suffix(".key"))
    (tmp_path / "admin-access.conf").write_text("allow all;")
    with pytest.raises(modules["core"].Problem, match=message):
        modules["proxy"].apply(given, target=tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- what the client brought -------------------------------------------------------------------------------------------


def test_answer_is_read_as_a_regular_file(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    golden = modules["core"]
    (tmp_path / "key").write_text("secret")
    (tmp_path / "link").symlink_to("key")
    os.mkfifo(tmp_path / "pipe")
    assert golden.read_regular(tmp_path / "key", limit=6) == b"secret"
    for name, complaint in (
        ("link", "symbolic link"), ("pipe", "not a regular file"), (".", "s a directory"), ("absent", "No such file"),
    ):  # fmt: skip
        with pytest.raises(golden.Problem, match=complaint):
            golden.read_regular(tmp_path / name, limit=6)
    with pytest.raises(golden.Problem, match="more than 5 bytes"):
        golden.read_regular(tmp_path / "key", limit=5)
