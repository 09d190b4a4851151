"""The rules that golden-firewall generates for the packet filter from the site settings."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from build.core import run
from build.spec import golden_yaml as specs
from build.spec.layers import Stack, load_stack
from tests.unit.golden_modules import golden_module
from tests.unit.helpers import LAYERS, ROOT, every_layer

USERS = {"root", "golden-acme", "golden-alert", "golden-fetch"}
NOTHING: dict[str, Any] = {
    "admin_cidrs": [], "certificate": {"acme": None}, "log_collector": None, "backup": None,
    "alerts": {"mail": None, "webhook": None}, "application": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def module() -> ModuleType:
    return golden_module("golden.firewall")


def test_nothing_given_empties_every_set(module: ModuleType) -> None:
    pairs = ("admin_inet", "database_inet", "proxy_inet", "database_out", "upstream_out")
    sets = [*(f"{pair}{family}" for pair in pairs for family in (4, 6)), "site_out"]
    wanted = "".join(f"flush set inet golden {name}\n" for name in sets)
    assert module.site_rules(NOTHING, default_cidrs=[], users=USERS) == wanted
    assert module.site_rules({}, default_cidrs=[], users=USERS) == wanted


def test_networks_go_into_the_set_of_their_family(module: ModuleType) -> None:
    rules = module.site_rules(
        {"admin_cidrs": ["192.0.2.0/24", "2001:db8::/32", "198.51.100.7"]}, default_cidrs=["10.0.0.0/8"], users=USERS
    )
    assert "add element inet golden admin_inet4 { 192.0.2.0/24, 198.51.100.7/32 }\n" in rules
    assert "add element inet golden admin_inet6 { 2001:db8::/32 }\n" in rules
    assert "10.0.0.0" not in rules


def test_proxies_are_known_to_the_packet_filter(module: ModuleType) -> None:
    site = NOTHING | {"proxies": {"addresses": ["192.0.2.10/32", "2001:db8::/64"], "client": "proxy-protocol"}}
    rules = module.site_rules(site, default_cidrs=[], users=USERS)
    assert "add element inet golden proxy_inet4 { 192.0.2.10/32 }\n" in rules
    assert "add element inet golden proxy_inet6 { 2001:db8::/64 }\n" in rules


def test_the_spec_decides_when_the_site_does_not(module: ModuleType) -> None:
    assert "{ 10.0.0.0/8 }" in module.site_rules(NOTHING, default_cidrs=["10.0.0.0/8"], users=USERS)


@pytest.mark.parametrize("bad", ["192.0.2.1/24", "0.0.0.0/33", "} ; flush ruleset", "example.org"])
def test_what_is_no_network_is_refused(module: ModuleType, bad: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        module.site_rules({"admin_cidrs": [bad]}, default_cidrs=[], users=USERS)


@pytest.mark.parametrize(
    ("settings", "user", "port"),
    [
        ({"log_collector": {"host": "logs.example.org", "port": 6514}}, "root", 6514),
        ({"certificate": {"acme": {"directory": "https://ca.example.org/directory"}}}, "golden-acme", 443),
        ({"certificate": {"acme": {"directory": "https://ca.example.org:14000/dir"}}}, "golden-acme", 14000),
        ({"backup": {"target": "scp://store@backup.example.org/srv/golden"}}, "root", 22),
        ({"backup": {"target": "rclone:remote:path"}}, "root", 443),
        ({"alerts": {"mail": {"server": "mail.example.org:25"}, "webhook": None}}, "golden-alert", 25),
        ({"alerts": {"mail": None, "webhook": "https://hooks.example.org/x"}}, "golden-alert", 443),
        ({"application": {"bundle": "https://files.example.org:8443/app.tar"}}, "golden-fetch", 8443),
    ],
)
def test_a_service_outside_opens_its_port_to_its_user(
    module: ModuleType, settings: dict[str, Any], user: str, port: int
) -> None:
    assert module.site_out(NOTHING | settings) == {(user, port)}
    assert f"add element inet golden site_out {{ {user} . {port} }}\n" in module.site_rules(
        settings, default_cidrs=[], users=USERS
    )


def test_a_user_who_is_not_there_calls_nobody(module: ModuleType) -> None:
    settings = {"certificate": {"acme": {"directory": "https://ca.example.org/directory"}}}
    assert "add element" not in module.site_rules(settings, default_cidrs=[], users={"root"})


@pytest.mark.parametrize(
    "settings", [{"backup": {"target": ""}}, {"application": {"bundle": "/srv/app.tar"}}, {"backup": None}]
)
def test_what_stays_on_the_machine_opens_nothing(module: ModuleType, settings: dict[str, Any]) -> None:
    assert module.site_out(NOTHING | settings) == set()


def test_the_state_is_read_from_what_nft_lists(module: ModuleType) -> None:
    listed = {
        "nftables": [
            {"set": {"name": "admin_inet4", "elem": [{"prefix": {"addr": "192.0.2.0", "len": 24}}, "198.51.100.7"]}},
            {"set": {"name": "admin_inet6"}},
            {"set": {"name": "proxy_inet4", "elem": ["203.0.113.9"]}},
            {"set": {"name": "proxy_inet6"}},
            {"set": {"name": "site_out", "elem": [{"concat": ["root", 6514]}]}},
            {"counter": {"name": "dropped_in", "packets": 7}},
            {"rule": {"chain": "gate_in"}},
        ]
    }
    assert module.describe(listed) == {
        "isolated": True,
        "administrators": ["192.0.2.0/24", "198.51.100.7"],
        "proxies": ["203.0.113.9"],
        "site_out": ["root:6514"],
        "dropped": {"in": 7},
    }


# --- the rules of the layers ------------------------------------------------------------------------------------------


def ruleset(stack: Stack, directory: Path) -> str:
    """Return the kernel's rules after the rules of an image were loaded twice, in a separate network namespace."""
    rules = "".join(node.content.decode() for node in stack.below(["/etc/nftables.d/"]))
    main = {node.path: node.content.decode() for node in stack.nodes}["/etc/nftables.conf"]
    main = main.replace('include "/etc/nftables.d/*.nft"', rules)
    # This host has neither the users of the image nor what golden-firewall writes.
    main = re.sub(r"skuid [a-z_][a-z-]*", "skuid 12345", main)
    (directory / "nftables.conf").write_text(re.sub(r'^include "/(run|etc)/golden.*$', "", main, flags=re.MULTILINE))
    script = 'nft -f "$0" && nft -f "$0" && nft -s list ruleset'
    namespace = ["unshare", "--user", "--map-root-user", "--net", "--"]
    return run.run([*namespace, "sh", "-c", script, directory / "nftables.conf"], timeout=60).stdout


