"""What golden-certificate decides, and what golden-proxy writes: names, days, renewal, who reaches the administration."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from build import run
from tests.unit.helpers import ROOT

LIBRARIES = [ROOT / "overlays" / layer / "rootfs/usr/lib/golden" for layer in ("10-base", "50-nginx", "65-certificates")]
NAMES = ("golden", "golden_certificates", "golden_install", "golden_renewal", "golden_proxy")
NOW = datetime(2026, 6, 1, tzinfo=UTC)
OPENSSL_SECONDS = 60


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    sys.path[:0] = [str(path) for path in LIBRARIES]
    try:
        yield {name: importlib.import_module(name) for name in NAMES}
    finally:
        del sys.path[: len(LIBRARIES)]
        for name in NAMES:
            sys.modules.pop(name, None)


@pytest.fixture
def leaf(modules: dict[str, ModuleType]) -> Any:
    """A certificate of ninety days, on its thirtieth."""
    return modules["golden_certificates"].Certificate(
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
    modules: dict[str, ModuleType], leaf: Any, changes: dict[str, str], strong: bool  # noqa: FBT001
) -> None:
    assert modules["golden_certificates"]._strong(replace(leaf, **changes)) is strong


@pytest.fixture
def issued(modules: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The record of the certificate that the authority gave last."""
    path = tmp_path / "issued.json"
    path.write_text('{"serial": "01", "directory": "https://ca.example.org/directory"}')
    monkeypatch.setattr(modules["golden_renewal"], "ISSUED", path)
    return path


def renewal(modules: dict[str, ModuleType], leaf: Any, **changes: object) -> str:
    options = {"names": ["www.example.org"], "directory": "https://ca.example.org/directory", "now": NOW} | changes
    return str(modules["golden_renewal"].reason_to_renew(leaf, **options))


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
    warn = modules["golden_renewal"].warn_days
    assert warn(leaf) == 21
    short = replace(leaf, starts=NOW, ends=NOW + timedelta(days=6))
    assert warn(short) == 1.5
    # Nobody renews this one.
    assert warn(replace(short, serial="02")) == 21


def test_names_to_ask_for(modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    renewing = modules["golden_renewal"]
    monkeypatch.setattr(renewing, "own_names", lambda: ("golden.example.org", "clone"))
    assert renewing.public_names({"server_names": []}) == ["golden.example.org"]
    assert renewing.public_names({"server_names": ["a.example.org"]}) == ["a.example.org"]
    with pytest.raises(modules["golden"].Problem, match="no authority signs a name without a domain: clone"):
        renewing.public_names({"server_names": ["clone"]})


# --- who reaches the administration -----------------------------------------------------------------------------------


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


def test_administration_is_closed_by_default(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    (tmp_path / "admin-access.conf").write_text("allow all;")
    assert modules["golden_proxy"].apply({"client_ca": None, "cidrs": []}, target=tmp_path)["open"] is False
    assert list(tmp_path.iterdir()) == []


def test_administration_opens_with_both(modules: dict[str, ModuleType], tmp_path: Path, authority: Path) -> None:
    given = {"client_ca": str(authority), "cidrs": ["192.0.2.0/24", "2001:db8::/64"]}
    assert modules["golden_proxy"].apply(given, target=tmp_path)["open"] is True
    assert (tmp_path / "admin-access.conf").read_text().splitlines() == [
        "if ($ssl_client_verify != SUCCESS) { return 404; }", "allow 192.0.2.0/24;", "allow 2001:db8::/64;",
    ]  # fmt: skip
    assert (tmp_path / "client-authority.pem").read_text() == authority.read_text()
    assert "ssl_verify_client optional;" in (tmp_path / "client-certificates.conf").read_text()


@pytest.mark.parametrize(
    ("changes", "said"),
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
    modules: dict[str, ModuleType], tmp_path: Path, authority: Path, changes: dict[str, Any], said: str
) -> None:
    given = {"client_ca": str(authority), "cidrs": ["192.0.2.0/24"]} | changes
    if given["client_ca"] == "KEY":
        given["client_ca"] = str(authority.with_suffix(".key"))
    (tmp_path / "admin-access.conf").write_text("allow all;")
    with pytest.raises(modules["golden"].Problem, match=said):
        modules["golden_proxy"].apply(given, target=tmp_path)
    assert list(tmp_path.iterdir()) == []
