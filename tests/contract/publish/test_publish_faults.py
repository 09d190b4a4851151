"""The fault table of publishing: each fault gives a clear message and the right exit code; the cluster is unchanged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from fakepve.model import PveError

from build.artifact.artifact import Artifact
from build.core.errors import GoldsmithError, StepFailed
from build.proxmox import client, roles, vms
from build.publish import publish, template, upload
from build.spec.cluster import Role
from tests import proven
from tests.contract.conftest import TOKEN
from tests.contract.shipping import DISK_MIB, NAME, Bench, image_bytes
from tests.fakes.proxmox import Proxmox

CREATE, CONFIG = "/nodes/pve1/qemu", "/nodes/pve1/qemu/9000/config"
TEMPLATE, UPLOAD = "/nodes/pve1/qemu/9000/template", "/nodes/pve1/storage/local/upload"
SPACE = "unable to write to storage 'local-lvm': No space left on device"


@dataclass(frozen=True)
class Fault:
    """What happens, and what the user reads."""

    name: str
    arrange: Callable[[Proxmox], object]
    words: str
    hint: str = ""
    exit_code: int = 1


def refuse(method: str, path: str, status: int, text: str, *, html: bool = False) -> Callable[[Proxmox], object]:
    return lambda proxmox: proxmox.fail(method, path, status, text, html=html, times=1)


def named(method: str, path: str, error: str) -> Callable[[Proxmox], object]:
    return lambda proxmox: proxmox.fail(method, path, error=error, times=1)


def task_error(kind: str, text: str) -> Callable[[Proxmox], object]:
    return lambda proxmox: proxmox.broken_tasks.update({kind: [text]})


def lost(method: str, path: str) -> Callable[[Proxmox], object]:
    return lambda proxmox: proxmox.lost_answers.add((method, path))


def lose_quorum_at(kind: str) -> Callable[[Proxmox], object]:
    """Lose it when the first task of that kind begins, until the next task."""

    def arrange(proxmox: Proxmox) -> None:
        def on_task(now: str) -> None:
            if now == kind:
                proxmox.lose_quorum()
                return
            if not proxmox.quorate:
                proxmox.regain_quorum()
                proxmox.on_task = lambda _kind: None

        proxmox.on_task = on_task

    return arrange


def entitle(bench: Bench) -> None:
    """Give the publisher the rights that are printed, and no others."""
    for grant in roles.grants(Role.PUBLISHER, bench.settings, major=9):
        bench.proxmox.entitle(TOKEN.identity, grant.path, *grant.privileges)


def denied(privilege: str, path: str) -> str:
    return f"Permission check failed ({path}, {privilege})"


FAULTS = [
    Fault("the VM is locked while it is marked", named("PUT", CONFIG, "locked"), "VM is locked", "another task holds"),
    Fault("its lock file is held", named("PUT", CONFIG, "config_lock_timeout"), "got timeout", "another task holds"),
    Fault("the VM is locked when it becomes a template", named("POST", TEMPLATE, "locked"), "VM is locked"),
    Fault("the upload's task fails", task_error("imgcopy", "import failed: exit code 1"), "imgcopy on pve1 failed"),
    Fault("the upload is damaged", task_error("imgcopy", "checksum mismatch: got 'x'"), "checksum",
          "damaged during transfer"),
    Fault("the import fails", task_error("qmcreate", "unable to create VM 9000 - import failed"), "qmcreate on pve1 failed"),
    Fault("the disk storage is full", task_error("qmcreate", SPACE), "No space left", "free space"),
    Fault("the media storage is full", task_error("imgcopy", SPACE.replace("-lvm", "")), "No space left", "free space"),
    Fault("the conversion fails", task_error("qmtemplate", "unable to lock image"), "qmtemplate on pve1 failed"),
    Fault("no right to upload", refuse("POST", UPLOAD, 403, denied("Datastore.AllocateTemplate", "/storage/local")),
          r"lacks a privilege: Datastore\.AllocateTemplate on /storage/local", "doctor -- --proxmox"),
    Fault("no right to make machines", refuse("POST", CREATE, 403, denied("VM.Allocate", "/vms/9000")),
          r"VM\.Allocate on /vms/9000", "doctor -- --proxmox"),
    Fault("no right to mark", refuse("PUT", CONFIG, 403, denied("VM.Config.Options", "/vms/9000")),
          r"VM\.Config\.Options on /vms/9000", "doctor -- --proxmox"),
    Fault("no right to make templates", refuse("POST", TEMPLATE, 403, denied("VM.Allocate", "/vms/9000")),
          r"VM\.Allocate on /vms/9000", "doctor -- --proxmox"),
    Fault("the node is gone when the machine is made", refuse("POST", CREATE, 595, "No route to host"),
          "node pve1 does not answer", "it is online"),
    Fault("the node is gone when it is marked", refuse("PUT", CONFIG, 595, "No route to host"), "node pve1 does not answer"),
    Fault("the quorum is lost", lambda proxmox: proxmox.lose_quorum(), "no quorum", "lost its quorum"),
    Fault("the quorum is lost while it is made", lose_quorum_at("qmcreate"), "the cluster has no quorum: unable to open",
          "lost its quorum"),
    Fault("it is protected meanwhile", refuse("PUT", CONFIG, 500, "can't remove - protection mode enabled"),
          "the VM is protected", "--protection 0"),
    Fault("a backup holds it", refuse("PUT", CONFIG, 500, "VM is locked (backup)"), "the VM is locked by a backup"),
    Fault("another user changes it", refuse("PUT", CONFIG, 500, "checksum mismatch (file change by other user?)"),
          "changed at the same time", "run the same command again"),
    Fault("a proxy answers instead", refuse("POST", CREATE, 502, "Bad gateway", html=True), "Bad Gateway"),
    Fault("the answer to the creation is lost", lost("POST", CREATE), "does not answer"),
    Fault("the answer to the conversion is lost", lost("POST", TEMPLATE), "does not answer"),
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_told_and_leaves_nothing(bench: Bench, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    # What works on a VM is waited for, and this is forever.
    monkeypatch.setattr(client, "LOCK_SECONDS", 0.0)
    before = bench.proxmox.inventory()
    fault.arrange(bench.proxmox)
    with pytest.raises(GoldsmithError, match=fault.words) as caught:
        bench.publish()
    assert fault.hint in caught.value.hint
    assert caught.value.exit_code == fault.exit_code
    assert TOKEN.secret not in caught.value.render()
    assert bench.proxmox.inventory() == before
    # And it was not forever: the next run does the whole.
    bench.proxmox.failures.clear()
    bench.proxmox.regain_quorum()
    assert bench.publish()[0].outcome is publish.Outcome.PUBLISHED
    assert [(vm.name, bool(vm.template)) for vm in bench.proxmox.vms] == [(NAME, True)]


def test_a_storage_that_fills_up_meanwhile(bench: Bench) -> None:
    before = bench.proxmox.inventory()
    avail = bench.proxmox.storages["local"]["avail"]
    bench.proxmox.on_task = lambda kind: bench.proxmox.storages["local"].update(avail=0) if kind == "imgcopy" else None
    with pytest.raises(GoldsmithError, match="No space left") as caught:
        bench.publish()
    assert "free space" in caught.value.hint
    bench.proxmox.storages["local"]["avail"] = avail
    assert bench.proxmox.inventory() == before


def test_a_task_that_does_not_end_in_time(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    before = bench.proxmox.inventory()
    monkeypatch.setattr(template, "CREATE_SECONDS", 0.3)
    bench.proxmox.time_scale = 0.1
    bench.proxmox.durations["qmcreate"] = 20.0
    with pytest.raises(GoldsmithError, match="qmcreate on pve1 is not done") as caught:
        bench.publish()
    assert "task list" in caught.value.hint
    assert bench.proxmox.inventory() == before


@pytest.mark.parametrize("path", [CREATE, TEMPLATE])
def test_a_task_whose_answer_was_lost_is_found_and_ended(bench: Bench, path: str) -> None:
    before = bench.proxmox.inventory()
    bench.proxmox.time_scale = 0.05
    bench.proxmox.durations = {"qmcreate": 20.0, "qmtemplate": 20.0}
    bench.proxmox.lost_answers.add(("POST", path))
    with pytest.raises(GoldsmithError, match="does not answer"):
        bench.publish()
    assert bench.proxmox.inventory() == before


def test_a_slow_task_is_waited_for(bench: Bench) -> None:
    bench.proxmox.time_scale = 0.1
    bench.proxmox.durations = {"qmcreate": 10.0, "imgcopy": 5.0, "qmtemplate": 5.0, "imgdel": 2.0}
    assert bench.publish()[0].outcome is publish.Outcome.PUBLISHED


def test_an_expired_token_changes_nothing(bench: Bench) -> None:
    bench.proxmox.apitokens.clear()
    before = bench.proxmox.inventory()
    with pytest.raises(GoldsmithError, match="does not accept the token") as caught:
        bench.publish()
    assert "expired" in caught.value.hint
    assert bench.proxmox.inventory() == before


def test_a_token_that_is_revoked_meanwhile(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing can be removed without it: that is reported, and the next run removes it."""
    bench.proxmox.on_task = lambda kind: bench.proxmox.apitokens.clear() if kind == "qmcreate" else None
    with pytest.raises(GoldsmithError, match="does not accept the token"):
        bench.publish()
    said = capsys.readouterr().err
    assert "VM 9000 could not be removed" in said
    assert "run the same command again" in said
    bench.proxmox.apitokens[TOKEN.identity] = TOKEN.secret
    bench.proxmox.on_task = lambda _kind: None
    assert bench.publish()[0].outcome is publish.Outcome.PUBLISHED
    assert [(vm.name, bool(vm.template)) for vm in bench.proxmox.vms] == [(NAME, True)]
    assert bench.proxmox.media == {}


