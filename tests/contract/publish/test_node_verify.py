"""Verification on a node: the configuration of the two clones, how they are found, and that they are removed."""

from __future__ import annotations

import base64
import dataclasses
import json
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml

from build.core.errors import GoldsmithError, StepFailed, VerificationFailed
from build.proxmox import client, guest_agent, roles
from build.proxmox.vms import Stopped
from build.publish import node_verify, publish
from build.spec.cluster import Role, Token
from tests.contract.conftest import TOKEN
from tests.contract.shipping import NAME, Bench, make_artifact
from tests.fakes import Fakes
from tests.fakes.proxmox import Proxmox
from tests.lab import cloudinit

VERIFIER = Token("goldsmith@pve", "verifier", "00000000-0000-0000-0000-000000000002")
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKeyOfTheCloneAA"
CONFTEST = """
import json, pathlib, pytest
def pytest_addoption(parser):
    parser.addoption("--context", type=pathlib.Path)
@pytest.fixture
def context(request):
    return json.loads(request.config.getoption("--context").read_text())
"""
GOOD = """
import pathlib
def test_cloud_init_is_done():
    status = pathlib.Path(__file__).parents[2].joinpath("cloud-init-status").read_text().splitlines()
    assert status == ["0 done", "0 done"]
def test_two_clones(context):
    assert context["target"] == "proxmox"
    assert [one["address"] for one in context["clones"]] == ["192.0.2.10", "192.0.2.10"]
    assert [one["disk_mib"] - 64 for one in context["clones"]] == [4096, 0]
    assert open(context["clones"][0]["ssh_config"]).read().count("HostName 192.0.2.10") == 1
"""
BAD = "def test_bad(): assert 1 == 2\n"


class Guests(Proxmox):
    """Machines that boot: their agent answers as soon as they run."""

    silent = False

    async def started(self, vm: Any) -> None:
        mac = guest_agent.mac(vm.config)
        addresses = [
            {"ip-address": "fe80::1", "ip-address-type": "ipv6"}, {"ip-address": "192.0.2.10", "ip-address-type": "ipv4"},
        ]  # fmt: skip
        other = {"hardware-address": "02:42:00:00:00:01", "ip-addresses": [{"ip-address": "198.51.100.1"}]}
        mine = {"hardware-address": mac.upper(), "ip-addresses": addresses}
        vm.agent = None if self.silent else {"interfaces": [other, mine], "files": {guest_agent.HOST_KEY: f"{KEY} root@x\n"}}
        assert self.origins[vm.config["scsi0"].split(",")[0]] == self.vm(9000).config["scsi0"].split(",")[0]
        with (self.directory.parent / "cloud-init-status").open("a") as stream:
            print(*cloudinit.status(vm.config), file=stream)
        self.seen = [*getattr(self, "seen", []), dict(vm.config)]


@pytest.fixture
def proxmox_class() -> type[Proxmox]:
    return Guests


