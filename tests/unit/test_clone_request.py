"""What an operator asks for: which words are taken, and that every wrong one is told at once."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from build import clone_machine, clone_request, labels
from build.errors import SpecError

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKey+Of/An= op+erator@site:1"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key.pub"
    path.write_text(f"# mine\n{KEY}\n\n")
    return path


def read(key: Path, *words: str, ip: str = "dhcp") -> clone_request.Request:
    parser = argparse.ArgumentParser()
    clone_request.options(parser)
    return clone_request.read(parser.parse_args(["--name", "web1", "--ip", ip, "--ssh-key", str(key), *words]))


def problems(key: Path, *words: str, ip: str = "dhcp") -> str:
    with pytest.raises(SpecError, match="cannot be made as it is asked for") as caught:
        read(key, *words, ip=ip)
    assert caught.value.exit_code == 2
    return caught.value.details


def test_the_least(key: Path) -> None:
    request = read(key)
    assert (request.addresses, request.keys, request.channel) == ("ip=dhcp,ip6=auto", KEY, "candidate")
    assert (request.wait, request.linked, request.keep, request.site) == (True, False, False, {})
    assert (request.main_name, request.fixed) == ("web1", ())


def test_everything(key: Path) -> None:
    request = read(
        key, "--ip", "2001:db8::10/64,gw=fe80::1", "--admin-cidr", "192.0.2.0/24", "--admin-cidr", "2001:db8::/64",
        "--server-name", "www.example.org", "--server-name", "example.org", "--node", "pve2", "--disk", "+1T",
        "--memory", "4096", "--cores", "4", "--vlan", "7", "--bridge", "vmbr1", "--nameserver", "192.0.2.53", "--no-wait",
        ip="192.0.2.10/24,gw=192.0.2.1",
    )  # fmt: skip
    assert request.addresses == "ip=192.0.2.10/24,gw=192.0.2.1,ip6=2001:db8::10/64,gw6=fe80::1"
    assert request.fixed == ("192.0.2.10", "2001:db8::10")
    assert request.site == {
        "admin_cidrs": ["192.0.2.0/24", "2001:db8::/64"], "server_names": ["www.example.org", "example.org"],
    }  # fmt: skip
    assert (request.more_disk_gib, request.main_name, request.wait) == (1024, "www.example.org", False)


@pytest.mark.parametrize("ip", ["192.0.2.0/31", "192.0.2.10/32", "2001:db8::1/128", "2001:db8::/127", "192.0.2.10/24"])
def test_addresses_that_are_taken(key: Path, ip: str) -> None:
    assert read(key, ip=ip).addresses.endswith(ip)


@pytest.mark.parametrize(
    ("ip", "words"),
    [
        ("192.0.2.10", "no address with a prefix"), ("192.0.2.0/24", "whole network"), ("192.0.2.255/24", "whole network"),
        ("192.0.2.10/24,gw=198.51.100.1", "is not in 192.0.2.0/24"), ("192.0.2.10/24,gw=192.0.2.10", "the machine itself"),
        ("192.0.2.10/24,via=192.0.2.1", "no gateway"), ("192.0.2.10/99", "192.0.2.10/99"), ("dhcp6/1", "dhcp6"),
        ("192.0.2.10/24,gw=nonsense", "nonsense"),
    ],
)  # fmt: skip
def test_addresses_that_are_not(key: Path, ip: str, words: str) -> None:
    said = problems(key, ip=ip)
    assert words in said
    assert "gw=192.0.2.1" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ip", "192.0.2.11/24"], "'dhcp'"), (["--server-name", "WWW.example.org"], "--server-name: 'WWW.example.org'"),
        (["--admin-cidr", "192.0.2.1/24"], "has host bits set"), (["--disk", "20G"], "--disk: '20G'"),
        (["--disk", "-20G"], "--disk"), (["--memory", "64"], "--memory: 64: write a number from 512"),
        (["--cores", "-1"], "--cores"), (["--vlan", "4095"], "--vlan"), (["--nameserver", "dns1"], "--nameserver"),
        (["--linked", "--storage", "fast"], "leave --storage or --linked out"), (["--node", "a b"], "--node: 'a b'"),
        (["--storage", "A"], "--storage"), (["--bridge", "br!"], "--bridge"), (["--channel", "No"], "--channel"),
    ],
)  # fmt: skip
def test_words_that_are_refused(key: Path, words: list[str], said: str) -> None:
    given = [words[0] + "=" + words[1]] if len(words) == 2 else words
    assert said in problems(key, *given)


def test_two_addresses_of_one_version(key: Path) -> None:
    assert "a second address of version 4" in problems(key, "--ip", "192.0.2.11/24", ip="192.0.2.10/24")


@pytest.mark.parametrize("name", ["Web1", "-web", "web_1", "", "a" * 64, "web..1"])
def test_names_that_are_refused(key: Path, name: str) -> None:
    assert "--name" in problems(key, f"--name={name}")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("-----BEGIN OPENSSH PRIVATE KEY-----\n", "give key.pub.pub, and keep this one"), ("hello\n", "key 1 is no public"),
        ("# nothing\n", "it holds no key"),
    ],
)  # fmt: skip
def test_keys_that_are_refused(key: Path, content: str, said: str) -> None:
    key.write_text(content)
    told = problems(key)
    assert said in told
    assert content.strip() not in told


def test_a_key_that_is_not_there(key: Path) -> None:
    key.unlink()
    assert "No such file" in problems(key)


def test_all_problems_come_at_once(key: Path) -> None:
    assert len(problems(key, "--disk", "1", "--memory", "1", "--admin-cidr", "x").splitlines()) == 3


@pytest.mark.parametrize(
    ("bridge", "vlan", "expected"),
    [
        ("vmbr1", 0, "virtio=BC:24:11:00:00:01,bridge=vmbr1,firewall=1,tag=3"),
        ("", 7, "virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=1,tag=7"),
        ("vmbr1", 7, "virtio=BC:24:11:00:00:01,bridge=vmbr1,firewall=1,tag=7"),
    ],
)
def test_a_card_keeps_what_is_not_changed(bridge: str, vlan: int, expected: str) -> None:
    old = "virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=1,tag=3"
    assert clone_machine.card(old, bridge=bridge, vlan=vlan) == expected


@pytest.mark.parametrize(("value", "kib"), [("a:b,size=64M", 65536), ("a:b,size=1.5G", 1572864), ("a:b", 0)])
def test_the_size_of_a_disk(value: str, kib: int) -> None:
    assert clone_machine.disk_kib({"scsi0": value}) == kib


def test_a_label_survives_its_description() -> None:
    label = labels.CloneLabel("golden-1.2.3", "1.2.3", "ab" * 32, "golden-1.2.3-ab", labels.CloneState.MAKING, "", "run1")
    assert labels.parse_clone(label.describe()) == label
    assert labels.run_of(label.describe()) == "run1"
    assert labels.parse_clone("no label") is None
    assert labels.parse_clone('<!-- goldsmith-clone: {"schema":1} -->') is None
    assert labels.parse_clone('<!-- goldsmith-clone: {"schema":2} -->') is None
    assert labels.run_of("") == ""