def test_reads_that_are_lost_are_repeated(bench: Bench) -> None:
    bench.proxmox._random.seed(4)
    bench.proxmox.lost_reads = 0.2
    assert bench.publish()[0].outcome is publish.Outcome.PUBLISHED


def test_a_lost_answer_to_a_mark_is_looked_up(bench: Bench) -> None:
    bench.proxmox.lost_answers.add(("PUT", "/config"))
    assert bench.publish()[0].outcome is publish.Outcome.PUBLISHED
    # For the tags, whose answer was lost; for the first heartbeat; for the last step.
    assert bench.proxmox.calls["PUT", CONFIG] == 3


def test_an_upload_that_breaks_off_is_begun_again(bench: Bench) -> None:
    bench.proxmox.lost_answers.add(("POST", "/upload"))
    assert bench.publish()[0].outcome is publish.Outcome.PUBLISHED
    assert bench.proxmox.calls["POST", UPLOAD] == 2
    assert bench.proxmox.media == {}


def test_with_rights_on_the_pool_alone_a_lost_answer_leaves_nothing(bench: Bench) -> None:
    """Until the task ends the new VM is in no pool: 403, and not in the token's list; the same as a removed VM."""
    entitle(bench)
    before = bench.proxmox.inventory()
    bench.proxmox.time_scale = 0.05
    bench.proxmox.durations = {"qmcreate": 20.0}
    bench.proxmox.lost_answers.add(("POST", CREATE))
    with pytest.raises(GoldsmithError, match="does not answer"):
        bench.publish()
    assert bench.proxmox.inventory() == before


