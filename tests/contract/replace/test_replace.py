"""Replacing the system of a machine: what is transferred, what is kept, the rollback, and what is refused."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from build.artifact.artifact import Artifact
from build.clone import data_disk, machine
from build.core.errors import SpecError, StepFailed
from build.proxmox import client, guest_list, labels, roles
from build.replace import find, replace, settings, switch
from build.replace import record as records
from build.replace.replace import RolledBack
from build.spec.cluster import Role
from tests.contract.cloning import OPERATOR, Field, relabel
from tests.contract.replacing import NEWER, Ground, Machines, prepare
from tests.contract.shipping import make_artifact
from tests.fakes.proxmox import Proxmox


@pytest.fixture
def proxmox_class() -> type[Proxmox]:
    return Machines


@pytest.fixture
def ground(field: Field) -> Ground:
    return prepare(field)


def test_the_new_system_takes_over(ground: Ground) -> None:
    before = dict(ground.proxmox.vm(ground.old).config)
    done = ground.replace()
    new = ground.proxmox.vm(done.machine.vmid)
    assert (done.template, done.kept) == (NEWER, ground.old)
    assert ground.running() == [(new.vmid, "web1")]
    assert ground.data_on() == [new.vmid]
    assert ground.disk()["posts"] == 7
    assert not ground.proxmox.clashes
    for key in ("net0", "ipconfig0", "sshkeys", "memory", "ciupgrade"):
        assert new.config[key] == before[key], key
    for field in ("sku=", "family="):
        assert [part for part in new.config["smbios1"].split(",") if part.startswith(field)] == [
            part for part in before["smbios1"].split(",") if part.startswith(field)
        ]  # fmt: skip
    assert machine.disk_kib(new.config) >= machine.disk_kib(before)
    assert (str(new.config["onboot"]), str(new.config["protection"])) == ("1", "0")
    assert {"team-a", "v1.3.0", labels.CLONE_TAG} <= labels.split_tags(new.config["tags"])
    assert "v1.2.3" not in new.config["tags"]
    assert "Call 555" in new.config["description"]
    label = labels.parse_clone(new.config["description"])
    assert label is not None
    assert (label.template, label.state) == (NEWER, labels.CloneState.MADE)


def test_the_old_system_is_kept_stopped(ground: Ground) -> None:
    done = ground.replace(keep_days=3)
    old = ground.proxmox.vm(ground.old)
    assert (old.status, old.name, str(old.config["onboot"])) == ("stopped", f"web1-old-{ground.old}", "0")
    assert settings.KEPT_TAG in old.config["tags"]
    record = records.parse(old.config["description"])
    assert record is not None
    assert record.phase is records.Phase.KEPT
    assert record.keep_until == done.keep_until
    in_days = datetime.fromisoformat(done.keep_until) - datetime.now(UTC)
    assert timedelta(days=2, hours=23) < in_days <= timedelta(days=3)


@pytest.mark.parametrize("version", ["8.4.1", "9.0.10"])
def test_with_no_more_rights_than_are_printed(ground: Ground, version: str) -> None:
    ground.proxmox.version = version
    for grant in roles.grants(Role.REPLACER, ground.field.bench.settings, major=int(version[0])):
        ground.proxmox.entitle(OPERATOR.identity, grant.path, *grant.privileges)
    with client.Api(ground.field.bench.settings, OPERATOR) as api:
        assert find.names(guest_list.listed(api), pool="golden-clones") == ["web1"]
    done = ground.replace()
    assert ground.undo().machine.vmid == ground.old
    assert ground.proxmox.vm(done.machine.vmid).status == "stopped"


def test_again_changes_nothing(ground: Ground) -> None:
    ground.replace()
    ground.proxmox.calls.clear()
    done = ground.replace()
    assert not done.changed
    assert not [call for call in ground.proxmox.calls if call[0] != "GET"]


def test_undo_goes_back_with_the_data_as_they_are(ground: Ground) -> None:
    new = ground.replace().machine.vmid
    ground.disk()["posts"] = 8
    done = ground.undo()
    assert (done.machine.vmid, done.kept) == (ground.old, new)
    assert ground.running() == [(ground.old, "web1")]
    assert ground.disk()["posts"] == 8
    old = ground.proxmox.vm(ground.old)
    assert str(old.config["onboot"]) == "1"
    assert records.parse(old.config["description"]) is None
    assert settings.KEPT_TAG not in old.config["tags"]
    assert not ground.proxmox.clashes
    # And the next attempt makes another one.
    assert ground.replace().machine.vmid not in (new, ground.old)


def test_no_way_back_from_another_layout(ground: Ground) -> None:
    ground.proxmox.layouts[NEWER] = {"layout": 2, "versions": {"postgresql": 17}}
    new = ground.replace().machine.vmid
    with pytest.raises(SpecError, match="changed the layout"):
        ground.undo()
    assert ground.running() == [(new, "web1")]


def test_undo_without_a_replacement(ground: Ground) -> None:
    with pytest.raises(SpecError, match="no VM to go back to"):
        ground.undo()


@pytest.mark.parametrize(("sickness", "named"), [
    ("silent", "waiting for the new system"), ("ignores", "another SSH host key"),
    ("refuses", "waiting for the new system failed"), ("full", "waiting for the new system failed"),
    ("read-only", "the new system does not use the data disk"),
])  # fmt: skip
def test_a_system_that_is_not_healthy_is_taken_back(ground: Ground, sickness: str, named: str) -> None:
    ground.proxmox.sick[NEWER] = sickness
    before = ground.proxmox.inventory()
    with pytest.raises(RolledBack, match=named) as caught:
        ground.replace()
    assert "the old system is back" in caught.value.hint
    # The volume of the data disk may have another number.
    after = ground.proxmox.inventory()
    assert {**after, "volumes": None} == {**before, "volumes": None}
    assert ground.running() == [(ground.old, "web1")]
    assert ground.disk()["posts"] == 7
    assert not ground.proxmox.clashes
    assert records.parse(ground.proxmox.vm(ground.old).config["description"]) is None
    del ground.proxmox.sick[NEWER]
    assert ground.replace().template == NEWER


def test_an_old_system_that_is_started_by_hand_meanwhile(ground: Ground) -> None:
    def start(kind: str) -> None:
        # As soon as the new one starts, the old one is started by hand.
        if kind == "qmstart":
            ground.proxmox.vm(ground.old).status = "running"

    ground.proxmox.on_task = start
    done = ground.replace()
    assert ground.running() == [(done.machine.vmid, "web1")]


def test_an_old_system_that_is_started_by_hand_before_its_disk_is_moved(ground: Ground) -> None:
    def start(request: Any) -> None:
        if request.path.endswith(f"/{ground.old}/move_disk") and not started:
            started.append(True)
            ground.proxmox.vm(ground.old).status = "running"

    started: list[bool] = []
    ground.proxmox.on_request = start
    with pytest.raises(RolledBack, match=r"moving the data disk failed: .*while the source VM is running"):
        ground.replace()
    assert started
    assert (ground.running(), ground.data_on()) == ([(ground.old, "web1")], [ground.old])
    assert not ground.proxmox.clashes
    assert ground.replace().template == NEWER


def test_a_snapshot_that_is_made_after_the_checks(ground: Ground) -> None:
    def make(request: Any) -> None:
        vm = ground.proxmox.vm(ground.old)
        if request.path.endswith(f"/{ground.old}/move_disk"):
            vm.snapshots["meanwhile"] = {"scsi1": vm.config["scsi1"]}

    ground.proxmox.on_request = make
    with pytest.raises(RolledBack, match=r"moving the data disk failed: .*snapshot"):
        ground.replace()
    assert (ground.running(), ground.data_on()) == ([(ground.old, "web1")], [ground.old])
    with pytest.raises(SpecError) as caught:
        ground.replace()
    assert "snapshots: meanwhile" in caught.value.details


def test_a_new_system_that_dies_an_hour_later(ground: Ground) -> None:
    """It was accepted; the way back does not need its agent."""
    new = ground.replace().machine.vmid
    ground.disk()["posts"] = 9
    vm = ground.proxmox.vm(new)
    vm.status, vm.agent = "stopped", None
    done = ground.undo()
    assert (done.machine.vmid, ground.running()) == (ground.old, [(ground.old, "web1")])
    assert ground.data_on() == [ground.old]
    assert ground.disk()["posts"] == 9
    assert not ground.proxmox.clashes


def test_a_machine_without_a_web_server_is_replaced_and_taken_back(field: Field) -> None:
    """A database's machine has no health page: its host key and its data disk show that it works."""
    field.without_web_server()
    ground = prepare(field)
    field.without_web_server()
    ground.proxmox.on_serving = lambda _works: None
    done = ground.replace()
    assert (done.template, ground.running()) == (NEWER, [(done.machine.vmid, "web1")])
    assert ground.data_on() == [done.machine.vmid]
    assert ground.undo().machine.vmid == ground.old
    assert field.site.asked == []


