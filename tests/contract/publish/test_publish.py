"""Publishing to the fake cluster: what is created, refused and continued, and the number of calls."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from build.core import files
from build.core.errors import GoldsmithError, HostError, SpecError, VerificationFailed
from build.proxmox import client, labels, preflight, roles, vms
from build.publish import publish, template
from build.spec import cluster
from build.spec.cluster import Role
from tests.contract.conftest import TOKEN
from tests.contract.shipping import NAME, Bench, image_bytes, make_artifact
from tests.fakes.proxmox import Proxmox
from tests.patience import PATIENCE_SECONDS


def test_an_artifact_becomes_a_protected_template(bench: Bench) -> None:
    seen: list[tuple[str, int, str, bool]] = []

    def verifier(subject: publish.Subject) -> None:
        machine = bench.proxmox.vm(subject.vmid)
        seen.append((subject.node, subject.vmid, machine.config["tags"], bool(machine.template)))

    bench.verifier = verifier
    found = make_artifact(bench.place)
    [made] = bench.publish(found)
    assert made == publish.Template("pve1", 9000, NAME, publish.Outcome.PUBLISHED)
    digest = found.manifest.image.sha256
    assert seen == [("pve1", 9000, f"golden;sha256-{digest[:12]};v1.2.3", False)]
    machine = bench.proxmox.vm(9000)
    config = machine.config
    assert machine.template
    assert config["scsi0"] == "local-lvm:base-9000-disk-1,discard=on,iothread=1,size=64M"
    assert config["ide2"] == "local-lvm:vm-9000-cloudinit,media=cdrom"
    expected = {
        "boot": "order=scsi0", "scsihw": "virtio-scsi-single", "serial0": "socket", "agent": "1", "bios": "ovmf",
        "machine": "q35", "ostype": "l26", "tags": f"candidate;golden;sha256-{digest[:12]};v1.2.3",
    }  # fmt: skip
    assert {key: config[key] for key in expected} == expected
    assert {key: int(config[key]) for key in ("onboot", "ciupgrade", "protection")} == {
        "onboot": 0, "ciupgrade": 0, "protection": 1,
    }  # fmt: skip
    assert "pre-enrolled-keys=1" in config["efidisk0"]
    assert "args" not in config
    assert bench.proxmox.pools["golden"] == {9000}
    assert bench.proxmox.media == {}


def test_the_description_tells_people_and_programs_what_it_is(bench: Bench) -> None:
    found = make_artifact(bench.place)
    bench.publish(found)
    description = bench.proxmox.vm(9000).config["description"]
    label = labels.parse(description)
    assert label is not None
    assert (label.digest, label.version, label.artifact) == (found.manifest.image.sha256, "1.2.3", found.path.name)
    assert label.state is labels.State.TEMPLATE
    assert label.provenance["Debian archive as of"] == "2026-11-20T02:11:10Z"
    assert "clone it, do not change it" in description


def test_bios_and_vlan(bench: Bench) -> None:
    bench.settings = dataclasses.replace(bench.settings, firmware=cluster.Firmware.BIOS, vlan=7)
    bench.publish()
    config = bench.proxmox.vm(9000).config
    assert "efidisk0" not in config
    assert config["net0"].endswith(",bridge=vmbr0,tag=7")


def test_the_same_image_is_not_published_twice(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.publish()
    before = bench.proxmox.inventory()
    changes = bench.proxmox.calls.total()
    [again] = bench.publish()
    assert again.outcome is publish.Outcome.THERE
    assert bench.proxmox.inventory() == before
    assert "is already published on pve1" in capsys.readouterr().err
    assert {method for method, _ in bench.proxmox.calls} >= {"GET"}
    # One of them reads the template, whose description would say that the image is revoked.
    assert bench.proxmox.calls.total() - changes <= 10


def test_a_name_that_stands_for_another_image_is_refused(bench: Bench) -> None:
    bench.publish()
    before = bench.proxmox.inventory()
    with pytest.raises(SpecError, match="not ") as caught:
        bench.publish(make_artifact(bench.place, fill=b"x"))
    assert "raise the version" in caught.value.hint
    assert caught.value.exit_code == 2
    assert bench.proxmox.inventory() == before


def test_a_machine_that_goldsmith_did_not_make_keeps_its_name(bench: Bench) -> None:
    bench.proxmox.add_vm(100, NAME)
    with pytest.raises(SpecError, match="did not create"):
        bench.publish()
    assert [vm.vmid for vm in bench.proxmox.vms] == [100]


def test_a_damaged_artifact_is_not_published(bench: Bench) -> None:
    found = make_artifact(bench.place)
    found.image.chmod(0o644)
    found.image.write_bytes(image_bytes(b"y"))
    with pytest.raises(VerificationFailed, match="does not verify"):
        bench.publish(found)
    assert bench.proxmox.calls.total() == 0


def test_an_unverified_artifact_is_not_published(bench: Bench) -> None:
    with pytest.raises(VerificationFailed, match="does not verify"):
        bench.publish(make_artifact(bench.place, verification={"passed": 299, "failed": 1}))


def test_an_image_that_fails_on_the_node_leaves_nothing(bench: Bench) -> None:
    before = bench.proxmox.inventory()

    def verifier(_subject: publish.Subject) -> None:
        raise VerificationFailed("the image failed 1 of 300 tests")

    bench.verifier = verifier
    with pytest.raises(VerificationFailed) as caught:
        bench.publish()
    assert caught.value.exit_code == 3
    assert bench.proxmox.inventory() == before


# --- the upload ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more_mib", [0, 16])
def test_the_parts_of_an_upload_come_in_the_order_that_proxmox_reads(bench: Bench, more_mib: int) -> None:
    """Small files are sent at once, large ones are streamed: two ways to write the same request."""
    image = bench.place / "image.qcow2"
    image.parent.mkdir(parents=True)
    image.write_bytes(image_bytes() + b"x" * (more_mib << 20))
    with client.Api(bench.settings, bench.token) as api:
        volume = api.upload("pve1", "local", image, name="golden-1.qcow2", sha256=files.sha256_file(image))
    assert volume == "local:import/golden-1.qcow2"
    assert [medium.sha256 for medium in bench.proxmox.media.values()] == [files.sha256_file(image)]


WRONG_ORDERS = [
    ("checksum", "content"), ("content", "checksum", "checksum-algorithm"), ("content", "content"), ("content", "other"),
]  # fmt: skip


@pytest.mark.parametrize("parts", WRONG_ORDERS, ids=" ".join)
def test_the_fake_reads_no_other_order(bench: Bench, parts: tuple[str, ...]) -> None:
    """Measured on Proxmox VE 9.2 and 8.4: any other order is answered with 400, and the connection is closed."""
    fields = [(part, (None, "import")) for part in parts]
    url = f"https://{bench.settings.host}:{bench.settings.port}/api2/json/nodes/pve1/storage/local/upload"
    answer = requests.post(
        url, files=[*fields, ("filename", ("a.qcow2", image_bytes()))], verify=str(bench.settings.ca),
        timeout=PATIENCE_SECONDS, headers={"Authorization": f"PVEAPIToken={bench.token.identity}={bench.token.secret}"},
    )  # fmt: skip
    assert (answer.status_code, answer.headers["Connection"]) == (400, "close")
    assert bench.proxmox.media == {}


# --- what the cluster's list shows ten seconds late ---------------------------------------------------------------------


def test_the_list_of_the_fake_is_as_late_as_the_real_one(bench: Bench) -> None:
    """Measured on Proxmox VE 9.2: number and tags at once; name, template flag and state with the next broadcast."""
    now = 0.0
    bench.proxmox.clock = lambda: now
    bench.proxmox.broadcast()
    bench.publish()

    def shown() -> dict[str, Any]:
        with client.Api(bench.settings, bench.token) as api:
            [guest] = api.get("/cluster/resources", type="vm")
            found: dict[str, Any] = guest
            return found

    new = shown()
    assert (new["vmid"], new["status"], set(new) & {"name", "template"}) == (9000, "unknown", set())
    assert "candidate" in new["tags"]
    now = 9.9
    assert shown() == new
    now = 10.0
    late = shown()
    assert (late["name"], late["template"], late["status"]) == (NAME, 1, "stopped")


@pytest.mark.parametrize("late", [0.0, 9.9, 10.0])
def test_the_same_image_is_not_published_twice_within_ten_seconds(bench: Bench, late: float) -> None:
    now = 0.0
    bench.proxmox.clock = lambda: now
    bench.proxmox.broadcast()
    bench.publish()
    now = late
    [again] = bench.publish()
    assert (again.outcome, again.vmid) == (publish.Outcome.THERE, 9000)
    assert [vm.vmid for vm in bench.proxmox.vms] == [9000]


def test_a_template_of_a_node_that_has_been_down_for_long_is_known_by_its_tags(bench: Bench) -> None:
    """Without a name in the list: on a storage that both nodes share, it is there, and not published once more."""
    bench.with_nodes("pve1", "pve2")
    bench.proxmox.storages["local-lvm"]["shared"] = 1
    bench.publish()
    bench.proxmox.set_node_offline("pve1")
    bench.proxmox.forgotten.add("pve1")
    bench.settings = dataclasses.replace(bench.settings, nodes=("pve2",))
    with pytest.raises(client.ApiError, match="node pve1 does not answer"):
        bench.publish()
    assert [vm.vmid for vm in bench.proxmox.vms] == [9000]


# --- continuing ---------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process was killed: none of its code runs afterwards."""


