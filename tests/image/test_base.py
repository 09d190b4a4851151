"""The base: kernel settings, passwords, sessions, sudo, updates, time, as the benchmark requires, and that they work."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
from testinfra.host import Host

from .facts import Fact, gather, properties

pytestmark = pytest.mark.story

# The kernel settings that no edit of the layer may remove; the others are compared with the layer's file.
KERNEL = {
    "kernel.warn_limit": "100", "kernel.kptr_restrict": "2", "kernel.yama.ptrace_scope": "2",
    "kernel.unprivileged_userns_clone": "0", "kernel.panic": "10", "kernel.panic_on_oops": "1",
    "kernel.dmesg_restrict": "1", "kernel.randomize_va_space": "2",
    "kernel.unprivileged_bpf_disabled": "1", "kernel.kexec_load_disabled": "1", "kernel.io_uring_disabled": "2",
    "fs.protected_hardlinks": "1", "fs.protected_symlinks": "1", "fs.suid_dumpable": "0", "net.ipv4.ip_forward": "0",
    "net.ipv4.conf.all.rp_filter": "1", "net.ipv4.conf.all.accept_redirects": "0",
    "net.ipv6.conf.all.accept_redirects": "0", "net.ipv4.tcp_syncookies": "1", "kernel.core_pattern": "|/bin/false",
}  # fmt: skip
COMMAND_LINE = {
    "audit=1", "audit_backlog_limit=8192", "apparmor=1", "security=apparmor", "slab_nomerge", "vsyscall=none", "debugfs=off",
    "module.sig_enforce=1", "lockdown=integrity", "proc_mem.force_override=never", "ia32_emulation=0", "init_on_alloc=1",
    "hardened_usercopy=1", "kfence.sample_interval=100", "hash_pointers=always",
}  # fmt: skip
DENIED = {
    "cramfs", "freevxfs", "hfs", "hfsplus", "jffs2", "udf", "overlay", "squashfs", "atm", "can", "dccp", "rds", "sctp",
    "tipc", "firewire-core", "usb-storage",
}  # fmt: skip
BANNER = "Authorized users only. All activity may be monitored and reported."
TELLTALE = ("Debian", "13", "Linux", "\\")
# The modules that check a password, in the order of the stack.
PASSWORD_STACK = ["pam_pwquality.so", "pam_pwhistory.so", "pam_unix.so", "pam_deny.so", "pam_permit.so"]
AUTH_STACK = ["pam_faillock.so", "pam_unix.so", "pam_faillock.so", "pam_faillock.so", "pam_deny.so"]
WEAK = ("Short1!", "alllowercaseletters", "Aaaaaaaaaaaaaa1!")
# The account that runs commands without privileges.
UNPRIVILEGED = "nobody"


def _offer(password: str) -> str:
    """Return shell code that sets a password for an account without one, and prints whether it has one afterwards."""
    return f"printf '%s\\n%s\\n' '{password}' '{password}' | passwd games; echo status $?; grep ^games: /etc/shadow"


@pytest.fixture(scope="module")
def kernel(host: Host) -> dict[str, Fact]:
    """The settings of the running kernel, and those in the configuration files."""
    return gather(host, {
        "sysctl files": "cat /etc/sysctl.d/*.conf",
        "sysctl": "sed -nE 's/^([a-z0-9_.-]+) *=.*/\\1/p' /etc/sysctl.d/6*-golden*.conf | while read -r name; do "
        'echo "$name = $(sysctl -n "$name")"; done',
        "command line": "cat /proc/cmdline; grep -c ' audit=1 ' /boot/grub/grub.cfg",
        "loaded": "modprobe cramfs; echo status $?",
    })  # fmt: skip


@pytest.fixture(scope="module")
def facts(host: Host, spec: SimpleNamespace) -> dict[str, Fact]:
    """Settings in files and in sessions."""
    admin = spec.admin.user
    commands = {
        "sysctl files": "cat /etc/sysctl.d/*.conf",
        "modules": "modprobe --showconfig | grep -E '^(install|blacklist) '",
        "auth": "sed -n 's/^auth.*\\(pam_[a-z_]*\\.so\\).*/\\1/p' /etc/pam.d/common-auth",
        "password": "sed -n 's/^password.*\\(pam_[a-z_]*\\.so\\).*/\\1/p' /etc/pam.d/common-password; "
        "grep -c yescrypt /etc/pam.d/common-password",
        "account": "cat /etc/pam.d/common-account",
        "nullok": "grep -rlw nullok /etc/pam.d",
        "su": "grep -E '^auth' /etc/pam.d/su; getent group sugroup",
        "quality": "cd /etc/security; cat pwquality.conf faillock.conf pwhistory.conf | grep -v '^#'",
        "login.defs": "grep -v '^#' /etc/login.defs",
        "limits": f"su -l {admin} -c 'ulimit -Hc; umask'",
        "shell": f"su -l {admin} -c 'bash -lic \"echo \\$TMOUT; umask; readonly -p | grep -c TMOUT; "
        "echo \\$HISTTIMEFORMAT\"' 2>/dev/null",
        "root shell": "bash -lc umask",
        "sudo": f"su -l {admin} -c 'sudo -n -l'",
        "sudo log": f"su -l {admin} -c 'sudo -n /usr/bin/true golden-test'; tail -5 /var/log/sudo.log; "
        "stat -c '%a' /var/log/sudo.log",
        "banners": "cat /etc/issue; cat /etc/issue.net; cat /etc/motd",
        "banner files": "stat -c '%a %U:%G' /etc/issue /etc/issue.net /etc/motd",
        "cron": "stat -c '%a %U:%G %s %n' /etc/cron.allow /etc/at.allow; stat -c '%a %n' /etc/cron.*ly /etc/cron.d; "
        "stat -c '%a' /etc/crontab; ls /etc/cron.deny /etc/at.deny 2>/dev/null",
        "apt": "apt-config dump",
        "pins": "cat /etc/apt/preferences.d/10-golden",
        "upgrade": "unattended-upgrade --dry-run; echo status $?; "
        # unattended-upgrade creates an empty file if there is none.
        "test -s /etc/apt/sources.list || rm -f /etc/apt/sources.list",
        "needrestart": 'perl -we \'our %nrconf; do "/etc/needrestart/conf.d/10-golden.conf"; '
        'die $@ if $@; print "$nrconf{restart} $nrconf{interpscan}\\n"\'',
        "accounts": "stat -c '%a %U:%G' /etc/shadow- /etc/gshadow- 2>/dev/null; stat -c '%a %U:%G' /etc/shadow /etc/gshadow",
        "chrony": "chronyd -p -f /etc/chrony/chrony.conf; cat /etc/chrony/sources.d/*.sources",
        "chrony unit": "systemctl show -p Restart -p UMask chrony",
        "time services": "systemctl list-unit-files --no-legend systemd-timesyncd.service 'ntp*.service' openntpd.service",
        "mail": "echo golden-test-mail | /usr/lib/sendmail root; journalctl --sync; "
        "journalctl -t mail -p alert -n 5 -o cat --no-pager",
        "console": "test -x /usr/bin/login",
        "cores": "systemd-analyze cat-config systemd/coredump.conf",
    }
    return gather(host, commands | {f"offer {word}": _offer(word) for word in WEAK})


def _settings(text: str) -> dict[str, str]:
    """Return the lines ``name = value`` of a file of kernel settings."""
    found = re.findall(r"^([a-z0-9_.-]+) *= *(.*)$", text, re.MULTILINE)
    return {name: " ".join(value.split()) for name, value in found}


@pytest.mark.req("R9", "R24")
@pytest.mark.parametrize("name", KERNEL)
def test_kernel_setting_is_written(facts: dict[str, Fact], name: str) -> None:
    """The setting is in /etc/sysctl.d with the safe value"""
    assert _settings(facts["sysctl files"].text)[name] == KERNEL[name]


@pytest.mark.vm
@pytest.mark.req("R9", "R24")
def test_kernel_settings_hold(kernel: dict[str, Fact]) -> None:
    """Every kernel setting of the layer is in effect, and nothing overrides it"""
    wanted = _settings(kernel["sysctl files"].text)
    actual = _settings(kernel["sysctl"].text)
    assert set(KERNEL) <= set(actual)
    assert {name: value for name, value in actual.items() if value != wanted[name]} == {}


@pytest.mark.vm
@pytest.mark.req("R9", "R24")
def test_user_namespaces_are_roots(host: Host, expected: dict[str, Any]) -> None:
    """No user can create a user namespace, and systemd still creates one for each service that is configured with one"""
    found = gather(
        host,
        {
            "user": f"runuser -u {UNPRIVILEGED} -- unshare --user true",
            "root": "unshare --user true",
            "service": "systemd-run --quiet --wait --pipe -p PrivateUsers=yes "
            f"-p User={UNPRIVILEGED} cat /proc/self/uid_map",
            "units": f"for unit in {' '.join(expected['user_namespaces'])}; do "
            "readlink /proc/$(systemctl show -p MainPID --value $unit)/ns/user; done; "
            "readlink /proc/1/ns/user",
        },
    )
    assert found["user"].status != 0
    assert "Operation not permitted" in found["user"].text
    assert found["root"].status == 0
    assert found["service"].status == 0, found["service"]
    assert len(set(found["units"].lines)) == len(expected["user_namespaces"]) + 1


@pytest.mark.vm
@pytest.mark.req("R9", "R33")
def test_kernel_command_line(kernel: dict[str, Fact]) -> None:
    """The kernel was booted with auditing, AppArmor and hardening options, and will be at the next boot"""
    line, count = kernel["command line"].lines
    assert set(line.split()) >= COMMAND_LINE
    assert int(count) >= 1


@pytest.mark.req("R24")
def test_modules_are_denied(facts: dict[str, Fact]) -> None:
    """Modules of unused file systems, protocols and buses cannot be loaded, by name or by device"""
    lines = {" ".join(line.split()) for line in facts["modules"].lines}
    known = {name.replace("-", "_") for name in DENIED}
    for name in known:
        assert f"install {name} /bin/false" in lines
        assert f"blacklist {name}" in lines


@pytest.mark.vm
@pytest.mark.req("R24")
def test_usb_devices_of_later_are_not_authorised(host: Host) -> None:
    """No USB bus authorizes a device that is plugged in after boot"""
    *buses, settings = host.check_output(
        "cat /sys/bus/usb/devices/usb*/authorized_default 2>/dev/null; "
        "systemd-tmpfiles --cat-config | grep -c '^w- /sys/bus/usb/devices/usb[*]/authorized_default .* 0$'"
    ).splitlines()
    assert settings == "1"
    assert set(buses) <= {"0"}


@pytest.mark.vm
@pytest.mark.req("R24")
def test_denied_module_does_not_load(kernel: dict[str, Fact]) -> None:
    """Not even root can load a denied module"""
    assert kernel["loaded"].lines[-1] != "status 0"


@pytest.mark.req("R98")
def test_password_rules(facts: dict[str, Fact]) -> None:
    """A password has 14 characters of four kinds, is not one of the last 24, and is hashed with yescrypt"""
    *stack, hashes = facts["password"].lines
    assert stack == PASSWORD_STACK
    assert hashes == "1"
    text = re.sub(r" *= *", "=", facts["quality"].text).split()
    assert {"minlen=14", "minclass=4", "enforcing=1", "enforce_for_root", "dictcheck=1", "remember=24"} <= set(text)


@pytest.mark.req("R98")
@pytest.mark.parametrize("word", WEAK)
def test_weak_password_is_refused(facts: dict[str, Fact], word: str) -> None:
    """Not even root can give an account a weak password"""
    *_, status, shadow = facts[f"offer {word}"].lines
    assert status != "status 0"
    assert shadow.split(":")[1] in ("*", "!", "!*")


@pytest.mark.req("R98")
def test_lock_after_wrong_passwords(facts: dict[str, Fact]) -> None:
    """Four wrong passwords lock an account for a quarter of an hour, also root, and no login is possible without one"""
    assert facts["auth"].lines == AUTH_STACK
    text = re.sub(r" *= *", "=", facts["quality"].text).split()
    assert {"deny=4", "unlock_time=900", "even_deny_root"} <= set(text)
    assert facts["nullok"].lines == []


@pytest.mark.req("R80", "R98")
def test_keys_do_not_expire_with_passwords(facts: dict[str, Fact]) -> None:
    """An expired password does not lock out a user who logs in with a key: administrators have keys only"""
    unix = [line for line in facts["account"].lines if "pam_unix.so" in line]
    assert len(unix) == 1
    assert "no_pass_expiry" in unix[0].split()


@pytest.mark.req("R98")
def test_su_is_closed(facts: dict[str, Fact]) -> None:
    """Only root can use su: the group that may also use it is empty"""
    *rules, group = facts["su"].lines
    assert any("pam_wheel.so" in rule and "group=sugroup" in rule and "use_uid" in rule for rule in rules)
    assert group.split(":")[3] == ""


@pytest.mark.req("R28", "R98")
def test_login_defaults(facts: dict[str, Fact]) -> None:
    """Files of new accounts are closed to others, and passwords are hashed with yescrypt"""
    values = dict(line.split(maxsplit=1) for line in facts["login.defs"].lines)
    assert values["UMASK"] == "027"
    assert values["ENCRYPT_METHOD"] == "YESCRYPT"
    assert int(values["PASS_MAX_DAYS"]) <= 365


@pytest.mark.req("R28")
def test_session_limits(facts: dict[str, Fact]) -> None:
    """A session writes no core dumps and no files that others can read, with or without a login shell"""
    assert facts["limits"].lines[-2:] == ["0", "0027"]
    assert facts["root shell"].lines == ["0027"]
    assert "Storage=none" in facts["cores"].lines


@pytest.mark.req("R4", "R28")
def test_bash_profile(facts: dict[str, Fact]) -> None:
    """An idle shell ends after a quarter of an hour; the history has timestamps"""
    assert facts["shell"].lines == ["900", "0027", "1", "%F %T"]


@pytest.mark.req("R80", "R99")
def test_sudo_leaves_a_trace(facts: dict[str, Fact]) -> None:
    """sudo uses a separate terminal and logs users and commands to a file that only administrators can read"""
    text = facts["sudo"].text
    assert "use_pty" in text
    assert re.search(r"logfile=\\?\"?/var/log/sudo.log", text)
    assert "COMMAND=/usr/bin/true golden-test" in facts["sudo log"].text
    assert facts["sudo log"].lines[-1] in ("600", "640")


@pytest.mark.req("R12")
def test_banners(facts: dict[str, Fact]) -> None:
    """Banners state who may log in, and reveal nothing about the system"""
    text = facts["banners"].text
    assert facts["banners"].lines.count(BANNER) == 3
    assert [word for word in TELLTALE if word in text] == []
    assert facts["banner files"].lines == ["644 root:root"] * 3


@pytest.mark.req("R9")
def test_scheduled_jobs_are_the_administrators(facts: dict[str, Fact]) -> None:
    """Only root may use cron, and at if it is installed"""
    entries = facts["cron"].lines
    assert entries[:2] == ["640 root:root 0 /etc/cron.allow", "640 root:root 0 /etc/at.allow"]
    *directories, table = entries[2:]
    assert {line.split()[0] for line in directories} == {"700"}
    assert table == "600"


@pytest.mark.req("R26")
def test_security_updates(facts: dict[str, Fact]) -> None:
    """Only security updates are installed every day"""
    lines = facts["apt"].lines
    origins = [line for line in lines if line.startswith("Unattended-Upgrade::Origins-Pattern:: ")]
    assert len(origins) == 1
    assert "label=Debian-Security" in origins[0]
    assert not any(line.startswith("Unattended-Upgrade::Allowed-Origins:: ") for line in lines)
    assert {'APT::Periodic::Update-Package-Lists "1";', 'APT::Periodic::Unattended-Upgrade "1";'} <= set(lines)
    assert 'Unattended-Upgrade::Automatic-Reboot-WithUsers "false";' in lines


@pytest.mark.req("R26")
def test_unattended_upgrade_runs(facts: dict[str, Fact]) -> None:
    """unattended-upgrade runs, and services with replaced libraries are restarted, without a scan of interpreters"""
    assert facts["upgrade"].lines[-1] == "status 0"
    assert facts["needrestart"].lines == ["a 0"]


@pytest.mark.req("R34")
def test_pinned_to_debian(facts: dict[str, Fact], spec: SimpleNamespace) -> None:
    """Debian's release has priority over any source that is added later"""
    stanzas = [properties_of(part) for part in facts["pins"].text.split("\n\n")]
    priorities = {stanza["Pin"]: int(stanza["Pin-Priority"]) for stanza in stanzas}
    assert priorities[f"release o=Debian,n={spec.release}"] == 990
    assert priorities[f"release o=Debian,l=Debian-Security,n={spec.release}-security"] == 990
    assert [pin for pin, value in priorities.items() if value >= 500 and "o=Debian," not in pin] == []