def with_postgresql(ground: Ground, version: str) -> None:
    """Let the label of the newer template name a version of PostgreSQL."""
    [vm] = [vm for vm in ground.proxmox.vms if vm.name == NEWER]
    relabel(vm, labels.POSTGRESQL, version)


def test_a_template_with_another_postgresql_is_refused_before_anything_is_changed(ground: Ground) -> None:
    with_postgresql(ground, "18")
    before = ground.proxmox.inventory()
    with pytest.raises(SpecError, match="cannot be replaced") as caught:
        ground.replace()
    assert f"the cluster on the data disk is of version 17, and {NEWER} has 18" in caught.value.details
    assert ground.proxmox.inventory() == before
    assert not [call for call in ground.proxmox.calls if call[0] != "GET"]
    with_postgresql(ground, "17")
    assert ground.replace().template == NEWER


def test_the_label_of_a_template_names_its_postgresql(ground: Ground) -> None:
    manifest = make_artifact(ground.field.bench.place / "third", fill=b"\3", version="1.4.0").manifest
    for packages, version in (
        ({"postgresql-17": "17.6-1"}, "17"),
        ({"nginx": "1"}, ""),
        ({"postgresql-17-pgvector": "1"}, ""),
    ):
        artifact = Artifact(ground.field.bench.place, dataclasses.replace(manifest, packages=packages))
        label = labels.of(artifact, state=labels.State.TEMPLATE, published="now", run="r")
        assert label.provenance.get(labels.POSTGRESQL, "") == version
        assert label.web is ("nginx" in packages)


