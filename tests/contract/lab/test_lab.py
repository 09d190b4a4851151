"""The lab's life cycle with a guest of 512 bytes: real QEMU, real disks, and the API. No network, a few seconds."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from build.core import files, run
from build.core.errors import GoldsmithError
from build.core.yaml_table import Table
from build.machines import acceleration, vm
from build.proxmox import client
from build.spec import cluster
from tests.contract.conftest import HOST, TOKEN, served
from tests.fakes import guest
from tests.lab.agent import Agent
from tests.lab.cluster import Lab
from tests.patience import PATIENCE_SECONDS

GREETING = "lab: a guest speaks"
DISK_BYTES = 1 << 20
UEFI: dict[str, Any] = {"bios": "ovmf", "machine": "q35", "efidisk0": "local-lvm:1,efitype=4m,pre-enrolled-keys=1"}


def boot_sector(*, power_off: bool, seconds: float) -> bytes:
    """Return the tiny guest as a disk's first sector."""
    code = guest.boot_image(console=GREETING, seconds=seconds, power_off=power_off).rstrip(b"\0")
    assert len(code) <= 510
    return code.ljust(510, b"\0") + b"\x55\xaa"


def make_image(place: Path, *, power_off: bool = False, seconds: float = 0.1) -> Path:
    raw, image = place / "tiny.raw", place / "tiny.qcow2"
    raw.write_bytes(boot_sector(power_off=power_off, seconds=seconds).ljust(DISK_BYTES, b"\0"))
    run.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image], timeout=60)
    return image


@pytest.fixture(scope="module")
def accelerator(tmp_path_factory: pytest.TempPathFactory) -> acceleration.Accelerator:
    return acceleration.probe(workdir=tmp_path_factory.mktemp("probe"))


@dataclasses.dataclass
class Bench:
    """A lab, and a connection to it."""

    lab: Lab
    api: client.Api
    place: Path

    def do(self, method: str, path: str, **parameters: Any) -> None:
        """Make a call and wait for its task, when it has one."""
        upid = getattr(self.api, method)(f"/nodes/pve1{path}", **parameters)
        if isinstance(upid, str) and upid.startswith("UPID:"):
            self.api.wait(upid, timeout=PATIENCE_SECONDS)

    def create(self, image: Path, vmid: int = 9000, **keys: Any) -> None:
        """Upload an image and create a VM from it."""
        self.api.upload("pve1", "local", image, name=image.name, sha256=files.sha256_file(image))
        self.do("post", "/qemu", **{
            "vmid": vmid, "name": f"tiny-{vmid}", "pool": "golden", "memory": 64, "scsihw": "virtio-scsi-single",
            "serial0": "socket", "agent": "1", "boot": "order=scsi0", "ide2": "local-lvm:cloudinit",
            "scsi0": f"local-lvm:0,import-from=local:import/{image.name},iothread=1", **keys,
        })  # fmt: skip

    def status(self, vmid: int = 9000) -> str:
        return str(self.api.get(f"/nodes/pve1/qemu/{vmid}/status/current")["status"])

    def speaks(self, vmid: int = 9000) -> None:
        """Wait for the guest's message on its serial port."""
        await_(lambda: GREETING in self.lab.machines.running[vmid].console_text())


def await_(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def bench(tmp_path: Path, fakepve_cafile: str, accelerator: acceleration.Accelerator, quick_polls: None) -> Iterator[Bench]:
    lab = Lab(tmp_path / "pve", accelerator=accelerator, host=HOST, port=0)
    # Tasks beside the calls, as on a node.
    lab.time_scale = 1.0
    lab.apitokens[TOKEN.identity] = TOKEN.secret
    lab.pools["golden"] = set()
    with served(lab, fakepve_cafile):
        problems: list[str] = []
        section = {"host": HOST, "port": lab.port, "ca": fakepve_cafile, "nodes": ["pve1"], "storage": "local-lvm",
                   "media": "local", "pool": "golden"}  # fmt: skip
        try:
            with client.Api(cluster.read(Table(section, where="proxmox", problems=problems)), TOKEN) as api:
                yield Bench(lab, api, tmp_path)
        finally:
            lab.close()
    assert not lab.machines.running


def test_an_uploaded_image_boots_is_cloned_and_leaves_nothing(bench: Bench) -> None:
    before = set(bench.lab.disks.root.iterdir())
    bench.create(make_image(bench.place))
    bench.do("post", "/qemu/9000/status/start")
    bench.speaks()
    pid = bench.lab.machines.running[9000].process.pid
    bench.do("post", "/qemu/9000/status/stop")
    assert bench.status() == "stopped"
    assert not Path(f"/proc/{pid}").exists()
    bench.do("post", "/qemu/9000/template")
    with pytest.raises(GoldsmithError, match="if it's a template"):
        bench.do("post", "/qemu/9000/status/start")
    for vmid, full in ((9001, 1), (9002, 0)):
        bench.do("post", "/qemu/9000/clone", newid=vmid, full=full, name=f"copy-{vmid}")
        bench.do("post", f"/qemu/{vmid}/status/start")
        bench.speaks(vmid)
    assert bench.lab.changed_templates() == []
    for vmid in (9001, 9002, 9000):
        if bench.status(vmid) == "running":
            bench.do("post", f"/qemu/{vmid}/status/stop")
        bench.do("delete", f"/qemu/{vmid}")
    assert set(bench.lab.disks.root.iterdir()) == before


def test_what_a_clone_is_made_of(bench: Bench) -> None:
    bench.create(make_image(bench.place), **UEFI)
    bench.do("post", "/qemu/9000/template")
    bench.do("post", "/qemu/9000/clone", newid=9001, full=1, name="full")
    bench.do("post", "/qemu/9000/clone", newid=9002, full=0, name="linked")
    disks = bench.lab.disks
    for vmid, linked in ((9000, False), (9001, False), (9002, True)):
        for key in ("scsi0", "efidisk0"):
            volume = bench.lab.vm(vmid).config[key].split(",")[0]
            assert bool(disks._facts(disks.path(volume)).get("backing-filename")) is linked, (vmid, key)
            assert disks.path(volume).stat().st_mode & 0o222 == (0 if vmid == 9000 else 0o200), (vmid, key)
    efi = bench.lab.vm(9000).config["efidisk0"].split(",")[0]
    assert disks.size(efi) == vm.OVMF_VARS.stat().st_size
    raw = bench.place / "vars.raw"
    run.run(["qemu-img", "convert", "-O", "raw", disks.path(efi), raw], timeout=60)
    assert raw.read_bytes() == vm.OVMF_VARS.read_bytes()


def test_a_template_that_was_written_to_is_noticed(bench: Bench) -> None:
    bench.create(make_image(bench.place))
    bench.do("post", "/qemu/9000/template")
    volume = bench.lab.vm(9000).config["scsi0"].split(",")[0]
    path = bench.lab.disks.path(volume)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes() + b"x")
    assert bench.lab.changed_templates() == [volume]


