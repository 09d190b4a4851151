"""Packages: few, complete, from Debian, and without those that a server does not need."""

from __future__ import annotations

from typing import Any

import pytest
from testinfra.host import Host

from .facts import Fact, gather

pytestmark = pytest.mark.story

MOST_PACKAGES = 330
# Parts of package names that must not be in the image, and why.
UNWANTED = {
    "firmware-": "the hardware is virtual",
    "-microcode": "the processor belongs to the hypervisor",
    "gcc": "no compilers on a server",
    "g++": "no compilers on a server",
    "clang": "no compilers on a server",
    "golang": "no compilers on a server",
    "make": "no build tools on a server",
    "build-essential": "no build tools on a server",
    "-dev": "headers are for compilers",
    "telnet": "uses clear text",
    "rsh-": "uses clear text",
    "ftp": "uses clear text",
    "systemd-timesyncd": "chrony keeps the time",
    "isc-dhcp": "systemd-networkd is the DHCP client",
    "ifupdown": "systemd-networkd configures the network",
    "xserver": "no graphics on a server",
    "x11-common": "no graphics on a server",
}
# Packages whose names contain such a part by coincidence.
HARMLESS = {"libgcc-s1", "gcc-14-base", "openssh-sftp-server", "postgresql-common-dev"}


@pytest.fixture(scope="module")
def facts(host: Host) -> dict[str, Fact]:
    """The output of dpkg and apt."""
    return gather(
        host,
        {
            "packages": "dpkg-query -W -f '${Package}\\t${db:Status-Abbrev}\\t${Maintainer}\\n'",
            "audit": "dpkg --audit",
            "apt": "apt-config dump",
            "sources": "cat /etc/apt/sources.list.d/*.sources; ls /etc/apt/sources.list.d; "
            "test -e /etc/apt/sources.list && echo old",
            "documentation": "find /usr/share/man /usr/share/info /usr/share/groff "
            "/usr/share/lintian -type f 2>/dev/null | head",
            "copyright": "ls /usr/share/doc/bash/copyright; find /usr/share/doc -type f ! -name copyright | head",
            "translations": "find /usr/share/locale -name '*.mo' | head -3",
            "held": "apt-mark showhold",
            "override": "dpkg-statoverride --list",
            "pip": "ls -d /usr/lib/python3/dist-packages/pip /opt/app/*/*/venv/lib/python3*/site-packages/pip 2>/dev/null",
            "setuid": "find / /var /home -xdev -type f -perm /6000 2>/dev/null | sort -u",
        },
    )


# Debian's setuid and setgid programs that are not needed here: accounts come from cloud-init and have no password, and sshd
# refuses host-based authentication. Overrides of dpkg remove these bits permanently.
PLAIN = [
    "/usr/bin/chfn", "/usr/bin/chsh", "/usr/bin/expiry", "/usr/bin/gpasswd", "/usr/bin/newgrp",
    "/usr/lib/openssh/ssh-keysign",
]  # fmt: skip


@pytest.mark.req("R24")
def test_few_packages(facts: dict[str, Fact]) -> None:
    """The image has no more packages than its limit"""
    assert len(facts["packages"].lines) <= MOST_PACKAGES


@pytest.mark.req("R24")
def test_packages_are_whole(facts: dict[str, Fact]) -> None:
    """Every package is installed and configured, and dpkg reports no problem"""
    states = {line.split("\t")[0]: line.split("\t")[1].strip() for line in facts["packages"].lines}
    assert {name: state for name, state in states.items() if state != "ii"} == {}
    assert facts["audit"].text == ""
    assert facts["held"].text == ""


@pytest.mark.req("R24")
def test_no_unwanted_packages(facts: dict[str, Fact]) -> None:
    """There are no compilers, firmware, clear-text clients or duplicate services for one task"""
    names = {line.split("\t")[0] for line in facts["packages"].lines} - HARMLESS
    found = {name: why for name in names for part, why in UNWANTED.items() if part in name}
    assert found == {}


@pytest.mark.req("R24")
def test_no_weak_dependencies(facts: dict[str, Fact]) -> None:
    """apt installs dependencies only, no recommends or suggests, and extracts templates where programs may run"""
    lines = set(facts["apt"].lines)
    assert 'APT::Install-Recommends "0";' in lines
    assert 'APT::Install-Suggests "0";' in lines
    assert 'APT::ExtractTemplates::TempDir "/var/cache/debconf";' in lines


@pytest.mark.req("R34")
def test_sources_are_signed(facts: dict[str, Fact]) -> None:
    """Every package source is limited to Debian's keys, and security updates are among the sources"""
    text = facts["sources"].text
    stanzas = [part for part in text.split("\n\n") if "Types:" in part]
    assert stanzas
    for stanza in stanzas:
        assert "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg" in stanza
        assert "Components: main" in stanza
    assert any("-security" in stanza for stanza in stanzas)
    assert "Trusted:" not in text
    assert not text.endswith("old")


@pytest.mark.req("R24")
def test_documentation_is_left_out(facts: dict[str, Fact]) -> None:
    """Manuals and translations are not installed, licences are"""
    assert facts["documentation"].lines == []
    assert facts["translations"].lines == []
    assert facts["copyright"].lines == ["/usr/share/doc/bash/copyright"]


@pytest.mark.req("R18", "R24")
def test_no_pip(facts: dict[str, Fact]) -> None:
    """pip is not in the image"""
    assert facts["pip"].lines == []


@pytest.mark.req("R24")
def test_set_uid_programs_are_known(facts: dict[str, Fact], expected: dict[str, Any]) -> None:
    """Every setuid or setgid program is in the list, with its reason"""
    assert set(facts["setuid"].lines) <= set(expected["setuid"])


@pytest.mark.req("R24")
def test_rights_that_were_taken_off_stay_off(host: Host) -> None:
    """Programs that need no setuid or setgid bit do not have it, also after an upgrade of their package"""
    found = gather(
        host,
        {
            "modes": f"stat -c '%a %U:%G %n' {' '.join(PLAIN)}",
            "overrides": f"for path in {' '.join(PLAIN)}; do dpkg-statoverride --list $path; done",
        },
    )
    assert found["modes"].lines == [f"755 root:root {path}" for path in PLAIN]
    assert [line.split()[-2].lstrip("0") for line in found["overrides"].lines] == ["755"] * len(PLAIN)


@pytest.mark.layers("50-nginx")
@pytest.mark.req("R35")
def test_overrides(facts: dict[str, Fact]) -> None:
    """Upgrades keep the web server's directories closed"""
    assert {"root adm 0750 /var/log/nginx", "root nginx 0750 /etc/nginx"} <= {
        " ".join([*line.split()[:2], line.split()[2].zfill(4), line.split()[3]]) for line in facts["override"].lines
    }


@pytest.mark.req("R24", "R31")
def test_files_are_compared_with_their_packages_every_week(host: Host) -> None:
    """The weekly job reports nothing on an unchanged clone, and names a changed file"""
    file = "/usr/lib/os-release"
    found = gather(
        host,
        {
            "setting": "grep ^CRON_CHECK /etc/default/debsums",
            "untouched": "sh /etc/cron.weekly/debsums",
            "changed": f"cp -p {file} /run/goldentest-kept; echo '# changed' >>{file}; sh /etc/cron.weekly/debsums; "
            f"cat /run/goldentest-kept >{file}; touch -r /run/goldentest-kept {file}; rm /run/goldentest-kept",
        },
    )
    assert found["setting"].text == "CRON_CHECK=weekly"
    assert found["untouched"].text == ""
    assert found["changed"].lines == [file]
