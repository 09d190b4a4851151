"""Site settings: what the validator accepts, what it says about the rest, and that a bad value opens nothing."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.unit.helpers import ROOT

LAYER = ROOT / "overlays" / "80-firstboot" / "rootfs"
RECIPIENT = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"


@pytest.fixture(scope="module")
def module() -> ModuleType:
    sys.path.insert(0, str(LAYER / "usr/lib/golden"))
    try:
        return importlib.import_module("golden_site")
    finally:
        sys.path.pop(0)


def keys(module: ModuleType, text: str) -> list[str]:
    """Return the keys that are complained about."""
    return [fault.key for fault in module.parse(text)[1]]


def test_nothing_given_has_every_key_and_opens_nothing(module: ModuleType) -> None:
    settings, faults = module.parse("")
    assert faults == []
    assert settings == {
        "admin_cidrs": [], "server_names": [], "certificate": {"acme": None}, "log_collector": None, "backup": None,
        "alerts": {"mail": None, "webhook": None, "ca": None}, "application": None,
        "admin_proxy": {"client_ca": None, "cidrs": []},
    }  # fmt: skip


def test_the_example_names_every_key_and_is_good_but_for_the_files_it_names(module: ModuleType) -> None:
    settings, faults = module.parse((LAYER / "etc/golden/site.yaml.example").read_text())
    assert {fault.key for fault in faults} == {"log_collector.ca", "admin_proxy.client_ca"}
    assert set(settings) == set(module.defaults())
    target = "scp://backup@store.example.org/srv/backup"
    assert settings["backup"] == {"recipient": RECIPIENT, "target": target, "keep_days": 14}
    assert settings["server_names"][0] == "www.example.org"


@pytest.mark.parametrize(
    ("text", "key", "remedy"),
    [
        ("admin_cidrs: [10.0.0.5/24]", "admin_cidrs[0]", "10.0.0.0/24"),
        ("admin_cidrs: [0.0.0.0/0]", "admin_cidrs[0]", "everybody"),
        ("admin_cidrs: ['::/0']", "admin_cidrs[0]", "everybody"),
        ("admin_cidrs: 10.0.0.0/24", "admin_cidrs", "write a list"),
        ("admin_cidrs: [true]", "admin_cidrs[0]", "text in one line"),
        ("server_names: ['*.example.org']", "server_names[0]", "host name"),
        ("server_names: ['a;b']", "server_names[0]", "host name"),
        ("server_names: [192.0.2.1]", "server_names[0]", "host name"),
        ("server_name: x.example.org", "server_name", "server_names"),
        ("backup: {}", "backup.recipient", "needed"),
        (f"backup: {{recipient: {RECIPIENT[:-1]}q}}", "backup.recipient", "age-keygen"),
        (f"backup: {{recipient: {RECIPIENT}, keep_days: 0}}", "backup.keep_days", "from 1 to 3650"),
        (f"backup: {{recipient: {RECIPIENT}, keep_days: yes}}", "backup.keep_days", "whole number"),
        (f"backup: {{recipient: {RECIPIENT}, target: 'ftp://x'}}", "backup.target", "scp://"),
        ("alerts: {webhook: 'http://example.org/x'}", "alerts.webhook", "https://"),
        ("alerts: {webhook: 'https://user:word@example.org/x'}", "alerts.webhook", "https://"),
        ("alerts: {mail: {server: mail.example.org, from: a@example.org}}", "alerts.mail.to", "needed"),
        ("application: {bundle: ../x, sha256: 12}", "application.bundle", "absolute path"),
        ("application: {bundle: /srv/x, sha256: 12}", "application.sha256", "in one line"),
        ("certificate: {acme: {directory: https://ca.example.org, mail: x}}", "certificate.acme.mail", "no such key"),
        ("log_collector: {host: logs.example.org, ca: /no/such/file}", "log_collector.ca", "No such file"),
        ("log_collector: {host: logs.example.org, protocol: udp}", "log_collector.protocol", "relp or syslog"),
        ("admin_proxy: {client_ca: /etc/hostname}", "admin_proxy.client_ca", "PEM"),
    ],
)
def test_a_fault_names_its_key_and_the_remedy(module: ModuleType, text: str, key: str, remedy: str) -> None:
    _settings, faults = module.parse(text)
    found = {fault.key: fault.remedy for fault in faults}
    assert key in found
    assert remedy in found[key]


@pytest.mark.parametrize("text", ["- a", "x", "a: [", "a: 1\na: 2", "backup:\nbackup: 1", "? {a: 1}"])
def test_a_file_that_makes_no_sense_gives_the_defaults(module: ModuleType, text: str) -> None:
    settings, faults = module.parse(text)
    assert faults
    assert settings == module.defaults()


@pytest.mark.parametrize(
    ("text", "key", "expected"),
    [
        ("admin_cidrs: [10.0.0.0/8, 300.1.1.1]", "admin_cidrs", ["10.0.0.0/8"]),
        ("admin_cidrs: [10.1.2.3, 10.1.2.3/32]", "admin_cidrs", ["10.1.2.3/32"]),
        ("server_names: [WWW.Example.Org, www.example.org]", "server_names", ["www.example.org"]),
        (f"backup: {{recipient: {RECIPIENT}, keep_day: 3}}", "backup", None),
        ("admin_proxy: {client_ca: /no/file, cidrs: [10.0.0.0/8]}", "admin_proxy", {"client_ca": None, "cidrs": []}),
        ("admin_proxy: {cidrs: [10.0.0.0/8, x]}", "admin_proxy", {"client_ca": None, "cidrs": []}),
        ("alerts: {mail: {server: 'm.example.org', from: a@b.c, to: d@e.f}}", "alerts",
         {"mail": {"server": "m.example.org:587", "from": "a@b.c", "to": "d@e.f"}, "webhook": None, "ca": None}),
    ],
)  # fmt: skip
def test_what_is_used(module: ModuleType, text: str, key: str, expected: Any) -> None:
    assert module.parse(text)[0][key] == expected


def test_what_may_be_secret_is_not_shown(module: ModuleType) -> None:
    for text in ("alerts: {webhook: 'http://example.org/t0ken'}", "webhok: t0ken", "alerts: {webhok: t0ken}"):
        _settings, faults = module.parse(text)
        assert faults
        assert "t0ken" not in "".join(map(str, faults))


def test_a_file_that_others_may_write_is_not_believed(module: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text("admin_cidrs: [10.0.0.0/8]\n")
    path.chmod(0o666)
    settings, faults = module.read(path)
    assert settings == module.defaults()
    assert "chmod" in faults[0].remedy


def test_no_file_is_no_fault(module: ModuleType, tmp_path: Path) -> None:
    assert module.read(tmp_path / "site.yaml") == (module.defaults(), [])


def collect(module: ModuleType, tmp_path: Path, sku: str, file: str = "") -> tuple[dict[str, Any], list[str]]:
    """Return the settings and the keys of the faults, with a hypervisor that says ``sku``."""
    (tmp_path / "sku").write_text(f"{sku}\n")
    if file:
        (tmp_path / "site.yaml").write_text(file)
        (tmp_path / "site.yaml").chmod(0o600)
    settings, faults = module.collect(tmp_path / "site.yaml", hypervisor=tmp_path / "sku")
    return settings, [fault.key for fault in faults]


TOLD = 'golden:{"admin_cidrs":["192.0.2.0/24"],"server_names":["www.example.org"]}'


def test_the_hypervisor_may_tell_networks_and_names(module: ModuleType, tmp_path: Path) -> None:
    settings, faults = collect(module, tmp_path, TOLD)
    assert faults == []
    assert (settings["admin_cidrs"], settings["server_names"]) == (["192.0.2.0/24"], ["www.example.org"])


@pytest.mark.parametrize("sku", ["", "Not Specified", "pc-q35-9.2", '{"admin_cidrs":["192.0.2.0/24"]}'])
def test_an_ordinary_machine_tells_nothing(module: ModuleType, tmp_path: Path, sku: str) -> None:
    assert collect(module, tmp_path, sku) == (module.defaults(), [])


@pytest.mark.skipif(os.geteuid() != 0, reason="the file must be root's")
def test_the_file_comes_before_the_hypervisor(module: ModuleType, tmp_path: Path) -> None:
    settings, faults = collect(module, tmp_path, TOLD, "admin_cidrs: [198.51.100.0/24]\n")
    assert faults == []
    assert (settings["admin_cidrs"], settings["server_names"]) == (["198.51.100.0/24"], ["www.example.org"])
    settings, faults = collect(module, tmp_path, TOLD, "admin_cidrs: [everywhere]\n")
    assert (settings["admin_cidrs"], faults) == ([], ["admin_cidrs[0]"])


@pytest.mark.parametrize(
    "sku", ['golden:{"admin_cidrs":["0.0.0.0/0"]}', "golden:{", 'golden:{"alerts":{"webhook":"https://x.example/"}}']
)
def test_what_the_hypervisor_may_not_tell_is_refused(module: ModuleType, tmp_path: Path, sku: str) -> None:
    settings, faults = collect(module, tmp_path, sku)
    assert settings == module.defaults()
    assert faults != []
