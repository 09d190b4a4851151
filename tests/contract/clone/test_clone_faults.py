"""The fault table of cloning: each fault gives a clear message and the right exit code, and the cluster is unchanged."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from build.clone import clone, machine
from build.core.errors import GoldsmithError, StepFailed
from build.proxmox import client, guest_agent, labels, roles
from build.spec.cluster import Role
from tests.contract.cloning import OPERATOR, Field, Guests
from tests.contract.publish.test_publish_faults import Fault, denied, lost, named, refuse, task_error
from tests.contract.shipping import NAME
from tests.fakes.proxmox import Proxmox
from tests.patience import PATIENCE_SECONDS

CLONE = "/nodes/pve1/qemu/9000/clone"
DATA: dict[str, Any] = {"more_disk_gib": 1, "data_gib": 40}
CONFIG, RESIZE, START = "/nodes/pve1/qemu/100/config", "/nodes/pve1/qemu/100/resize", "/nodes/pve1/qemu/100/status/start"
SPACE = "clone failed: unable to write to storage 'local-lvm': No space left on device"


@pytest.fixture
def proxmox_class() -> type[Proxmox]:
    return Guests


def full_storage(proxmox: Proxmox) -> None:
    proxmox.storages["local-lvm"]["avail"] = 8 << 20


FAULTS = [
    Fault("the template is locked", named("POST", CLONE, "locked"), "VM is locked", "another task holds"),
    Fault("its lock file is held", named("POST", CLONE, "config_lock_timeout"), "got timeout", "another task holds"),
    Fault("the clone is locked when it is configured", named("PUT", CONFIG, "locked"), "VM is locked"),
    Fault("the clone's task fails", task_error("qmclone", "clone failed: got no worker"), "qmclone on pve1 failed"),
    Fault("the storage fills up", task_error("qmclone", SPACE), "No space left", "free space"),
    Fault("no linked clones there", refuse("POST", CLONE, 500, "Linked clone feature is not supported for drive 'scsi0'"),
          "not supported", "omit --linked"),
    Fault("the disk does not grow", task_error("resize", "lvextend failed: No space left on device"), "No space left",
          "free space"),
    Fault("it does not start", task_error("qmstart", "start failed: QEMU exited with code 1"), "qmstart on pve1 failed"),
    Fault("no right to clone", refuse("POST", CLONE, 403, denied("VM.Clone", "/vms/9000")), r"VM\.Clone on /vms/9000",
          "doctor -- --proxmox"),
    Fault("no right to make machines", refuse("POST", CLONE, 403, denied("VM.Allocate", "/vms/100")),
          r"VM\.Allocate on /vms/100", "doctor -- --proxmox"),
    Fault("no right to configure", refuse("PUT", CONFIG, 403, denied("VM.Config.Options", "/vms/100")),
          r"VM\.Config\.Options on /vms/100", "doctor -- --proxmox"),
    Fault("no right to grow", refuse("PUT", RESIZE, 403, denied("VM.Config.Disk", "/vms/100")),
          r"VM\.Config\.Disk on /vms/100", "doctor -- --proxmox"),
    Fault("no right to start", refuse("POST", START, 403, denied("VM.PowerMgmt", "/vms/100")),
          r"VM\.PowerMgmt on /vms/100", "doctor -- --proxmox"),
    Fault("the node is gone", refuse("POST", CLONE, 595, "No route to host"), "node pve1 does not answer", "it is online"),
    Fault("the node is gone when it is configured", refuse("PUT", CONFIG, 595, "No route to host"),
          "node pve1 does not answer"),
    Fault("the quorum is lost", lambda proxmox: proxmox.lose_quorum(), "no quorum", "lost its quorum"),
    Fault("a proxy answers instead", refuse("POST", CLONE, 502, "Bad gateway", html=True), "Bad Gateway"),
    Fault("the answer to the clone is lost", lost("POST", CLONE), "does not answer"),
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_told_and_leaves_nothing(field: Field, fault: Fault) -> None:
    before = field.proxmox.inventory()
    fault.arrange(field.proxmox)
    with pytest.raises(GoldsmithError, match=fault.words) as caught:
        field.clone(**DATA)
    assert fault.hint in caught.value.hint
    assert caught.value.exit_code == fault.exit_code
    assert OPERATOR.secret not in caught.value.render()
    assert field.proxmox.inventory() == before
    # And it was not forever.
    field.proxmox.failures.clear()
    field.proxmox.regain_quorum()
    assert field.clone(**DATA).outcome is clone.Outcome.CLONED


def test_every_write_was_tried_to_fail(field: Field) -> None:
    """The table above has a fault for each changing call that cloning makes."""
    made = field.clone(**DATA)
    assert made.machine.vmid == 100
    assert {path for method, path in field.proxmox.calls if method != "GET"} == {CLONE, CONFIG, RESIZE, START}


def test_a_storage_that_is_full(field: Field) -> None:
    full_storage(field.proxmox)
    before = field.proxmox.inventory()
    with pytest.raises(GoldsmithError, match="No space left") as caught:
        field.clone()
    assert "free space" in caught.value.hint
    assert field.proxmox.inventory() == before


def test_a_node_that_is_offline(field: Field) -> None:
    field.proxmox.set_node_offline("pve1")
    before = field.proxmox.inventory()
    with pytest.raises(GoldsmithError, match="node pve1 does not answer") as caught:
        field.clone()
    assert "online" in caught.value.hint
    assert field.proxmox.inventory() == before


def test_a_pool_that_is_not_there(field: Field) -> None:
    del field.proxmox.pools["golden-clones"]
    before = field.proxmox.inventory()
    with pytest.raises(GoldsmithError, match=r"no pool golden-clones") as caught:
        field.clone()
    assert "doctor -- --roles" in caught.value.hint
    assert field.proxmox.inventory() == before


def test_an_expired_token_changes_nothing(field: Field) -> None:
    field.proxmox.apitokens.clear()
    before = field.proxmox.inventory()
    with pytest.raises(GoldsmithError, match="does not accept the token") as caught:
        field.clone()
    assert "expired" in caught.value.hint
    assert field.proxmox.inventory() == before


def test_a_token_that_is_revoked_meanwhile(field: Field, capsys: pytest.CaptureFixture[str]) -> None:
    field.proxmox.on_task = lambda kind: field.proxmox.apitokens.clear() if kind == "qmstart" else None
    with pytest.raises(GoldsmithError, match="does not accept the token"):
        field.clone()
    said = capsys.readouterr().err
    assert "VM 100 could not be removed" in said
    assert "qm destroy" in said
    # The next run goes on with what is left.
    field.proxmox.apitokens[OPERATOR.identity] = OPERATOR.secret
    field.proxmox.on_task = lambda _kind: None
    assert field.clone().outcome is clone.Outcome.CONTINUED


@pytest.mark.parametrize("version", ["8.4.1", "9.0.10"])
@pytest.mark.parametrize("privilege", ["VM.GuestAgent.Audit", "VM.GuestAgent.FileRead"])
def test_a_missing_agent_privilege_is_no_silent_agent(field: Field, version: str, privilege: str) -> None:
    field.proxmox.version = version
    lacking = "VM.Monitor" if version[0] == "8" else privilege
    for grant in roles.grants(Role.OPERATOR, field.bench.settings, major=int(version[0])):
        field.proxmox.entitle(OPERATOR.identity, grant.path, *(grant.privileges - {lacking}))
    before = field.proxmox.inventory()
    with pytest.raises(client.Denied, match=r"VM\.(GuestAgent\.\w+|Monitor)"):
        field.clone()
    assert field.proxmox.inventory() == before


def test_reads_that_are_lost_are_repeated(field: Field) -> None:
    field.proxmox._random.seed(4)
    field.proxmox.lost_reads = 0.2
    assert field.clone(**DATA).outcome is clone.Outcome.CLONED


@pytest.mark.parametrize("write", [("PUT", "/config"), ("PUT", "/resize"), ("POST", "/start")])
def test_a_lost_answer_is_looked_up(field: Field, write: tuple[str, str]) -> None:
    field.proxmox.lost_answers.add(write)
    made = field.clone(**DATA)
    assert made.outcome is clone.Outcome.CLONED
    assert field.proxmox.vm(made.machine.vmid).config["scsi0"].endswith("size=1088M")
    assert sum(count for (how, path), count in field.proxmox.calls.items() if how == "POST" and path.endswith("/start")) == 1


def test_a_number_that_is_taken_meanwhile(field: Field) -> None:
    field.proxmox.fail("POST", CLONE, 500, "unable to create VM 100: config file already exists", times=2)
    assert field.clone().machine.vmid == 100
    assert field.proxmox.calls["POST", CLONE] == 3


def test_a_number_that_is_taken_while_the_task_begins(field: Field) -> None:
    """The other machine has no label, and is in the same pool: it is neither changed nor removed."""
    field.proxmox.taken_late.add(100)
    assert field.clone().machine.vmid == 101
    assert field.proxmox.vm(100).name == "theirs"


def test_a_number_that_is_taken_while_the_task_begins_is_not_taken_back(field: Field) -> None:
    field.proxmox.taken_late.add(100)
    field.proxmox.broken_tasks["qmstart"] = ["start failed: QEMU exited with code 1"]
    with pytest.raises(StepFailed, match="QEMU exited"):
        field.clone()
    assert [vm.name for vm in field.proxmox.vms if not vm.template] == ["theirs"]


def test_a_list_that_is_refused_while_a_machine_is_removed(field: Field) -> None:
    field.proxmox.vanishing = 2
    assert field.clone().machine.vmid == 100


def test_numbers_that_are_always_taken(field: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "TRIES", 3)
    field.proxmox.fail("POST", CLONE, 500, "unable to create VM 100: config file already exists")
    before = field.proxmox.inventory()
    with pytest.raises(StepFailed, match="3 VM ids in a row"):
        field.clone()
    assert field.proxmox.inventory() == before


def test_a_number_that_somebody_else_has_is_left_to_him(field: Field) -> None:
    """It is unknown whether the clone was created, and its number now belongs to another user, whose VM stays."""
    theirs: list[Any] = []

    def refuse_silently(kind: str) -> None:
        if kind == "qmclone":
            theirs.append(field.proxmox.vm(100))
            field.proxmox.vm(100).config["description"] = "theirs"

    field.proxmox.on_task = refuse_silently
    field.proxmox.lost_answers.add(("POST", CLONE))
    with pytest.raises(GoldsmithError, match="does not answer"):
        field.clone()
    assert [field.proxmox.vm(100)] == theirs


def test_a_slow_clone_whose_answer_was_lost_is_found(field: Field) -> None:
    """It is found by its task: until that ends, the clone is in no pool, and a token with rights on the pool gets 403."""
    for grant in roles.grants(Role.OPERATOR, field.bench.settings, major=9):
        field.proxmox.entitle(OPERATOR.identity, grant.path, *grant.privileges)
    before = field.proxmox.inventory()
    field.proxmox.time_scale = 0.05
    field.proxmox.durations["qmclone"] = 20.0
    field.proxmox.lost_answers.add(("POST", CLONE))
    with pytest.raises(GoldsmithError, match="does not answer"):
        field.clone()
    assert field.proxmox.inventory() == before


def test_another_clone_of_the_same_template_goes_on(field: Field) -> None:
    """Only this run's clone is rolled back, not a clone that another user makes from the template meanwhile."""
    begun = threading.Event()
    field.proxmox.time_scale = 0.05
    field.proxmox.durations["qmclone"] = 60.0
    field.proxmox.on_task = lambda _kind: begun.set()
    with client.Api(field.bench.settings, OPERATOR) as api:
        upid = api.post(CLONE, newid=500, name="theirs", full=1, pool="golden-clones")
        assert begun.wait(PATIENCE_SECONDS)
        # Ours is whole, and gone again, long before theirs.
        field.proxmox.durations["qmclone"] = 0.0
        field.proxmox.lost_answers.add(("POST", CLONE))
        with pytest.raises(GoldsmithError, match="does not answer"):
            field.clone()
        assert field.proxmox.vm(500).lock == "clone"
        api.wait(upid)
    assert sorted(vm.vmid for vm in field.proxmox.vms) == [500, 9000]


