"""Changes of published templates, on the fake cluster: each key, its fix, the exit code, the calls."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from build.artifact import artifact
from build.cli import drift as cli_drift
from build.cli import main
from build.core.errors import GoldsmithError, SpecError
from build.drift import drift
from build.drift.drift import TemplateReport
from build.proxmox import client, labels, roles
from build.publish import template
from build.spec.cluster import Firmware, Role
from tests.contract.cloning import OPERATOR
from tests.contract.shipping import NAME, Bench, make_artifact, write_spec

Change = Callable[[dict[str, Any]], object]


def look(bench: Bench, **changes: Any) -> list[TemplateReport]:
    with client.Api(bench.settings, OPERATOR) as api:
        job = drift.Job(api=api, settings=bench.settings, product="golden", artifacts=bench.place / "artifacts")
        return drift.drift(dataclasses.replace(job, **changes))


def config(bench: Bench) -> dict[str, Any]:
    found: dict[str, Any] = bench.proxmox.vm(9000).config
    return found


@pytest.mark.parametrize("version", ["8.4.1", "9.0.10"])
@pytest.mark.parametrize("firmware", list(Firmware))
def test_what_was_just_published_has_not_changed(bench: Bench, version: str, firmware: Firmware) -> None:
    """With the operator's rights on both versions, and with what the real one adds by itself."""
    bench.proxmox.version = version
    bench.settings = dataclasses.replace(bench.settings, firmware=firmware, vlan=7)
    bench.publish()
    config(bench).update(
        smbios1="uuid=1b2c3d4e-0000-4000-8000-000000000001", vmgenid="1b2c3d4e-0000-4000-8000-000000000002",
        meta="creation-qemu=10.0.2,ctime=1763800000",
    )  # fmt: skip
    for grant in roles.grants(Role.OPERATOR, bench.settings, major=int(version[0])):
        bench.proxmox.entitle(OPERATOR.identity, grant.path, *grant.privileges)
    before = bench.proxmox.inventory()
    bench.proxmox.calls.clear()
    [found] = look(bench)
    assert (found.node, found.vmid, found.name, found.changes, found.problem) == ("pve1", 9000, NAME, [], "")
    assert drift.UNREADABLE in found.notes
    assert bench.proxmox.inventory() == before
    assert {method for method, _ in bench.proxmox.calls} == {"GET"}
    assert cli_drift.exit_code([found]) == 0


