"""The host tools that a build needs are known, and installed, before its first stage begins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from build.core import host, programs, run
from build.disk import packer
from build.machines import acceleration
from build.pipeline.host_tools import Toolset, missing_lines
from build.spec import inputs
from tests.fakes import Fakes
from tests.patience import PATIENCE_SECONDS

ALL = inputs.STAGES


def toolset(tmp_path: Path, *stages: str, wanted: acceleration.Kind | None = None) -> Toolset:
    sources = tmp_path / "tools"
    sources.mkdir(exist_ok=True)
    for name in ("go.mod", "go.sum"):
        (sources / name).touch()
    return Toolset(stages or ALL, tmp_path / "cache", sources, wanted=wanted)


def packages(tools: tuple[host.Tool, ...]) -> set[str]:
    return {tool.package for tool in tools}


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "is_root", lambda: True)


@pytest.fixture
def no_kvm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceleration, "refuse_device", lambda _device: "there is no /dev/kvm")


@pytest.mark.usefixtures("root", "no_kvm")
def test_one_round_brings_everything_where_there_is_no_kvm(tmp_path: Path, only_fakes: Fakes) -> None:
    only_fakes.packer()
    needed = packages(toolset(tmp_path).tools())
    assert {"mmdebstrap", "xorriso", "qemu-system-x86", "ovmf", "systemd-container"} <= needed


@pytest.mark.usefixtures("root", "no_kvm")
def test_the_container_is_for_builds_that_verify(tmp_path: Path, only_fakes: Fakes) -> None:
    only_fakes.packer()
    assert "systemd-container" not in packages(toolset(tmp_path, "base", "rootfs", "media", "disk").tools())
    assert "systemd-container" not in packages(toolset(tmp_path, wanted=acceleration.Kind.KVM).tools())


def test_an_ordinary_user_needs_no_container(tmp_path: Path, only_fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    only_fakes.packer()
    monkeypatch.setattr(run, "is_root", lambda: False)
    assert "systemd-container" not in packages(toolset(tmp_path, wanted=acceleration.Kind.TCG).tools())


@pytest.mark.usefixtures("root")
def test_a_kvm_that_turns_out_to_be_useless_brings_the_container_before_the_first_stage(
    tmp_path: Path, only_fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_fakes.packer()
    monkeypatch.setattr(acceleration, "refuse_device", lambda _device: "")
    monkeypatch.setattr(acceleration, "probe", lambda **_words: acceleration.tcg((7, 2), reason="KVM hangs"))
    rounds: list[set[str]] = []
    monkeypatch.setattr(host, "ensure", lambda tools, **_words: rounds.append(packages(tools)))
    accelerator = toolset(tmp_path).bring(install=True)
    assert accelerator is not None
    assert accelerator.kind is acceleration.Kind.TCG
    assert "systemd-container" not in rounds[0]
    assert "systemd-container" in rounds[1]


@pytest.mark.usefixtures("root", "no_kvm")
def test_no_guest_is_started_for_stages_without_one(
    tmp_path: Path, only_fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_fakes.command("apt-cache")
    monkeypatch.setattr(host, "ensure", lambda *_words, **_options: None)
    monkeypatch.setattr(acceleration, "probe", lambda **_words: pytest.fail("no stage starts a guest"))
    assert toolset(tmp_path, "base", "rootfs").bring(install=True) is None


# --- Packer -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "expected"), [("Candidate: 1.6.6\n", packer.PACKAGE), ("Candidate: (none)\n", packer.COMPILER)]
)
def test_debians_packer_is_installed_where_there_is_one_and_else_go(
    tmp_path: Path, only_fakes: Fakes, policy: str, expected: host.Tool
) -> None:
    only_fakes.command("apt-cache", stdout=policy)
    assert expected in toolset(tmp_path).tools()
    assert expected not in toolset(tmp_path, "base", "media").tools()


def test_a_packer_that_is_here_is_enough(tmp_path: Path, only_fakes: Fakes) -> None:
    apt = only_fakes.command("apt-cache", stdout="Candidate: 1.6.6\n")
    only_fakes.packer()
    assert not {packer.PACKAGE, packer.COMPILER} & {*toolset(tmp_path).tools()}
    assert apt.calls() == []


def test_a_go_that_can_compile_it_is_enough(tmp_path: Path, only_fakes: Fakes) -> None:
    only_fakes.command("apt-cache")
    only_fakes.command("go", stdout="go version go1.24.4 linux/amd64\n")
    assert not {packer.PACKAGE, packer.COMPILER} & {*toolset(tmp_path).tools()}


def test_missing_packages_are_named_with_reasons_and_command(only_fakes: Fakes) -> None:
    only_fakes.command("here")
    tools = (host.Tool("here", "here", "be here"), host.Tool("saw", "sawmill", "cut boards"))
    assert missing_lines(tools) == (
        "Missing on this host:\nsawmill: to cut boards\nInstall them, as root:\n"
        "    apt-get update && apt-get install --yes --no-install-recommends sawmill"
    )
    assert missing_lines(tools[:1]) == ""


# --- what a stage starts ----------------------------------------------------------------------------------------------


def test_an_undeclared_program_is_recorded_and_reported(
    tmp_path: Path, only_fakes: Fakes, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("mformat", "saw"):
        only_fakes.command(name)
    with programs.recorded("media", tmp_path):
        for name in ("mformat", "saw"):
            run.run([name], timeout=PATIENCE_SECONDS)
    assert json.loads((tmp_path / "programs" / "media.json").read_text()) == {
        "started": ["mformat", "saw"], "undeclared": ["saw"],
    }  # fmt: skip
    assert "stage media started saw, which build/core/host.py does not declare" in capsys.readouterr().err


def test_a_program_counts_for_its_own_stage_only() -> None:
    assert "mformat" in host.declared("media")
    assert "mformat" not in host.declared("disk")
    assert "go" not in host.declared("disk")
    assert "go" in host.declared("disk", packer.COMPILER)
