"""The recorded answers of the real Proxmox VE, compared with the fake that every other contract test uses.

tests/data/pve/answers.yaml has the record, with versions; here is what has to be arranged before each request.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from build.proxmox import client, roles
from build.spec.cluster import Role
from tests.contract.shipping import Bench, image_bytes
from tests.fakes.proxmox import Proxmox
from tests.patience import PATIENCE_SECONDS

ANSWERS: list[dict[str, Any]] = yaml.safe_load((Path(__file__).parents[2] / "data" / "pve" / "answers.yaml").read_text())
FIELDS = {"what", "versions", "given", "method", "path", "parameters", "status", "message", "task", "data", "lacks", "after"}
# The versions of the fake that correspond to those of the record.
FAKE_VERSIONS = {"9.2": "9.0.10", "8.4": "8.4.1"}
CASES = [(entry, version) for entry in ANSWERS for version in entry["versions"]]

TASK_SECONDS = 30.0
# More than the buffers of a connection take.
LARGE = 64 << 20
# The answer of a connection that was closed before there was one.
CLOSED = 0

Files = dict[str, Any]


def rights_on_the_pool(bench: Bench) -> None:
    for grant in roles.grants(Role.PUBLISHER, bench.settings, major=bench.proxmox.version_numbers[0]):
        bench.proxmox.entitle(bench.token.identity, grant.path, *grant.privileges)


def rights_of_nobody(bench: Bench) -> None:
    bench.proxmox.entitle("root@pam!other", "/", "VM.Audit")


def rights_without_pool_audit(bench: Bench) -> None:
    bench.proxmox.entitle(bench.token.identity, "/pool/golden", "VM.Audit")


def rights_of_the_token_alone(bench: Bench) -> None:
    bench.proxmox.grant(bench.token.identity, "/pool/golden", "VM.Audit")
    bench.proxmox.grant(bench.token.identity.partition("!")[0], "/pool/golden", "VM.Clone")


def rights_on_the_source_alone(bench: Bench) -> None:
    bench.proxmox.entitle(bench.token.identity, "/storage/local-lvm", "Datastore.AllocateSpace")
    bench.proxmox.entitle(bench.token.identity, "/vms/9001", "VM.Config.Disk")


def pool_audit(bench: Bench) -> None:
    bench.proxmox.entitle(bench.token.identity, "/pool/golden", "Pool.Audit")


def a_list_that_was_just_told(bench: Bench) -> None:
    bench.proxmox.broadcast()


def a_node_that_is_forgotten(bench: Bench) -> None:
    bench.proxmox.forgotten.add("pve1")
    bench.proxmox.set_node_offline("pve1")


def two_machines(bench: Bench) -> None:
    """VM 9001 has a data disk, VM 9000 has none; both are off."""
    for vmid in (9000, 9001):
        bench.proxmox.add_vm(vmid, f"m{vmid}", status="stopped", config={"scsi0": "none,media=cdrom"})
    with client.Api(bench.settings, bench.token) as api:
        api.put("/nodes/pve1/qemu/9001/config", scsi1="local-lvm:1,serial=golden-data")


def the_source_runs(bench: Bench) -> None:
    bench.proxmox.vm(9001).status = "running"


def the_target_is_a_template(bench: Bench) -> None:
    bench.proxmox.vm(9000).template = True


def a_snapshot_of_the_source(bench: Bench) -> None:
    vm = bench.proxmox.vm(9001)
    vm.snapshots["before"] = {"scsi1": vm.config["scsi1"]}


def a_vm_of_somebody_else(bench: Bench) -> None:
    bench.proxmox.add_vm(9000, "theirs")


def a_template(bench: Bench) -> None:
    bench.publish()


def no_quorum(bench: Bench) -> None:
    bench.proxmox.lose_quorum()


def a_creation_that_goes_on(bench: Bench) -> None:
    bench.proxmox.time_scale = 0.05
    bench.proxmox.durations["qmcreate"] = 60.0
    with client.Api(bench.settings, bench.token) as api:
        api.post("/nodes/pve1/qemu", vmid=9000, name="y", pool="golden")


def a_clone_that_goes_on(bench: Bench) -> None:
    bench.proxmox.time_scale = 0.01
    bench.proxmox.durations["qmclone"] = 600.0
    with client.Api(bench.settings, bench.token) as api:
        api.post("/nodes/pve1/qemu/9000/clone", newid=9001, full=1, name="y")


def a_move_that_goes_on(bench: Bench, length: float = 600.0) -> None:
    bench.proxmox.time_scale = 0.05
    bench.proxmox.durations["qmmove"] = length
    with client.Api(bench.settings, bench.token) as api:
        api.post("/nodes/pve1/qemu/9001/move_disk", disk="scsi1", target_vmid=9000, target_disk="scsi1")
    bench.proxmox.durations.clear()


def a_move_that_ends_soon(bench: Bench) -> None:
    a_move_that_goes_on(bench, 4.0)


def upload_with_checksum_first(_bench: Bench) -> Files:
    return upload("content", "checksum", "checksum-algorithm", "filename")


def upload_in_the_right_order(_bench: Bench) -> Files:
    return upload("content", "checksum-algorithm", "checksum", "filename")


def large_upload(_bench: Bench) -> Files:
    return upload("content", "checksum-algorithm", "checksum", "filename", size=LARGE)


def upload(*order: str, size: int = 0) -> Files:
    """Return an upload whose parts come in this order."""
    image = image_bytes()
    image += bytes(max(0, size - len(image)))
    parts = {
        "content": (None, "import"), "checksum-algorithm": (None, "sha256"),
        "checksum": (None, hashlib.sha256(image).hexdigest()), "filename": ("golden-1.qcow2", image),
    }  # fmt: skip
    return {"files": [(name, parts[name]) for name in order]}


GIVEN: dict[str, Callable[[Bench], Files | None]] = {
    function.__name__: function
    for function in (
        rights_on_the_pool, rights_of_nobody, rights_without_pool_audit, rights_of_the_token_alone,
        rights_on_the_source_alone, pool_audit, a_vm_of_somebody_else, a_template, no_quorum, a_creation_that_goes_on,
        a_clone_that_goes_on, a_list_that_was_just_told, a_node_that_is_forgotten, two_machines, the_source_runs,
        the_target_is_a_template, a_snapshot_of_the_source, a_move_that_goes_on, a_move_that_ends_soon,
        upload_with_checksum_first, upload_in_the_right_order, large_upload,
    )
}  # fmt: skip


@pytest.mark.parametrize(("entry", "version"), CASES, ids=lambda value: value if isinstance(value, str) else value["what"])
def test_the_fake_answers_as_the_real_one_did(bench: Bench, entry: dict[str, Any], version: str) -> None:
    bench.proxmox.version = FAKE_VERSIONS[version]
    extra: Files = {}
    for name in entry["given"]:
        extra |= GIVEN[name](bench) or {}
    if entry["status"] == CLOSED:
        with pytest.raises(requests.exceptions.ConnectionError):
            ask(bench, entry, extra)
        return
    answer = ask(bench, entry, extra)
    assert answer.status_code == entry["status"], answer.reason
    answered = json.dumps(answer.json().get("data")) if answer.status_code == 200 else ""
    assert "data" not in entry or re.search(entry["data"], answered), answered
    assert "lacks" not in entry or not re.search(entry["lacks"], answered), answered
    if "message" in entry:
        assert re.fullmatch(entry["message"], answer.json()["message"].strip()), answer.text
    if "task" in entry:
        assert re.fullmatch(entry["task"], ended(bench.proxmox, answer.json()["data"]))
    for key, value in entry.get("after", {}).items():
        assert bench.proxmox.vm(9000).config[key] == value


def ask(bench: Bench, entry: dict[str, Any], extra: Files) -> requests.Response:
    """Send a request exactly as recorded: not with Goldsmith's client, which would change it."""
    options: Files = {"params" if entry["method"] == "GET" else "data": entry.get("parameters"), **extra}
    path = entry["path"].format(task=next((upid for upid, task in bench.proxmox.tasks.items() if is_running(task)), ""))
    return requests.request(
        entry["method"], f"https://{bench.settings.host}:{bench.settings.port}/api2/json{path}",
        headers={"Authorization": f"PVEAPIToken={bench.token.identity}={bench.token.secret}"},
        verify=str(bench.settings.ca), timeout=PATIENCE_SECONDS, **options,
    )  # fmt: skip


def is_running(task: dict[str, Any]) -> bool:
    return bool(task["status"] == "running")


def ended(proxmox: Proxmox, upid: str) -> str:
    """Return how a task ended, after waiting for its end."""
    deadline = time.monotonic() + TASK_SECONDS
    while "exitstatus" not in proxmox.tasks[upid] and time.monotonic() < deadline:
        time.sleep(0.02)
    return str(proxmox.tasks[upid]["exitstatus"])


def test_the_record_is_complete() -> None:
    for entry in ANSWERS:
        assert set(entry) <= FIELDS, entry
        assert {"what", "versions", "given", "method", "path", "status"} <= set(entry), entry
        assert set(entry["versions"]) <= set(FAKE_VERSIONS)
    assert {name for entry in ANSWERS for name in entry["given"]} == set(GIVEN)