@pytest.fixture(scope="module")
def _packet_filter() -> None:
    probe = ["unshare", "--user", "--map-root-user", "--net", "--", "nft", "list", "ruleset"]
    if run.run(probe, timeout=60, check=False).returncode:
        pytest.skip("this host's kernel has no nftables")


@pytest.mark.usefixtures("_packet_filter")
def test_the_packet_filter_accepts_the_rules_of_all_layers(tmp_path: Path) -> None:
    found = ruleset(every_layer(), tmp_path)
    chains = {name: body.split("\n") for name, body in re.findall(r"chain (\w+) \{\n(.*?)\n\t\}", found, re.DOTALL)}
    assert [line.strip() for line in chains["input"]][-2:] == ["tcp dport { 80, 443 } goto web_in", "goto refuse_in"]
    assert [line.strip() for line in chains["output"]][-1] == "goto refuse_out"
    assert found.count("policy drop") == 3


@pytest.mark.parametrize("path", sorted((ROOT / "profiles").glob("*.yaml")), ids=lambda path: path.stem)
@pytest.mark.usefixtures("_packet_filter")
def test_the_packet_filter_accepts_the_rules_of_a_profile(tmp_path: Path, path: Path) -> None:
    found = ruleset(load_stack(ROOT / "overlays", specs.load(path)), tmp_path)
    assert ("@database_inet4" in found, "@database_out4" in found) == (path.stem == "db", path.stem == "app")


@pytest.mark.parametrize("name", [name for name in LAYERS if name not in ("10-base", "25-firewall", "80-firstboot")])
@pytest.mark.usefixtures("_packet_filter")
def test_the_packet_filter_accepts_the_rules_without_a_layer(tmp_path: Path, name: str) -> None:
    found = ruleset(every_layer(without=name), tmp_path)
    assert ("80, 443 }" in found.partition("chain output")[0]) is (name != "50-nginx")
    needed = ("30-postgresql", "35-app-database", "40-app", "50-nginx", "72-deploy")
    assert ("application_out4" in found) is (name not in needed)
