"""Site settings: the values that the validator accepts, its error messages, and that an invalid value opens nothing."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from build.clone import request
from build.core import image_programs, yaml_table
from tests.unit.golden_modules import golden_module
from tests.unit.helpers import ROOT

LAYER = ROOT / "overlays" / "80-firstboot" / "rootfs"
SIGNER = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0y0kqPqXzW0bT8vJtP1Kq7bq0q5m9m3vXJc2m5rO3F"
RECIPIENT = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"


values = golden_module("golden.site_values")


@pytest.fixture(scope="module")
def module() -> ModuleType:
    return golden_module("golden.site")


MAIL = {
    "server": "m.example.org:465", "from": "a@b.c", "to": ["d@e.f"], "tls": "starttls", "user": None, "password_file": None,
}  # fmt: skip


def keys(module: ModuleType, text: str) -> list[str]:
    """Return the keys with errors."""
    return [fault.key for fault in module.parse(text)[1]]


def test_nothing_given_has_every_key_and_opens_nothing(module: ModuleType) -> None:
    settings, faults = module.parse("")
    assert faults == []
    assert settings == {
        "admin_cidrs": [], "server_names": [], "certificate": {"acme": None}, "log_collector": None, "backup": None,
        "alerts": {"mail": None, "webhook": None, "ca": None}, "application": None,
        "admin_proxy": {"client_ca": None, "cidrs": []}, "proxies": None, "sites": [],
        "database": None, "database_clients": {"certificate": None, "key": None, "authority": None, "clients": []},
    }  # fmt: skip


def test_the_example_names_every_key_and_is_good_but_for_the_files_it_names(module: ModuleType) -> None:
    settings, faults = module.parse((LAYER / "etc/golden/site.yaml.example").read_text())
    assert {fault.key for fault in faults} == {"log_collector.ca", "admin_proxy.client_ca", "application.secrets"}
    assert set(settings) == set(module.defaults())
    target = "scp://backup@store.example.org/srv/backup"
    assert settings["backup"] == {"recipient": RECIPIENT, "target": target, "keep_days": 14, "signers": [SIGNER]}
    assert settings["server_names"][0] == "www.example.org"


ODD = [path for path in sorted((ROOT / "tests/data/fuzz/site").iterdir()) if path.read_bytes().startswith(b"admin_cidrs")]


@pytest.mark.parametrize("path", ODD, ids=lambda path: path.name)
def test_an_odd_value_costs_its_own_key_only(module: ModuleType, path: Path) -> None:
    """SSH opens all the same, and each fault names the key that it is about."""
    settings, faults = module.parse_bytes(path.read_bytes(), name="site.yaml")
    assert settings["admin_cidrs"] == ["192.0.2.0/24"]
    keys = {re.split(r"[.\[]", fault.key)[0] for fault in faults}
    assert keys
    # "site": of the file's name, where a line has no key.
    assert keys <= {"server_names", "backup", "alerts", "log_collector", "site"}


def test_a_broken_key_costs_only_itself(module: ModuleType) -> None:
    settings, faults = module.parse("admin_cidrs: [192.0.2.0/24]\nserver_names: [a.example.org\nbackup: {}\n")
    assert settings["admin_cidrs"] == ["192.0.2.0/24"]
    assert {fault.key for fault in faults} == {"server_names", "backup.recipient"}
    assert settings["server_names"] == []


def test_of_a_key_that_stands_twice_none_is_used(module: ModuleType) -> None:
    both = "admin_cidrs: [192.0.2.0/24]\nadmin_cidrs: [198.51.100.0/24]\n"
    settings, faults = module.parse(f"{both}server_names: [a.example.org]\n")
    assert (settings["admin_cidrs"], settings["server_names"]) == ([], ["a.example.org"])
    assert [fault.key for fault in faults] == ["admin_cidrs"]


def test_a_named_pipe_is_not_waited_for(module: ModuleType, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "site.yaml")
    _settings, faults = module.read(tmp_path / "site.yaml")
    assert "not a regular file" in faults[0].value


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
        (f"backup: {{recipient: {RECIPIENT}, signers: [AAAA]}}", "backup.signers[0]", "golden-backup --signer"),
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
        ("admin_proxy: {client_ca: /home/admin/ca.pem}", "admin_proxy.client_ca", "see nothing below /home"),
        ("proxies: {}", "proxies.addresses", "name the proxies"),
        ("proxies: {addresses: [0.0.0.0/0]}", "proxies.addresses[0]", "this is everybody"),
        ("proxies: {addresses: ['::/0']}", "proxies.addresses[0]", "this is everybody"),
        ("proxies: {addresses: [lb.example.org]}", "proxies.addresses[0]", "write a network"),
        ("proxies: {addresses: [192.0.2.1/24]}", "proxies.addresses[0]", "192.0.2.0/24"),
        ("proxies: {addresses: [192.0.2.1], client: forwarded}", "proxies.client", "x-forwarded-for or proxy-protocol"),
        ("proxies: {addresses: [192.0.2.1], header: X-Real-IP}", "proxies.header", "no such key"),
        ("log_collector: {host: a.example, ca: /root/ca.pem}", "log_collector.ca", "see nothing below /root"),
        ("alerts: {ca: /tmp/ca.pem}", "alerts.ca", "see nothing below /tmp"),
        ("application: {bundle: /var/tmp/x.bundle, sha256: 12}", "application.bundle", "see nothing below /var/tmp"),
        ("alerts: {mail: {server: 'x:0', from: a@b.c, to: d@e.f}}", "alerts.mail.server", "[2001:db8::25]:465"),
        ("alerts: {mail: {server: '[x]:25', from: a@b.c, to: d@e.f}}", "alerts.mail.server", "[2001:db8::25]:465"),
        ("alerts: {mail: {server: 'x:', from: a@b.c, to: d@e.f}}", "alerts.mail.server", "HOST:PORT"),
        ("alerts: {mail: {server: x, from: a@b.c, to: []}}", "alerts.mail.to", "a list"),
        ("alerts: {mail: {server: x, from: a@b.c, to: d@e.f, user: u}}", "alerts.mail.password_file", "go together"),
        ("alerts: {mail: {server: x, from: a@b.c, to: d@e.f, tls: none}}", "alerts.mail.tls", "starttls or implicit"),
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
         {"mail": MAIL | {"server": "m.example.org:587"}, "webhook": None, "ca": None}),
        ("alerts: {mail: {server: 'm.example.org:465', from: a@b.c, to: [d@e.f, g@h.i, d@e.f]}}", "alerts",
         {"mail": MAIL | {"tls": "implicit", "to": ["d@e.f", "g@h.i"]}, "webhook": None, "ca": None}),
        ("proxies: {addresses: [192.0.2.10, '2001:db8::/64']}", "proxies",
         {"addresses": ["192.0.2.10/32", "2001:db8::/64"], "client": "x-forwarded-for"}),
        ("proxies: {addresses: [192.0.2.10], client: proxy-protocol}", "proxies",
         {"addresses": ["192.0.2.10/32"], "client": "proxy-protocol"}),
        # One that cannot be read costs all: a client would be believed, and another proxy not.
        ("proxies: {addresses: [192.0.2.10, x]}", "proxies", None),
        ("admin_proxy: {cidrs: [0.0.0.0/0, '::/0']}", "admin_proxy", {"client_ca": None, "cidrs": ["0.0.0.0/0", "::/0"]}),
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
    """Return the settings and the keys of the faults, with a hypervisor that passes ``sku``."""
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


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        ("mail.example.org", "mail.example.org:587"), ("Mail.Example.Org:25", "mail.example.org:25"),
        ("192.0.2.25:465", "192.0.2.25:465"), ("2001:db8::25", "[2001:db8::25]:587"),
        ("[2001:DB8::25]", "[2001:db8::25]:587"),
        ("[2001:db8::25]:465", "[2001:db8::25]:465"),
    ],
)  # fmt: skip
def test_mail_servers(server: str, expected: str) -> None:
    assert golden_module("golden.site_keys.alerts").mail_server(server) == expected


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A directory that the units see."""
    monkeypatch.setattr(values, "HIDDEN", (str(tmp_path / "hidden"),))
    (tmp_path / "hidden").mkdir()
    for top in (tmp_path, *tmp_path.parents):
        if top.stat().st_mode & 0o005 != 0o005:
            top.chmod(top.stat().st_mode | 0o055)
    return tmp_path


