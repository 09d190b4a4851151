"""What the real Proxmox VE answered, held against the fake that every other contract test relies on.

tests/data/pve/answers.yaml has the record, with versions; here is what has to be arranged before each request.
"""

from __future__ import annotations

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

ANSWERS: list[dict[str, Any]] = yaml.safe_load((Path(__file__).parents[2] / "data" / "pve" / "answers.yaml").read_text())
FIELDS = {"what", "versions", "given", "method", "path", "parameters", "status", "message", "task", "after"}
# The versions of the fake that stand for those of the record.
FAKE_VERSIONS = {"9.2": "9.0.10", "8.4": "8.4.1"}
CASES = [(entry, version) for entry in ANSWERS for version in entry["versions"]]

TASK_SECONDS = 30.0

Files = dict[str, Any]


def rights_on_the_pool(bench: Bench) -> None:
    for grant in roles.grants(Role.PUBLISHER, bench.settings, major=bench.proxmox.version_numbers[0]):
        bench.proxmox.entitle(bench.token.identity, grant.path, *grant.privileges)


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
        api.post("/nodes/pve1/qemu", vmid=9000, name="y")


def a_clone_that_goes_on(bench: Bench) -> None:
    bench.proxmox.time_scale = 0.01
    bench.proxmox.durations["qmclone"] = 600.0
    with client.Api(bench.settings, bench.token) as api:
        api.post("/nodes/pve1/qemu/9000/clone", newid=9001, full=1, name="y")


def upload_with_checksum_first(_bench: Bench) -> Files:
    return {
        "files": [
            ("content", (None, "import")), ("checksum", (None, "0" * 64)), ("checksum-algorithm", (None, "sha256")),
            ("filename", ("golden-1.qcow2", image_bytes())),
        ]
    }  # fmt: skip


GIVEN: dict[str, Callable[[Bench], Files | None]] = {
    function.__name__: function
    for function in (
        rights_on_the_pool, a_vm_of_somebody_else, a_template, no_quorum, a_creation_that_goes_on,
        a_clone_that_goes_on, upload_with_checksum_first,
    )
}  # fmt: skip


@pytest.mark.parametrize(("entry", "version"), CASES, ids=lambda value: value if isinstance(value, str) else value["what"])
def test_the_fake_answers_as_the_real_one_did(bench: Bench, entry: dict[str, Any], version: str) -> None:
    bench.proxmox.version = FAKE_VERSIONS[version]
    extra: Files = {}
    for name in entry["given"]:
        extra |= GIVEN[name](bench) or {}
    answer = ask(bench, entry, extra)
    assert answer.status_code == entry["status"]
    if "message" in entry:
        assert re.fullmatch(entry["message"], answer.json()["message"].strip()), answer.text
    if "task" in entry:
        assert re.fullmatch(entry["task"], ended(bench.proxmox, answer.json()["data"]))
    for key, value in entry.get("after", {}).items():
        assert bench.proxmox.vm(9000).config[key] == value


def ask(bench: Bench, entry: dict[str, Any], extra: Files) -> requests.Response:
    """Send a request as it stands in the record: not by our own client, which would have its own idea of it."""
    options: Files = {"params" if entry["method"] == "GET" else "data": entry.get("parameters"), **extra}
    return requests.request(
        entry["method"], f"https://{bench.settings.host}:{bench.settings.port}/api2/json{entry['path']}",
        headers={"Authorization": f"PVEAPIToken={bench.token.identity}={bench.token.secret}"},
        verify=str(bench.settings.ca), timeout=30, **options,
    )  # fmt: skip


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
