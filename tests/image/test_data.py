"""The data disk: created, filled, mounted, adopted by another system, enlarged, and refused, on a loop device."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from testinfra.host import Host

from .facts import Fact, ask, browse, gather
from .remote import until

# On virtual disks of clones: tests/faults/test_data.py.
pytestmark = pytest.mark.story

LAYER = "22-data"
Part = TypeVar("Part")
# On the largest of the small file systems.
IMAGE = "/var/lib/goldentest-data"
LINK = "/dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_golden-data"
DISK = "/var/lib/golden-data/disk"
OPTIONS = {"rw", "noatime", "nodev", "nosuid"}
RUNNABLE = "/opt/app"
# udev in a container creates no nodes: that of the loop device may be missing.
LOOP = f"""
truncate -s 1G {IMAGE}
modprobe -q loop
[ -e /dev/loop-control ] || mknod -m 600 /dev/loop-control c 10 237
number=$(python3 -c 'import fcntl; print(fcntl.ioctl(open("/dev/loop-control"), 0x4C82))')
device=/dev/loop$number
[ -e $device ] || mknod -m 600 $device b 7 $number
mkdir -p {LINK.rpartition("/")[0]}
losetup $device {IMAGE} && ln -sfn $device {LINK}
"""
# The units of each layer that use the disk, in the order in which they are started.
SERVICES = {
    "30-postgresql": "postgresql@17-main", "75-logs": "rsyslog", "40-app": "gunicorn.socket gunicorn",
    "50-nginx": "nginx.socket nginx",
}  # fmt: skip
# Units that would start these, and units that read files in the background.
OTHERS = {"75-logs": "syslog.socket", "72-deploy": "golden-deploy-accept", "15-audit": "golden-aide"}
# The units of each layer that do not start when a disk was refused, and the directories that it keeps.
NEEDING = {
    "35-app-database": "golden-database", "30-postgresql": "postgresql@17-main", "40-app": "gunicorn", "50-nginx": "nginx",
    "70-backup": "golden-backup",
}  # fmt: skip
KEPT = {
    "80-firstboot": {"/etc/golden", "/etc/credstore"}, "30-postgresql": {"/var/lib/postgresql"},
    "40-app": {"/opt/app", "/var/www"}, "70-backup": {"/var/backups/golden"},
}  # fmt: skip
# Directories whose content a new system exchanges in part: a name that is there afterwards.
EXCHANGED = {"15-audit": ("/var/lib/aide", "aide.db.former"), "40-app": ("/opt/app/releases", "image")}
# Of the first layer of the image: a key beside files of the system, which is copied to the disk; the owner of a file in a
# directory that is kept.
KEYS = {"50-nginx": "/etc/ssl/private/app.key", "80-firstboot": "/etc/ssh/ssh_host_ecdsa_key"}
OWNERS = {
    "40-app": ("gunicorn", "www-data", "/var/www/media"),
    "30-postgresql": ("postgres", "postgres", "/var/lib/postgresql/17"),
    "15-audit": ("root", "root", "/var/lib/aide"),
}  # fmt: skip
TABLE = "create table goldentest_data (number int); insert into goldentest_data values (7)"
SQL = "sudo -u golden-backup psql -qAt -h /run/postgresql -U app_owner app -c"
# As at boot: before the services, and before the file that marks them as started.
AT_BOOT = (
    "rm -f /run/golden-data/started; golden-data --json attach; status=$?; touch /run/golden-data/started; exit $status"
)
MOUNTED = f'awk -v device=$(readlink -f {LINK}) \'$0 ~ " - ext4 " device " " {{print $5}}\' /proc/self/mountinfo | tac'
# A stopped service may take a moment to close its files; the first run of AIDE is not stopped, and goes on to others.
UNMOUNT = until(f"{MOUNTED} | xargs -r -n1 umount", 60)
OTHER_SITE = "marker.update(was=marker['site'], site='other')"
NEWER_LAYOUT = "marker.update(site=marker['was'], layout=marker['layout'] + 1)"


def of_layers(spec: SimpleNamespace, parts: Mapping[str, Part]) -> list[Part]:
    """Return the parts of the layers of the image."""
    return [part for layer, part in parts.items() if layer in spec.layers]


def serves(spec: SimpleNamespace) -> bool:
    """Return True if the image answers on its health page without settings: the application has its database."""
    return {"40-app", "35-app-database"} <= set(spec.layers)


def has_rows(spec: SimpleNamespace) -> bool:
    """Return True if the image has the application's database, and a user of the machine that may write to it."""
    return {"35-app-database", "70-backup"} <= set(spec.layers)


def health(host: Host, spec: SimpleNamespace) -> int | None:
    """Return the status of the health page; None for an image without one."""
    if not serves(spec):
        return None
    status: int = browse(host, {"health": ask(spec.application.server_name, "/health")})["health"].status
    return status