@pytest.mark.skipif(os.geteuid() != 0, reason="the files must be root's")
def test_files_are_judged_as_a_unit_sees_them(place: Path) -> None:
    file = place / "secret"
    file.write_text("pass word\n")
    file.chmod(0o600)
    assert (values.secret_file(str(file)), values.read_secret(str(file))) == (str(file), "pass word")
    with pytest.raises(Exception, match="not every user read"):
        values.readable(str(file), everyone=True)
    (place / "hidden/secret").write_text("x")
    (place / "link").symlink_to("hidden/secret")
    with pytest.raises(Exception, match=r"see nothing below .*hidden"):
        values.unit_path(str(place / "link"))
    os.chown(file, 12345, 12345)
    with pytest.raises(Exception, match="root without capabilities does not read"):
        values.readable(str(file))
    (place / "closed").mkdir(mode=0o700)
    (place / "closed/file").write_text("x")
    (place / "open").symlink_to("closed/file")
    assert values.readable(str(place / "open"))
    os.chown(place / "closed", 12345, 12345)
    with pytest.raises(Exception, match=r"root without capabilities does not read .*/closed:"):
        values.readable(str(place / "open"))
    for content, mode in (("x", 0o644), ("", 0o600), ("a\nb\n", 0o600)):
        (place / "other").write_text(content)
        (place / "other").chmod(mode)
        with pytest.raises(Exception, match=r"chmod 0600|one line"):
            values.secret_file(str(place / "other"))