@pytest.fixture
def judged(bench: Bench, fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A bench with the real verifier, a separate token and small tests."""
    monkeypatch.setattr(node_verify, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(guest_agent, "POLL_SECONDS", 0.02)
    fakes.command("ssh", {"when": ["-M"], "sleep": 600}, stdout="running\n")
    tests = tmp_path / "tests" / "image"
    tests.mkdir(parents=True)
    (tests / "conftest.py").write_text(CONFTEST)
    (tests / "test_all.py").write_text(GOOD)
    bench.proxmox.apitokens[VERIFIER.identity] = VERIFIER.secret
    spec = {"admin": {"user": "keeper"}}
    bench.artifact = make_artifact(bench.place, spec=spec)
    with client.Api(bench.settings, VERIFIER) as api:
        bench.verifier = node_verify.NodeVerifier(
            api=api, settings=bench.settings, spec=bench.artifact.manifest.inputs.spec or {},
            disk_mib=bench.artifact.manifest.image.virtual_mib, tests=tests, scratch=tmp_path / "scratch",
            logs=tmp_path / "logs",
        ).verify  # fmt: skip
        yield bench


def cluster(bench: Bench) -> Guests:
    assert isinstance(bench.proxmox, Guests)
    return bench.proxmox


@pytest.mark.parametrize("version", ["8.4.1", "9.0.10"])
def test_two_clones_are_tested_and_gone_with_no_more_rights_than_are_printed(judged: Bench, version: str) -> None:
    judged.proxmox.version = version
    for role, token in ((Role.PUBLISHER, TOKEN), (Role.VERIFIER, VERIFIER)):
        for grant in roles.grants(role, judged.settings, major=int(version[0])):
            judged.proxmox.entitle(token.identity, grant.path, *grant.privileges)
    [made] = judged.publish()
    assert made.outcome is publish.Outcome.PUBLISHED
    assert [(vm.vmid, vm.name) for vm in judged.proxmox.vms] == [(9000, NAME)]
    assert judged.proxmox.pools["golden"] == {9000}


def test_clones_are_told_who_may_come_and_from_where(judged: Bench) -> None:
    judged.publish()
    first, second = cluster(judged).seen
    for config in (first, second):
        # The administrator is the image's own: named once more, cloud-init calls the key deprecated.
        assert "ciuser" not in config
        assert unquote(config["sshkeys"]).startswith("ssh-ed25519 AAAA")
        assert not set(config["sshkeys"]) & set("+/= ")
        assert config["ipconfig0"] == "ip=dhcp,ip6=auto"
        assert int(config["ciupgrade"]) == 0
        smbios = dict(part.split("=", 1) for part in config["smbios1"].split(","))
        assert smbios["base64"] == "1"
        site = base64.b64decode(smbios["sku"]).decode().removeprefix("golden:")
        assert json.loads(site) == {"admin_cidrs": ["127.0.0.1/32"]}
    assert first["smbios1"] != second["smbios1"]
    assert [config["scsi0"].rpartition("size=")[2] for config in (first, second)] == ["4160M", "64M"]
    # Each has a separate host name: Proxmox uses the part before the first dot.
    assert [config["name"] for config in (first, second)] == ["golden-1-2-3-check-a", "golden-1-2-3-check-b"]
    names = [yaml.safe_load(cloudinit.user_data(config, 9001))["hostname"] for config in (first, second)]
    assert names[0] != names[1]


def test_an_image_that_fails_there_is_not_published(judged: Bench, tmp_path: Path) -> None:
    (tmp_path / "tests" / "image" / "test_all.py").write_text(BAD)
    before = judged.proxmox.inventory()
    with pytest.raises(VerificationFailed, match="1 of 1 tests") as caught:
        judged.publish()
    assert caught.value.exit_code == 3
    assert "on node pve1" in caught.value.details
    assert judged.proxmox.inventory() == before


def test_a_number_that_is_taken_while_the_task_begins(judged: Bench) -> None:
    judged.proxmox.taken_late.add(9001)
    judged.publish()
    assert [vm.name for vm in judged.proxmox.vms if not vm.template] == ["theirs"]


def test_a_clone_whose_answer_was_lost_is_found(judged: Bench) -> None:
    before = judged.proxmox.inventory()
    judged.proxmox.time_scale = 0.05
    judged.proxmox.durations["qmclone"] = 20.0
    judged.proxmox.lost_answers.add(("POST", "/clone"))
    with pytest.raises(GoldsmithError, match="does not answer"):
        judged.publish()
    assert judged.proxmox.inventory() == before


@pytest.mark.parametrize("kind", ["qmclone", "qmstart"])
def test_a_clone_that_cannot_be_made_or_started(judged: Bench, kind: str) -> None:
    before = judged.proxmox.inventory()
    judged.proxmox.broken_tasks[kind] = ["got no worker upid"]
    with pytest.raises(GoldsmithError, match=f"{kind} on pve1 failed"):
        judged.publish()
    assert judged.proxmox.inventory() == before


def test_a_clone_without_an_agent_names_the_three_causes(judged: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_verify, "BOOT_SECONDS", 0.2)
    before = judged.proxmox.inventory()
    cluster(judged).silent = True
    with pytest.raises(StepFailed, match="reported no address") as caught:
        judged.publish()
    assert "not running" in caught.value.details
    for cause in ("DHCP", "guest agent", "whether the VM booted"):
        assert cause in caught.value.hint
    assert judged.proxmox.inventory() == before


def test_a_clone_whose_agent_is_there_before_its_host_key_is_waited_for(judged: Bench) -> None:
    said = f"Agent error: failed to open file '{guest_agent.HOST_KEY}' (mode: 'r'): No such file or directory"
    judged.proxmox.fail("GET", "/agent/file-read", 500, said, times=3)
    [made] = judged.publish()
    assert made.outcome is publish.Outcome.PUBLISHED


def test_a_clone_that_never_has_a_host_key(judged: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_verify, "LOGIN_SECONDS", 0.2)
    before = judged.proxmox.inventory()
    judged.proxmox.fail("GET", "/agent/file-read", 500, "Agent error: failed to open file")
    with pytest.raises(StepFailed, match="failed to open file"):
        judged.publish()
    assert judged.proxmox.inventory() == before


def test_a_missing_agent_privilege_is_no_silent_agent(judged: Bench) -> None:
    before = judged.proxmox.inventory()
    for role, token in ((Role.PUBLISHER, TOKEN), (Role.VERIFIER, VERIFIER)):
        for grant in roles.grants(role, judged.settings, major=9):
            judged.proxmox.entitle(token.identity, grant.path, *(grant.privileges - {"VM.GuestAgent.Audit"}))
    with pytest.raises(client.Denied, match=r"VM\.GuestAgent\.Audit"):
        judged.publish(tokens={})
    assert judged.proxmox.inventory() == before


def test_ctrl_c_while_a_clone_boots(judged: Bench) -> None:
    before = judged.proxmox.inventory()
    stop = threading.Event()
    cluster(judged).silent = True
    judged.proxmox.on_task = lambda kind: stop.set() if kind == "qmstart" else None

    def check() -> None:
        if stop.is_set():
            raise StepFailed("stopped by the user")

    real = judged.verifier

    def verifier(subject: publish.Subject) -> None:
        real(publish.Subject(subject.node, subject.vmid, subject.label, subject.ids, check))

    judged.verifier = verifier
    with pytest.raises(StepFailed, match="stopped by the user"):
        judged.publish()
    assert judged.proxmox.inventory() == before


def test_ctrl_c_while_the_host_key_is_waited_for(judged: Bench) -> None:
    """The agent answers, and has no key yet: that wait is 600 s long, and ends at once all the same."""
    before = judged.proxmox.inventory()
    asked = threading.Event()
    judged.proxmox.fail("GET", "/agent/file-read", 500, "Agent error: failed to open file")
    judged.proxmox.on_request = lambda request: asked.set() if request.path.endswith("/agent/file-read") else None

    def check() -> None:
        if asked.is_set():
            raise Stopped("publishing was interrupted")

    real = judged.verifier
    judged.verifier = lambda subject: real(dataclasses.replace(subject, check=check))
    begun = time.monotonic()
    with pytest.raises(Stopped):
        judged.publish()
    assert time.monotonic() - begun < 60
    assert judged.proxmox.inventory() == before


def test_the_limit_of_the_tests_follows_the_speed_of_the_node(tmp_path: Path) -> None:
    fast, slow = (node_verify.Clone("pve1-a", 9001, tmp_path, 64, boot_seconds=seconds) for seconds in (15.0, 196.0))
    assert node_verify.tests_limit([fast]) == node_verify.TEST_SECONDS
    # Measured under emulation: 27 % of the tests took 1,800 s.
    assert node_verify.tests_limit([fast, slow]) > 1800.0 / 0.27


def test_the_boot_of_each_clone_is_measured(judged: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[float] = []

    def limit(clones: Sequence[node_verify.Clone]) -> float:
        measured.extend(clone.boot_seconds for clone in clones)
        return 60.0

    monkeypatch.setattr(node_verify, "tests_limit", limit)
    judged.publish()
    assert len(measured) == 2
    assert all(0 < seconds < 60 for seconds in measured)


def test_a_site_that_is_too_long_for_smbios() -> None:
    with pytest.raises(GoldsmithError, match="512"):
        guest_agent.smbios("uuid=x", {"admin_cidrs": [f"192.0.2.{number}/32" for number in range(40)]})


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (["fe80::1", "2001:db8::5", "192.0.2.7"], "192.0.2.7"), (["fe80::1%ens18", "2001:db8::5"], "2001:db8::5"),
        (["169.254.3.4", "fe80::1"], ""), (["127.0.0.1"], ""),
    ],
)  # fmt: skip
def test_which_address_is_taken(entries: list[str], expected: str) -> None:
    cards = [{"hardware-address": "BC:24:11:00:00:01", "ip-addresses": [{"ip-address": one} for one in entries]}]
    assert guest_agent.pick_address(cards, "bc:24:11:00:00:01") == expected
    assert guest_agent.pick_address(cards, "bc:24:11:00:00:02") == ""
