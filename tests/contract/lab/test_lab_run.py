"""The lab around its cluster: the network, the project that it writes, the rights that it grants, and the cleanup."""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path

import pytest
import yaml

from build.artifact import artifact
from build.core import run
from build.core.errors import HostError, SpecError
from build.core.project import Project
from build.proxmox import client, preflight, roles
from build.spec import cluster
from build.spec.cluster import Role, Settings
from tests.fakes.proxmox import Proxmox
from tests.lab import __main__ as lab_main
from tests.lab import bench, network
from tests.lab.bench import Choice

ROOT = Path(__file__).parents[3]
NETWORK = """
import pathlib, sys
from tests.lab import lease, network
with network.bridged(pathlib.Path(sys.argv[1])) as bridge:
    print(lease.ask(), lease.ask())
    bridge.plug("tap9001i0", "vmbr0")
    bridge.unplug("tap9001i0")
    bridge.unplug("tap9001i0")
"""


def disk(place: Path) -> Path:
    image = place / "image.qcow2"
    run.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "64M"], timeout=60)
    return image


def project_of(place: Path, **choice: object) -> Project:
    wanted = Choice(disk=disk(place), **choice)  # type: ignore[arg-type]
    return bench.write_project(place / "project", wanted, host="10.99.0.1", port=8006, ca=place / "ca.pem")


def test_the_bridge_gives_addresses_in_a_name_space_of_its_own(tmp_path: Path) -> None:
    if problem := network.available():
        pytest.skip(f"no network namespace here: {problem}")
    user = [] if run.is_root() else ["--user", "--map-root-user"]
    done = run.run(
        ["unshare", *user, "--net", "--", sys.executable, "-c", NETWORK, tmp_path], cwd=ROOT, timeout=120, check=False,
        env={network.INSIDE: "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for address in done.stdout.split():
        assert ipaddress.IPv4Address(address) in ipaddress.IPv4Network(network.NETWORK)
        assert ipaddress.IPv4Address(address) >= ipaddress.IPv4Address(network.FIRST_GUEST)


def test_outside_of_a_name_space_nothing_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(network.INSIDE, raising=False)
    with pytest.raises(HostError, match="namespace"), network.bridged(tmp_path):
        pass


def test_a_host_without_tap_devices_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(network.INSIDE, "1")
    monkeypatch.setattr(network, "TUN", tmp_path / "tun")
    with pytest.raises(HostError, match="cannot be opened") as caught, network.bridged(tmp_path):
        pass
    assert "modprobe tun" in caught.value.hint


def test_the_project_differs_in_the_cluster_only(tmp_path: Path) -> None:
    project = project_of(tmp_path, firmware="bios")
    mine, theirs = (yaml.safe_load((root / "golden.yaml").read_text()) for root in (project.root, ROOT))
    assert mine.pop("proxmox")["firmware"] == "bios"
    theirs.pop("proxmox", None)
    assert mine == theirs
    settings = bench.settings_of(project)
    assert (settings.host, settings.nodes, settings.firmware) == ("10.99.0.1", ("pve1",), cluster.Firmware.BIOS)
    assert {path.name for path in project.image_tests.glob("test_*.py")} == {
        path.name for path in (ROOT / "tests" / "image").glob("test_*.py")
    }  # fmt: skip
    assert (project.root / "build").resolve() == ROOT / "build"


def test_only_the_chosen_image_tests_are_left(tmp_path: Path) -> None:
    project = project_of(tmp_path, tests=("ssh", "boot"))
    assert {path.name for path in project.image_tests.glob("test_*.py")} == {"test_ssh.py", "test_boot.py"}
    assert (project.image_tests / "conftest.py").is_file()
    assert (ROOT / "tests" / "image" / "test_network.py").is_file()


def test_tests_that_do_not_exist_are_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no image tests nonsense") as caught:
        project_of(tmp_path, tests=("nonsense", "ssh"))
    assert "boot" in caught.value.hint


def test_a_disk_of_the_cache_says_that_nobody_verified_it(tmp_path: Path) -> None:
    found = artifact.newest(project_of(tmp_path).artifacts)
    assert "it is not tested" in found.manifest.verification.other["by"]
    assert found.manifest.inputs.administrator == "admin"
    assert artifact.check(found.path) == []


@pytest.mark.parametrize("version", ["8.4.1", "9.0.10"])
def test_tokens_may_do_what_the_roles_say_and_the_cluster_is_ready(
    proxmox: Proxmox, settings: Settings, tmp_path: Path, version: str
) -> None:
    proxmox.version = version
    tokens = bench.admit(proxmox, settings)
    bench.write_secrets(tmp_path / "secrets.yaml", tokens)
    for role in Role:
        assert cluster.token(role, secrets=tmp_path / "secrets.yaml", environment={}) == tokens[role]
        with client.Api(settings, tokens[role]) as api:
            effective = api.get("/access/permissions")
            assert roles.missing(roles.grants(role, settings, major=int(version[0])), effective) == []
    with client.Api(settings, tokens[Role.PUBLISHER]) as api:
        view = preflight.look(api, settings, nodes=settings.nodes, need=preflight.Need(), tokens={Role.PUBLISHER: api})
        assert view.misses == []
    # Proxmox closes the connection while the client sends: whether the client reads the 403 is a matter of timing.
    with client.Api(settings, tokens[Role.VERIFIER]) as api, pytest.raises(client.ApiError) as caught:
        api.upload("pve1", "local", disk(tmp_path), name="x.qcow2", sha256="0" * 64)
    assert caught.value.status in (0, 403)
    assert proxmox.media == {}


def test_a_failure_is_told_and_decides_the_exit_status(tmp_path: Path) -> None:
    walk = lab_main.Walk(tmp_path, tmp_path, tmp_path)
    walk.check("first", [])
    assert walk.status == 0
    assert not walk.do("no such artifact", "check", str(tmp_path / "absent"))
    walk.check("left over", ["web2"])
    assert [step.status for step in walk.steps] == [0, 2, 1]
    assert walk.status == 2


def test_what_the_lab_does_itself_is_a_step_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise HostError("no builder", hint="get one")

    walk = lab_main.Walk(tmp_path, tmp_path, tmp_path)
    assert walk.call("good", lambda: None)
    assert not walk.call("bad", fail)
    assert [(step.name, step.status) for step in walk.steps] == [("good", 0), ("bad", 2)]
    assert "get one" in capsys.readouterr().err
    assert walk.status == 2


def test_a_node_to_install_on_has_no_artifact(tmp_path: Path) -> None:
    made = bench.write_project(
        tmp_path / "project", Choice(medium=tmp_path / "installer.iso"), host="10.99.0.1", port=8006, ca=tmp_path / "ca.pem"
    )
    assert bench.settings_of(made).nodes == ("pve1",)
    assert not made.artifacts.exists()
