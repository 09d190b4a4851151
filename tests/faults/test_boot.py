"""Boots that are cut off, come after a crash, at a wrong time, or without a network; clones of one image side by side."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from testinfra.host import Host

from build.faults.machines import Clone, Container, Machine, Ward
from build.machines import vm
from tests.image.conftest import connect
from tests.image.remote import seconds

from .conftest import is_well, wait_until
from .freight import give
from .journal import Journal
from .traffic import Traffic

# Of the time a first boot takes: 2, 5, 10 and 20 s of the 25 s on real processors.
CUTS = (0.08, 0.2, 0.4, 0.8)
CONTAINER_BOOT_SECONDS = 12.0
DAY = 86400
# The kernel starts the initial RAM file system: the last line before anything waits for a disk.
USERSPACE = "Run /init as init process"
# A tenth of the processors in long rounds, so that a wait for a device is longer than Debian's limit also where the
# processors are fast; as many rounds as an emulated clone needs until its file systems are mounted.
DEBIAN_DEVICE_SECONDS, STARVED_SECONDS, STARVED_ROUNDS = 90, 100.0, 8
# Secrets that are whole, keys that fit each other, nothing half made left lying about.
WHOLE = """set -eu
for type in ed25519 ecdsa; do
    ssh-keygen -y -f /etc/ssh/ssh_host_${type}_key | cut -d' ' -f1,2 >/run/faults.pub
    cut -d' ' -f1,2 /etc/ssh/ssh_host_${type}_key.pub | cmp - /run/faults.pub
done
openssl pkey -in /etc/ssl/private/app.key -pubout >/run/faults.pub
openssl x509 -in /etc/ssl/certs/app.pem -noout -pubkey | cmp - /run/faults.pub
test $(wc -c </etc/credstore/app.secret-key) -ge 50
test -s /etc/machine-id
test -z "$(find /etc/ssh /etc/ssl /etc/credstore /var/lib/postgresql -name '*.new' -o -name '.golden-*')"
ask="/usr/lib/postgresql/17/bin/psql -X -A -t -h /run/postgresql -U app_owner -d app -c"
test "$(runuser -u golden-backup -- $ask 'SELECT count(*) FROM pages_page')" -ge 1
"""
# The results of the first boot, which a second run of its units must not change. The database is compared by its dump,
# without the dump's random words: the bytes of its files change by themselves.
MADE = r"""set -e
find /etc /var/lib/golden-migrate -maxdepth 3 -type f -not -path '/etc/golden/*' -exec sha256sum {} + | sort
find /etc -printf '%p %m %u:%g %l\n' | sort
cat /run/golden/names /run/golden/server-names.conf /run/golden/site.env
(cd / && runuser -u postgres -- pg_dumpall --globals-only --host /run/postgresql --database postgres >/run/faults.sql)
(cd / && runuser -u golden-backup -- pg_dump --create -h /run/postgresql -U app_owner app >>/run/faults.sql)
grep -v -e '^\\restrict' -e '^\\unrestrict' /run/faults.sql | sha256sum
/usr/lib/postgresql/17/bin/pg_controldata /var/lib/postgresql/17/main | grep 'system identifier'"""
FIRST_BOOT = "golden-hostkeys golden-names golden-tls golden-secrets golden-database golden-migrate"
# Answers every request with the host's time, which is passed as an offset from the machine's boot clock.
TIME_SERVER = """
import socket, struct, sys, time
base = float(sys.argv[1]) - time.clock_gettime(time.CLOCK_BOOTTIME)
def stamp():
    seconds = base + time.clock_gettime(time.CLOCK_BOOTTIME) + 2208988800
    return int(seconds * 2**32) & (2**64 - 1)
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 11123))
while True:
    data, peer = server.recvfrom(512)
    now = stamp()
    sent = struct.unpack(">Q", data[40:48])[0]
    head = struct.pack(">BBbbIII", 0x24, 1, 4, -20, 0, 0, 0x4C4F434C)
    server.sendto(head + struct.pack(">QQQQ", now, sent, now, stamp()), peer)
