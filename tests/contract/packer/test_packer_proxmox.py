"""The proxmox-iso source is accepted by each Packer on this host, and run against a cluster that installs at once.

Debian's Packer 1.6.6 has the builder inside, without API tokens: it logs in with a password here and ends with a template.
A current Packer needs the proxmox plugin: the user's own (1.2.4 or later), or else the one of tests/tools, which ends with a
template too; without either these tests say so and are skipped.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from build.core import run
from build.core.errors import StepFailed
from build.disk import packer
from build.publish import node_packer
from build.spec import cluster
from tests import packers
from tests.contract.conftest import TOKEN
from tests.fakes.proxmox import Proxmox
from tests.packers import TEMPLATES

USER, PASSWORD = "builder@pve", "a-password-that-is-not-printed"
NAME, VMID = "golden-1.2.3-build-0123456789abcdef", 9000
INSTALL_SECONDS, RUN_SECONDS = 3, 120


class Installing(Proxmox):
    """A cluster whose machines install within a moment and power themselves off, or never: they know no power button.

    A machine without a medium runs until it is stopped; ``booted`` notes what each one was started with.
    """

    installs = True

    def __init__(self, directory: Path, **options: Any) -> None:
        super().__init__(directory, **options)
        self.booted: list[tuple[str, str]] = []

    async def started(self, vm: Any) -> None:
        def power_off() -> None:
            vm.status = vm.qmpstatus = "stopped"

        vm.acpi = False
        self.booted.append((vm.config["boot"], vm.config["ide2"].split(",")[0]))
        if self.installs and ":iso/" in vm.config["ide2"]:
            asyncio.get_running_loop().call_later(INSTALL_SECONDS / 3, power_off)


@pytest.fixture
def proxmox_class() -> type[Proxmox]:
    return Installing


@pytest.fixture
def job(proxmox: Proxmox) -> node_packer.Job:
    proxmox.users[USER] = PASSWORD
    proxmox.storages["local"]["files"].add("golden.iso")
    return node_packer.Job(
        node="pve1", vmid=VMID, name=NAME, medium="local:iso/golden.iso", storage_type="lvmthin", disk_mib=12 << 10,
        cpu="x86-64-v2-AES", memory_mib=2048, seconds=INSTALL_SECONDS,
    )  # fmt: skip


@pytest.fixture
def workspace(
    real_packer: packer.Packer, settings: cluster.Settings, job: node_packer.Job, tmp_path: Path
) -> packer.Workspace:
    """A run of each Packer of this host, ready to start."""
    found = real_packer
    own = locked = None
    if real_packer.version >= packer.FIRST_WITHOUT_BUILDERS:
        own, locked = node_packer.installed_plugins(real_packer.path), packers.proxmox_plugins()
        if own is None and locked is None:
            pytest.skip(f"{real_packer.name} has no proxmox plugin here; {packers.GET_CURRENT}")
        found = packer.Packer(real_packer.path, real_packer.version, own or locked)
    directory = tmp_path / "work"
    directory.mkdir()
    made = node_packer.prepare(directory, found=found, templates=TEMPLATES, settings=settings, job=job)
    if locked and not own:
        packers.for_the_locked_plugin(directory)
    return made


def keeps_the_machine(workspace: packer.Workspace) -> bool:
    """Return True if the machine stays a machine: since version 1.2.4 of the plugin."""
    return "skip_convert_to_template" in (workspace.directory / "build.pkr.hcl").read_text(encoding="utf-8")


def environment(workspace: packer.Workspace, settings: cluster.Settings) -> dict[str, str]:
    """Return Packer's environment: with a token, or with a password if it does not support tokens."""
    if workspace.packer.version >= packer.FIRST_WITHOUT_BUILDERS:
        return node_packer.environment(workspace, settings, TOKEN)
    told = node_packer.credentials(settings, user=USER, secret={"PROXMOX_PASSWORD": PASSWORD})
    # The detailed log is on here, to see that it shows no password either.
    return workspace.environment() | told


def build(workspace: packer.Workspace, settings: cluster.Settings) -> tuple[int | None, str]:
    log = workspace.directory / "output.txt"
    with run.spawn(workspace.argv(), cwd=workspace.directory, env=environment(workspace, settings), log=log) as process:
        status = process.wait(RUN_SECONDS)
    return status, log.read_text(encoding="utf-8")


def test_the_syntax_is_accepted_without_a_plugin_too(
    real_packer: packer.Packer, settings: cluster.Settings, job: node_packer.Job, tmp_path: Path
) -> None:
    """Blocks, expressions and variables: as far as a current Packer looks when it has no plugin."""
    workspace = node_packer.prepare(tmp_path, found=real_packer, templates=TEMPLATES, settings=settings, job=job)
    argv = workspace.argv("validate")
    run.run(
        [*argv[:-2], "-syntax-only", *argv[-2:]], cwd=tmp_path, env=environment(workspace, settings),
        timeout=packer.VALIDATE_SECONDS,
    )  # fmt: skip


def validate(workspace: packer.Workspace, settings: cluster.Settings) -> None:
    run.run(
        workspace.argv("validate"), cwd=workspace.directory, env=environment(workspace, settings),
        timeout=packer.VALIDATE_SECONDS,
    )  # fmt: skip


