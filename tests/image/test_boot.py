"""The clone is up: every unit works, only known units run, and the units of the first boot have succeeded."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from testinfra.host import Host

from .facts import Fact, gather, properties
from .remote import until

# Timers that run besides those that are enabled.
STATIC_TIMERS = {"systemd-tmpfiles-clean.timer": "ages temporary files; systemd enables it statically"}
# Seconds that a boot waits for a disk, a mount or a service at least (docs/decisions/12-choices-in-the-image.md).
PATIENCE = 900
# Units with a shorter timeout, and why no boot depends on them.
IMPATIENT: dict[str, str] = {
    "systemd-hostnamed.service": "started on request",
    "systemd-localed.service": "started on request",
    "systemd-timedated.service": "started on request",
}
LIMITS = ("TimeoutStartUSec", "TimeoutUSec", "JobTimeoutUSec", "JobRunningTimeoutUSec", "WatchdogUSec")
SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1, "min": 60, "h": 3600, "d": 86400, "w": 604800, "month": 2629800, "y": 31557600}


@pytest.fixture(scope="module")
def facts(host: Host, expected: dict[str, Any]) -> dict[str, Fact]:
    """The state of the running system."""
    return gather(
        host,
        {
            "state": "systemctl is-system-running --wait",
            "failed": "systemctl --failed --no-legend --plain --no-pager",
            # A timer may start its service at any time; only a job that does not finish is an error.
            "jobs": until('test -z "$(systemctl list-jobs --no-legend --no-pager)"', 15, pause=0.5)
            + "; systemctl list-jobs --no-legend --no-pager",
            "enabled": "systemctl list-unit-files --state=enabled --no-legend --no-pager",
            "timers": "systemctl list-units --type=timer --state=active --no-legend --plain --no-pager",
            "targets": "systemctl is-active multi-user.target network-online.target cloud-init.target; "
            "systemctl get-default",
            "cloud": "cloud-init status --long",
            "first": "systemctl show -p Id -p Result -p NRestarts -p ActiveState " + " ".join(expected["first_boot"]),
            "fstab": "grep -v '^#' /etc/fstab",
            "release": "cat /etc/os-release",
            "virtualisation": "systemd-detect-virt",
            "names": "hostname; cat /etc/hostname",
            "locale": "cat /etc/locale.conf; locale -a; readlink /etc/localtime; date +%Z",
            "zone": "test -e /etc/localtime && head -c 4 /etc/localtime",
            "journal": "ls -d /var/log/journal/*; journalctl --header | grep -c 'File path: /var/log/journal'",
            "journal limits": "systemd-analyze cat-config systemd/journald.conf | grep -v '^#'",
            "machine id": "cat /etc/machine-id; stat -c '%a %U' /etc/machine-id; ls -l /var/lib/dbus/machine-id",
            "reboot": "test -e /run/reboot-required && echo needed; uname -r; ls /boot | grep ^vmlinuz | sort -V | tail -1",
            "grub": "stat -c '%a %U:%G' /boot/grub/grub.cfg; grep -cE '^password_pbkdf2 golden' /boot/grub/grub.cfg; "
            "grep -cE '^set superusers=' /boot/grub/grub.cfg; grep -E '^menuentry_id_option=' /boot/grub/grub.cfg",
            "restarts": f"systemctl show -p NRestarts --value {' '.join(expected['services'])}",
        },
    )


@pytest.fixture(scope="module")
def limits(host: Host) -> dict[str, Fact]:
    """The timeouts of units, the initrd and udev; systemctl queries every property of every unit."""
    return gather(
        host,
        {
            "limits": "systemctl show '*' -p Id -p LoadState " + " ".join(f"-p {name}" for name in LIMITS),
            "default limits": "systemctl show -p DefaultDeviceTimeoutUSec -p DefaultTimeoutStartUSec",
            "patience": "lsinitramfs /boot/initrd.img-* | grep scripts/init-premount/; "
            f"grep -c udev.event_timeout={PATIENCE} /etc/default/grub.d/20-boot.cfg",
        },
    )


@pytest.fixture(scope="module")
def names(host: Host) -> dict[str, Fact]:
    """The time zones, locales and accounts of the image."""
    return gather(
        host,
        {
            "zones": "cd /usr/share/zoneinfo && grep -Rl --binary-files=text ^TZif . | sed 's|^./||' | "
            "grep -vE '^(localtime|posixrules|right/|posix/)'",
            "locales": "grep ' UTF-8$' /usr/share/i18n/SUPPORTED | cut -d' ' -f1",
            "accounts": "cut -d: -f1 /etc/passwd /etc/group",
        },
    )


@pytest.mark.req("R9")
def test_system_is_running(facts: dict[str, Fact]) -> None:
    """systemd reports that the system is running and no unit has failed"""
    assert facts["failed"].lines == []
    assert facts["state"].text == "running"
    assert facts["jobs"].text == ""


@pytest.mark.req("R9", "R24")
def test_enabled_units_are_known(facts: dict[str, Fact], expected: dict[str, Any]) -> None:
    """Every enabled unit is in the list, with its reason, and every unit in the list is enabled"""
    assert {line.split()[0] for line in facts["enabled"].lines} == set(expected["units"])


@pytest.mark.req("R24")
def test_timers_are_known(facts: dict[str, Fact], expected: dict[str, Any], target: str) -> None:
    """Every active timer is in the list"""
    enabled = {unit for unit in expected["units"] if unit.endswith(".timer")}
    known = {*enabled, *STATIC_TIMERS} - ({"fstrim.timer"} if target == "container" else set())
    assert {line.split()[0] for line in facts["timers"].lines} == known


@pytest.mark.req("R9")
def test_targets_are_reached(facts: dict[str, Fact]) -> None:
    """The default target and the targets of the network and cloud-init are active"""
    assert facts["targets"].lines == ["active", "active", "active", "graphical.target"]


@pytest.mark.req("R4")
def test_cloud_init_is_done(facts: dict[str, Fact]) -> None:
    """cloud-init used the seed of the clone and finished without an error"""
    text = facts["cloud"].text
    assert facts["cloud"].status == 0, text
    assert re.search(r"^status: done$", text, re.MULTILINE)
    assert re.search(r"^extended_status: done$", text, re.MULTILINE)
    assert "DataSourceNoCloud" in text


@pytest.mark.req("R9", "F18")
def test_first_boot_units_worked(facts: dict[str, Fact], expected: dict[str, Any]) -> None:
    """Every unit of the first boot succeeded at its first attempt"""
    blocks = facts["first"].text.split("\n\n")
    found = {block["Id"]: block for block in (properties(Fact(0, text)) for text in blocks)}
    assert set(found) == {f"{name}.service" for name in expected["first_boot"]}
    for name, block in found.items():
        assert (block["Result"], block["NRestarts"], block["ActiveState"]) == ("success", "0", "active"), name


def seconds(text: str) -> float:
    """Return the seconds of a time span as systemctl shows it; 0 and infinity mean no limit."""
    if text in ("", "0", "infinity"):
        return float("inf")
    parts = [re.fullmatch(r"([0-9.]+)([a-z]+)", word) for word in text.split()]
    return sum(float(part[1]) * SECONDS[part[2]] for part in parts if part)


@pytest.mark.story
@pytest.mark.req("R9", "F35")
def test_a_boot_waits_for_a_slow_disk(limits: dict[str, Fact], expected: dict[str, Any]) -> None:
    """No timeout of a unit for a device, a mount, a start or the watchdog is below a quarter of an hour"""
    blocks = [properties(Fact(0, text)) for text in limits["limits"].text.split("\n\n")]
    loaded = {block["Id"]: block for block in blocks if block["LoadState"] == "loaded"}
    # A container has no device manager.
    services = {f"{name}.service" for name in expected["services"]}
    assert {*services, "systemd-journald.service", "-.mount"} <= set(loaded)
    short = {
        f"{unit} {name}={block[name]}"
        for unit, block in loaded.items()
        for name in LIMITS
        if unit not in IMPATIENT and seconds(block.get(name, "")) < PATIENCE
    }
    assert not short
    defaults = properties(limits["default limits"])
    assert len(defaults) == 2
    assert all(seconds(value) >= PATIENCE for value in defaults.values()), defaults
    scripts, udev = limits["patience"].lines[:-1], limits["patience"].lines[-1]
    assert any(line.endswith("/golden-patience") for line in scripts), scripts
    assert udev == "1"


@pytest.mark.vm
@pytest.mark.req("R9", "F35")
def test_fstab_shortens_no_wait(facts: dict[str, Fact]) -> None:
    """No file system in fstab has a timeout, and the machine boots also without the EFI system partition"""
    options = {line.split()[1]: line.split()[3].split(",") for line in facts["fstab"].lines}
    assert "nofail" in options["/boot/efi"]
    assert not [option for found in options.values() for option in found if "timeout" in option]


@pytest.mark.req("R9")
def test_nothing_was_restarted(facts: dict[str, Fact]) -> None:
    """No service has been restarted since the boot"""
    assert set(facts["restarts"].words) == {"0"}


@pytest.mark.req("R1")
def test_debian_13(facts: dict[str, Fact]) -> None:
    """The system is Debian 13"""
    release = properties(facts["release"])
    assert (release["ID"], release["VERSION_ID"].strip('"')) == ("debian", "13")


@pytest.mark.vm
@pytest.mark.req("R1")
def test_virtual_machine(facts: dict[str, Fact]) -> None:
    """The system detects that it runs in a QEMU virtual machine"""
    assert facts["virtualisation"].text in ("kvm", "qemu")


@pytest.mark.vm
@pytest.mark.req("R78")
def test_newest_kernel_runs(facts: dict[str, Fact]) -> None:
    """The running kernel is the newest installed one, and no reboot is required"""
    running, newest = facts["reboot"].lines
    assert newest == f"vmlinuz-{running}"


@pytest.mark.req("F29")
def test_host_name(facts: dict[str, Fact], spec: SimpleNamespace) -> None:
    """The clone has the host name of its seed, not that of the image"""
    now, stored = facts["names"].lines
    assert now == stored
    assert now != spec.hostname


@pytest.mark.req("R4")
def test_locale_and_time_zone(facts: dict[str, Fact], spec: SimpleNamespace) -> None:
    """Locale and time zone are those of the spec, and the locale exists"""
    configured, *rest = facts["locale"].lines
    *locales, zone, _ = rest
    assert configured == f"LANG={spec.locale}"
    assert spec.locale.lower().replace("-", "") in [name.lower().replace("-", "") for name in locales]
    assert zone.endswith(f"/usr/share/zoneinfo/{spec.timezone}")
    assert facts["zone"].text == "TZif", "the link leads to a time zone"


@pytest.mark.story
@pytest.mark.req("R4")
def test_names_of_the_spec_are_those_of_the_image(names: dict[str, Fact], spec: SimpleNamespace) -> None:
    """The time zones, locales and accounts that the spec is checked with are those of the image"""
    known = json.loads(next(Path(__file__).parents[2].glob("build/**/image_names.json")).read_text())
    assert set(names["zones"].lines) == set(known["time_zones"])
    bare = {name.replace(".UTF-8", "") for name in known["locales"]}
    assert {name.replace(".UTF-8", "") for name in names["locales"].lines} == bare
    assert set(names["accounts"].lines) - {spec.admin.user} <= set(known["accounts"])


@pytest.mark.req("R9")
def test_journal_is_persistent_and_limited(facts: dict[str, Fact]) -> None:
    """The journal is stored on the disk, with a size limit"""
    assert facts["journal"].status == 0
    assert int(facts["journal"].lines[-1]) >= 1
    limits = properties(facts["journal limits"])
    assert limits["Storage"] == "persistent"
    assert {"SystemMaxUse", "SystemKeepFree", "RuntimeMaxUse"} <= set(limits)


@pytest.mark.req("F29")
def test_machine_id(facts: dict[str, Fact]) -> None:
    """The machine id was created at first boot, and D-Bus uses the same one"""
    identity, access, link = facts["machine id"].lines
    assert re.fullmatch(r"[0-9a-f]{32}", identity)
    assert access in ("444 root", "644 root")
    assert link.endswith("-> /etc/machine-id")


@pytest.mark.vm
@pytest.mark.req("R98")
def test_boot_loader_is_locked(facts: dict[str, Fact]) -> None:
    """At the console the machine can be booted, but its boot options cannot be changed"""
    access, passwords, users, entries = facts["grub"].lines
    assert access in ("400 root:root", "600 root:root")
    assert (passwords, users) == ("1", "1")
    assert "--unrestricted" in entries