"""
CHRONY = "/etc/chrony/sources.d/faults.sources"


@pytest.fixture
def another(ward: Ward) -> Iterator[Machine]:
    """A second machine of the image, not started yet."""
    made = ward.make("another")
    yield made
    made.stop()


@pytest.mark.req("F18", "R9")
@pytest.mark.parametrize("part", CUTS)
def test_power_cut_during_first_boot(
    another: Machine, machine: Machine, ward: Ward, numbers: Callable[..., None], part: float,
    record_property: Callable[[str, object], None],
) -> None:  # fmt: skip
    """A power cut during the first boot leaves a machine that finishes at the next one, with every secret whole"""
    boot = machine.made.timings["ready"] if isinstance(machine, Clone) else CONTAINER_BOOT_SECONDS
    begun = time.monotonic()
    another.start(wait=False)
    time.sleep(max(0.0, part * boot - (time.monotonic() - begun)))
    another.cut_power()
    begun = time.monotonic()
    another.start_again()
    numbers(**{f"cut at {part * boot:.0f} s, ready after s": round(time.monotonic() - begun, 1)})
    host = connect(another.entry(), lasting=False)
    assert is_well(host), host.run("systemctl --failed; systemctl list-jobs").stdout
    done = host.run("bash -c %s", WHOLE)
    assert done.rc == 0, done
    record_property("evidence", host.check_output("journalctl --list-boots | tail -n 1"))


@pytest.mark.vm
@pytest.mark.req("F18")
def test_reboot(machine: Machine, host: Host, traffic: Traffic, numbers: Callable[..., None]) -> None:
    """A reboot ends with every service up, and nothing made again"""
    assert isinstance(machine, Clone)
    before, made = host.check_output("cat /proc/sys/kernel/random/boot_id").strip(), host.check_output(MADE)
    host.run("systemctl --no-block reboot")
    begun = time.monotonic()
    machine.await_reboot(before)
    numbers(back_after_s=round(time.monotonic() - begun, 1))
    host = connect(machine.entry(), lasting=False)
    assert host.check_output(MADE) == made
    assert traffic.get("/health").statuses == [200]


@pytest.mark.vm
@pytest.mark.req("F32", "R9")
def test_kernel_panic(
    machine: Machine, host: Host, traffic: Traffic, numbers: Callable[..., None],
    record_property: Callable[[str, object], None],
) -> None:  # fmt: skip
    """After a kernel panic the machine boots by itself, its file systems are clean, and the journal has the earlier lines"""
    assert isinstance(machine, Clone)
    assert int(host.check_output("cat /proc/sys/kernel/panic")) > 0
    before = host.check_output("cat /proc/sys/kernel/random/boot_id").strip()
    host.check_output("echo last words | systemd-cat --identifier faults; journalctl --sync; sync")
    host.run("systemd-run --no-block sh -c 'sleep 1; echo c >/proc/sysrq-trigger'")
    begun = time.monotonic()
    machine.await_reboot(before)
    numbers(back_after_s=round(time.monotonic() - begun, 1))
    host = connect(machine.entry(), lasting=False)
    line = host.check_output("journalctl --boot -1 --identifier faults --output short-iso | tail -n 1")
    assert "last words" in line
    record_property("evidence", line)
    mounts = host.check_output("findmnt --noheadings --types ext4 --output OPTIONS").splitlines()
    assert all("ro" not in options.split(",") for options in mounts), mounts
    states = host.check_output("for d in $(findmnt -nt ext4 -o SOURCE); do tune2fs -l $d | grep -E 'state|FS Error'; done")
    assert set(states.split("\n")) == {"Filesystem state:         clean"}, states
    assert traffic.get("/health").statuses == [200]


@pytest.mark.vm
@pytest.mark.req("F33", "R9")
def test_boot_without_network(another: Machine, ward: Ward, numbers: Callable[..., None]) -> None:
    """Without network, time or name servers everything is up before the network comes; only the clock is unset"""
    assert isinstance(another, Clone)
    # The processors wait until the cable is out.
    another.extra = ("-S",)
    another.start(wait=False)
    another.monitor("set_link net off")
    another.monitor("cont")
    limit = vm.BOOT_SECONDS * ward.scale
    wait_until(lambda: "login:" in another.made.console_text(), seconds=limit, what="a login prompt on the console", pause=2)
    # What follows the prompt; the services must not need the network that comes afterwards.
    time.sleep(10 * ward.scale)
    another.monitor("set_link net on")
    another.await_ready()
    host = connect(another.entry(), lasting=False)
    # The loopback interface has its own.
    gained = host.check_output("journalctl -b -o short-monotonic -u systemd-networkd | grep -m1 'eth0: Gained carrier'")
    carrier = float(gained.partition("]")[0].strip("[ "))
    tiers = ("nginx.service", "gunicorn.service", "postgresql@17-main.service", "ssh.service")
    stamp = "systemctl show --value --property ActiveEnterTimestampMonotonic"
    active = {unit: int(host.check_output(f"{stamp} {unit}")) / 1e6 for unit in tiers}
    numbers(carrier_after_s=carrier, tiers_up_after_s=round(max(active.values()), 1))
    assert max(active.values()) < carrier, active
    assert host.check_output("systemctl --failed --no-legend --plain") == ""
    assert "Not synchronised" in host.check_output("chronyc -n tracking")


@pytest.mark.vm
@pytest.mark.req("F35", "R9")
def test_boot_of_a_starved_clone(
    another: Machine, ward: Ward, numbers: Callable[..., None], record_property: Callable[[str, object], None]
) -> None:
    """With a tenth of its processors a machine waits for its disks instead of ending in emergency mode"""
    assert isinstance(another, Clone)
    another.start(wait=False)
    limit = vm.BOOT_SECONDS * ward.scale
    wait_until(lambda: USERSPACE in another.made.console_text(), seconds=limit, what="the start of userspace", pause=0.1)
    rounds = another.starve(
        stopped=STARVED_SECONDS, running=STARVED_SECONDS / 9, most=STARVED_ROUNDS,
        enough=lambda: vm.HOST_KEYS.search(another.made.console_text()) is not None,
    )  # fmt: skip
    another.await_ready()
    host = connect(another.entry())
    stamps = "systemctl show --property UserspaceTimestampMonotonic; systemctl show --property ActiveEnterTimestampMonotonic"
    lines = host.check_output(f"{stamps} local-fs.target").splitlines()
    begun, mounted = (int(line.partition("=")[2]) / 1e6 for line in lines)
    numbers(rounds=rounds, local_file_systems_after_s=round(mounted - begun, 1))
    # Otherwise the limits that Debian has would have done as well.
    assert mounted - begun > DEBIAN_DEVICE_SECONDS, f"the clone was starved for {rounds} rounds, and did not notice"
    assert host.check_output("systemctl show --value --property ActiveEnterTimestamp emergency.target rescue.target") == ""
    assert host.check_output("systemctl --failed --no-legend --plain") == ""
    record_property("evidence", host.check_output("systemd-analyze time | head -n 1"))


@pytest.mark.vm
@pytest.mark.req("F13", "R29")
@pytest.mark.parametrize("days", [2, -2])
def test_wrong_clock(
    machine: Machine, host: Host, load: Callable[..., Any], journal: Journal, numbers: Callable[..., None], days: int
) -> None:
    """With a clock that is two days wrong the machine serves; a started chrony corrects it at once, and logs it"""
    host.check_output(f"date --set @{int(time.time()) + days * DAY} >/dev/null")
    with load() as going:
        going.more(24)
    going.lost()
    give(machine, TIME_SERVER.encode(), "/root/time-server.py")
    host.check_output(f"systemd-run --unit faults-time --collect python3 /root/time-server.py {time.time()}")
    host.check_output(f"echo 'server 127.0.0.1 port 11123 iburst' >{CHRONY} && chmod 644 {CHRONY}")
    try:
        host.check_output("systemctl restart chrony")

        def error() -> float:
            return abs(float(host.check_output("date +%s")) - time.time())

        took = wait_until(lambda: error() < 60, seconds=seconds(host, 60), what="the right time", pause=2)
        numbers(set_right_after_s=round(took, 1))
        journal.expect("System clock (was stepped|wrong) by", unit="chrony")
    finally:
        host.check_output(f"rm -f {CHRONY}; systemctl stop faults-time; systemctl restart chrony")
    with load() as going:
        going.more(12)
    going.lost()


@pytest.mark.vm
@pytest.mark.req("F21", "R19")
def test_memory_hog(host: Host, load: Callable[..., Any], journal: Journal) -> None:
    """A process that exhausts memory in the application's unit is killed; database and sshd are not affected"""
    mains = "systemctl show --value --property MainPID postgresql@17-main ssh nginx"
    before = host.check_output(mains)
    hog = "import time; eaten = [bytearray(64 << 20) for _ in range(64)]; time.sleep(60)"
    enter = "echo $$ >/sys/fs/cgroup/system.slice/gunicorn.service/cgroup.procs"
    with load("/") as going:
        done = host.run(f"sh -c '{enter}; exec python3 -c \"{hog}\"'")
        assert done.rc != 0, "the hog was not stopped"
        going.more(24)
    # What the workers had in their hands, if they went with the hog.
    going.lost(at_most=4)
    assert host.check_output(mains) == before
    journal.expect("oom|Out of memory|OOM")


