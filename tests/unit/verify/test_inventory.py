"""The inventory describes the image, and contains nothing that is specific to a clone."""

from __future__ import annotations

import copy
import getpass
import grp
import json
import os
import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from build.core import records, run
from build.core.errors import StepFailed
from build.verify import boot_plot, inventory, stocktaking
from tests.fakes import Fakes
from tests.unit.helpers import ROOT
from tests.unit.inventories import PLOT, RAW, inventory_of, kept, said

IMAGE_TESTS = ROOT / "tests" / "image"


def test_units_have_state_preset_and_exposure() -> None:
    assert inventory_of()["units"] == {
        "debug-shell.service": {"state": "masked", "preset": ""},
        "golden-alert@.service": {"state": "static", "preset": "", "exposure": 0.6},
        "nginx.service": {"state": "enabled", "preset": "enabled", "exposure": 0.4},
    }


def test_sockets_say_who_listens_where() -> None:
    assert inventory_of()["listening"] == {
        "tcp 0.0.0.0:22": "sshd (root)",
        "tcp 127.0.0.1:5432": "kernel",
        "tcp6 [::]:80": "nginx (nginx), systemd (root)",
        "udp own address:68": "systemd-network (systemd-network)",
        "unix /run/gunicorn.sock": "systemd (root)",
    }


def test_rights_of_files_are_readable() -> None:
    assert inventory_of()["privileged"] == {
        "/usr/bin/ping": "0755 root:root cap_net_raw=ep", "/usr/bin/su": "4755 root:root",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("mark", "text"),
    [
        ("0100000202000000000000000000000000000000", "cap_dac_override=ep"),
        ("0000000200000000010000000000000000000000", "cap_chown=i"),
        ("0000000200000000000000000001000000000000", "cap_checkpoint_restore=p"),
    ],
)
def test_capabilities_are_decoded_as_getcap_writes_them(mark: str, text: str) -> None:
    # linux/capability.h: flags, permitted (low), inheritable (low), permitted (high), inheritable (high).
    assert inventory.capabilities(mark) == text


def test_kernel_settings_are_those_of_the_image() -> None:
    assert inventory_of()["sysctl"] == {
        "kernel.printk": "4 4 1 7", "kernel.sysrq": "0", "net.ipv4.conf.CARD.rp_filter": "1",
        "net.ipv4.conf.lo.rp_filter": "0",
    }  # fmt: skip


def test_mounts_leave_out_what_follows_from_memory_and_logins() -> None:
    assert inventory_of()["mounts"] == {
        "/": "ext4 errors=remount-ro,noatime,rw", "/run": "tmpfs mode=755,nodev,nosuid,rw",
    }  # fmt: skip


def test_the_boot_is_told_in_seconds() -> None:
    boot = inventory_of()["boot"]
    assert boot["startup"] == {"kernel": 1.204, "userspace": 94.849, "total": 96.053}
    assert boot["units"] == [
        {"name": r"systemd-fsck@dev-disk-by\x2duuid-UUID.service", "start": 0.2, "seconds": 0.05},
        {"name": "nginx.service", "start": 1.2, "seconds": 3.45},
    ]


def test_two_clones_of_the_same_bytes_have_the_same_inventory() -> None:
    other = copy.deepcopy(RAW)
    other["interfaces"] = ["enp0s2", "lo"]
    other["sysctl"] = {name.replace("ens3", "enp0s2"): value for name, value in RAW["sysctl"].items()}
    other["sysctl"] |= {"kernel.random.entropy_avail": "7", "kernel.hostname": "other", "kernel.ns_last_pid": "900"}
    other["unit_files"][3]["unit_file"] = "session-9.scope"
    other["sockets"][2][1] = "1102000A:0044"
    other["mounts"][1][4] = "rw,size=202999k,nr_inodes=819111,mode=755"
    # A service behind one of systemd's sockets that is not started yet.
    other["holders"]["14"] = [["systemd", "root"]]
    first, second = inventory_of(), records.write(inventory.normalise(other, clone="bios", target="vm"))
    first.pop("boot"), second.pop("boot")
    assert first == second


