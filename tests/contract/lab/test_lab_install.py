"""The installer on the lab's node: each Packer of this host, its builder, a real QEMU, and a medium of two kilobytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from build.core.errors import HostError, SpecError, StepFailed
from build.core.project import Project
from build.disk import packer
from build.machines import acceleration
from build.proxmox import labels
from build.publish import publish
from build.spec.cluster import Role, Settings, Token
from tests import packers
from tests.contract.conftest import HOST, served
from tests.contract.shipping import settings_of, write_spec
from tests.fakes import Fakes, guest
from tests.lab import on_node
from tests.unit.helpers import entry, write_lock

CONSOLE, SYSLOG = "the installer speaks\n", "its log speaks\n"
INSTALL_SECONDS = 12
VMID = 9000


@dataclass
class Bench:
    """A node, a project that names it, and tokens with the rights of their roles."""

    lab: on_node.Node
    settings: Settings
    project: Project
    tokens: dict[Role, Token]
    place: Path

    def install(self, found: packer.Packer, medium: Path, seconds: int = INSTALL_SECONDS) -> publish.Template:
        return on_node.install(
            self.project, on_node.equip(found, self.lab, self.settings, self.place), medium, tokens=self.tokens,
            scratch=self.place / "clones", logs=self.place / "logs", seconds=seconds,
        )  # fmt: skip


@pytest.fixture
def found(real_packer: packer.Packer) -> packer.Packer:
    """A Packer of this host, with the plugin of tests/tools if it has no internal builder."""
    if real_packer.version >= packer.FIRST_WITHOUT_BUILDERS and packers.proxmox_plugins() is None:
        pytest.skip(packers.GET_CURRENT)
    return on_node.find_packer(str(real_packer.path))


@pytest.fixture
def bench(tmp_path: Path, fakepve_cafile: str, quick_polls: None) -> Iterator[Bench]:
    from tests.lab import bench as lab_bench  # noqa: PLC0415 (its name is the fixture's)

    lab = on_node.Node(tmp_path / "pve", accelerator=acceleration.probe(workdir=tmp_path / "probe"), host=HOST, port=0)
    lab.time_scale = 1.0
    with served(lab, fakepve_cafile):
        settings = settings_of(HOST, lab.port, fakepve_cafile)
        root = tmp_path / "project"
        root.mkdir()
        write_spec(root, settings)
        (root / "overlays").mkdir()
        write_lock(Project(root).rootfs_lock, entry("nginx"))
        try:
            yield Bench(lab, settings, Project(root), lab_bench.admit(lab, settings), tmp_path)
        finally:
            lab.close()
    assert not lab.machines.running


@pytest.mark.vm
@pytest.mark.slow
def test_what_the_builder_makes_is_booted_and_becomes_a_candidate(bench: Bench, found: packer.Packer) -> None:
    medium = guest.medium(bench.place, console=CONSOLE, syslog=SYSLOG, seconds=1)
    made = bench.install(found, medium)
    assert (made.vmid, made.outcome) == (VMID, publish.Outcome.PUBLISHED)
    # It powered itself off; the builder then requested the conversion to a template, which the lab ignored.
    assert bench.lab.powered_off.keys() == bench.lab.kept == {VMID}
    machine = bench.lab.vm(VMID)
    assert machine.template
    assert {"golden", "candidate"} <= labels.split_tags(machine.config["tags"])
    assert machine.config["boot"] == "order=scsi0"
    assert "serial1" not in machine.config
    # Disk, firmware's disk and cloud-init drive are files, and the first two can be cloned.
    for key in ("scsi0", "efidisk0"):
        volume = machine.config[key].split(",")[0]
        assert volume.startswith("local-lvm:base-9000-disk-")
        assert bench.lab.disks.path(volume).stat().st_mode & 0o222 == 0
    assert machine.config["ide2"] == "local-lvm:vm-9000-cloudinit,media=cdrom"
    assert bench.lab.media == {}
    # Both ports speak; the builder of 1.6.6 gives none.
    logs = {path.name.rpartition("console.")[2]: path for path in (bench.place / "pve" / "logs").iterdir()}
    said = {name: path.read_text() for name, path in logs.items() if name != "qemu.log"}
    current = found.version >= packer.FIRST_WITHOUT_BUILDERS
    assert said == ({"log": CONSOLE, "serial1.log": SYSLOG} if current else {})


@pytest.mark.vm
@pytest.mark.slow
def test_an_installer_that_does_not_end_leaves_nothing(bench: Bench, found: packer.Packer) -> None:
    bench.lab.shutdown_default_timeout = 1
    medium = guest.medium(bench.place, console=CONSOLE, power_off=False)
    before = bench.lab.inventory() | {"files": []}
    with pytest.raises(StepFailed, match="Packer ended with status 1"):
        bench.install(found, medium, seconds=3)
    assert bench.lab.inventory() | {"files": []} == before
    assert bench.lab.kept == set()
    assert not bench.lab.machines.running


def test_a_cache_without_a_medium_is_told(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="has no result of stage media"):
        on_node.newest_medium(tmp_path)


def test_a_host_without_a_builder_is_told(only_fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("PACKER", raising=False)
    with pytest.raises(HostError, match="no Packer here has a proxmox-iso builder") as caught:
        on_node.find_packer("")
    assert "nox -s packers" in caught.value.hint
