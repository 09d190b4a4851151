"""The data disk: created, filled, mounted, adopted by another system, enlarged, and refused, on a loop device."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace
from typing import Any

import pytest
from testinfra.host import Host

from .facts import Fact, ask, browse, gather
from .remote import until

# On virtual disks of clones: tests/faults/test_data.py.
pytestmark = pytest.mark.story

LAYER = "22-data"
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
# Besides the services, units that read the files of the application in the background.
STOP = (
    "systemctl stop nginx.socket nginx gunicorn.socket gunicorn postgresql@17-main syslog.socket rsyslog "
    "golden-deploy-accept golden-aide"
)
START = "systemctl start postgresql@17-main rsyslog gunicorn.socket nginx.socket gunicorn nginx"
# As at boot: before the services, and before the file that marks them as started.
AT_BOOT = (
    "rm -f /run/golden-data/started; golden-data --json attach; status=$?; touch /run/golden-data/started; exit $status"
)
MOUNTED = f'awk -v device=$(readlink -f {LINK}) \'$0 ~ " - ext4 " device " " {{print $5}}\' /proc/self/mountinfo | tac'
# A stopped service may take a moment to close its files; the first run of AIDE is not stopped, and goes on to others.
UNMOUNT = until(f"{MOUNTED} | xargs -r -n1 umount", 60)
OTHER_SITE = "marker.update(was=marker['site'], site='other')"
NEWER_LAYOUT = "marker.update(site=marker['was'], layout=marker['layout'] + 1)"


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
    health = {"health": ask(spec.application.server_name, "/health")}
    commands = {
        "key": "sha256sum </etc/ssl/private/app.key",
        "before": "golden-data --json status",
        "needing": "systemctl show --property=Requires --value golden-database postgresql@17-main gunicorn nginx "
        "golden-backup",
        "units": "systemd-analyze verify --man=no golden-data.service golden-data-save.service golden-data-save.path; "
        "systemd-analyze condition 'ConditionFirmware=smbios-field(product_family $= golden-data:*)'",
        "late": f"{LOOP}\ngolden-data attach; findmnt {DISK}; blkid -p $(readlink -f {LINK})",
        "database": "sudo -u golden-backup psql -qAt -h /run/postgresql -U app_owner app -c "
        "'create table goldentest_data (number int); insert into goldentest_data values (7)'",
        "media": "install -o gunicorn -g www-data -m 640 /dev/null /var/www/media/goldentest-data",
        "first": f"{STOP}; rm -f /run/golden-data/started; systemctl start golden-data.service; status=$?; "
        "touch /run/golden-data/started; journalctl -b -q -o cat -u golden-data.service; exit $status",
        "mounts": "findmnt --json --list --output TARGET,SOURCE,OPTIONS",
        "start": START,
        "rows": "sudo -u golden-backup psql -qAt -h /run/postgresql -U app_owner app -c 'select * from goldentest_data'",
        "owner": "stat -c '%U:%G %a' /var/www/media/goldentest-data /var/lib/postgresql/17/main /etc/golden",
        "status": "golden-data --json status",
        "stranger": f"runuser -u nobody -- ls {DISK}; runuser -u postgres -- ls {DISK}",
        # The kernel does not let a container enlarge a mounted file system: the next start does it.
        "grow": f"truncate -s 1500M {IMAGE}; losetup --set-capacity $(readlink -f {LINK}); golden-data --json grow",
        "saved": f"golden-data save; sha256sum <{DISK}/files/etc/ssl/private/app.key",
    }
    found: dict[str, Any] = dict(gather(host, commands))
    found["served"] = browse(host, health)["health"]
    other = "marker['system'] = '0' * 32; marker['owners']['users']['gunicorn'] += 5000"
    found |= gather(host, {
        # The disk of another system: its user ids differ, and its keys are used.
        "foreign": f"{STOP}; touch /var/lib/aide/aide.db; "
        f"find /var/www/media -user gunicorn -exec chown -h $(($(id -u gunicorn) + 5000)) {{}} +; {UNMOUNT}; {edit(other)}; "
        "cp -a /etc/ssl/private/app.key /run/goldentest-key; echo wrong >/etc/ssl/private/app.key",
        "adopted": AT_BOOT,
        "restored": "sha256sum </etc/ssl/private/app.key; stat -c %U /var/www/media/goldentest-data; "
        f"df --output=size --block-size=1M {DISK} | tail -1; "
        "ls /var/lib/aide /opt/app/releases",
        "started": START,
    })  # fmt: skip
    found["served again"] = browse(host, health)["health"]
    found |= gather(host, {
        "site": f"{STOP}; {UNMOUNT}; {edit(OTHER_SITE)}; {AT_BOOT}",
        "refused": f"findmnt {DISK}; golden-data --json status",
        "layout": f"{edit(NEWER_LAYOUT)}; {AT_BOOT}",
        "version": edit("marker['layout'] -= 1; marker['versions']['postgresql'] -= 1") + f"; {AT_BOOT}",
        "damaged": f"mount {LINK} /mnt; truncate -s 0 /mnt/site.json; umount /mnt; {AT_BOOT}",
        "blank": f"wipefs -qa $(readlink -f {LINK}); {AT_BOOT}",
    })  # fmt: skip
    found |= gather(host, {
        "end": f"{STOP}; {MOUNTED} | xargs -r -n1 umount --lazy; "
        "rm -f /var/lib/golden-data/site /run/golden-data/refused; systemctl reset-failed golden-data.service; "
        f"losetup -d $(readlink -f {LINK}); rm -f {LINK} {IMAGE}; cp -a /run/goldentest-key /etc/ssl/private/app.key; "
        f"rm -f /run/goldentest-key; {START}; rm -f /var/www/media/goldentest-data; "
        "sudo -u golden-backup psql -qAt -h /run/postgresql -U app_owner app -c 'drop table goldentest_data'; "
        "golden-data --json status",
    })  # fmt: skip
    found["served at the end"] = browse(host, health)["health"]
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
def test_what_must_outlive_the_system_is_on_the_disk(story: dict[str, Any]) -> None:
    """Every directory in the lists of the layers is mounted from the disk, with the options of its list"""
    assert story["first"].status == 0, story["first"].text
    state = answer(story["status"])
    assert state["ok"], state
    assert state["attached"], state
    mounts = {entry["target"]: entry for entry in json.loads(story["mounts"].text)["filesystems"]}
    assert {"/etc/golden", "/opt/app", "/var/lib/postgresql", "/var/www"} <= set(state["directories"])
    for path in (*state["directories"], DISK):
        options = set(mounts[path]["options"].split(","))
        assert options >= OPTIONS, path
        assert ("noexec" in options) == (path != RUNNABLE), path
    assert not any("Permission denied" not in line for line in story["stranger"].lines)


@pytest.mark.req("R4")
def test_the_machine_serves_from_the_disk(story: dict[str, Any]) -> None:
    """Database, media and application work on the data disk, with their owners and modes"""
    assert story["start"].status == 0, story["start"].text
    assert story["served"].status == 200
    assert story["rows"].text == "7"
    assert story["owner"].lines[:2] == ["gunicorn:www-data 640", "postgres:postgres 700"]


def test_keys_beside_files_of_the_system_are_copied(story: dict[str, Any]) -> None:
    """Keys in system directories are copied to the disk, and a new system restores them from there"""
    assert story["saved"].lines[-1] == story["key"].text
    assert story["adopted"].status == 0, story["foreign"].text + story["adopted"].text
    assert story["restored"].lines[:2] == [story["key"].text, "gunicorn"]
    # The disk was enlarged meanwhile.
    assert int(story["restored"].lines[2]) > 1400
    assert {"aide.db.former", "image"} <= set(story["restored"].lines)
    assert "aide.db" not in story["restored"].lines
    assert story["started"].status == 0
    assert story["served again"].status == 200


@pytest.mark.parametrize(("fault", "named"), [
    ("site", "belongs to the site other"), ("layout", "has the layout 2"), ("version", "postgresql 16"),
    ("damaged", "is damaged"), ("blank", "in its place is blank"),
])  # fmt: skip
def test_a_wrong_disk_is_refused(story: dict[str, Any], fault: str, named: str) -> None:
    """A disk of another site, a newer layout, another data format or without a description is refused"""
    assert story[fault].status == 1, story[fault].text
    assert named in story[fault].text
    state = answer(story["refused"])
    assert not state["ok"]
    assert not state["attached"]
    assert "another" in state["reason"]


def test_no_service_begins_without_its_data(story: dict[str, Any]) -> None:
    """Services that use the data disk require the unit that refuses one; without a disk the machine serves again"""
    assert [("golden-data.service" in line) for line in story["needing"].lines] == [True] * 5
    assert answer(story["end"]) == {"ok": True, "attached": False, "reason": "this machine has no data disk"}
    assert story["served at the end"].status == 200