@pytest.mark.parametrize("part", list(RAW))
def test_an_inventory_without_a_part_is_none(part: str) -> None:
    with pytest.raises(StepFailed, match="inventory of uefi is not as expected") as caught:
        inventory.normalise({key: value for key, value in RAW.items() if key != part}, clone="uefi", target="vm")
    assert part in caught.value.brief


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema": 1}', json.dumps({**inventory_of(), "schema": 2})])
def test_a_file_that_is_no_inventory_is_refused(text: str) -> None:
    with pytest.raises(StepFailed, match=r"inventory\.json is no"):
        inventory.parse(text)


def test_a_key_of_a_wrong_type_is_named() -> None:
    with pytest.raises(StepFailed, match=r"inventory\.json is no inventory of schema 1") as caught:
        inventory.parse(json.dumps(inventory_of(users={"root": {"uid": "0", "gid": 0, "home": "/", "shell": ""}})))
    assert caught.value.details == "users.root.uid: '0' is not a whole number\nusers.root.password: missing"


def test_an_inventory_is_read_as_it_was_written() -> None:
    assert kept(json.dumps(inventory_of())) == inventory_of()


# --- the plot ---------------------------------------------------------------------------------------------------------


HOSTILE = PLOT.replace(
    "</svg>",
    '<script>alert(1)</script><a href="http://example.org/"><text>away</text></a><image href="http://example.org/x.png"/>'
    '<foreignObject><b xmlns="http://www.w3.org/1999/xhtml">x</b></foreignObject><rect onclick="alert(1)" '
    'style="fill:url(http://example.org/)" x="1" y="1" width="url(#x)" height="2" /></svg>',
)


@pytest.mark.parametrize("make", [boot_plot.sanitise, lambda svg: boot_plot.embedded(svg, title="The boot")])
def test_nothing_in_the_plot_acts_or_leads_away(make: Any) -> None:
    root = ElementTree.fromstring(make(HOSTILE))
    space = f"{{{boot_plot.SVG}}}"
    tags = {element.tag.removeprefix(space) for element in root.iter()}
    assert tags <= {"svg", "g", "title", "rect", "line", "text", "style"}
    assert {name for element in root.iter() for name in element.attrib} <= boot_plot.ATTRIBUTES | {"role"}
    assert "example.org" not in make(HOSTILE)
    assert "url(" not in make(HOSTILE)
    assert "alert" not in make(HOSTILE)


def test_the_plot_keeps_what_it_shows() -> None:
    kept = boot_plot.sanitise(PLOT)
    assert list(boot_plot.rows(kept)) == list(boot_plot.rows(PLOT))
    assert "nginx.service (3.450s)" in kept
    assert 'class="sec01"' in kept
    assert 'class="sec01"' not in boot_plot.embedded(PLOT, title="x")


@pytest.mark.parametrize("text", ["no plot", "<html/>", '<!DOCTYPE svg [<!ENTITY a "b">]><svg/>'])
def test_what_is_no_plot_is_refused(text: str) -> None:
    with pytest.raises(StepFailed, match="plot of systemd-analyze"):
        boot_plot.sanitise(text)


def test_a_plot_without_units_is_refused() -> None:
    with pytest.raises(StepFailed, match="plotted no unit"):
        list(boot_plot.rows('<svg xmlns="http://www.w3.org/2000/svg"></svg>'))


# --- the way to it ----------------------------------------------------------------------------------------------------


def take(tmp_path: Path, *argv: str) -> Path:
    stocktaking.take(argv, tests=IMAGE_TESTS, out=tmp_path, clone="bios", target="vm", timeout=60)
    return tmp_path


def test_one_round_trip_leaves_inventory_and_plot(tmp_path: Path, fakes: Fakes) -> None:
    fake = fakes.command("reach", stdout=said())
    take(tmp_path, "reach", "clone")
    assert kept((tmp_path / "inventory.json").read_text()) == inventory_of()
    assert (tmp_path / "boot.svg").read_text() == boot_plot.sanitise(PLOT)
    assert len(fake.calls()) == 1


