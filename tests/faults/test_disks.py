"""File systems that fill up while requests come in, and the alerts about them."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from testinfra.host import Host

from build.core import run
from build.faults.machines import Clone, Machine
from tests.image.conftest import connect

from .conftest import wait_until
from .journal import AccessLog, Journal
from .traffic import Traffic
from .visitor import Visitor

FILLER = ".filled-by-faults"
NEVER = base64.b64encode(b"[Unit]\nConditionPathExists=/nowhere\n").decode()
# Also what is kept for root: the last byte is gone.
FILL = """
directory={directory}; keep={keep}; filler={directory}/{name}
left=$(df --block-size 1 --output=avail $directory | tail -n 1)
[ $left -le $keep ] || fallocate -l $((left - keep)) $filler || head -c $((left - keep)) /dev/zero >$filler || :
[ $keep -gt 0 ] || cat /dev/zero >>$filler 2>/dev/null || :
df --output=pcent $directory | tail -n 1
"""
LOGIN_SECONDS = 60
READS = 50
SITE = "/etc/golden/site.yaml"
DISKS = "golden-disks.service"


@contextmanager
def filled(host: Host, directory: str, *, keep: int = 0) -> Iterator[None]:
    """Fill a file system up to ``keep`` bytes while the block runs."""
    host.check_output("sh -c %s", FILL.format(directory=directory, keep=keep, name=FILLER))
    try:
        yield
    finally:
        host.check_output(f"rm -f {directory}/{FILLER}")


@pytest.mark.req("F10", "R9")
def test_fill_logs(host: Host, load: Callable[..., Any], journal: Journal, traffic: Traffic, access_log: AccessLog) -> None:
    """With /var/log full no request is lost, it is reported, and logging continues when there is space again"""
    with load() as going:
        with filled(host, "/var/log"):
            going.more(48)
        going.more()
    going.lost()
    host.check_output("sleep 1; systemctl is-active golden-access-log rsyslog systemd-journald nginx gunicorn")
    resumed = f"faultsresumed{time.monotonic_ns()}"
    for _attempt in range(3):
        traffic.get(f"/?{resumed}")
    access_log.expect(resumed)
    journal.expect("lines of the access log are lost: .*No space left on device", unit="golden-access-log")


@pytest.mark.vm
@pytest.mark.req("F10", "R9")
def test_fill_audit_log(
    machine: Machine, host: Host, needs: Callable[..., None], patience: Callable[[float], float],
    numbers: Callable[..., None], record_property: Callable[[str, object], None],
) -> None:  # fmt: skip
    """A full /var/log/audit halts the machine, which logs why; without the daemon it can be repaired, and is well"""
    assert isinstance(machine, Clone)
    needs("auditctl")
    actions = host.check_output("grep -E '^(disk_full|admin_space_left)_action' /etc/audit/auditd.conf")
    assert {line.partition(" = ")[2] for line in actions.splitlines()} == {"HALT"}
    host.check_output("sh -c %s", FILL.format(directory="/var/log/audit", keep=0, name=FILLER))
    # The connection may be gone before this ends.
    with suppress(RuntimeError):
        host.run(f"for i in $(seq {READS}); do cat /etc/shadow >/dev/null; done")
    took = wait_until(lambda: machine.made.process.poll() is not None, seconds=patience(60), what="the halt", pause=1)
    numbers(stopped_after_s=round(took, 1))
    assert "reboot: Power down" in machine.made.console_text()
    machine.cut_power()
    # The boot loader option of docs/operations/incident.md, passed as a credential.
    machine.extra = ("-smbios", f"type=11,value=io.systemd.credential.binary:systemd.unit-dropin.auditd.service={NEVER}")
    machine.start_again()
    host = connect(machine.entry(), lasting=False)
    line = host.check_output("journalctl --boot -1 --output short-iso | grep -m 1 -i 'audit daemon.*halting'")
    record_property("evidence", line)
    host.check_output(f"systemctl is-active auditd && exit 1; rm /var/log/audit/{FILLER}; sync")
    machine.cut_power()
    machine.extra = ()
    machine.start_again()
    host = connect(machine.entry(), lasting=False)
    assert host.check_output("systemctl is-active auditd") == "active"


@pytest.mark.parametrize(
    "directory",
    [pytest.param("/var/www", marks=pytest.mark.req("F11")), pytest.param("/", marks=pytest.mark.req("F12"))],
)
def test_fill_data(
    host: Host, machine: Machine, load: Callable[..., Any], journal: Journal, patience: Callable[[float], float],
    directory: str,
) -> None:  # fmt: skip
    """With a full disk reading works, and an administrator can log in"""
    with load() as going, filled(host, directory):
        going.more(48)
        done = run.run(machine.ssh("sudo -n true && echo in"), timeout=patience(LOGIN_SECONDS), check=False)
        assert (done.returncode, done.stdout.strip()) == (0, "in"), done.stderr
    going.lost()
    journal.expect("Accepted publickey", unit="ssh")


@pytest.mark.req("F11", "F12", "R69")
@pytest.mark.parametrize("directory", ["/var/www", "/"])
def test_upload_without_room(
    host: Host, visitor: Visitor, journal: Journal, needs: Callable[..., None], directory: str
) -> None:
    """An upload without enough space is refused and leaves nothing; with space it is accepted"""
    needs("golden-app")
    visitor.log_in()
    assert visitor.upload(1000) == 201
    count = "find /var/www/media -type f | wc -l"
    before = host.check_output(count)
    with filled(host, directory):
        refused = visitor.upload(400_000)
        assert refused in (413, 503, 507) or (directory == "/" and refused == 201), refused
        assert host.check_output("find /var/www/media -name '.*' -type f") == ""
        if refused != 201:
            assert host.check_output(count) == before
            journal.expect("the disk is full|No space left|database does not answer")
    assert visitor.upload(1000) == 201


@pytest.mark.req("F31", "R95")
def test_alert_about_a_full_disk(host: Host, journal: Journal, needs: Callable[..., None]) -> None:
    """A disk that is 95 % full fails a unit that raises an alert; with space again the next run succeeds"""
    needs(f"/etc/systemd/system/{DISKS}", "golden-alert")
    size = int(host.check_output("df --block-size 1 --output=size /var/www | tail -n 1"))
    with filled(host, "/var/www", keep=size // 25):
        assert host.run(f"systemctl start {DISKS}").rc != 0
        journal.expect("/var/www", unit=DISKS)
        journal.expect(f"golden-alert.*{DISKS}")
    host.check_output(f"systemctl start {DISKS}")


@pytest.mark.req("F31", "R92")
def test_backup_target_out_of_reach(host: Host, journal: Journal, needs: Callable[..., None]) -> None:
    """A backup that cannot be sent fails a unit that raises an alert, and the next run that can catches up"""
    needs("golden-backup", "age-keygen", "golden-alert")
    place = "/home/admin/faults-target"
    user = host.check_output("id --user --name 1000")
    host.check_output(f"""set -eu; umask 077; cd /etc/golden; test ! -e {SITE} || cp -a {SITE} {SITE}.kept
        age-keygen -o /root/faults.key 2>/dev/null; rm -f backup_key backup_key.pub
        ssh-keygen -q -t ed25519 -N '' -f backup_key
        for key in /etc/ssh/ssh_host_*_key.pub; do printf '127.0.0.1 '; cat $key; done >backup_known_hosts
        install -d -o {user} -g {user} -m 0700 {place} ~{user}/.ssh
        cp -a ~{user}/.ssh/authorized_keys /root/faults.authorized
        cat backup_key.pub >>~{user}/.ssh/authorized_keys""")
    try:
        _back_up_to(host, f"scp://{user}@127.0.0.1:2{place}")
        host.check_output("systemctl start golden-backup.service")
        journal.expect("golden-backup-send.service: Failed")
        journal.expect("golden-alert.*golden-backup-send")
        _back_up_to(host, f"scp://{user}@127.0.0.1:22{place}")
        host.check_output("systemctl reset-failed; systemctl start golden-backup-send.service")
        assert host.check_output(f"ls {place} | grep -c age$") != "0"
    finally:
        host.check_output(f"""test ! -e {SITE}.kept || mv {SITE}.kept {SITE}; systemctl restart golden-site
            cp -a /root/faults.authorized ~{user}/.ssh/authorized_keys
            rm -rf /etc/golden/backup_key* /etc/golden/backup_known_hosts {place}""")


def _back_up_to(host: Host, target: str) -> None:
    """Let the clone's backups go to ``target``."""
    host.check_output(f"""set -eu; cd /etc/golden
        python3 -c "$(cat <<'END'
import pathlib, yaml
path = pathlib.Path("{SITE}")
site = (yaml.safe_load(path.read_text()) if path.exists() else None) or {{}}
key = next(line.split(": ")[1] for line in open("/root/faults.key").read().splitlines() if "public key" in line)
site["backup"] = {{"recipient": key, "target": "{target}", "keep_days": 14}}
path.write_text(yaml.safe_dump(site))
END
)"
        systemctl restart golden-site.service""")