def edit(change: str) -> str:
    """Return shell code that changes the marker of the unmounted disk: ``change`` is Python that uses ``marker``."""
    program = f"import json, pathlib; p = pathlib.Path('/mnt/site.json'); marker = json.loads(p.read_text()); {change}; "
    return f'mount {LINK} /mnt && python3 -c "{program}p.write_text(json.dumps(marker))" && umount /mnt'


def answer(fact: Fact) -> dict[str, Any]:
    """Return the JSON object at the end of a command's output."""
    found: dict[str, Any] = json.JSONDecoder().raw_decode(fact.text[fact.text.index("{") :])[0]
    return found


@pytest.fixture(scope="module")
def story(host: Host, spec: SimpleNamespace) -> dict[str, Any]:
    """A disk is attached while the machine runs, then as at boot, then by another system; at the end it is removed."""
    if LAYER not in spec.layers:
        pytest.skip(f"the image has no layer {LAYER}")
    key, (user, group, directory) = of_layers(spec, KEYS)[0], of_layers(spec, OWNERS)[0]
    stop = f"systemctl stop {' '.join(reversed([*of_layers(spec, SERVICES), *of_layers(spec, OTHERS)]))}"
    start = f"systemctl start {' '.join(of_layers(spec, SERVICES))}"
    exchanged = " ".join(path for path, _name in of_layers(spec, EXCHANGED))
    rows = has_rows(spec)
    commands = {
        "key": f"sha256sum <{key}",
        "before": "golden-data --json status",
        "needing": f"systemctl show --property=Requires --value {' '.join(of_layers(spec, NEEDING))}",
        "units": "systemd-analyze verify --man=no golden-data.service golden-data-save.service golden-data-save.path; "
        "systemd-analyze condition 'ConditionFirmware=smbios-field(product_family $= golden-data:*)'",
        "late": f"{LOOP}\ngolden-data attach; findmnt {DISK}; blkid -p $(readlink -f {LINK})",
        "database": f"{SQL} '{TABLE}'" if rows else "true",
        "file": f"install -o {user} -g {group} -m 640 /dev/null {directory}/goldentest-data",
        "first": f"{stop}; rm -f /run/golden-data/started; systemctl start golden-data.service; status=$?; "
        "touch /run/golden-data/started; journalctl -b -q -o cat -u golden-data.service; exit $status",
        "mounts": "findmnt --json --list --output TARGET,SOURCE,OPTIONS",
        "start": start,
        "rows": f"{SQL} 'select * from goldentest_data'" if rows else "true",
        "owner": f"stat -c '%U:%G %a' {directory}/goldentest-data",
        "status": "golden-data --json status",
        "other users": f"runuser -u nobody -- ls {DISK}; runuser -u daemon -- ls {DISK}",
        # The kernel does not let a container enlarge a mounted file system: the next start does it.
        "grow": f"truncate -s 1500M {IMAGE}; losetup --set-capacity $(readlink -f {LINK}); golden-data --json grow",
        "saved": f"golden-data save; sha256sum <{DISK}/files{key}",
    }
    found: dict[str, Any] = dict(gather(host, commands))
    found["served"] = health(host, spec)
    other = f"marker['system'] = '0' * 32; marker['owners']['users']['{user}'] += 5000"
    found |= gather(host, {
        # The disk of another system: its user ids differ, and its keys are used.
        "foreign": f"{stop}; touch /var/lib/aide/aide.db; "
        f"find {directory} -user {user} -exec chown -h $(($(id -u {user}) + 5000)) {{}} +; {UNMOUNT}; {edit(other)}; "
        f"cp -a {key} /run/goldentest-key; echo wrong >{key}",
        "adopted": AT_BOOT,
        "restored": f"sha256sum <{key}; stat -c %U {directory}/goldentest-data; "
        f"df --output=size --block-size=1M {DISK} | tail -1; ls {exchanged}",
        "started": start,
    })  # fmt: skip
    found["served again"] = health(host, spec)
    newer = "marker['layout'] -= 1; marker['versions']['postgresql'] = 16"
    found |= gather(host, {
        "site": f"{stop}; {UNMOUNT}; {edit(OTHER_SITE)}; {AT_BOOT}",
        "refused": f"findmnt {DISK}; golden-data --json status",
        "layout": f"{edit(NEWER_LAYOUT)}; {AT_BOOT}",
        "version": f"{edit(newer)}; {AT_BOOT}" if "30-postgresql" in spec.layers else "true",
        "damaged": f"mount {LINK} /mnt; truncate -s 0 /mnt/site.json; umount /mnt; {AT_BOOT}",
        "blank": f"wipefs -qa $(readlink -f {LINK}); {AT_BOOT}",
    })  # fmt: skip
    found |= gather(host, {
        "end": f"{stop}; {MOUNTED} | xargs -r -n1 umount --lazy; "
        "rm -f /var/lib/golden-data/site /run/golden-data/refused; systemctl reset-failed golden-data.service; "
        f"losetup -d $(readlink -f {LINK}); rm -f {LINK} {IMAGE}; cp -a /run/goldentest-key {key}; "
        f"rm -f /run/goldentest-key; {start}; rm -f {directory}/goldentest-data; "
        + (f"{SQL} 'drop table goldentest_data'; " if rows else "") + "golden-data --json status",
    })  # fmt: skip
    found["served at the end"] = health(host, spec)
    return found


