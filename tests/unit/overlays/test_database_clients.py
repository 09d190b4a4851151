"""The database between two machines: which settings of either are refused, and what comes of the good ones."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from build.core import run
from tests.unit.golden_modules import golden_module
from tests.unit.overlays.conftest import Programs, Result

clients = golden_module("golden.database_clients")
remote = golden_module("golden.remote_database")
remote_key = golden_module("golden.site_keys.database")
key = golden_module("golden.site_keys.database_clients")
table = golden_module("golden.site_table")
values = golden_module("golden.site_values")
OPENSSL_SECONDS = 60


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with two pairs of key and certificate, and a key with a password; every path is one that units read."""
    monkeypatch.setattr(values, "readable", lambda path, **_options: path)
    monkeypatch.setattr(values, "unit_path", values.text_line)
    for name in ("server", "other"):
        run.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc",
             "-subj", f"/CN={name}", "-keyout", tmp_path / f"{name}.key", "-out", tmp_path / f"{name}.pem"],
            timeout=OPENSSL_SECONDS,
        )  # fmt: skip
    run.run(
        ["openssl", "pkey", "-in", tmp_path / "server.key", "-aes256", "-passout", "pass:secret", "-out",
         tmp_path / "locked.key"], timeout=OPENSSL_SECONDS,
    )  # fmt: skip
    for path in tmp_path.glob("*.key"):
        path.chmod(0o600)
    return tmp_path


def setting(pair: Path, **changes: Any) -> dict[str, Any]:
    """Return a good setting with changes."""
    good: dict[str, Any] = {
        "certificate": str(pair / "server.pem"), "key": str(pair / "server.key"), "authority": str(pair / "other.pem"),
        "clients": [{"name": "app1.example.org", "address": "192.0.2.10"}],
    }  # fmt: skip
    return good | changes


def read(content: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    faults: list[Any] = []
    found = key.KEY.read(table.Table({"database_clients": content}, faults), "database_clients")
    return found, [str(fault) for fault in faults]


def test_a_good_setting_is_used(pair: Path) -> None:
    found, faults = read(setting(pair))
    assert faults == []
    assert found == setting(pair)
    assert key.KEY.networks(found) == {"database": ["192.0.2.10"]}


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"key": "other.key"}, "it does not belong to the certificate"),
        ({"key": "locked.key"}, "it has a password"),
        ({"key": "server.pem"}, "others than root can read it|no private key in PEM form"),
        ({"key": None}, "database_clients.key: None: is needed for clients"),
        ({"authority": None}, "database_clients.authority: None: is needed for clients"),
        ({"clients": [{"name": "a b", "address": "192.0.2.10"}]}, r"clients\[0\].name"),
        ({"clients": [{"name": "app1.example.org", "address": "192.0.2.0/24"}]}, "write an IP address"),
        ({"clients": [{"name": "app1.example.org", "address": "127.0.0.1"}]}, "write the address of another machine"),
        ({"clients": [{"name": "app1.example.org"}]}, "is needed here"),
        ({"password": "x"}, "password"),
    ],
)
def test_a_fault_leaves_no_client(pair: Path, changes: dict[str, Any], fault: str) -> None:
    files = {name: str(pair / value) for name, value in changes.items() if isinstance(value, str) and name == "key"}
    found, faults = read(setting(pair, **changes | files))
    assert len(faults) == 1
    assert re.search(fault, faults[0]), faults
    assert found["clients"] == []
    assert clients.files(found) == {}
    assert key.KEY.networks(found) == {"database": []}


def test_no_setting_is_no_client() -> None:
    found, faults = read({})
    assert (found["clients"], faults) == ([], [])


def test_the_server_gets_a_rule_for_each_client_and_role(pair: Path, tmp_path: Path) -> None:
    two = [{"name": "app1.example.org", "address": "192.0.2.10"}, {"name": "app2.example.org", "address": "2001:db8::10"}]
    files = clients.files(setting(pair, clients=two), target=tmp_path)
    assert files[clients.RULES].decode().splitlines() == [
        "hostssl app app 192.0.2.10/32 cert map=clients", "hostssl app app_owner 192.0.2.10/32 cert map=clients",
        "hostssl app app 2001:db8::10/128 cert map=clients", "hostssl app app_owner 2001:db8::10/128 cert map=clients",
    ]  # fmt: skip
    assert files[clients.NAMES].decode().splitlines() == [
        'clients "app1.example.org" app', 'clients "app1.example.org" app_owner',
        'clients "app2.example.org" app', 'clients "app2.example.org" app_owner',
    ]  # fmt: skip
    assert f"ssl_key_file = '{tmp_path}/database-server.key'" in files[clients.SETTINGS].decode()


def test_files_come_and_go_with_the_clients(pair: Path, tmp_path: Path) -> None:
    target = tmp_path / "run"
    target.mkdir()
    assert clients.write(setting(pair), target=target)
    assert not clients.write(setting(pair), target=target)
    assert {path.stat().st_mode & 0o777 for path in target.iterdir()} == {0o640}
    assert len(list(target.iterdir())) == 6
    assert clients.write(setting(pair, clients=[]), target=target)
    assert list(target.iterdir()) == []