def test_the_source_is_accepted(workspace: packer.Workspace, settings: cluster.Settings) -> None:
    validate(workspace, settings)


def test_an_unknown_attribute_is_rejected(workspace: packer.Workspace, settings: cluster.Settings) -> None:
    source = workspace.directory / "source.pkr.hcl"
    source.write_text(source.read_text().replace("  communicator ", '  no_such_thing = "x"\n  communicator '))
    with pytest.raises(StepFailed) as caught:
        validate(workspace, settings)
    assert "no_such_thing" in caught.value.details


def test_the_locked_plugin_knows_all_of_the_build_block_but_two_things(
    settings: cluster.Settings, job: node_packer.Job, tmp_path: Path
) -> None:
    """The only untested parts of packer/proxmox/plugin are those that need version 1.2.4 of the plugin."""
    found = packers.with_proxmox()
    if found is None:
        pytest.skip(packers.GET_CURRENT)
    workspace = node_packer.prepare(tmp_path, found=found, templates=TEMPLATES, settings=settings, job=job)
    with pytest.raises(StepFailed) as caught:
        validate(workspace, settings)
    assert ">= 1.2.4" in caught.value.details
    block = workspace.directory / "build.pkr.hcl"
    block.write_text(block.read_text().replace(">= 1.2.4", ">= 1.1.1"))
    with pytest.raises(StepFailed) as caught:
        validate(workspace, settings)
    said = " ".join(caught.value.details.split())
    assert set(re.findall(r'An argument named "(\w+)"', said)) == {"skip_convert_to_template"}
    assert set(re.findall(r'Blocks of type "(\w+)"', said)) == {"boot_iso"}
    assert said.count("Error: ") == 2


def test_the_installer_runs_on_the_node(
    workspace: packer.Workspace, settings: cluster.Settings, proxmox: Installing
) -> None:
    status, output = build(workspace, settings)
    assert status == 0, output
    machine = proxmox.vm(VMID)
    expected = {
        "name": NAME, "boot": "order=ide2", "cpu": "x86-64-v2-AES", "cores": "2", "memory": "2048", "agent": "0",
        "ostype": "l26", "scsihw": "virtio-scsi-single", "onboot": "0",
    }  # fmt: skip
    assert {key: str(machine.config[key]) for key in expected} == expected
    # No network card: an installation has to work from the medium alone. And the medium is out of its drive.
    assert "net0" not in machine.config
    assert "golden.iso" not in str(machine.config)
    assert re.fullmatch(r"local-lvm:(vm|base)-9000-disk-0,.*size=12G", machine.config["scsi0"])
    assert proxmox.pools["golden"] == {VMID}
    assert proxmox.booted[0] == ("order=ide2", "local:iso/golden.iso")
    # Whatever a builder starts, it is never the disk.
    assert {order for order, _medium in proxmox.booted} == {"order=ide2"}
    # Only a current plugin leaves the machine as it is.
    assert bool(machine.template) != keeps_the_machine(workspace)
    # The ports that the installer speaks to; 1.6.6 cannot make any.
    ports = {key: text for key, text in machine.config.items() if key.startswith("serial")}
    current = workspace.packer.version >= packer.FIRST_WITHOUT_BUILDERS
    assert ports == ({"serial0": "socket", "serial1": "socket"} if current else {})
    # A token is shown with each request; only a password is changed for a ticket.
    assert bool(proxmox.calls["POST", "/access/ticket"]) != current


def test_a_cluster_that_another_authority_vouches_for_is_not_spoken_to(
    workspace: packer.Workspace, settings: cluster.Settings, proxmox: Installing
) -> None:
    """TLS is verified: without the fake's own authority not one request arrives, and so no secret leaves."""
    proxmox.calls.clear()
    status, output = build(workspace, dataclasses.replace(settings, ca=None))
    assert status == 1, output
    assert not proxmox.calls
    assert proxmox.vms == []


def arguments_of_all() -> set[bytes]:
    """Return the arguments of every process."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.add(path.read_bytes())
    return found


def test_no_secret_is_shown(workspace: packer.Workspace, settings: cluster.Settings, proxmox: Proxmox) -> None:
    """In no file, with Packer's detailed log where there is one; and in no argument of any process, at each request."""
    shown: set[bytes] = set()
    proxmox.on_request = lambda _request: shown.update(arguments_of_all())
    build(workspace, settings)
    assert proxmox.vm(VMID) is not None
    assert any(str(workspace.packer.path).encode() in words for words in shown)
    for secret in (PASSWORD, TOKEN.secret):
        assert not any(secret.encode() in words for words in shown)
        for path in workspace.directory.rglob("*"):
            assert not path.is_file() or secret.encode() not in path.read_bytes(), path


def test_an_installation_that_does_not_end_in_time_leaves_no_machine(
    workspace: packer.Workspace, settings: cluster.Settings, proxmox: Installing
) -> None:
    proxmox.installs = False
    before = proxmox.inventory()
    status, output = build(workspace, settings)
    assert status == 1
    assert "could not stop" in output
    assert proxmox.inventory() == before
