"""Everything is lost but one backup: it is restored on a clone in its first state, or refused before anything changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from testinfra.host import Host

from build.faults.machines import Machine, Ward
from tests.image.conftest import connect

from .freight import give, take
from .journal import Journal
from .traffic import Traffic
from .visitor import Visitor

ARCHIVE, KEY, OTHER_KEY = "/root/faults.tar.age", "/root/faults.key", "/root/other.key"
# The lines of pg_dump about itself are random since 17.6.
STATE = r"""cd /; runuser -u golden-backup -- pg_dump -h /run/postgresql -U app_owner app |
grep -v -e '^\\restrict' -e '^\\unrestrict' | sha256sum
find /var/www/media -type f -exec sha256sum {} + | sort"""
RECIPIENT = """set -eu; umask 077
python3 -c 'import pathlib, sys, yaml
path = pathlib.Path("/etc/golden/site.yaml")
site = (yaml.safe_load(path.read_text()) if path.exists() else None) or {}
site["backup"] = {"recipient": sys.argv[1], "target": "", "keep_days": 14}
path.parent.mkdir(exist_ok=True); path.write_text(yaml.safe_dump(site))' "$(age-keygen -y /root/faults.key)"
systemctl restart golden-site.service"""


def back_up(host: Host) -> dict[str, Any]:
    """Make a backup; return golden-backup's report about it."""
    made: dict[str, Any] = json.loads(host.check_output("golden-backup --no-send --json"))
    return made


def contents(made: dict[str, Any]) -> tuple[Any, Any]:
    """Return what a backup holds: each table's rows and checksum, and the media's."""
    return made["manifest"]["database"]["tables"], made["manifest"]["media"]


@pytest.mark.req("F20", "R92", "R97")
def test_restore(
    machine: Machine, host: Host, ward: Ward, traffic: Traffic, needs: Callable[..., None], numbers: Callable[..., None],
    journal: Journal,
) -> None:  # fmt: skip
    """Row counts and checksums are equal after backup, loss and restore; broken backups and wrong keys change nothing"""
    needs("golden-backup", "golden-restore", "golden-app", "age-keygen")
    host.check_output(f"umask 077; age-keygen -o {KEY} 2>/dev/null; age-keygen -o {OTHER_KEY} 2>/dev/null")
    host.check_output(RECIPIENT)
    visitor = Visitor(host, traffic)
    visitor.log_in()
    assert [visitor.upload(size) for size in (10, 5_000, 300_000)] == [201, 201, 201]
    made = back_up(host)
    tables, media = contents(made)
    assert media["files"] == 3
    signer = host.check_output("golden-backup --signer").strip()
    needed = (made["archive"], f"{made['archive']}.sig", KEY, OTHER_KEY)
    archive, signature, key, other = (take(machine, path) for path in needed)
    assert b"CREATE TABLE" not in archive
    assert archive.startswith(b"age-encryption.org/")

    machine.reset()
    fresh = connect(machine.entry(), lasting=False)
    traffic.endpoint = machine.endpoint()
    late = Journal(fresh, journal.found)
    for content, path in ((archive, ARCHIVE), (signature, f"{ARCHIVE}.sig"), (key, KEY), (other, OTHER_KEY)):
        give(machine, content, path)
    fresh.check_output(RECIPIENT)
    before = fresh.check_output(STATE)
    flipped = bytearray(archive)
    flipped[len(archive) // 2] ^= 1
    for broken, identity in (
        (archive, OTHER_KEY), (bytes(flipped), KEY), (archive[: len(archive) * 2 // 3], KEY), (b"", KEY),
        (b"rubbish" * 99, KEY),
    ):  # fmt: skip
        give(machine, broken, "/root/broken.tar.age")
        refused = fresh.run(f"golden-restore /root/broken.tar.age --identity {identity} --unsigned")
        assert refused.rc == 3, (len(broken), identity, refused)
    unknown = fresh.run(f"golden-restore {ARCHIVE} --identity {KEY}")
    assert unknown.rc == 3, unknown
    assert "this machine does not know that signer" in unknown.stderr
    assert fresh.check_output(STATE) == before

    restored = []
    for _twice in range(2):
        command = f"golden-restore {ARCHIVE} --identity {KEY} --signer '{signer}' --json"
        restored.append(json.loads(fresh.check_output(command))["restored"])
        assert contents(back_up(fresh)) == (tables, media)
    numbers(
        restored_rows=restored[0]["rows"], restored_files=restored[0]["media_files"], rto_s=restored[0]["rto_seconds"],
        downtime_s=restored[0]["downtime_seconds"],
    )  # fmt: skip
    assert traffic.get("/health").statuses == [200]
    late.expect("golden-restore.*could not restore /root/broken")
    late.expect(f"golden-restore.*restored {ARCHIVE}: {restored[0]['rows']} rows")