def test_a_vm_that_is_gone_is_403_to_a_token_with_rights_on_the_pool(bench: Bench) -> None:
    entitle(bench)
    with client.Api(bench.settings, bench.token) as api:
        with pytest.raises(client.Denied, match=r"VM\.Audit on /vms/9000") as caught:
            api.get("/nodes/pve1/qemu/9000/config")
        assert vms.is_gone(api, caught.value, 9000)
        bench.proxmox.add_vm(9000, "theirs")
        assert not vms.is_gone(api, caught.value, 9000)
        with pytest.raises(client.Denied):
            vms.config_of(api, "pve1", 9000)


def test_what_a_token_may_and_its_user_may_not_is_refused(bench: Bench) -> None:
    for grant in roles.grants(Role.PUBLISHER, bench.settings, major=9):
        bench.proxmox.grant(TOKEN.identity, grant.path, *grant.privileges)
    with pytest.raises(GoldsmithError, match="not ready") as caught:
        bench.publish()
    assert "lacks" in caught.value.details


def test_tags_at_creation_without_the_right_to_them_make_the_task_fail(bench: Bench) -> None:
    """Measured on 9.2. That is why publish sets them when the VM is in the pool."""
    entitle(bench)
    with client.Api(bench.settings, bench.token) as api:
        upid = api.post(CREATE, vmid=9000, name="x", pool="golden", tags="golden")
        with pytest.raises(client.TaskFailed, match=r"VM\.Config\.Options"):
            api.wait(upid)
    assert bench.proxmox.vms == []


def test_tags_come_back_in_lower_case_sorted_and_once(bench: Bench) -> None:
    bench.publish()
    with client.Api(bench.settings, bench.token) as api:
        api.configure("/nodes/pve1/qemu/9000", tags="b;A;b")
        assert api.get("/nodes/pve1/qemu/9000/config")["tags"] == "a;b"


def test_a_number_whose_vm_a_killed_run_is_making_is_passed(bench: Bench) -> None:
    """kill -9 while a VM is made: its task goes on, and holds the lock of the number."""
    held = "can't lock file '/var/lock/qemu-server/lock-9000.conf' - got timeout"
    bench.proxmox.fail("POST", CREATE, 500, held, times=1)
    assert [made.vmid for made in bench.publish()] == [9001]


def test_a_lock_of_another_number_is_an_error(bench: Bench) -> None:
    held = "can't lock file '/var/lock/qemu-server/lock-90001.conf' - got timeout"
    bench.proxmox.fail("POST", CREATE, 500, held, times=1)
    with pytest.raises(client.ApiError, match="is locked"):
        bench.publish()