def test_the_unit_has_a_network_for_the_clients_only(pair: Path, tmp_path: Path) -> None:
    drop_in = tmp_path / "unit.d/90-database-clients.conf"
    assert not clients.give_network(setting(pair, clients=[]), drop_in=drop_in)
    assert clients.give_network(setting(pair), drop_in=drop_in)
    assert not clients.give_network(setting(pair), drop_in=drop_in)
    assert "IPAddressAllow=192.0.2.10\n" in drop_in.read_text()
    assert clients.give_network(setting(pair, clients=[]), drop_in=drop_in)
    assert not drop_in.exists()


def connection(pair: Path, **changes: Any) -> dict[str, Any]:
    """Return a good setting of the application's machine with changes."""
    good: dict[str, Any] = {
        "address": "192.0.2.20", "certificate": str(pair / "server.pem"), "key": str(pair / "server.key"),
        "authority": str(pair / "other.pem"),
    }  # fmt: skip
    return good | changes


def read_connection(content: object) -> tuple[dict[str, Any] | None, list[str]]:
    faults: list[Any] = []
    found = remote_key.KEY.read(table.Table({"database": content}, faults), "database")
    return found, [str(fault) for fault in faults]


def test_a_good_connection_is_used(pair: Path, tmp_path: Path) -> None:
    found, faults = read_connection(connection(pair))
    assert faults == []
    assert found == connection(pair, port=5432)
    assert remote_key.KEY.destinations(found) == {"database": [("golden-remote-database", "192.0.2.20", 5432)]}
    target, drop_in = tmp_path / "run", tmp_path / "unit.d/90-remote-database.conf"
    target.mkdir()
    assert remote.write(found, target=target)
    assert not remote.write(found, target=target)
    assert (target / remote.SERVER).read_text() == "app = host=192.0.2.20 port=5432 dbname=app\n"
    assert remote.open_address(found, drop_in=drop_in)
    assert "IPAddressAllow=192.0.2.20\n" in drop_in.read_text()
    assert remote.write(None, target=target)
    assert remote.open_address(None, drop_in=drop_in)
    assert list(target.iterdir()) == []
    assert not drop_in.exists()


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"key": "other.key"}, "it does not belong to the certificate"),
        ({"address": "db.example.org"}, "write an IP address"),
        ({"port": 0}, "port"),
        ({"authority": None}, "is needed here"),
        ({"user": "app"}, "user"),
    ],
)
def test_a_fault_leaves_no_connection(pair: Path, changes: dict[str, Any], fault: str) -> None:
    files = {name: str(pair / value) for name, value in changes.items() if name == "key"}
    found, faults = read_connection(connection(pair, **changes | files))
    assert found is None
    assert len(faults) == 1
    assert re.search(fault, faults[0]), faults
    assert remote.files(found) == {}
    assert remote_key.KEY.destinations(found) == {"database": []}


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The directory that the commands write to instead of /run/golden."""
    target = tmp_path / "run"
    target.mkdir()
    monkeypatch.setattr(golden_module("golden.core"), "SITE", tmp_path / "site.json")
    for module in (clients, remote):
        monkeypatch.setattr(module, "TARGET", target)
        monkeypatch.setattr(module, "DROP_IN", tmp_path / module.DROP_IN.parent.name / module.DROP_IN.name)
    return target


def calls(programs: Programs) -> list[list[str]]:
    """Return what systemctl was started for; whatever is about a service must not wait for it."""
    found = programs.named("systemctl")
    assert all(argv[0] == "--no-block" for argv in found if argv != ["daemon-reload"])
    return [argv if argv == ["daemon-reload"] else argv[1:] for argv in found]


def test_the_server_is_restarted_for_its_clients(
    pair: Path, target: Path, programs: Programs, command: Callable[..., Result]
) -> None:
    site = target.parent / "site.json"
    site.write_text(json.dumps({"database_clients": setting(pair)}))
    for _again in range(2):
        assert command("database_clients").out == "clients of the database: app1.example.org\n"
    assert calls(programs) == [["daemon-reload"], ["try-restart", clients.SERVER]]
    site.write_text(json.dumps({"database_clients": setting(pair, clients=[])}))
    assert command("database_clients").out == "clients of the database: none\n"
    assert calls(programs) == [["daemon-reload"], ["try-restart", clients.SERVER]] * 2
    assert list(target.iterdir()) == []


def test_the_connection_starts_and_stops_with_its_setting(
    pair: Path, target: Path, programs: Programs, command: Callable[..., Result]
) -> None:
    site = target.parent / "site.json"
    site.write_text(json.dumps({"database": connection(pair, port=5432)}))
    for _again in range(2):
        assert command("remote_database").out == "database: 192.0.2.20\n"
    assert calls(programs) == [["daemon-reload"], ["restart", remote.SERVICE]]
    site.write_text(json.dumps({"database": None}))
    assert command("remote_database").out == "database: none\n"
    assert calls(programs)[2:] == [["daemon-reload"], ["stop", remote.SERVICE]]
    assert list(target.iterdir()) == []
