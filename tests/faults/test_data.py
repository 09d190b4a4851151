"""A data disk that two systems use one after the other, as a replacement does, and what may happen to it on the way."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from build.core import run
from build.faults.machines import Clone, Ward
from build.machines import vm
from tests.image.conftest import connect

from .conftest import is_well, wait_until

pytestmark = pytest.mark.vm

SITE, OTHER_SITE = "web1", "web2"
DISK_MIB, GROWN_MIB = 3072, 4096
# The identity of the site for visitors and SSH clients; a replacement of the system must not change it.
IDENTITY = """set -e
ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub
openssl x509 -in /etc/ssl/certs/app.pem -noout -fingerprint
sha256sum </etc/credstore/app.secret-key
/usr/lib/postgresql/17/bin/pg_controldata /var/lib/postgresql/17/main | grep 'system identifier'"""
PSQL = "runuser -u golden-backup -- psql -qAt -h /run/postgresql -U app_owner app -c"
WRITE = f"""set -e
{PSQL} 'create table faults_data (number int); insert into faults_data values (7)'
install -o gunicorn -g www-data -m 640 /dev/null /var/www/media/faults-data
echo '# kept' >>/etc/golden/site.yaml"""
READ = f"{PSQL} 'select * from faults_data'; stat -c '%U %a' /var/www/media/faults-data; tail -n 1 /etc/golden/site.yaml"


class Systems:
    """Clones that have one data disk, of which one runs at a time."""

    def __init__(self, ward: Ward, disk: Path) -> None:
        self.ward, self.disk = ward, disk
        self.made: list[Clone] = []

    def make(self, name: str, *, site: str = SITE) -> Clone:
        """Make a clone with the data disk, not started yet."""
        made = self.ward.make(name)
        assert isinstance(made, Clone)
        made.extra = (
            "-drive", f"if=none,id=data,file={self.disk},format=qcow2,cache=unsafe,discard=unmap",
            "-device", "scsi-hd,drive=data,bus=scsi0.0,serial=golden-data",
            "-smbios", f"type=1,family=golden-data:{site}",
        )  # fmt: skip
        self.made.append(made)
        return made

    def shut_down(self, machine: Clone) -> None:
        """Shut a clone down as an operator does, and wait for its end."""
        connect(machine.entry(), lasting=False).run("systemctl --no-block poweroff")
        limit = vm.BOOT_SECONDS * self.ward.scale
        wait_until(lambda: machine.made.process.poll() is not None, seconds=limit, what="the end of the machine", pause=1)
        machine.stop()


@pytest.fixture
def systems(ward: Ward, tmp_path: Path) -> Iterator[Systems]:
    """A blank data disk, and no machine."""
    disk = tmp_path / "data.qcow2"
    run.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, f"{DISK_MIB}M"], timeout=run.LOCAL_SECONDS)
    made = Systems(ward, disk)
    yield made
    for machine in made.made:
        machine.stop()


def started(machine: Clone, numbers: Callable[..., None]) -> Host:
    """Start a clone, and return it when it is well and uses the data disk."""
    begun = time.monotonic()
    machine.start()
    numbers(**{f"{machine.name}_ready_s": round(time.monotonic() - begun, 1)})
    return checked(machine)


def checked(machine: Clone) -> Host:
    """Return a clone that runs, after a look whether it is well and uses the data disk."""
    host = connect(machine.entry(), lasting=False)
    state: dict[str, Any] = json.loads(host.check_output("golden-data --json status"))
    assert (state["ok"], state["attached"]) == (True, True), state
    assert is_well(host), host.run("systemctl --failed; systemctl list-jobs").stdout
    return host


@pytest.mark.req("F18", "R5", "R6")
def test_a_new_system_has_the_data_of_the_former(systems: Systems, numbers: Callable[..., None]) -> None:
    """A clone that gets the data disk of another one is the same site: keys, certificate, secrets, database, media"""
    former = systems.make("former")
    host = started(former, numbers)
    host.check_output("bash -c %s", WRITE)
    identity, machine_id = host.check_output("bash -c %s", IDENTITY), host.check_output("cat /etc/machine-id")
    # What a site's running system does with a larger disk.
    former.monitor(f"block_resize data {GROWN_MIB}M")
    grown = json.loads(host.check_output("golden-data --json grow"))
    assert grown["bytes"] > grown["bytes_before"] + (GROWN_MIB - DISK_MIB) * 0.9 * (1 << 20), grown
    systems.shut_down(former)

    later = systems.make("later")
    host = started(later, numbers)
    assert host.check_output("cat /etc/machine-id") != machine_id
    assert host.check_output("bash -c %s", IDENTITY) == identity
    assert host.check_output(READ).splitlines() == ["7", "gunicorn 640", "# kept"]

    # The disk is complete, so that nothing is copied when the power comes back.
    later.cut_power()
    later.start_again()
    host = checked(later)
    assert host.check_output("bash -c %s", IDENTITY) == identity
    assert host.check_output(READ).splitlines() == ["7", "gunicorn 640", "# kept"]


@pytest.mark.req("F18", "R5")
@pytest.mark.parametrize("part", [0.25, 0.5])
def test_a_power_cut_while_the_disk_is_made(
    systems: Systems, machine: Clone, numbers: Callable[..., None], part: float
) -> None:
    """A power cut during the first boot leaves a data disk that the next boot makes again, or uses"""
    first = systems.make("first")
    boot, begun = machine.made.timings["ready"], time.monotonic()
    first.start(wait=False)
    time.sleep(max(0.0, part * boot - (time.monotonic() - begun)))
    first.cut_power()
    first.start_again()
    checked(first)
    numbers(**{"cut at s": round(part * boot, 1)})


@pytest.mark.req("F18", "R5")
def test_the_disk_of_another_site_is_left_alone(systems: Systems, numbers: Callable[..., None]) -> None:
    """A clone of another site refuses the disk, starts no service without its data, and changes nothing on the disk"""
    former = systems.make("former")
    started(former, numbers)
    systems.shut_down(former)
    before = subprocess.check_output(["sha256sum", systems.disk])
    stranger = systems.make("stranger", site=OTHER_SITE)
    stranger.start(wait=False)
    limit = vm.BOOT_SECONDS * systems.ward.scale
    refusal = f"belongs to the site {SITE}"
    wait_until(lambda: refusal in stranger.made.console_text(), seconds=limit, what="the refusal on the console", pause=2)
    wait_until(lambda: "login:" in stranger.made.console_text(), seconds=limit, what="a login prompt", pause=2)
    stranger.stop()
    assert subprocess.check_output(["sha256sum", systems.disk]) == before