CHANGES: list[tuple[str, Change, str, str, str]] = [
    ("memory", lambda keys: keys.update(memory=4096), "2048", "4096", "on pve1: qm set 9000 --memory 2048"),
    ("cores", lambda keys: keys.update(cores=8), "2", "8", "qm set 9000 --cores 2"),
    ("cpu", lambda keys: keys.update(cpu="host"), "x86-64-v2-AES", "host", "qm set 9000 --cpu x86-64-v2-AES"),
    ("protection", lambda keys: keys.pop("protection"), "1", "0", "qm set 9000 --protection 1"),
    ("onboot", lambda keys: keys.update(onboot=1), "0", "1", "qm set 9000 --onboot 0"),
    ("ciupgrade", lambda keys: keys.pop("ciupgrade"), "0", "1", "qm set 9000 --ciupgrade 0"),
    ("agent", lambda keys: keys.pop("agent"), "1", "nothing", "qm set 9000 --agent 1"),
    ("bios", lambda keys: keys.update(bios="seabios"), "ovmf", "seabios", "qm set 9000 --bios ovmf"),
    ("boot", lambda keys: keys.update(boot="order=net0"), "order=scsi0", "order=net0", "--boot order=scsi0"),
    ("serial0", lambda keys: keys.pop("serial0"), "socket", "nothing", "--serial0 socket"),
    ("ciuser", lambda keys: keys.update(ciuser="root"), "nothing", "root", "qm set 9000 --delete ciuser"),
    ("cicustom", lambda keys: keys.update(cicustom="user=local:snippets/x"), "nothing", "user=local", "--delete cicustom"),
    ("args", lambda keys: keys.update(args="-device x"), "nothing", "-device x", "--delete args"),
    ("net1", lambda keys: keys.update(net1="virtio=BC:24:11:00:00:09,bridge=vmbr9"), "nothing", "vmbr9", "--delete net1"),
    ("scsi1", lambda keys: keys.update(scsi1="local-lvm:vm-9000-disk-9,size=1G"), "nothing", "disk-9",
     "qm set 9000 --protection 0 && qm set 9000 --delete scsi1 && qm set 9000 --protection 1"),
    ("unused0", lambda keys: keys.update(unused0="local-lvm:vm-9000-disk-9"), "nothing", "disk-9", "raise the version"),
    ("net0", lambda keys: keys.update(net0="virtio=BC:24:11:00:00:09,bridge=vmbr9"), "bridge=vmbr0", "bridge=vmbr9",
     "qm set 9000 --net0 virtio=BC:24:11:00:00:09,bridge=vmbr0"),
    ("net0", lambda keys: keys.update(net0="e1000=BC:24:11:00:00:09,bridge=vmbr0"), "virtio", "e1000", "virtio,bridge"),
    ("scsi0", lambda keys: keys.update(scsi0="other:vm-9000-disk-1,discard=on,iothread=1,size=64M"),
     "local-lvm:(a volume of VM 9000)", "other:", "raise the version"),
    ("scsi0", lambda keys: keys.update(scsi0="local-lvm:base-9001-disk-1,discard=on,iothread=1,size=64M"),
     "a volume of VM 9000", "base-9001", "stop cloning"),
    ("scsi0", lambda keys: keys.update(scsi0="local-lvm:base-9000-disk-1,iothread=1,size=64M"), "discard=on", "iothread=1",
     "raise the version"),
    ("disk size", lambda keys: keys.update(scsi0="local-lvm:base-9000-disk-1,discard=on,iothread=1,size=1G"), "64 MiB",
     "1024 MiB", "raise the version"),
    ("efidisk0", lambda keys: keys.update(efidisk0="local-lvm:base-9000-disk-0,efitype=4m,size=528K"),
     "pre-enrolled-keys=1", "efitype=4m,size", "raise the version"),
    ("ide2", lambda keys: keys.update(ide2="local:iso/other.iso,media=cdrom"), "local-lvm:", "other.iso", "raise the"),
    ("smbios1", lambda keys: keys.update(smbios1="uuid=u,base64=1,sku=Z29sZGVuOnt9"), "uuid=u", "sku=", "--smbios1 uuid=u"),
    ("name", lambda keys: keys.update(name="golden-9.9.9"), NAME, "golden-9.9.9", f"--name {NAME}"),
    ("tags", lambda keys: keys.update(tags="golden;candidate"), "v1.2.3", "candidate;golden", "qm set 9000 --tags"),
    ("tags", lambda keys: keys.update(tags=f"{keys['tags']};v9.9.9"), "v1.2.3", "v9.9.9", "--tags"),
    ("description", lambda keys: keys.update(description=keys["description"].replace("do not change", "change")),
     "do not change it", "change it", "--json"),
    ("description", lambda keys: keys.update(description=""), "the label", "no label", "who changed it"),
    ("description", lambda keys: keys.update(description=keys["description"].replace("2026-11-20", "2027-01-01")),
     "2026-11-20", "2027-01-01", "--json"),
]  # fmt: skip


def test_each_change_is_named(bench: Bench) -> None:
    bench.publish()
    whole = dict(config(bench))
    for key, change, expected, found, remedy in CHANGES:
        bench.proxmox.vm(9000).config = dict(whole)
        change(config(bench))
        [seen] = look(bench)
        assert [told.key for told in seen.changes] == [key]
        [told] = seen.changes
        assert (expected in told.expected, found in told.found, remedy in told.remedy) == (True, True, True), told
        assert cli_drift.exit_code([seen]) == 3


def test_a_drive_of_a_protected_template_goes_only_by_the_remedy(bench: Bench) -> None:
    """Each command of the fix is one call of the API; without the first one Proxmox refuses the second."""
    bench.publish()
    path = "/nodes/pve1/qemu/9000/config"
    with client.Api(bench.settings, bench.token) as api:
        api.put(path, scsi1="local-lvm:1")
        # Measured: it is in the boot order, too.
        assert config(bench)["boot"] == "order=scsi0;scsi1"
        assert [told.key for told in look(bench)[0].changes] == ["boot", "scsi1"]
        with pytest.raises(client.ApiError, match="the VM is protected") as caught:
            api.put(path, delete="scsi1")
        assert "--protection 0" in caught.value.hint
        for keys in ({"protection": 0}, {"delete": "scsi1"}, {"protection": 1}, {"boot": "order=scsi0"}):
            api.put(path, **keys)
    assert [told.key for told in look(bench)[0].changes if not told.key.startswith("unused")] == []