@pytest.mark.parametrize("kind", ["qmclone", "qmstart"])
def test_a_clone_for_another_node_is_taken_back_wherever_it_is(field: Field, kind: str) -> None:
    field.proxmox.add_node("pve2")
    field.proxmox.storages["local-lvm"]["shared"] = 1
    before = field.proxmox.inventory()
    field.proxmox.broken_tasks[kind] = ["it did not work"]
    with pytest.raises(GoldsmithError, match=f"{kind} on pve. failed"):
        field.clone(node="pve2")
    assert field.proxmox.inventory() == before


def test_a_task_that_does_not_end_in_time(field: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    before = field.proxmox.inventory()
    monkeypatch.setattr(machine, "CLONE_SECONDS", 0.3)
    field.proxmox.time_scale = 0.1
    field.proxmox.durations["qmclone"] = 20.0
    with pytest.raises(GoldsmithError, match="qmclone on pve1 is not done") as caught:
        field.clone()
    assert "task list" in caught.value.hint
    assert field.proxmox.inventory() == before


def test_a_slow_task_is_waited_for(field: Field) -> None:
    field.proxmox.time_scale = 0.1
    field.proxmox.durations = {"qmclone": 10.0, "resize": 5.0, "qmstart": 5.0}
    assert field.clone(**DATA).outcome is clone.Outcome.CLONED


def test_a_machine_without_an_agent_names_the_three_causes(field: Field) -> None:
    field.proxmox.silent = True
    before = field.proxmox.inventory()
    with pytest.raises(StepFailed, match="reported no address") as caught:
        field.clone(timeout=0.2)
    for cause in ("DHCP", "guest agent", "whether the VM booted"):
        assert cause in caught.value.hint
    assert field.proxmox.inventory() == before


def test_an_application_that_does_not_answer(field: Field) -> None:
    field.site.codes[:] = [503]
    before = field.proxmox.inventory()
    with pytest.raises(StepFailed, match=r"https://www\.example\.org at 192") as caught:
        field.clone(timeout=0.5)
    assert "/health: HTTP status 503" in caught.value.details
    assert "--timeout" in caught.value.hint
    assert field.proxmox.inventory() == before


def test_another_address_than_the_given_one(field: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_agent, "pick_address", lambda _cards, _mac: "198.51.100.7")
    with pytest.raises(StepFailed, match=r"has the address 198\.51\.100\.7 instead of 192\.0\.2\.10"):
        field.clone()


# --- kept, continued, interrupted -----------------------------------------------------------------------------------------


def test_keep_leaves_it_and_the_next_run_continues(field: Field, capsys: pytest.CaptureFixture[str]) -> None:
    field.proxmox.broken_tasks["qmstart"] = ["no such machine type"]
    with pytest.raises(GoldsmithError, match="qmstart"):
        field.clone(keep=True)
    assert "--keep: the incomplete web1 is kept" in capsys.readouterr().err
    label = labels.parse_clone(field.proxmox.vm(100).config["description"])
    assert label is not None
    assert label.state is labels.CloneState.MAKING
    made = field.clone()
    assert (made.outcome, made.machine.vmid) == (clone.Outcome.CONTINUED, 100)
    assert field.clone().outcome is clone.Outcome.THERE


class Killed(BaseException):
    """The process was killed: none of its code runs afterwards."""


@pytest.mark.parametrize(
    ("method", "ending"), [("put", "/config"), ("put", "/resize"), ("post", "/start"), ("get", "/network-get-interfaces")]
)
def test_a_run_that_was_killed_is_continued(field: Field, monkeypatch: pytest.MonkeyPatch, method: str, ending: str) -> None:
    real = client.Api._call

    def call(self: client.Api, how: str, path: str, *rest: Any, **options: Any) -> Any:
        if how == method and path.endswith(ending):
            raise Killed
        return real(self, how, path, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(client.Api, "_call", call)
        patch.setattr(clone, "_take_back", lambda _undo: None)
        with pytest.raises(Killed):
            field.clone(**DATA)
    made = field.clone(**DATA)
    assert (made.outcome, made.machine.vmid) == (clone.Outcome.CONTINUED, 100)
    assert sorted(vm.vmid for vm in field.proxmox.vms) == [100, 9000]
    config = field.proxmox.vm(100).config
    assert (config["scsi0"].rpartition("size=")[2], str(config["onboot"])) == ("1088M", "1")


def test_a_killed_run_whose_clone_is_still_copied(field: Field) -> None:
    field.proxmox.time_scale = 0.05
    field.proxmox.durations["qmclone"] = 20.0
    label = labels.CloneLabel(NAME, "1.2.3", digest_of(field), "a", labels.CloneState.MAKING, "now", "dead")
    with client.Api(field.bench.settings, OPERATOR) as api:
        api.post(CLONE, newid=100, name="web1", full=1, pool="golden-clones", description=label.describe())
    assert field.clone().outcome is clone.Outcome.CONTINUED


def digest_of(field: Field) -> str:
    label = labels.parse(field.proxmox.vm(9000).config["description"])
    assert label is not None
    return label.digest


def test_what_another_run_made_is_not_removed_when_this_one_fails(field: Field) -> None:
    field.proxmox.broken_tasks["qmstart"] = ["no such machine type", "no such machine type"]
    for _ in range(2):
        with pytest.raises(GoldsmithError, match="qmstart"):
            field.clone(keep=not field.proxmox.vm(100))
    assert field.proxmox.vm(100).name == "web1"


@pytest.mark.parametrize("kind", ["qmclone", "qmstart"])
@pytest.mark.parametrize("again", [False, True])
def test_ctrl_c_takes_back_what_was_made(
    field: Field,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    again: bool,  # noqa: FBT001
) -> None:
    before = field.proxmox.inventory()
    begun = threading.Event()
    field.proxmox.time_scale = 0.05
    field.proxmox.durations[kind] = 60.0
    field.proxmox.on_task = lambda one: begun.set() if one == kind else None
    real = client.Api._call

    def call(self: client.Api, how: str, path: str, *rest: Any, **options: Any) -> Any:
        answer = real(self, how, path, *rest, **options)
        if begun.is_set() and threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        return answer

    monkeypatch.setattr(client.Api, "_call", call)
    join, pressed = threading.Thread.join, [again]

    def impatient(self: threading.Thread, timeout: float | None = None) -> None:
        if pressed[0]:
            pressed[0] = False
            raise KeyboardInterrupt
        join(self, timeout)

    monkeypatch.setattr(threading.Thread, "join", impatient)
    with pytest.raises(KeyboardInterrupt):
        field.clone()
    assert field.proxmox.inventory() == before