def kill_at(monkeypatch: pytest.MonkeyPatch, method: str, ending: str) -> None:
    """Let the process die when it is about to make a call, without cleaning up."""
    real = client.Api._call

    def call(self: client.Api, how: str, path: str, *rest: Any, **options: Any) -> Any:
        if how == method and path.endswith(ending):
            raise Killed
        return real(self, how, path, *rest, **options)

    monkeypatch.setattr(client.Api, "_call", call)
    monkeypatch.setattr(vms.Undo, "run", lambda _self: [])


@pytest.mark.parametrize(
    ("method", "ending"),
    [
        ("post", "/upload"), ("post", "/qemu"), ("put", "/config"), ("post", "/template"), ("delete", ".qcow2"),
    ],
)  # fmt: skip
def test_a_run_that_was_killed_is_continued(bench: Bench, monkeypatch: pytest.MonkeyPatch, method: str, ending: str) -> None:
    with monkeypatch.context() as patch:
        kill_at(patch, method, ending)
        with pytest.raises(Killed):
            bench.publish()
    uploads = bench.proxmox.calls["POST", "/nodes/pve1/storage/local/upload"]
    bench.publish()
    assert [(vm.name, vm.template, vm.config["protection"]) for vm in bench.proxmox.vms] == [(NAME, True, "1")]
    assert bench.proxmox.media == {}
    # What was uploaded is not uploaded again.
    assert bench.proxmox.calls["POST", "/nodes/pve1/storage/local/upload"] == 1, uploads