def test_every_key_that_publish_writes_is_compared(bench: Bench) -> None:
    """The removal of any key is reported: every key that is written is compared."""
    bench.publish()
    whole = dict(config(bench))
    for key in whole:
        bench.proxmox.vm(9000).config = {name: value for name, value in whole.items() if name != key}
        [seen] = look(bench)
        # onboot=0 and no onboot are one and the same; the others are Proxmox's own.
        assert bool(seen.changes) == (key not in {"onboot", *template.OWN_KEYS}), key


def test_a_template_that_is_none_any_more(bench: Bench) -> None:
    bench.publish()
    bench.proxmox.vm(9000).template = False
    config(bench).pop("template")
    [seen] = look(bench)
    assert [(one.key, one.found) for one in seen.changes] == [("template", "0")]
    assert "raise the version" in seen.changes[0].remedy


def test_another_pool(bench: Bench) -> None:
    bench.publish()
    bench.proxmox.pools["golden"].clear()
    bench.proxmox.vm(9000).pool = None
    [seen] = look(bench)
    assert [(one.key, one.expected, one.found) for one in seen.changes] == [("pool", "golden", "nothing")]


def test_a_digest_that_is_not_the_artifacts(bench: Bench) -> None:
    """Description and tags were changed consistently: the comparison with the artifact shows it."""
    bench.publish()
    label = labels.parse(config(bench)["description"])
    assert label is not None
    other = dataclasses.replace(label, digest="0" * 64)
    config(bench).update(description=other.describe(), tags=other.tags("candidate"))
    [seen] = look(bench)
    assert [one.key for one in seen.changes] == ["description", "tags"]
    assert label.digest in seen.changes[0].expected
    assert "0" * 64 in seen.changes[0].found


def test_without_the_artifact_it_is_compared_with_its_description(bench: Bench) -> None:
    bench.publish()
    [seen] = look(bench, artifacts=bench.place / "nowhere")
    assert seen.changes == []
    assert any("is not on this host" in note for note in seen.notes)
    config(bench)["memory"] = 1
    label = labels.parse(config(bench)["description"])
    assert label is not None
    config(bench)["description"] = dataclasses.replace(label, digest="0" * 64).describe()
    [seen] = look(bench, artifacts=bench.place / "nowhere")
    assert [one.key for one in seen.changes] == ["description", "tags", "memory"]


def test_without_a_label_and_an_artifact_nothing_more_can_be_said(bench: Bench) -> None:
    bench.publish()
    config(bench)["description"] = "mine"
    [seen] = look(bench, artifacts=bench.place / "nowhere")
    assert [one.key for one in seen.changes] == ["description"]


def test_without_a_label_the_digest_tag_finds_the_artifact(bench: Bench) -> None:
    bench.publish()
    config(bench).update(description="mine", memory=1)
    [seen] = look(bench)
    assert [one.key for one in seen.changes] == ["description", "memory"]


def test_golden_yaml_may_change_without_a_template_drifting(bench: Bench) -> None:
    bench.publish()
    bench.settings = dataclasses.replace(bench.settings, memory_mib=8192)
    [seen] = look(bench)
    assert seen.changes == []
    assert "golden.yaml now has memory_mib: 8192; it was published with 2048" in seen.notes


def test_a_promoted_template_has_not_drifted(bench: Bench) -> None:
    bench.publish()
    config(bench)["tags"] = config(bench)["tags"].replace("candidate", "stable")
    assert look(bench)[0].changes == []


def test_a_template_that_lost_its_tag_is_still_found(bench: Bench) -> None:
    bench.publish()
    del config(bench)["tags"]
    [seen] = look(bench)
    assert [(one.key, one.found) for one in seen.changes] == [("tags", "nothing")]


def test_what_is_being_published_is_no_template_yet(bench: Bench) -> None:
    bench.publish()
    label = labels.of(make_artifact(bench.place), state=labels.State.PUBLISHING, published="", run="x")
    bench.proxmox.add_vm(9001, f"{NAME}-check-a", config={"description": label.describe(), "tags": "golden"})
    first, second = look(bench)
    assert (first.is_template, first.changes) == (True, [])
    assert (second.is_template, second.changes) == (False, [])
    assert "publish is working on it" in second.notes[0]


def test_a_clone_by_other_means_is_told_from_a_template(bench: Bench) -> None:
    bench.publish()
    with client.Api(bench.settings, OPERATOR) as api:
        api.wait(api.post("/nodes/pve1/qemu/9000/clone", newid=300, name="byhand", full=1))
    first, _second = sorted(look(bench), key=lambda one: one.vmid)
    assert (first.vmid, first.is_template, first.changes) == (300, False, [])
    assert "cloned by other means" in first.notes[0]