def of_another_site(ground: Ground) -> None:
    files = ground.proxmox.vm(ground.old).agent["files"]
    files[switch.MARKER] = files[switch.MARKER].replace('"web1"', '"shop"')


def test_kept_machines_go_when_their_time_is_over(ground: Ground) -> None:
    ground.replace(keep_days=3)
    with client.Api(ground.field.bench.settings, OPERATOR) as api:
        job = ground.job(api)
        assert replace.clean(job, now=datetime.now(UTC) + timedelta(days=2)) == []
        assert replace.clean(job, now=datetime.now(UTC) + timedelta(days=4)) == [f"web1-old-{ground.old}"]
    assert ground.proxmox.vm(ground.old) is None
    assert ground.disk()["posts"] == 7


def test_a_kept_machine_with_a_data_disk_is_never_removed(ground: Ground) -> None:
    ground.replace()
    ground.proxmox.vm(ground.old).config["scsi1"] = "local-lvm:vm-1-disk-9,serial=golden-data"
    with client.Api(ground.field.bench.settings, OPERATOR) as api:
        assert replace.clean(ground.job(api), now=datetime.now(UTC) + timedelta(days=400)) == []
    assert ground.proxmox.vm(ground.old) is not None


def without_data(ground: Ground) -> None:
    del ground.proxmox.vm(ground.old).config["scsi1"]


def with_another_disk(ground: Ground) -> None:
    ground.proxmox.vm(ground.old).config["scsi2"] = "local-lvm:vm-1-disk-9,size=1G"


def with_a_device(ground: Ground) -> None:
    ground.proxmox.vm(ground.old).config["hostpci0"] = "0000:01:00.0"


def with_a_snapshot(ground: Ground) -> None:
    ground.proxmox.vm(ground.old).snapshots["before"] = {}


def stopped(ground: Ground) -> None:
    ground.proxmox.vm(ground.old).status = "stopped"


def unused_disk(ground: Ground) -> None:
    del ground.proxmox.vm(ground.old).agent["files"]["/var/lib/golden-data/disk/site.json"]


def no_backup(ground: Ground) -> None:
    del ground.proxmox.vm(ground.old).agent["files"]["/var/backups/golden/last.json"]


def old_backup(ground: Ground) -> None:
    text = '{"manifest": {"made": "2020-01-01T00:00:00+00:00"}}'
    ground.proxmox.vm(ground.old).agent["files"]["/var/backups/golden/last.json"] = text


def sick_before(ground: Ground) -> None:
    ground.field.site.codes[:] = [503]


def unmovable(ground: Ground) -> None:
    ground.proxmox.storages["local-lvm"]["type"] = "iscsidirect"


def under_a_task(ground: Ground) -> None:
    ground.proxmox.vm(ground.old).config["lock"] = "backup"