@pytest.mark.parametrize("running", [False, True])
def test_a_disk_grows(bench: Bench, running: bool) -> None:  # noqa: FBT001
    bench.create(make_image(bench.place))
    if running:
        bench.do("post", "/qemu/9000/status/start")
    bench.do("put", "/qemu/9000/resize", disk="scsi0", size="+8M")
    assert bench.lab.disks.size(bench.lab.vm(9000).config["scsi0"].split(",")[0]) == DISK_BYTES + (8 << 20)


def test_a_guest_that_powers_off_is_stopped_on_the_cluster(bench: Bench) -> None:
    bench.create(make_image(bench.place, power_off=True, seconds=0.5), machine="q35")
    bench.do("post", "/qemu/9000/status/start")
    await_(lambda: bench.status() == "stopped")
    assert not bench.lab.machines.running


def test_a_guest_that_does_not_listen_is_forced_to_end(bench: Bench) -> None:
    bench.lab.machines.accelerator = dataclasses.replace(bench.lab.machines.accelerator, timeout_scale=0.2)
    bench.create(make_image(bench.place))
    bench.do("post", "/qemu/9000/status/start")
    with pytest.raises(GoldsmithError, match="got timeout"):
        bench.do("post", "/qemu/9000/status/shutdown", timeout=1)
    assert bench.status() == "running"
    bench.do("post", "/qemu/9000/status/shutdown", timeout=1, forceStop=1)
    assert bench.status() == "stopped"


def test_a_guest_without_an_agent_has_none(bench: Bench) -> None:
    bench.lab.machines.accelerator = dataclasses.replace(bench.lab.machines.accelerator, timeout_scale=0.1)
    bench.create(make_image(bench.place))
    with pytest.raises(GoldsmithError, match="not running"):
        bench.do("get", "/qemu/9000/agent/network-get-interfaces")
    bench.do("post", "/qemu/9000/status/start")
    with pytest.raises(GoldsmithError, match="QEMU guest agent is not running"):
        bench.do("get", "/qemu/9000/agent/network-get-interfaces")


def test_an_emulated_host_starts_the_next_machine_when_this_one_has_answered(bench: Bench) -> None:
    bench.create(make_image(bench.place))
    answers = iter([False, False, True])
    asked: list[bool] = []

    def is_up(_self: Agent) -> bool:
        asked.append(next(answers))
        return asked[-1]

    bench.lab.settle_seconds = PATIENCE_SECONDS
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Agent, "is_up", is_up)
        bench.do("post", "/qemu/9000/status/start")
    assert asked == [False, False, True]


def test_a_start_does_not_wait_for_a_guest_that_has_ended(bench: Bench) -> None:
    bench.lab.machines.accelerator = dataclasses.replace(bench.lab.machines.accelerator, timeout_scale=0.1)
    bench.lab.settle_seconds = PATIENCE_SECONDS
    bench.create(make_image(bench.place, power_off=True, seconds=0.5), machine="q35")
    begun = time.monotonic()
    bench.do("post", "/qemu/9000/status/start")
    assert time.monotonic() - begun < PATIENCE_SECONDS / 2
    await_(lambda: bench.status() == "stopped")


def test_what_the_lab_has_not_is_refused(bench: Bench) -> None:
    bench.create(make_image(bench.place), net0="virtio,bridge=vmbr0")
    with pytest.raises(GoldsmithError, match="no network"):
        bench.do("post", "/qemu/9000/status/start")
    assert bench.status() == "stopped"
    assert not bench.lab.machines.running
    with pytest.raises(GoldsmithError, match="no Proxmox VE"):
        bench.do("post", "/qemu/9000/snapshot", snapname="before")


def test_an_image_that_qemu_cannot_read_leaves_no_machine(bench: Bench) -> None:
    image = bench.place / "broken.vmdk"
    image.write_bytes(b"no disk")
    with pytest.raises(GoldsmithError, match="qmcreate"):
        bench.create(image)
    assert bench.lab.vms == []
    assert bench.lab.pools["golden"] == set()