def test_a_lock_is_told(bench: Bench) -> None:
    bench.publish()
    bench.proxmox.snapshot_lock(9000, "backup")
    [seen] = look(bench)
    assert seen.changes == []
    assert "a task holds its lock (backup)" in seen.notes


def test_nothing_published(bench: Bench) -> None:
    bench.proxmox.add_vm(100, "other", config={"tags": "goldenrod"})
    with pytest.raises(SpecError, match="no published template") as caught:
        look(bench)
    assert OPERATOR.identity in caught.value.brief
    assert "nox -s publish" in caught.value.hint


# --- faults ---------------------------------------------------------------------------------------------------------------


def test_a_node_that_is_down_does_not_hide_the_others(bench: Bench) -> None:
    bench.with_nodes("pve1", "pve2")
    bench.publish()
    next(vm for vm in bench.proxmox.vms if vm.node == "pve2").config["memory"] = 1
    bench.proxmox.set_node_offline("pve1")
    # The fake answers for pve1 all the same: only what is meant for that node is lost.
    first, second = look(bench)
    assert "node pve1 does not answer" in first.problem
    assert [one.key for one in second.changes] == ["memory"]
    assert cli_drift.exit_code([first, second]) == 3
    assert cli_drift.exit_code([first]) == 1


def test_reads_that_are_lost_are_repeated(bench: Bench) -> None:
    bench.publish()
    bench.proxmox._random.seed(4)
    bench.proxmox.lost_reads = 0.3
    assert look(bench)[0].changes == []


def test_an_expired_token(bench: Bench) -> None:
    bench.publish()
    bench.proxmox.apitokens.clear()
    with pytest.raises(GoldsmithError, match="does not accept the token"):
        look(bench)


def test_a_missing_privilege_is_told(bench: Bench) -> None:
    bench.publish()
    bench.proxmox.fail("GET", "/nodes/pve1/qemu/9000/config", 403, "Permission check failed (/vms/9000, VM.Audit)")
    [seen] = look(bench)
    assert "VM.Audit on /vms/9000" in seen.problem


# --- scale ----------------------------------------------------------------------------------------------------------------


def test_ten_thousand_guests_cost_one_call_and_one_for_each_node_and_template(bench: Bench) -> None:
    bench.with_nodes("pve1", "pve2", "pve3")
    bench.publish()
    for number in range(10_000):
        bench.proxmox.add_vm(10_000 + number, f"guest-{number}", config={"tags": "golden-clone;v1.2.3"})
    bench.proxmox.calls.clear()
    assert [one.changes for one in look(bench)] == [[], [], []]
    assert bench.proxmox.calls["GET", "/cluster/resources"] == 1
    assert sorted(bench.proxmox.calls.values()) == [1] * 7


# --- from the command line ----------------------------------------------------------------------------------------------


@pytest.fixture
def checkout(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    bench.publish()
    root = bench.place
    write_spec(root, bench.settings)
    monkeypatch.setenv("GOLDSMITH_PVE_TOKEN_OPERATOR", f"{OPERATOR.identity}={OPERATOR.secret}")
    return root


def run(checkout: Path, *words: str) -> int:
    return main.main(["drift", "--project", str(checkout), "--cache", str(checkout.parent / "cache"), *words])


def test_it_tells_and_exits(bench: Bench, checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(checkout) == 0
    assert capsys.readouterr().out.startswith(f"pve1/9000 {NAME}: as it was published\n")
    config(bench).update(memory=1, args="-x")
    assert run(checkout) == 3
    out = capsys.readouterr().out
    assert out.startswith(f"pve1/9000 {NAME}: 2 changes\n  memory: expected 2048, found 1\n")
    assert "    -> on pve1: qm set 9000 --memory 2048\n" in out
    assert run(checkout, "--json") == 3
    facts = json.loads(capsys.readouterr().out)
    assert facts["drift"] is True
    assert [one["key"] for one in facts["guests"][0]["changes"]] == ["memory", "args"]


def test_an_artifact_that_was_removed(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [kept] = artifact.committed(checkout / "artifacts")
    for path in [kept, *kept.rglob("*")]:
        path.chmod(0o755)
    shutil.rmtree(kept)
    assert run(checkout) == 0
    assert f"{kept.name} is not on this host" in capsys.readouterr().out