@pytest.mark.parametrize(("arrange", "named"), [
    (without_data, "no data disk"), (with_another_disk, "scsi2: only the data disk is moved"), (with_a_device, "hostpci0"),
    (with_a_snapshot, "snapshots: before"), (stopped, "it is stopped"), (unused_disk, "does not use it"),
    (no_backup, "backup: no backup is recorded"), (old_backup, "hours old"), (sick_before, "not healthy now"),
    (unmovable, "cannot give a disk to another VM"), (under_a_task, "lock: backup"),
    (of_another_site, "it belongs to the site shop, and the SMBIOS of the VM names web1"),
])  # fmt: skip
def test_what_cannot_be_replaced_is_left_alone(ground: Ground, arrange: Any, named: str) -> None:
    arrange(ground)
    before = ground.proxmox.inventory()
    with pytest.raises(SpecError, match=r"cannot be replaced") as caught:
        ground.replace(**({"timeout": 1.0} if arrange is sick_before else {}))
    assert named in caught.value.details
    assert ground.proxmox.inventory() == before
    assert not [call for call in ground.proxmox.calls if call[0] != "GET"]


def test_every_reason_is_named_at_once(ground: Ground) -> None:
    for arrange in (with_another_disk, with_a_device, with_a_snapshot, stopped):
        arrange(ground)
    with pytest.raises(SpecError) as caught:
        ground.replace()
    assert len(caught.value.details.splitlines()) == 4


def test_without_a_look_at_backups(ground: Ground) -> None:
    no_backup(ground)
    assert ground.replace(backup_hours=0).template == NEWER


def test_two_replacements_at_once(ground: Ground) -> None:
    """The second run takes over; the first one stops at its next step, and rolls nothing back."""
    second: list[Any] = []

    def begin(kind: str) -> None:
        if kind == "qmclone" and not second:
            second.append(True)
            vm = ground.proxmox.vm(ground.old)
            record = records.parse(vm.config["description"])
            assert record is not None
            theirs = dataclasses.replace(record, run="another")
            vm.config["description"] = records.inscribed(vm.config["description"], theirs)

    ground.proxmox.on_task = begin
    with pytest.raises(records.ConcurrentRun, match="another run"):
        ground.replace()
    assert ground.running() == [(ground.old, "web1")]
    # The other run, or this one again, completes it.
    assert ground.replace().template == NEWER
    assert [vm.name for vm in ground.proxmox.vms if "new" in str(vm.name)] == []


def test_a_change_between_reading_and_the_record_is_noticed(ground: Ground) -> None:
    path = f"/nodes/pve1/qemu/{ground.old}/config"

    def change(_request: object) -> None:
        if ground.proxmox.calls["PUT", path] == 1:
            ground.proxmox.vm(ground.old).config["cores"] = "7"

    ground.proxmox.on_request = change
    with pytest.raises(StepFailed):
        ground.replace()
    assert ground.running() == [(ground.old, "web1")]


def test_a_replacement_by_something_else_is_under_way(ground: Ground) -> None:
    vm = ground.proxmox.vm(ground.old)
    record = records.Record("web1", "golden-9.9.9", records.Phase.MAKING, "a", "b", "2026-01-01T00:00:00Z", "scsi1", 1, 0)
    vm.config["description"] = records.inscribed(vm.config["description"], record)
    with pytest.raises(SpecError, match=r"golden-9\.9\.9"):
        ground.replace()
    # Undo ends it.
    ground.undo()
    assert records.parse(vm.config["description"]) is None
    assert ground.running() == [(ground.old, "web1")]


def test_names_stay_names_of_hosts() -> None:
    for name in ("web1", "a" * 63, "web1.example.org", "a" * 63 + ".example.org"):
        for made in (settings.new_name(name), settings.kept_name(name, 999_999_999)):
            assert len(made.split(".")[0]) <= 63
            assert made != name
            assert made.partition(".")[2] == name.partition(".")[2]


def test_a_description_with_a_record_is_read_back(ground: Ground) -> None:
    text = ground.proxmox.vm(ground.old).config["description"]
    record = records.Record("w", "t-1.0.0", records.Phase.BACK, "a", "b", "c", "scsi1", 1, 0, failed="--> <!-- x")
    assert records.parse(records.inscribed(text, record)) == record
    assert records.inscribed(records.inscribed(text, record), None) == text
    assert records.parse("<!-- goldsmith-replace: {} -->") is None
    assert data_disk.site_of(ground.proxmox.vm(ground.old).config) == "web1"