@pytest.mark.req("F29", "R81", "R61")
def test_two_clones_are_two(another: Machine, host: Host, expected: dict[str, Any]) -> None:
    """Two machines of one image share no key, no secret and no identity"""
    another.start()
    twin = connect(another.entry(), lasting=False)
    # A container has its kernel's boot id and no separate seed; names are given.
    left_out = {"host name"} | ({"boot id", "random seed"} if isinstance(another, Container) else set())
    commands = {name: command for name, command in expected["identity"].items() if name not in left_out}
    for name, command in commands.items():
        first, second = (one.check_output("bash -c %s", f"set -o pipefail; {command}").strip() for one in (host, twin))
        assert first, f"{name} is missing"
        assert first != second, f"{name} is the same: {first}"
    assert host.run("ls /etc/ssl/private/ssl-cert-snakeoil.key").rc != 0


@pytest.mark.req("F30", "R4")
def test_provision_again(host: Host, numbers: Callable[..., None]) -> None:
    """The first boot's units, run again by two administrators at once, change nothing"""
    before = host.check_output(MADE)
    again = f"systemctl restart --no-block {FIRST_BOOT}"
    busy = "systemctl list-jobs --no-legend | grep -q golden"
    host.check_output(f"({again}) & ({again}) & wait; while {busy}; do sleep 1; done")
    after = host.check_output(MADE)
    changed = sorted(set(after.splitlines()) ^ set(before.splitlines()))
    numbers(changes=len(changed))
    assert not changed, changed[:10]


@pytest.mark.req("F30", "R4")
def test_deploy_at_once(host: Host, needs: Callable[..., None]) -> None:
    """While one administrator deploys, another is refused with the reason"""
    needs("golden-deploy")
    lock = "/run/golden-lock/golden-deploy.lock"
    asked = "golden-deploy --rollback"
    said = host.run(f"flock {lock} sh -c {shlex.quote(asked)}")
    assert said.rc == 1, said
    assert "another golden-deploy is running" in said.stdout + said.stderr