def test_a_template_that_lacks_its_last_step_is_finished_without_new_clones(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(template.Machine, "finish", kill)
        patch.setattr(vms.Undo, "run", lambda _self: [])
        with pytest.raises(Killed):
            bench.publish()
    verified: list[publish.Subject] = []
    bench.verifier = verified.append
    [made] = bench.publish()
    assert (made.outcome, made.vmid, verified) == (publish.Outcome.FINISHED, 9000, [])
    assert int(bench.proxmox.vm(9000).config["protection"]) == 1


def kill(_self: Any) -> None:
    raise Killed


def test_clones_that_a_killed_run_left_are_removed(bench: Bench) -> None:
    label = labels.of(make_artifact(bench.place), state=labels.State.PUBLISHING, published="", run="dead")
    bench.proxmox.add_vm(
        9001, label.clone_name("a"), status="running", pool="golden", config={"description": label.describe(), "memory": 512}
    )
    bench.publish()
    assert [vm.vmid for vm in bench.proxmox.vms] == [9000]


# --- several nodes ------------------------------------------------------------------------------------------------------


def test_every_node_gets_a_template_of_the_same_bytes(bench: Bench) -> None:
    bench.with_nodes("pve1", "pve2", "pve3")
    made = bench.publish()
    assert [one.node for one in made] == ["pve1", "pve2", "pve3"]
    assert sorted(one.vmid for one in made) == [9000, 9001, 9002]
    assert len({vm.config["tags"] for vm in bench.proxmox.vms}) == 1
    assert bench.proxmox.media == {}


def test_one_template_is_enough_on_a_shared_storage(bench: Bench) -> None:
    bench.with_nodes("pve1", "pve2")
    bench.proxmox.storages["local-lvm"]["shared"] = 1
    assert [one.node for one in bench.publish()] == ["pve1"]
    bench.settings = dataclasses.replace(bench.settings, nodes=("pve2", "pve1"))
    [again] = bench.publish()
    assert (again.node, again.outcome) == ("pve1", publish.Outcome.THERE)


def test_a_shared_media_storage_gets_the_image_once(bench: Bench) -> None:
    bench.with_nodes("pve1", "pve2", "pve3")
    bench.proxmox.storages["local"]["shared"] = 1
    bench.publish()
    assert sum(count for (_, path), count in bench.proxmox.calls.items() if path.endswith("/upload")) == 1
    assert len(bench.proxmox.vms) == 3
    assert bench.proxmox.media == {}


def test_a_node_that_fails_does_not_take_the_others_with_it(bench: Bench) -> None:
    bench.with_nodes("pve1", "pve2")
    bench.proxmox.fail("POST", "/nodes/pve2/qemu", 500, "unable to create VM: no such thing")
    with pytest.raises(GoldsmithError, match="1 of 2 nodes") as caught:
        bench.publish()
    assert "pve2" in caught.value.details
    assert [(vm.node, bool(vm.template)) for vm in bench.proxmox.vms] == [("pve1", True)]
    assert bench.proxmox.media == {}
    bench.proxmox.failures.clear()
    assert [one.outcome for one in bench.publish()] == [publish.Outcome.THERE, publish.Outcome.PUBLISHED]


# --- interrupted --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["verifying", "creating"])
def test_ctrl_c_takes_back_what_was_made(bench: Bench, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    before = bench.proxmox.inventory()
    reached = threading.Event()

    def verifier(subject: publish.Subject) -> None:
        reached.set()
        while True:
            subject.check()
            time.sleep(0.01)

    bench.verifier = verifier
    if when == "creating":
        bench.proxmox.time_scale = 0.05
        bench.proxmox.durations["qmcreate"] = 60.0
        bench.proxmox.on_task = lambda kind: reached.set() if kind == "qmcreate" else None
    real = concurrent.futures.wait

    def interrupted(pending: Any, **options: Any) -> Any:
        if reached.is_set():
            monkeypatch.setattr(publish, "wait", real)
            raise KeyboardInterrupt
        return real(pending, **{**options, "timeout": 0.02})

    monkeypatch.setattr(publish, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench.publish()
    assert bench.proxmox.inventory() == before


# --- preflight ----------------------------------------------------------------------------------------------------------


def offline(proxmox: Proxmox) -> None:
    proxmox.set_node_offline("pve1")


def old(proxmox: Proxmox) -> None:
    proxmox.version = "8.3.2"


def no_content(proxmox: Proxmox) -> None:
    proxmox.storages["local"]["content"] = "iso"


def full(proxmox: Proxmox) -> None:
    proxmox.storages["local"]["avail"] = 100


def full_disks(proxmox: Proxmox) -> None:
    proxmox.storages["local-lvm"]["avail"] = 1 << 20


def no_storage(proxmox: Proxmox) -> None:
    del proxmox.storages["local-lvm"]


def no_bridge(proxmox: Proxmox) -> None:
    proxmox.bridges["pve1"] = ("vmbr7",)


def powerless(proxmox: Proxmox) -> None:
    proxmox.entitle(TOKEN.identity, "/pool/golden", "VM.Audit")


@pytest.mark.parametrize(
    ("trouble", "words", "remedy"),
    [
        (offline, "node pve1: it is offline", "--node"), (old, "8.3 does not accept images", "8.4"),
        (no_content, "does not include import", "pvesm set local --content import,iso"),
        (full, "storage local on pve1: 0.0 GiB free", "free space"),
        (full_disks, "storage local-lvm on pve1: 0.0 GiB free, 0.1 GiB needed", "free space"),
        (no_storage, "storage local-lvm on pve1: it does not exist", "golden.yaml"),
        (no_bridge, "visible are: vmbr7", "golden.yaml"),
        (powerless, "lacks VM.Allocate, VM.Config.CDROM", "doctor -- --roles"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named_before_anything_is_changed(
    bench: Bench, trouble: Callable[[Proxmox], None], words: str, remedy: str
) -> None:
    trouble(bench.proxmox)
    before = bench.proxmox.inventory()
    with pytest.raises(HostError, match="not ready") as caught:
        bench.publish()
    assert words in caught.value.details
    assert remedy in caught.value.details
    assert caught.value.exit_code == 2
    assert bench.proxmox.inventory() == before
    assert not [method for method, _ in bench.proxmox.calls if method != "GET"]


@pytest.mark.parametrize("version", ["8.4.1", "9.0.10"])
def test_the_role_that_is_printed_is_enough(bench: Bench, version: str) -> None:
    """Every privilege that the fake checks, and no other right anywhere."""
    bench.proxmox.version = version
    for grant in roles.grants(Role.PUBLISHER, bench.settings, major=int(version[0])):
        bench.proxmox.entitle(TOKEN.identity, grant.path, *grant.privileges)
    assert bench.publish()[0].outcome is publish.Outcome.PUBLISHED


# --- scale --------------------------------------------------------------------------------------------------------------


def timed(bench: Bench) -> float:
    begun = time.monotonic()
    bench.publish()
    return time.monotonic() - begun


@pytest.mark.slow
def test_32_nodes_take_little_more_than_the_slowest(bench: Bench) -> None:
    """One second of the cluster is 40 ms here: an import of 60 s, a template of 5 s, 50 ms for each answer."""
    bench.proxmox.time_scale = 0.04
    bench.proxmox.durations = {"qmcreate": 60.0, "qmtemplate": 5.0, "imgcopy": 20.0, "imgdel": 1.0}
    bench.proxmox.slow_network(0.05)
    alone = timed(bench)
    bench.with_nodes(*(f"node{number}" for number in range(32)))
    bench.proxmox.durations["qmcreate"] = 60.0
    together = timed(bench)
    assert len([vm for vm in bench.proxmox.vms if vm.template]) == 33
    # Both ends of 32 connections are in this process: their own work is not the cluster's.
    # One after the other would take 33 times as long as one.
    assert together < 10 * alone, (together, alone)
    print(f"one node {alone:.1f} s, 32 nodes {together:.1f} s, {bench.proxmox.most_uploading} uploads at once at most")
    assert bench.proxmox.most_uploading <= preflight.MOST_CONNECTIONS


def test_ten_thousand_guests_cost_no_more_calls(bench: Bench) -> None:
    bench.proxmox.add_vm(100, "guest")
    bench.publish()
    few = bench.proxmox.calls.total()
    for vm in list(bench.proxmox.vms):
        bench.proxmox.vms.remove(vm)
    for number in range(10_000):
        bench.proxmox.add_vm(10_000 + number, f"guest-{number}")
    bench.proxmox.calls.clear()
    bench.publish()
    assert bench.proxmox.calls.total() == few
    assert few < 40


@pytest.mark.slow
def test_more_than_2_gib_go_through_without_memory(bench: Bench, tmp_path: Path) -> None:
    """Above 2 GiB a body that is not streamed fails in OpenSSL; the client and the fake are both in this process."""
    image = tmp_path / "large.qcow2"
    with image.open("wb") as stream:
        stream.write(image_bytes())
        stream.truncate((2 << 30) + 4096)
    digest = files.sha256_file(image)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with client.Api(bench.settings, TOKEN) as api:
        volume = api.upload("pve1", "local", image, name="large.qcow2", sha256=digest)
    assert volume == "local:import/large.qcow2"
    [medium] = bench.proxmox.media.values()
    assert (medium.size, medium.sha256) == ((2 << 30) + 4096, digest)
    # In KiB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 128 << 10
    medium.path.unlink()