def test_a_number_that_somebody_else_has_is_left_to_him(bench: Bench) -> None:
    """The token sees its pool only: that 9000 is taken shows when it is asked for."""
    theirs = bench.proxmox.add_vm(9000, "theirs")
    for grant in roles.grants(Role.PUBLISHER, bench.settings, major=9):
        bench.proxmox.entitle(TOKEN.identity, grant.path, *grant.privileges)
    [made] = bench.publish()
    assert made.vmid == 9001
    assert bench.proxmox.vm(9000) is theirs
    assert theirs.config == {"name": "theirs"}


def test_no_number_is_left(bench: Bench) -> None:
    bench.settings = dataclasses.replace(bench.settings, vmids=(9000, 9001))
    for vmid in (9000, 9001):
        bench.proxmox.add_vm(vmid, f"guest-{vmid}")
    before = bench.proxmox.inventory()
    with pytest.raises(GoldsmithError, match="no VM id is free from 9000 to 9001") as caught:
        bench.publish()
    assert caught.value.exit_code == 2
    assert bench.proxmox.inventory() == before


def test_media_that_cannot_be_removed_do_not_undo_the_template(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.proxmox.broken_tasks["imgdel"] = ["unable to remove the file"]
    assert bench.publish()[0].outcome is publish.Outcome.PUBLISHED
    assert "could not be removed" in capsys.readouterr().err
    assert len(bench.proxmox.media) == 1
    bench.publish()
    assert bench.proxmox.media == {}


def test_an_error_while_taking_back_does_not_hide_the_first(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.proxmox.broken_tasks = {"qmtemplate": ["the first error"], "qmdestroy": ["the second error"]}
    with pytest.raises(GoldsmithError, match="the first error"):
        bench.publish()
    assert "the second error" in capsys.readouterr().err
    bench.publish()
    assert [(vm.name, bool(vm.template)) for vm in bench.proxmox.vms] == [(NAME, True)]


def test_every_write_was_tried_to_fail(bench: Bench) -> None:
    """The table above has a fault for each changing call that publishing makes."""
    bench.publish()
    written = {path for method, path in bench.proxmox.calls if method != "GET"}
    known = {UPLOAD, CREATE, CONFIG, TEMPLATE}
    media = {path for path in written if path.startswith("/nodes/pve1/storage/local/content/")}
    assert written == known | media
    assert len(media) == 1


# --- an upload that is refused while it is sent -------------------------------------------------------------------------

LARGE = 64 << 20


def large_artifact(bench: Bench) -> Artifact:
    """Return an artifact that is still being sent when the server has refused it long ago."""
    image = bench.place / "large.qcow2"
    image.parent.mkdir(parents=True, exist_ok=True)
    image.write_bytes(image_bytes())
    with image.open("r+b") as stream:
        stream.truncate(LARGE)
    return proven.make(bench.place / "artifacts", image, virtual_mib=DISK_MIB)


def test_a_large_upload_without_the_right_to_it_is_told_as_that(bench: Bench) -> None:
    """Measured on 9.2: the connection closes while the client sends, and the 403 is never read."""
    for grant in roles.grants(Role.PUBLISHER, bench.settings, major=9):
        bench.proxmox.entitle(TOKEN.identity, grant.path, *(grant.privileges - {"Datastore.AllocateTemplate"}))
    before = bench.proxmox.inventory()
    with pytest.raises(client.Denied, match=r"Datastore\.AllocateTemplate on /storage/local") as caught:
        bench.publish(large_artifact(bench), tokens={})
    assert TOKEN.identity in caught.value.brief
    assert "certificate" not in caught.value.render()
    assert bench.proxmox.calls["POST", UPLOAD] == 1
    assert bench.proxmox.inventory() == before


def test_a_large_upload_without_room_is_told_as_that(bench: Bench) -> None:
    found, room = large_artifact(bench), bench.proxmox.storages["local"]["avail"]

    def fill(request: Any) -> None:
        if request.path.endswith(UPLOAD):
            bench.proxmox.storages["local"]["avail"] = LARGE - 1
            bench.proxmox.refuse_uploads = PveError(500, "No space left on device")

    bench.proxmox.on_request = fill
    with pytest.raises(StepFailed, match="not enough free space on storage local of pve1"):
        bench.publish(found)
    assert bench.proxmox.calls["POST", UPLOAD] == 1
    bench.proxmox.storages["local"]["avail"] = room
    assert bench.proxmox.media == {}


def test_a_large_upload_that_is_closed_for_another_reason_is_tried_again(bench: Bench) -> None:
    bench.proxmox.refuse_uploads = PveError(400, "bad request")
    with pytest.raises(client.ApiError, match=r"closed the connection|does not answer") as caught:
        bench.publish(large_artifact(bench))
    assert "/var/tmp" in caught.value.hint
    assert "certificate" not in caught.value.render()
    assert bench.proxmox.calls["POST", UPLOAD] == upload.UPLOAD_ATTEMPTS
