"""``sites`` of site.yaml: accepted values, and the web server, unit, packet filter and names generated from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.unit.golden_modules import golden_module
from tests.unit.helpers import ROOT
from tests.unit.overlays.conftest import Programs, Result

sites = golden_module("golden.sites")
firewall = golden_module("golden.firewall")
LONG = ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 61])
STATIC = {"name": "www.example.org", "root": "/var/www/sites/www", "upstream": None, "ca": None, "peer": None, "body": "1M"}
PROXY = {
    "name": "api.example.org",
    "root": None,
    "upstream": "http://10.0.0.5:8080",
    "ca": None,
    "peer": None,
    "body": "20M",
}
SECURE = PROXY | {"name": "b.example.org", "upstream": "https://[2001:db8::5]", "ca": "ca.pem"}
CERTIFICATE = "-----BEGIN CERTIFICATE-----\nTWFu\n-----END CERTIFICATE-----\n"


@pytest.fixture(scope="module")
def module() -> ModuleType:
    return golden_module("golden.site")


# --- the key ----------------------------------------------------------------------------------------------------------


def test_what_is_used(module: ModuleType) -> None:
    settings, faults = module.parse(
        "sites:\n- {name: WWW.example.org, root: /var/www/sites/www}\n"
        "- {name: api.example.org, upstream: 'http://10.0.0.5:8080', body: 20M}\n"
    )
    assert faults == []
    assert settings["sites"] == [STATIC, PROXY]
    assert module.files(settings)["other-names"] == b"www.example.org api.example.org\n"
    assert module.parse("")[0]["sites"] == []
    assert module.files(module.parse("")[0])["other-names"] == b"\n"


@pytest.mark.parametrize("name", ["a", LONG, "xn--bcher-kva.example"])
def test_names_of_every_length(module: ModuleType, name: str) -> None:
    assert len(LONG) == 253
    assert module.parse(f"sites: [{{name: {name}, root: /var/www/sites/x}}]")[0]["sites"][0]["name"] == name


@pytest.mark.parametrize("url", ["http://10.0.0.5", "http://10.0.0.5:1", "http://[2001:db8::5]:8080"])
def test_forms_of_an_upstream(module: ModuleType, url: str) -> None:
    assert module.parse(f"sites: [{{name: a.example, upstream: '{url}'}}]")[0]["sites"][0]["upstream"] == url


@pytest.mark.parametrize(
    ("text", "key", "remedy"),
    [
        ("{name: a.example, root: /var/www/sites/a}", "sites", "write a list: sites: [{...}]"),
        ("[www.example.org]", "sites[0]", "write keys and values"),
        ("[{root: /var/www/sites/a}]", "sites[0].name", "is needed here"),
        (f"[{{name: {LONG}e, root: /var/www/sites/a}}]", "sites[0].name", "write a host name"),
        ("[{name: a_b.example, root: /var/www/sites/a}]", "sites[0].name", "write a host name"),
        ("[{name: a.example}]", "sites[0].root", "write one of the two"),
        (
            "[{name: a.example, root: /var/www/sites/a, upstream: 'http://10.0.0.5'}]",
            "sites[0].root",
            "write one of the two",
        ),
        ("[{name: a.example, root: /var/www/sites}]", "sites[0].root", "a directory below /var/www/sites, such as"),
        ("[{name: a.example, root: /var/www/sites/../media}]", "sites[0].root", "a directory below /var/www/sites"),
        ("[{name: a.example, root: /var/www/sites/.git}]", "sites[0].root", "a directory below /var/www/sites"),
        ("[{name: a.example, root: '/var/www/sites/a;'}]", "sites[0].root", "a directory below /var/www/sites"),
        ("[{name: a.example, root: /etc}]", "sites[0].root", "a directory below /var/www/sites"),
        ("[{name: a.example, upstream: 'http://backend:80'}]", "sites[0].upstream", "an IP address and a port"),
        ("[{name: a.example, upstream: 'ftp://10.0.0.5'}]", "sites[0].upstream", "write http:// or https://"),
        ("[{name: a.example, upstream: 'http://10.0.0.5/x'}]", "sites[0].upstream", "no path and no user"),
        ("[{name: a.example, upstream: 'http://u@10.0.0.5'}]", "sites[0].upstream", "no path and no user"),
        ("[{name: a.example, upstream: 'http://10.0.0.5:99999'}]", "sites[0].upstream", "an IP address and a port"),
        ("[{name: a.example, upstream: 'http://10.0.0.5:0'}]", "sites[0].upstream", "write http:// or https://"),
        ("[{name: a.example, upstream: 'http://127.0.0.1:22'}]", "sites[0].upstream", "the address of another machine"),
        ("[{name: a.example, upstream: 'http://[fe80::1]'}]", "sites[0].upstream", "the address of another machine"),
        ("[{name: a.example, upstream: 'https://10.0.0.5'}]", "sites[0].ca", "is needed for https"),
        ("[{name: a.example, upstream: 'http://10.0.0.5', peer: b}]", "sites[0].peer", "is for an upstream with https://"),
        ("[{name: a.example, upstream: 'http://10.0.0.5', body: 1G}]", "sites[0].body", "write a size such as"),
        ("[{name: a.example, root: /var/www/sites/a, rot: x}]", "sites[0].rot", "there is no such key"),
        ("[{name: a.b, root: /var/www/sites/a}, {name: A.b, root: /var/www/sites/b}]", "sites", "two sites have this name"),
    ],
)
def test_a_fault_names_its_key_and_the_remedy(module: ModuleType, text: str, key: str, remedy: str) -> None:
    settings, faults = module.parse(f"sites: {text}")
    assert [fault.key for fault in faults] == [key]
    assert remedy in faults[0].remedy
    # Of two sites with one name the first is used; nothing else here is good.
    assert [site["root"] for site in settings["sites"]] == (["/var/www/sites/a"] if "two sites" in remedy else [])


def test_a_fault_costs_its_own_site_only(module: ModuleType) -> None:
    settings, faults = module.parse("sites: [{name: a}, {name: b, root: /var/www/sites/b}]")
    assert (len(faults), [site["name"] for site in settings["sites"]]) == (1, ["b"])


# --- the web server ---------------------------------------------------------------------------------------------------


def test_a_site_without_upstream(tmp_path: Path) -> None:
    text = sites.lines([STATIC], target=tmp_path)
    assert text.count("server {") == 2
    assert text.count("server_name www.example.org;") == 2
    assert "root /var/www/sites/www;" in text
    assert "proxy_pass" not in text


def test_every_server_has_the_rules_of_all_servers(tmp_path: Path) -> None:
    text = sites.lines([STATIC, PROXY, SECURE], target=tmp_path)
    servers = text.count("server {")
    assert servers == 4
    for name in ("limits", "errors", "paths"):
        assert text.count(f"    include /etc/nginx/snippets/{name}.conf;") == servers
    assert "add_header" not in text
    assert text.count("proxy_pass ") == text.count("include /etc/nginx/snippets/application.conf;") == 2
    assert "proxy_pass http://site-2/;" in text
    assert "server 10.0.0.5:8080 max_fails=0;" in text
    assert "client_max_body_size 20M;" in text


def test_the_certificate_of_an_upstream_is_checked(tmp_path: Path) -> None:
    text = sites.lines([SECURE], target=tmp_path)
    assert "server [2001:db8::5]:443 max_fails=0;" in text
    for line in ("proxy_ssl_verify on;", f"proxy_ssl_trusted_certificate {tmp_path}/site-1-ca.pem;",
                 "proxy_ssl_name b.example.org;"):  # fmt: skip
        assert line in text
    assert "proxy_ssl_name other.example;" in sites.lines([SECURE | {"peer": "other.example"}], target=tmp_path)


def test_files_come_and_go(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text(f"text\r\n{CERTIFICATE}")
    run = tmp_path / "run"
    run.mkdir()
    sites.write([STATIC, SECURE | {"ca": str(tmp_path / "ca.pem")}], target=run)
    assert (run / "site-2-ca.pem").read_text() == CERTIFICATE
    assert {path.name: path.stat().st_mode & 0o777 for path in run.iterdir()} == {
        "sites.conf": 0o644,
        "site-2-ca.pem": 0o644,
    }
    sites.write([STATIC], target=run)
    assert [path.name for path in run.iterdir()] == ["sites.conf"]
    sites.write([], target=run)
    assert list(run.iterdir()) == []


def test_a_network_is_there_for_an_upstream_only(tmp_path: Path) -> None:
    drop_in = tmp_path / "nginx.service.d" / sites.DROP_IN.name
    assert sites.give_network([STATIC], drop_in=drop_in) is False
    assert sites.give_network([STATIC, PROXY], drop_in=drop_in) is True
    assert sites.give_network([PROXY], drop_in=drop_in) is False
    assert "PrivateNetwork=false\nRestrictAddressFamilies=AF_INET AF_INET6\n" in drop_in.read_text()
    assert sites.give_network([], drop_in=drop_in) is True
    assert not drop_in.exists()


def test_the_drop_in_is_read_after_the_sandbox() -> None:
    """systemd reads the drop-ins of all directories in the order of their names."""
    names = {path.name for path in ROOT.glob("overlays/**/rootfs/etc/systemd/system/nginx.service.d/*.conf")}
    assert "hardening.conf" in names
    assert max(names) < sites.DROP_IN.name


def test_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, programs: Programs, command: Callable[..., Result]
) -> None:
    core = golden_module("golden.core")
    monkeypatch.setattr(core, "SITE", tmp_path / "site.json")
    monkeypatch.setattr(sites, "TARGET", tmp_path)
    monkeypatch.setattr(sites, "DROP_IN", tmp_path / "nginx.service.d/upstreams.conf")

    def put(*settings: dict[str, Any]) -> None:
        (tmp_path / "site.json").write_text(core.json.dumps({"sites": settings}))

    put(PROXY)
    assert command("sites", "--trial").out == "sites: api.example.org\n"
    assert (sites.DROP_IN.exists(), programs.started) == (False, [])
    assert command("sites").code == command("sites").code == 0
    assert programs.named("systemctl") == [["daemon-reload"]]
    put()
    assert command("sites").out == "sites: none\n"
    assert (sites.DROP_IN.exists(), (tmp_path / "sites.conf").exists()) == (False, False)
    assert programs.named("systemctl") == [["daemon-reload"]] * 2


# --- the packet filter ------------------------------------------------------------------------------------------------


def test_the_upstreams_are_open_to_the_web_server_alone() -> None:
    rules = firewall.site_rules({"sites": [STATIC, PROXY, SECURE]}, default_cidrs=[], users={"nginx"})
    assert "add element inet golden upstream_out4 { nginx . 10.0.0.5 . 8080 }\n" in rules
    assert "add element inet golden upstream_out6 { nginx . 2001:db8::5 . 443 }\n" in rules
    # Not the port for every address.
    assert "add element inet golden site_out" not in rules
    closed = firewall.site_rules({"sites": []}, default_cidrs=[], users={"nginx"})
    assert "flush set inet golden upstream_out4\n" in closed
    assert "add element inet golden upstream_out" not in closed
