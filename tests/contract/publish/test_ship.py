"""The commands from the command line to the cluster: settings of golden.yaml, tokens in the environment, the output."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from build.cli import main
from build.core.project import Project
from build.pipeline import build
from build.proxmox import roles
from build.publish import node_packer, node_verify
from build.spec import golden_yaml as specs
from build.spec.cluster import Role
from tests.contract.conftest import TOKEN
from tests.contract.shipping import NAME, Bench, make_artifact, write_spec
from tests.fakes import Fakes
from tests.packers import TEMPLATES
from tests.unit.helpers import entry, golden, write_lock


@pytest.fixture
def checkout(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with a golden.yaml that names the cluster, a committed artifact, and tokens in the environment."""
    root = tmp_path / "checkout"
    root.mkdir()
    write_spec(root, bench.settings)
    make_artifact(root)
    monkeypatch.setenv("GOLDSMITH_PVE_TOKEN", f"{TOKEN.identity}={TOKEN.secret}")
    monkeypatch.setattr(node_verify.NodeVerifier, "verify", lambda _self, _subject: None)
    return root


def run(checkout: Path, verb: str, *words: str) -> int:
    return main.main([verb, "--project", str(checkout), "--cache", str(checkout.parent / "cache"), *words])


def test_publish_prints_the_templates_and_says_when_they_are_there(
    bench: Bench, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(checkout, "publish") == 0
    assert capsys.readouterr().out == f"pve1/9000 {NAME}\n"
    assert run(checkout, "publish") == 0
    out, err = capsys.readouterr()
    assert out == f"pve1/9000 {NAME}\n"
    assert "is already published on pve1" in err
    assert TOKEN.secret not in out + err


def test_publish_refuses_another_image_of_that_name(
    bench: Bench, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(checkout, "publish") == 0
    other = make_artifact(checkout / "other", fill=b"x")
    assert run(checkout, "publish", "--artifact", str(other.path)) == 2
    assert "raise the version" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--node", "pve9"], ["--artifact", "nowhere"]])
def test_what_does_not_exist(checkout: Path, words: list[str]) -> None:
    assert run(checkout, "publish", *words) == 2


def test_without_a_cluster_or_a_token(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("GOLDSMITH_PVE_TOKEN")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(checkout))
    assert run(checkout, "publish") == 2
    assert "no token for the publisher" in capsys.readouterr().err
    (checkout / "golden.yaml").write_text(yaml.safe_dump(golden()))
    assert run(checkout, "publish") == 2
    assert "no section proxmox" in capsys.readouterr().err


def test_a_build_on_a_node_prints_its_template(
    bench: Bench, checkout: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    medium = checkout / "installer.iso"
    medium.write_bytes(b"an installation medium")
    monkeypatch.setattr(build, "build_media", lambda asked: (medium, specs.load(asked.project.spec)))
    plugin = f"{node_packer.PLUGIN}/packer-plugin-proxmox_v1.2.4_x5.0_linux_amd64"
    fakes.install("packer", "packer_proxmox.py", {"plugins": [f"/plugins/{plugin}"]})
    (checkout / "packer").symlink_to(TEMPLATES)
    (checkout / "overlays").mkdir()
    write_lock(Project(checkout).rootfs_lock, entry("nginx"))
    words = ("build", "--on", "proxmox", "--install-minutes", "0")
    assert run(checkout, *words, "--node", "pve1", "--node", "pve2") == 2
    assert "a build runs on one node" in capsys.readouterr().err
    assert run(checkout, *words, "--node", "pve9") == 2
    assert run(checkout, *words) == 0
    assert capsys.readouterr().out == f"pve1/9000 {NAME}\n"
    assert bench.proxmox.vm(9000).template


def test_the_doctor_finds_nothing_missing(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(checkout, "doctor", "--proxmox") == 0
    out = capsys.readouterr().out
    for line in ("version", "token: operator", "node pve1", "storage local-lvm on pve1", "bridge vmbr0 on pve1"):
        assert f"\nok       {line}" in f"\n{out}"


def test_the_doctor_names_each_miss_with_its_remedy(
    bench: Bench, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.proxmox.storages["local"]["content"] = "iso"
    for grant in roles.grants(Role.VERIFIER, bench.settings, major=9):
        bench.proxmox.entitle(TOKEN.identity, grant.path, *grant.privileges)
    bench.proxmox.entitle(TOKEN.identity, "/storage/local", "Datastore.Audit")
    assert run(checkout, "doctor", "--proxmox") == 2
    out = capsys.readouterr().out
    assert "-> pvesm set local --content import,iso" in out
    assert "lacks Datastore.Allocate, Datastore.AllocateTemplate on /storage/local" in out
    assert "MISSING  token: publisher" in out
    assert "ok       token: verifier" in out


@pytest.mark.parametrize(("version", "privilege"), [("8.4.1", "VM.Monitor"), ("9.0.10", "VM.GuestAgent.FileRead")])
def test_the_commands_that_grant_everything_are_for_this_version(
    bench: Bench, checkout: Path, capsys: pytest.CaptureFixture[str], version: str, privilege: str
) -> None:
    bench.proxmox.version = version
    assert run(checkout, "doctor", "--roles") == 0
    asked = capsys.readouterr().out
    assert privilege in asked
    assert all(line.startswith("pveum ") for line in asked.splitlines())
    assert run(checkout, "doctor", "--roles", "--pve", version[0]) == 0
    assert capsys.readouterr().out == asked
