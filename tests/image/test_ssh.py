"""SSH: keys only, no root, no forwarding, and host keys that were created on the clone and printed on the console."""

from __future__ import annotations

import pytest
from testinfra.host import Host

from .facts import Fact, gather, properties

# Settings that `sshd -T` must print.
SETTINGS = {
    "permitrootlogin": "no",
    "authenticationmethods": "publickey",
    "pubkeyauthentication": "yes",
    "passwordauthentication": "no",
    "kbdinteractiveauthentication": "no",
    "hostbasedauthentication": "no",
    "gssapiauthentication": "no",
    "permitemptypasswords": "no",
    "maxauthtries": "3",
    "logingracetime": "60",
    "disableforwarding": "yes",
    "allowtcpforwarding": "no",
    "allowagentforwarding": "no",
    "x11forwarding": "no",
    "permittunnel": "no",
    "permituserenvironment": "no",
    "strictmodes": "yes",
    "usepam": "yes",
    "loglevel": "INFO",
    "ignorerhosts": "yes",
    "allowgroups": "sudo",
    "banner": "/etc/issue.net",
    "hostkeyalgorithms": "ssh-ed25519",
    "requiredrsasize": "3072",
}
# The only algorithms that the server offers: those of ssh-audit's policy "Hardened Debian 13", in its order.
ALGORITHMS = {
    "kexalgorithms": ["mlkem768x25519-sha256", "sntrup761x25519-sha512", "sntrup761x25519-sha512@openssh.com"],
    "ciphers": [
        "chacha20-poly1305@openssh.com", "aes256-gcm@openssh.com", "aes256-ctr", "aes192-ctr", "aes128-gcm@openssh.com",
        "aes128-ctr",
    ],
    "macs": ["hmac-sha2-512-etm@openssh.com", "hmac-sha2-256-etm@openssh.com", "umac-128-etm@openssh.com"],
}  # fmt: skip
HOST_KEYS = ["/etc/ssh/ssh_host_ecdsa_key", "/etc/ssh/ssh_host_ed25519_key"]


@pytest.fixture(scope="module")
def facts(host: Host) -> dict[str, Fact]:
    """The server's configuration, its keys, and its units."""
    return gather(
        host,
        {
            "settings": "sshd -T",
            "keys": "stat -c '%n %a %U:%G %s' /etc/ssh/ssh_host_*_key /etc/ssh/ssh_host_*_key.pub",
            "public": "for key in /etc/ssh/ssh_host_*_key; do ssh-keygen -y -f $key | cut -d' ' -f1,2; done",
            "stored": "for key in /etc/ssh/ssh_host_*_key; do cut -d' ' -f1,2 $key.pub; done",
            "left": "ls -A /etc/ssh | grep golden",
            "console": "systemctl show -p ActiveState -p Result -p ExecMainStatus golden-console-keys; "
            "grep -c 'HOST KEY KEYS' /var/log/cloud-init-output.log",
            "unit": "systemctl show -p UMask -p Restart -p ActiveState ssh",
            "socket": "systemctl is-active ssh.socket; systemctl is-enabled sshd-keygen.service",
            "access": "stat -c '%a %U:%G %n' /etc/ssh/sshd_config; ls /etc/ssh/sshd_config.d",
        },
    )


@pytest.fixture(scope="module")
def settings(facts: dict[str, Fact]) -> dict[str, str]:
    """The effective settings of the server by keyword; of a repeated keyword the last."""
    return {line.split(" ", 1)[0]: line.split(" ", 1)[1] for line in facts["settings"].lines if " " in line}


@pytest.mark.req("R80")
@pytest.mark.parametrize("keyword", SETTINGS)
def test_setting(settings: dict[str, str], keyword: str) -> None:
    """The effective setting of the server is the safe one"""
    assert settings[keyword] == SETTINGS[keyword]


@pytest.mark.req("R80")
@pytest.mark.parametrize("keyword", ALGORITHMS)
def test_algorithms(settings: dict[str, str], keyword: str) -> None:
    """The server offers only strong algorithms; every key exchange is post-quantum secure"""
    assert settings[keyword].split(",") == ALGORITHMS[keyword]


@pytest.mark.req("R98")
def test_second_factor_is_admitted(settings: dict[str, str]) -> None:
    """Keys on FIDO tokens, which require a touch, are accepted"""
    assert "sk-ssh-ed25519@openssh.com" in settings["pubkeyacceptedalgorithms"].split(",")


@pytest.mark.req("F29")
def test_host_keys(facts: dict[str, Fact]) -> None:
    """The host keys ed25519 and ecdsa are complete, readable only by root, and match their public keys"""
    entries = {line.split()[0]: line.split()[1:] for line in facts["keys"].lines}
    assert sorted(entries) == sorted(HOST_KEYS + [f"{key}.pub" for key in HOST_KEYS])
    for path, (mode, owner, size) in entries.items():
        assert (mode, owner) == ("644" if path.endswith(".pub") else "600", "root:root"), path
        assert int(size) > 0
    assert facts["public"].lines == facts["stored"].lines
    assert [line.split()[0] for line in facts["public"].lines] == ["ecdsa-sha2-nistp256", "ssh-ed25519"]
    assert facts["left"].lines == []


@pytest.mark.req("F29")
def test_server_uses_those_keys(facts: dict[str, Fact]) -> None:
    """The server offers one key that was created on this clone, of the strongest type"""
    assert [line.split()[1] for line in facts["settings"].lines if line.startswith("hostkey ")] == [HOST_KEYS[1]]


@pytest.mark.req("F29")
def test_keys_were_shown_on_the_console(facts: dict[str, Fact]) -> None:
    """The host keys were printed on the console, and not a second time by cloud-init"""
    assert properties(facts["console"]) == {"ActiveState": "active", "Result": "success", "ExecMainStatus": "0"}
    assert facts["console"].lines[-1] == "0"


@pytest.mark.req("R9", "R28")
def test_unit(facts: dict[str, Fact]) -> None:
    """The server runs as one service, restarts after a crash, and creates no files that others can read"""
    assert properties(facts["unit"]) == {"UMask": "0027", "Restart": "on-failure", "ActiveState": "active"}
    assert facts["socket"].lines == ["inactive", "masked"]


@pytest.mark.req("R80")
def test_configuration_is_ours(facts: dict[str, Fact]) -> None:
    """The settings are in one file, which only root can read, and there are no drop-in files"""
    assert facts["access"].lines == ["600 root:root /etc/ssh/sshd_config"]