def test_the_program_comes_from_the_image_tests_and_over_standard_input(tmp_path: Path) -> None:
    (tmp_path / stocktaking.PROGRAM).write_text(f"print({said()!r})\n")
    python = [sys.executable, *stocktaking.PYTHON[1:]]
    stocktaking.take(python, tests=tmp_path, out=tmp_path / "out", clone="bios", target="vm", timeout=60)
    assert kept((tmp_path / "out" / "inventory.json").read_text()) == inventory_of()


def test_a_clone_that_does_not_answer_fails_the_build(tmp_path: Path, fakes: Fakes) -> None:
    fakes.command("reach", status=1, stderr="systemd-analyze plot ended with 1: Bootup is not yet finished\n")
    with pytest.raises(StepFailed, match="the inventory of bios could not be read") as caught:
        take(tmp_path, "reach")
    assert "Bootup is not yet finished" in caught.value.details
    assert not (tmp_path / "inventory.json").exists()


def test_an_answer_that_is_no_json_fails_the_build(tmp_path: Path, fakes: Fakes) -> None:
    fakes.command("reach", stdout="Last login: yesterday\n")
    with pytest.raises(StepFailed, match="the inventory of bios is no JSON") as caught:
        take(tmp_path, "reach")
    assert "Last login" in caught.value.details


def test_the_program_reads_this_machine_without_systemd(tmp_path: Path, fakes: Fakes) -> None:
    """The real program in a real Python; only the programs of systemd are played."""
    fakes.command(
        "systemctl", {"when": ["list-unit-files"], "stdout": json.dumps(RAW["unit_files"])},
        {"when": ["show", "--property=UnitPath"], "stdout": "/etc/systemd/system /usr/lib/systemd/system\n"}, status=1,
    )  # fmt: skip
    exposure = "\n".join(
        f"{mark} Overall exposure level for {unit}: {level} SAFE" for mark, unit, level in (
            ("\u2192", "nginx.service", "0.4"), ("\n\u2192", "golden-alert@x.service", "0.6"),
        )
    )  # fmt: skip
    fakes.command(
        "systemd-analyze", {"when": ["security", "nginx.service", "golden-alert@x.service"], "stdout": exposure},
        {"when": ["time"], "stdout": RAW["startup"]}, {"when": ["plot"], "stdout": PLOT}, status=1,
    )  # fmt: skip
    program = (IMAGE_TESTS / stocktaking.PROGRAM).read_text()
    (tmp_path / "tool").touch()
    (tmp_path / "tool").chmod(0o4755)
    program = re.sub(r"PLACES = .*\nON_DISK = .*", f"PLACES, ON_DISK = {{{str(tmp_path)!r}}}, set()", program)
    # The clone's programs are found in its directories: here the directory of the fakes comes first.
    program = program.replace("{os.defpath}:/usr/sbin", f"{fakes.directory}:{{os.defpath}}:/usr/sbin")
    done = run.run([sys.executable, "-I", "-"], timeout=120, stdin=program.encode())
    raw = json.loads(done.stdout)
    found = inventory.normalise(raw, clone="here", target="container")
    assert {name: unit.exposure for name, unit in found.units.items()} == {
        "debug-shell.service": None, "golden-alert@.service": 0.6, "nginx.service": 0.4,
    }  # fmt: skip
    assert found.users["root"].uid == 0
    assert found.users["root"].password in ("locked", "set", "empty")
    assert found.sysctl["kernel.ostype"] == "Linux"
    assert not any(name.startswith("kernel.random.") for name in found.sysctl)
    assert found.mounts["/proc"].startswith("proc ")
    owner = getpass.getuser()
    assert found.privileged == {f"{tmp_path}/tool": f"4755 {owner}:{grp.getgrgid(os.getgid()).gr_name}"}
    assert "$6$" not in done.stdout
    assert "$y$" not in done.stdout