NETWORKS = [
    "192.0.2.0/24", "192.0.2.1", "0.0.0.0/0", "::/0", "192.0.2.1/24", "x", "2001:db8::/32", "10.0.0.0/33", "fe80::1/64",
]  # fmt: skip
HOSTS = [
    "a", "a.b", "a" * 63, "a" * 64, "192.0.2.1", "a.1", "a..b", "-a", "a-", ".".join(["a" * 62] * 4), "1a.b", "a_b",
    "2001:db8::1",
]  # fmt: skip


def taken(rule: Any, value: str) -> bool:
    try:
        rule(value)
    except Exception:  # noqa: BLE001 (whatever the refusal is)
        return False
    return True


@pytest.mark.parametrize("value", NETWORKS)
def test_one_rule_for_networks(value: str) -> None:
    cidr = golden_module("golden.site_keys.admin_cidrs").cidr
    assert taken(cidr, value) == (not yaml_table.network_problem(value))


@pytest.mark.parametrize("value", HOSTS)
def test_one_rule_for_host_names(value: str) -> None:
    assert taken(values.host_name, value) == bool(request.NAME.fullmatch(value))


def test_every_key_is_a_module_of_its_layer(module: ModuleType) -> None:
    owners = {key: image_programs.layer_of(golden_module(f"golden.site_keys.{key}")) for key in list(module.keys())}
    assert owners == {
        "admin_cidrs": "25-firewall", "admin_proxy": "50-nginx", "alerts": "74-alerts", "application": "72-deploy",
        "backup": "70-backup", "certificate": "65-certificates", "database": "32-remote-database",
        "database_clients": "36-database-clients",
        "log_collector": "75-logs", "proxies": "50-nginx",
        "server_names": "80-firstboot", "sites": "52-sites",
    }  # fmt: skip


def test_a_key_whose_layer_is_missing_names_the_image(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As in an image without 70-backup: the other keys work, and the error names the image and what it has."""
    here = {key: known for key, known in module.keys().items() if key != "backup"}
    monkeypatch.setattr(module, "keys", lambda: here)
    monkeypatch.setattr(module, "IMAGE", tmp_path / "image")
    (tmp_path / "image").write_text("golden-web\n")
    settings, faults = module.parse(f"backup: {{recipient: {RECIPIENT}}}\nserver_names: [a.example.org]\n")
    assert "backup" not in settings
    assert settings["server_names"] == ["a.example.org"]
    assert [str(fault) for fault in faults] == [
        f"backup: (not shown): no layer of the image golden-web has this key; known here: {', '.join(sorted(here))}"
    ]
    assert sorted(module.files(settings)) == ["mail-password", "other-names", "site-names"]
    assert "backup" not in module.schema()["properties"]


def test_the_files_of_the_settings(module: ModuleType) -> None:
    settings, _faults = module.parse("server_names: [b.example.org, a.example.org]")
    assert module.files(settings) == {
        "site-names": b"b.example.org a.example.org\n", "mail-password": b"", "other-names": b"\n",
    }  # fmt: skip


def test_the_name_of_the_image_is_that_of_the_spec() -> None:
    assert (LAYER / f"{golden_module('golden.site').IMAGE}.j2".lstrip("/")).read_text() == "{{ spec.name }}\n"
