"""The request for a clone: which arguments are accepted, and that all errors are reported at once."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from build.clone import machine
from build.clone import request as clone_request
from build.core import run
from build.core.errors import SpecError
from build.proxmox import labels
from tests.unit.helpers import ROOT

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIF/s62b/yG842VJ4bG1pbHnC28I53U6RtGcp1zon+1fp op+erator@site:1"
SSHD = ROOT / "overlays/10-base/rootfs/etc/ssh/sshd_config"


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
    with pytest.raises(SpecError, match="options of the clone are not valid") as caught:
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


@pytest.mark.parametrize(
    "ip",
    [
        "192.0.2.0/31", "192.0.2.10/32", "2001:db8::1/128", "2001:db8::/127", "192.0.2.10/24",
        "192.0.2.10/32,gw=198.51.100.1", "2001:db8::1/128,gw6=2001:db8:ffff::1",
    ],
)  # fmt: skip
def test_addresses_that_are_taken(key: Path, ip: str) -> None:
    assert read(key, ip=ip).addresses.endswith(ip)


@pytest.mark.parametrize(
    ("ip", "words"),
    [
        ("192.0.2.10", "not an address with a prefix"), ("192.0.2.0/24", "network or broadcast"),
        ("192.0.2.255/24", "network or broadcast"),
        ("192.0.2.10/24,gw=198.51.100.1", "is not in 192.0.2.0/24"), ("192.0.2.10/24,gw=192.0.2.10", "the VM's own address"),
        ("192.0.2.10/24,via=192.0.2.1", "not a gateway"), ("192.0.2.10/99", "192.0.2.10/99"), ("dhcp6/1", "dhcp6"),
        ("192.0.2.10/24,gw=nonsense", "nonsense"), ("192.0.2.10/32,gw=192.0.2.10", "the VM's own address"),
        ("192.0.2.10/32,gw=2001:db8::1", "of another version"),
    ],
)  # fmt: skip
def test_addresses_that_are_not(key: Path, ip: str, words: str) -> None:
    said = problems(key, ip=ip)
    assert words in said
    assert "gw=192.0.2.1" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ip", "192.0.2.11/24"], "'dhcp'"), (["--server-name", "WWW.example.org"], "--server-name: 'WWW.example.org'"),
        (["--admin-cidr", "192.0.2.1/24"], "has host bits set"), (["--disk", "20G"], "--disk: '20G'"),
        (["--disk", "-20G"], "--disk"), (["--memory", "64"], "--memory: 64: write a number from 512"),
        (["--cores", "-1"], "--cores"), (["--vlan", "4095"], "--vlan"), (["--nameserver", "dns1"], "--nameserver"),
        (["--linked", "--storage", "fast"], "omit --storage or --linked"), (["--node", "a b"], "--node: 'a b'"),
        (["--storage", "A_"], "--storage"), (["--server-name", "192.0.2.10"], "not an address"),
        (["--server-name", "a" * 64], "--server-name"), (["--admin-cidr", "0.0.0.0/0"], "this is everybody"),
        (["--admin-cidr", "::/0"], "this is everybody"), (["--server-name", "2001:db8::1"], "not an address"),
        (["--bridge", "br!"], "--bridge"), (["--channel", "No"], "--channel"),
    ],
)  # fmt: skip
def test_words_that_are_refused(key: Path, words: list[str], message: str) -> None:
    given = [words[0] + "=" + words[1]] if len(words) == 2 else words
    assert message in problems(key, *given)


def test_two_addresses_of_one_version(key: Path) -> None:
    assert "a second address of version 4" in problems(key, "--ip", "192.0.2.11/24", ip="192.0.2.10/24")


@pytest.mark.parametrize("name", ["Web1", "-web", "web_1", "", "a" * 64, "web..1"])
def test_names_that_are_refused(key: Path, name: str) -> None:
    assert "--name" in problems(key, f"--name={name}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("-----BEGIN OPENSSH PRIVATE KEY-----\n", "use key.pub.pub instead"), ("hello\n", "key 1 is not a public"),
        ("# nothing\n", "it contains no key"),
    ],
)  # fmt: skip
def test_keys_that_are_refused(key: Path, content: str, message: str) -> None:
    key.write_text(content)
    told = problems(key)
    assert message in told
    assert content.strip() not in told


def made(path: Path, *words: str) -> str:
    """Make a key with ssh-keygen; return its public half."""
    run.run(["ssh-keygen", "-q", "-N", "", "-C", "a b", "-f", path, *words], timeout=60)
    return path.with_suffix(".pub").read_text()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["-t", "rsa", "-b", "2048"], "key 1 is RSA with 2048 bits, and the image accepts 3072 or more"),
        (["-t", "rsa", "-b", "3072"], ""), (["-t", "ecdsa", "-b", "384"], ""), (["-t", "ed25519"], ""),
    ],
)  # fmt: skip
def test_kinds_and_sizes_of_keys(key: Path, tmp_path: Path, words: list[str], reason: str) -> None:
    key.write_text(made(tmp_path / "made", *words))
    if reason:
        assert reason in problems(key)
    else:
        assert read(key).keys == key.read_text().strip()


@pytest.mark.parametrize("length", [30, 60, 79])
def test_a_key_that_is_cut_off(key: Path, length: int) -> None:
    key.write_text(f"{KEY}\n{KEY[:length]}\n")
    assert "key 2 is not a public SSH key that ssh-keygen can read" in problems(key)


@pytest.mark.parametrize("line", ["ssh-dss AAAAB3NzaC1kc3MAAACB", "sk-ssh-rsa@openssh.com AAAA", f'from="192.0.2.1" {KEY}'])
def test_kinds_of_keys_that_the_image_refuses(key: Path, line: str) -> None:
    key.write_text(f"{line}\n")
    assert "--ssh-key" in problems(key)


def test_the_rules_for_keys_are_those_of_the_image() -> None:
    settings = dict(line.split(" ", 1) for line in SSHD.read_text().splitlines() if " " in line and not line.startswith("#"))
    taken = {"ssh-rsa" if kind.startswith("rsa-sha2") else kind for kind in settings["PubkeyAcceptedAlgorithms"].split(",")}
    assert set(clone_request.KEY_KINDS) == taken
    assert int(settings["RequiredRSASize"]) == clone_request.LEAST_RSA_BITS


def test_a_storage_with_capitals(key: Path) -> None:
    assert read(key, "--storage", "TrueNAS-SSD").storage == "TrueNAS-SSD"


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
    assert machine.card(old, bridge=bridge, vlan=vlan) == expected


@pytest.mark.parametrize(("value", "kib"), [("a:b,size=64M", 65536), ("a:b,size=1.5G", 1572864), ("a:b", 0)])
def test_the_size_of_a_disk(value: str, kib: int) -> None:
    assert machine.disk_kib({"scsi0": value}) == kib


def test_a_label_survives_its_description() -> None:
    label = labels.CloneLabel("golden-1.2.3", "1.2.3", "ab" * 32, "golden-1.2.3-ab", labels.CloneState.MAKING, "", "run1")
    assert labels.parse_clone(label.describe()) == label
    assert labels.run_of(label.describe()) == "run1"
    assert labels.parse_clone("no label") is None
    assert labels.parse_clone('<!-- goldsmith-clone: {"schema":1} -->') is None
    assert labels.parse_clone('<!-- goldsmith-clone: {"schema":2} -->') is None
    assert labels.run_of("") == ""
