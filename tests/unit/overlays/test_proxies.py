"""The web server's configuration for proxies in front of it, and for bans of the clients behind them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.golden_modules import golden_module

proxies = golden_module("golden.proxies")
bans = golden_module("golden.bans")


def test_proxies_are_named_to_the_web_server(tmp_path: Path) -> None:
    settings = {"addresses": ["192.0.2.10/32", "2001:db8::/64"], "client": "x-forwarded-for"}
    assert proxies.apply(settings, target=tmp_path) == settings["addresses"]
    assert (tmp_path / "proxies.conf").read_text() == (
        "set_real_ip_from 192.0.2.10/32;\nset_real_ip_from 2001:db8::/64;\n"
        "real_ip_header X-Forwarded-For;\nreal_ip_recursive on;\n"
    )


def test_the_proxy_protocol_is_an_option_of_the_listeners(tmp_path: Path) -> None:
    proxies.apply({"addresses": ["192.0.2.10/32"], "client": "proxy-protocol"}, target=tmp_path)
    text = (tmp_path / "proxies.conf").read_text()
    assert "real_ip_header proxy_protocol;\n" in text
    for listener in ("listen 80 ", "listen [::]:80 ", "listen 443 ssl ", "listen [::]:443 ssl "):
        assert f"    {listener}proxy_protocol;\n" in text


@pytest.mark.parametrize("settings", [None, {}])
def test_without_proxies_nobody_is_believed(tmp_path: Path, settings: None) -> None:
    (tmp_path / "proxies.conf").write_text("set_real_ip_from 192.0.2.10;\n")
    assert proxies.apply(settings, target=tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_bans_of_the_web_server_become_lines() -> None:
    ruleset = {
        "nftables": [
            {"metainfo": {}},
            {"set": {"name": "addr-set-golden-probes", "elem": ["198.51.100.9", "192.0.2.7"]}},
            {"set": {"name": "addr6-set-golden-limit", "elem": [{"prefix": {"addr": "2001:db8:1::", "len": 64}}]}},
            {"set": {"name": "addr-set-golden-limit", "elem": ["192.0.2.7"]}},
            {"set": {"name": "addr-set-sshd", "elem": ["203.0.113.5"]}},
            {"set": {"name": "addr6-set-golden-probes"}},
        ]
    }
    assert bans.lines(ruleset).splitlines() == [
        "192.0.2.7 1;", "198.51.100.9 1;", "2001:db8:1:0::/64 1;", "2001:db8:1::/64 1;",
    ]  # fmt: skip
    assert bans.lines({}) == ""