@pytest.mark.req("R5")
def test_without_a_data_disk_nothing_is_different(story: dict[str, Any]) -> None:
    """Without a data disk nothing is mounted; a disk that is added at runtime is not used until the next start"""
    assert answer(story["before"]) == {"ok": True, "attached": False, "reason": "this machine has no data disk"}
    assert "next start" in story["late"].text
    assert "TYPE=" not in story["late"].text


@pytest.mark.req("R5")
def test_the_units_are_valid(story: dict[str, Any]) -> None:
    """systemd accepts the units and each of their conditions"""
    wrong = [line for line in story["units"].lines if re.search("(?i)unknown|fail.* parse|invalid", line)]
    assert not [line for line in wrong if "golden-data" in line]
    assert "ConditionFirmware=smbios-field(product_family $= golden-data:*)" in story["units"].text


@pytest.mark.req("R6")
def test_what_must_outlive_the_system_is_on_the_disk(story: dict[str, Any], spec: SimpleNamespace) -> None:
    """Every directory in the lists of the layers is mounted from the disk, with the options of its list"""
    assert story["first"].status == 0, story["first"].text
    state = answer(story["status"])
    assert state["ok"], state
    assert state["attached"], state
    mounts = {entry["target"]: entry for entry in json.loads(story["mounts"].text)["filesystems"]}
    assert set().union(*of_layers(spec, KEPT)) <= set(state["directories"])
    for path in (*state["directories"], DISK):
        options = set(mounts[path]["options"].split(","))
        assert options >= OPTIONS, path
        assert ("noexec" in options) == (path != RUNNABLE), path
    assert not any("Permission denied" not in line for line in story["other users"].lines)


@pytest.mark.req("R4")
def test_the_machine_serves_from_the_disk(story: dict[str, Any], spec: SimpleNamespace) -> None:
    """The services work on the data disk, and files there have their owners and modes"""
    assert story["start"].status == 0, story["start"].text
    user, group, _directory = of_layers(spec, OWNERS)[0]
    assert story["owner"].text == f"{user}:{group} 640"
    if serves(spec):
        assert story["served"] == 200
    if has_rows(spec):
        assert story["rows"].text == "7"


def test_keys_beside_files_of_the_system_are_copied(story: dict[str, Any], spec: SimpleNamespace) -> None:
    """Keys in system directories are copied to the disk, and a new system restores them from there"""
    assert story["saved"].lines[-1] == story["key"].text
    assert story["adopted"].status == 0, story["foreign"].text + story["adopted"].text
    assert story["restored"].lines[:2] == [story["key"].text, of_layers(spec, OWNERS)[0][0]]
    # The disk was enlarged meanwhile.
    assert int(story["restored"].lines[2]) > 1400
    assert {name for _path, name in of_layers(spec, EXCHANGED)} <= set(story["restored"].lines)
    assert "aide.db" not in story["restored"].lines
    assert story["started"].status == 0
    assert story["served again"] in (200, None)


@pytest.mark.parametrize(("fault", "named"), [
    ("site", "belongs to the site other"), ("layout", "has the layout 2"), ("version", "postgresql 16"),
    ("damaged", "is damaged"), ("blank", "in its place is blank"),
])  # fmt: skip
def test_a_wrong_disk_is_refused(story: dict[str, Any], spec: SimpleNamespace, fault: str, named: str) -> None:
    """A disk of another site, a newer layout, another data format or without a description is refused"""
    if fault == "version" and "30-postgresql" not in spec.layers:
        pytest.skip("no layer of the image has data of a version")
    assert story[fault].status == 1, story[fault].text
    assert named in story[fault].text
    state = answer(story["refused"])
    assert not state["ok"]
    assert not state["attached"]
    assert "another" in state["reason"]


def test_no_service_begins_without_its_data(story: dict[str, Any], spec: SimpleNamespace) -> None:
    """Services that use the data disk require the unit that refuses one; without a disk the machine serves again"""
    needing = of_layers(spec, NEEDING)
    assert [("golden-data.service" in line) for line in story["needing"].lines] == [True] * len(needing)
    assert answer(story["end"]) == {"ok": True, "attached": False, "reason": "this machine has no data disk"}
    assert story["served at the end"] in (200, None)