def properties_of(stanza: str) -> dict[str, str]:
    """Return the fields of one stanza ``Name: value``."""
    return dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line)


@pytest.mark.req("R98")
def test_copies_of_the_account_database(facts: dict[str, Fact]) -> None:
    """No user can read the backup copies of the account database"""
    *older, shadow, gshadow = facts["accounts"].lines
    assert [shadow, gshadow] == ["640 root:shadow"] * 2
    assert set(older) <= {"0 root:root", "0 root:shadow"}


@pytest.mark.req("R29")
def test_time_is_proven(facts: dict[str, Fact]) -> None:
    """chrony prefers authenticated servers, also queries others, steps at its start, and is the only time service"""
    text = facts["chrony"].text
    assert facts["chrony"].status == 0
    assert re.search(r"^makestep 1(\.0)? 3$", text, re.MULTILINE)
    # In another mode a server of the site, or of Debian's pool, would be queried and never selected (F13 tests the clock).
    assert "authselectmode ignore" in text
    assert len(re.findall(r"^server \S+ .*\bnts trust prefer$", text, re.MULTILINE)) >= 2
    assert properties(facts["chrony unit"])["Restart"] == "on-failure"
    assert facts["time services"].lines == []


@pytest.mark.req("R9")
def test_mail_is_not_lost(facts: dict[str, Fact]) -> None:
    """Mail from programs to the administrator is logged in the journal with priority alert"""
    assert "golden-test-mail" in facts["mail"].lines


@pytest.mark.req("R1")
def test_console_has_a_login(facts: dict[str, Fact]) -> None:
    """The hypervisor's console can prompt for a user name and a password"""
    assert facts["console"].status == 0
