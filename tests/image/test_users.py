"""Accounts: an allowlist. No account has a password, and only the administrator has a key."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from testinfra.host import Host

from .facts import Fact, gather

pytestmark = pytest.mark.story

NO_SHELL = {"/usr/sbin/nologin", "/bin/false"}
# Accounts with another shell, and why.
SHELLS = {"root": "/bin/bash", "sync": "/bin/sync"}
# Files that may be in /etc/sudoers.d.
SUDOERS = {"README": "the package's", "10-golden": "how, not who", "90-cloud-init-users": "the administrator, by cloud-init"}


@pytest.fixture(scope="module")
def facts(host: Host, spec: SimpleNamespace) -> dict[str, Fact]:
    """The account databases, and every key and rule that grants access."""
    return gather(
        host,
        {
            "passwd": "cat /etc/passwd",
            "shadow": "cat /etc/shadow",
            "groups": "cat /etc/group",
            "keys": "find / /home /var $(ls -d /var/www 2>/dev/null) -xdev "
            "\\( -name 'authorized_keys*' -o -name .rhosts -o -name .netrc \\) -size +0 | sort -u",
            "root key": "cat /root/.ssh/authorized_keys",
            "key": f"cat /home/{spec.admin.user}/.ssh/authorized_keys",
            "sudoers": "ls /etc/sudoers.d; cat /etc/sudoers.d/9*",
            "admin": f"id -Gn {spec.admin.user}; stat -c %a /home/{spec.admin.user} /home/{spec.admin.user}/.ssh; "
            "passwd -S root",
            "homes": "ls /home; ls -A /root",
            "umask": f"su -l {spec.admin.user} -c 'bash -lc umask'",
            "processes": "ps -eo user:32=,args= | grep -v '\\[' ",
        },
    )


@pytest.fixture(scope="module")
def passwd(facts: dict[str, Fact]) -> dict[str, list[str]]:
    """The fields of /etc/passwd by account."""
    return {line.split(":")[0]: line.split(":") for line in facts["passwd"].lines}


@pytest.mark.req("R27", "R79", "R99")
def test_accounts_are_known(passwd: dict[str, list[str]], expected: dict[str, Any], spec: SimpleNamespace) -> None:
    """Every account is in the list, with its origin, and every account in the list exists"""
    assert set(passwd) == {*expected["accounts"], *expected["service_accounts"], spec.admin.user}


@pytest.mark.req("R79")
def test_only_root_is_root(passwd: dict[str, list[str]]) -> None:
    """Only root has the user id 0, and no two accounts share an id"""
    identifiers = [fields[2] for fields in passwd.values()]
    assert [name for name, fields in passwd.items() if fields[2] == "0"] == ["root"]
    assert len(set(identifiers)) == len(identifiers)


@pytest.mark.req("R27", "R79")
def test_shells(passwd: dict[str, list[str]], spec: SimpleNamespace) -> None:
    """Only root and the administrator have a login shell"""
    wanted = SHELLS | {spec.admin.user: "/bin/bash"}
    found = {name: fields[6] for name, fields in passwd.items() if fields[6] not in NO_SHELL}
    assert found == wanted


@pytest.mark.req("R27")
@pytest.mark.expected("name", "service_accounts")
def test_service_accounts(passwd: dict[str, list[str]], name: str) -> None:
    """The account of a service is a system account without home and shell"""
    fields = passwd[name]
    assert 0 < int(fields[2]) < 1000
    assert fields[5:] == ["/nonexistent", "/usr/sbin/nologin"]


@pytest.mark.req("R81", "R98", "R101")
def test_no_account_has_a_password(facts: dict[str, Fact], passwd: dict[str, list[str]]) -> None:
    """Password login is locked for every account, also root and the administrator: there are no default credentials"""
    secrets = {line.split(":")[0]: line.split(":")[1] for line in facts["shadow"].lines}
    assert set(secrets) == set(passwd)
    assert {name: secret for name, secret in secrets.items() if secret[:1] not in ("!", "*")} == {}
    assert {name: fields[1] for name, fields in passwd.items() if fields[1] != "x"} == {}


@pytest.mark.req("R80", "R99")
def test_only_the_administrator_has_a_key(facts: dict[str, Fact], spec: SimpleNamespace) -> None:
    """The only key that grants access is the administrator's, from the seed of the clone"""
    own = f"/home/{spec.admin.user}/.ssh/authorized_keys"
    assert facts["keys"].lines == [own, "/root/.ssh/authorized_keys"]
    assert len(facts["key"].lines) == 1
    assert facts["key"].text.startswith("ssh-ed25519 ")
    # cloud-init makes a root login print the administrator's name and exit; sshd refuses root before that.
    assert all(line.startswith("no-port-forwarding,") and 'command="echo' in line for line in facts["root key"].lines)


@pytest.mark.req("R80")
def test_administrator(facts: dict[str, Fact], spec: SimpleNamespace) -> None:
    """The administrator may use sudo and read logs; the home directory is closed to others"""
    groups, home, keys, root = facts["admin"].lines
    assert set(groups.split()) == {spec.admin.user, "adm", "sudo"}
    assert home in ("700", "750")
    assert keys == "700"
    assert root.split()[1] == "L"


@pytest.mark.req("R99")
def test_sudo_rules_are_known(facts: dict[str, Fact], spec: SimpleNamespace) -> None:
    """The only sudo rule is the administrator's"""
    lines = [line for line in facts["sudoers"].lines if not line.startswith("#")]
    assert set(lines) <= {*SUDOERS, f"{spec.admin.user} ALL=(ALL) NOPASSWD:ALL"}
    assert f"{spec.admin.user} ALL=(ALL) NOPASSWD:ALL" in lines


@pytest.mark.req("R28")
def test_umask(facts: dict[str, Fact]) -> None:
    """Files that the administrator creates are closed to others"""
    assert facts["umask"].lines[-1] == "0027"


@pytest.mark.req("R16")
def test_nobody_runs_as_www_data(facts: dict[str, Fact], expected: dict[str, Any]) -> None:
    """The group www-data is used for access only, and no process runs as the user of that name"""
    users = {line.split()[0] for line in facts["processes"].lines}
    assert "www-data" not in users
    assert set(expected["running_as"]) <= users
