"""Packer is found or compiled, configured by one file, and refused with a hint if it is unsuitable."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from build.core import run
from build.core.errors import HostError, StepFailed
from build.disk import packer
from build.machines import acceleration
from tests.fakes import Fakes
from tests.patience import PATIENCE_SECONDS

ROOT = Path(__file__).parents[3]
TEMPLATES = ROOT / "packer"
TOOLS = TEMPLATES / "tools"
PLUGIN = "github.com/hashicorp/qemu/packer-plugin-qemu_v1.0.9_x5.0_linux_amd64"


def job(tmp_path: Path, **changes: Any) -> packer.Job:
    medium = tmp_path / "installer.iso"
    medium.write_bytes(b"medium")
    values: dict[str, Any] = {
        "medium": medium, "medium_sha256": hashlib.sha256(b"medium").hexdigest(),
        "accelerator": acceleration.tcg((7, 2), reason="a test"), "disk_mib": 16384, "memory_mib": 2048, "timeout": 3600.4,
    }  # fmt: skip
    return packer.Job(**{**values, **changes})


def directory(tmp_path: Path) -> Path:
    path = tmp_path / "work"
    path.mkdir()
    return path


# --- which Packer -----------------------------------------------------------------------------------------------------


def test_packer_in_path_is_used(only_fakes: Fakes, tmp_path: Path) -> None:
    fake = only_fakes.packer(version="1.6.6")
    found = packer.locate(tools=TOOLS, cache=tmp_path)
    assert found == packer.Packer(fake.path, (1, 6, 6), None)
    assert found.name == "Packer 1.6.6"


def test_chosen_packer_comes_before_path(only_fakes: Fakes, tmp_path: Path) -> None:
    only_fakes.packer(version="1.6.6")
    chosen = only_fakes.install("my-packer", "packer.py", {"version": "1.9.5"})
    assert packer.locate(tools=TOOLS, cache=tmp_path, chosen=str(chosen.path)).version == (1, 9, 5)


def test_chosen_packer_that_is_not_there_is_an_error_even_with_another_in_path(only_fakes: Fakes, tmp_path: Path) -> None:
    only_fakes.packer()
    with pytest.raises(HostError, match="PACKER names /nowhere/packer, which is not an executable file"):
        packer.locate(tools=TOOLS, cache=tmp_path, chosen="/nowhere/packer")


@pytest.mark.parametrize("version", ["1.6.5", "1.5.9", "0.12.3"])
def test_chosen_packer_that_is_too_old_is_refused(only_fakes: Fakes, tmp_path: Path, version: str) -> None:
    chosen = only_fakes.packer(version=version)
    with pytest.raises(HostError, match=f"is Packer {re.escape(version)}, older than the oldest"):
        packer.locate(tools=TOOLS, cache=tmp_path, chosen=str(chosen.path))


def test_another_program_called_packer_is_passed_over_aloud(
    only_fakes: Fakes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only_fakes.command("packer", stdout="usage: packer dictpath\n", status=255)
    with pytest.raises(HostError) as caught:
        packer.locate(tools=TOOLS, cache=tmp_path)
    assert "is not HashiCorp's Packer; looking for another" in capsys.readouterr().err
    assert caught.value.brief == "there is no Packer on this host"


def test_without_packer_and_go_the_hint_tells_each_way(only_fakes: Fakes, tmp_path: Path) -> None:
    with pytest.raises(HostError) as caught:
        packer.locate(tools=TOOLS, cache=tmp_path)
    for way in ("apt-get install --yes packer", "Debian 13 has no such package", "golang-go", "$PACKER"):
        assert way in caught.value.hint
    assert caught.value.exit_code == 2


def test_new_packer_uses_the_plugins_of_its_user(only_fakes: Fakes, tmp_path: Path) -> None:
    fake = only_fakes.packer(version="1.16.0", plugins=[f"/home/builder/.config/packer/plugins/{PLUGIN}"])
    found = packer.locate(tools=TOOLS, cache=tmp_path)
    assert found == packer.Packer(fake.path, (1, 16, 0), Path("/home/builder/.config/packer/plugins"))


def test_new_packer_without_its_plugin_is_refused_with_the_command(only_fakes: Fakes, tmp_path: Path) -> None:
    chosen = only_fakes.packer(version="1.16.0", plugins=["/x/github.com/hashicorp/proxmox/packer-plugin-proxmox_v1"])
    with pytest.raises(HostError) as caught:
        packer.locate(tools=TOOLS, cache=tmp_path, chosen=str(chosen.path))
    assert "lacks its qemu plugin" in caught.value.brief
    assert caught.value.hint.startswith(f"{chosen.path} plugins install github.com/hashicorp/qemu")


# --- the locked Packer ------------------------------------------------------------------------------------------------


def fake_go(fakes: Fakes, tmp_path: Path, **build: Any) -> Path:
    """Make a fake Go whose ``build`` writes a fake Packer to its output directory; return the Packer's list of calls."""
    notes = tmp_path / "compiled-packer.calls"
    compiled = f"""#!/bin/sh
echo "$@" >>{notes}
case $1 in
version) echo Packer v1.16.0 ;;
plugins) /bin/mkdir -p $PACKER_PLUGIN_PATH/{Path(PLUGIN).parent} && : >$PACKER_PLUGIN_PATH/{PLUGIN} ;;
esac
"""
    # The arguments are: build -mod=readonly -trimpath -buildvcs=false -o DIRECTORY/ MODULE MODULE
    rule = {"when": ["build"], "write": {"{6}/packer": compiled, "{6}/packer-plugin-qemu": ""}, **build}
    fakes.command("go", {"when": ["version"], "stdout": "go version go1.24.4 linux/amd64\n"}, rule)
    return notes


def test_packer_is_compiled_once_and_found_again(only_fakes: Fakes, tmp_path: Path) -> None:
    notes = fake_go(only_fakes, tmp_path)
    cache = tmp_path / "cache"
    found = packer.locate(tools=TOOLS, cache=cache)
    assert found.version == (1, 16, 0)
    assert found.path.parent.parent == cache
    assert found.plugins == found.path.parent / "plugins"
    assert [path.name for path in sorted(found.path.parent.iterdir())] == ["packer", "plugins"]
    assert "plugins install --path" in notes.read_text(encoding="utf-8")
    (only_fakes.directory / "go").unlink()
    assert packer.locate(tools=TOOLS, cache=cache) == found


def test_compiling_is_locked_and_sees_nothing_of_the_workspace(only_fakes: Fakes, tmp_path: Path) -> None:
    fake_go(only_fakes, tmp_path)
    packer.locate(tools=TOOLS, cache=tmp_path / "cache")
    calls = packer_calls(only_fakes.directory / "go.calls")
    assert calls[-1]["cwd"] == str(TOOLS)
    assert "-mod=readonly" in calls[-1]["argv"]
    assert {key: calls[-1]["env"][key] for key in ("CGO_ENABLED", "GOWORK")} == {"CGO_ENABLED": "0", "GOWORK": "off"}


def packer_calls(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_failed_compilation_leaves_nothing_that_looks_finished(only_fakes: Fakes, tmp_path: Path) -> None:
    fake_go(only_fakes, tmp_path, status=1, stderr="verifying module: checksum mismatch\n")
    with pytest.raises(StepFailed) as caught:
        packer.locate(tools=TOOLS, cache=tmp_path / "cache")
    assert "checksum mismatch" in caught.value.details
    assert "go env GOPROXY" in caught.value.hint
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []
    assert packer.find(tools=TOOLS, cache=tmp_path / "cache") is None


@pytest.mark.parametrize("text", ["go version go1.19.8 linux/amd64", "gccgo (Debian) 12.2.0", ""])
def test_go_too_old_for_toolchains_counts_as_none(only_fakes: Fakes, tmp_path: Path, text: str) -> None:
    only_fakes.command("go", stdout=text)
    with pytest.raises(HostError, match="there is no Packer on this host"):
        packer.locate(tools=TOOLS, cache=tmp_path)


def test_another_lock_has_another_place(tmp_path: Path) -> None:
    for name in ("go.mod", "go.sum"):
        (tmp_path / name).write_bytes((TOOLS / name).read_bytes())
    same = packer.locked_directory(tools=tmp_path, cache=tmp_path)
    assert same == packer.locked_directory(tools=TOOLS, cache=tmp_path)
    (tmp_path / "go.sum").write_bytes(b"other\n")
    assert packer.locked_directory(tools=tmp_path, cache=tmp_path) != same


def test_lock_names_each_module_once_with_its_hash() -> None:
    required = re.findall(
        r"^\s+(\S+) (v\S+)(?: // indirect)?$", (TOOLS / "go.mod").read_text(encoding="utf-8"), re.MULTILINE
    )
    hashed = set(re.findall(r"^(\S+) (v[^/\s]+) h1:", (TOOLS / "go.sum").read_text(encoding="utf-8"), re.MULTILINE))
    names = {name for name, _ in required}
    assert {packer.PACKER_MODULE, packer.PLUGIN_MODULE} <= names
    for module in (packer.PACKER_MODULE, packer.PLUGIN_MODULE):
        assert [pair for pair in required if pair[0] == module and pair in hashed], module


# --- the working directory --------------------------------------------------------------------------------------------


def declared_variables() -> set[str]:
    text = (TEMPLATES / "variables.pkr.hcl").read_text(encoding="utf-8")
    return set(re.findall(r'^variable "(\w+)"', text, re.MULTILINE))


def test_variables_are_exactly_those_the_template_declares(tmp_path: Path) -> None:
    assert set(packer.variables(job(tmp_path))) == declared_variables()


def test_every_declared_variable_is_used_by_the_template() -> None:
    text = (TEMPLATES / "qemu.pkr.hcl").read_text(encoding="utf-8")
    assert set(re.findall(r"var\.(\w+)", text)) == declared_variables()


def test_variables_of_a_job(tmp_path: Path) -> None:
    assert packer.variables(job(tmp_path, compact=False, compress=False, machine_type="q35")) == {
        "accelerator": "tcg",
        "console_log": "console.log",
        "cpu": "max,erms=off,fsrm=off,cx16=off",
        "cpus": 1,
        "disk_compression": False,
        "disk_size": "16384M",
        "headless": True,
        "iso": "medium.iso",
        "iso_checksum": f"sha256:{hashlib.sha256(b'medium').hexdigest()}",
        "machine_type": "q35",
        "memory": 2048,
        "output_directory": "output",
        "qemu_binary": "qemu-system-x86_64",
        "restrict": "on",
        "shutdown_timeout": "3600s",
        "skip_compaction": True,
        "syslog_log": "syslog.log",
        "vm_name": "disk.qcow2",
    }


def test_only_a_job_that_asks_for_it_gets_a_network(tmp_path: Path) -> None:
    assert packer.variables(job(tmp_path, network=True))["restrict"] == "off"


@pytest.mark.parametrize(
    ("version", "asks_for_plugin"), [((1, 6, 6), False), ((1, 9, 5), False), ((1, 10, 0), True), ((1, 16, 0), True)]
)
def test_only_a_packer_without_builders_is_asked_for_the_plugin(
    tmp_path: Path,
    version: tuple[int, int, int],
    asks_for_plugin: bool,  # noqa: FBT001
) -> None:
    tool = packer.Packer(tmp_path / "packer", version)
    workspace = packer.prepare(directory(tmp_path), packer=tool, templates=TEMPLATES, job=job(tmp_path))
    assert (workspace.directory / "plugins.pkr.hcl").exists() is asks_for_plugin
    assert (workspace.directory / "qemu.pkr.hcl").exists()
    assert (workspace.directory / "variables.pkr.hcl").exists()


def test_template_directory_itself_has_no_block_that_old_packers_reject() -> None:
    for path in TEMPLATES.glob("*.pkr.hcl"):
        assert "required_plugins" not in path.read_text(encoding="utf-8"), path


def test_workspace_stays_inside_its_directory(tmp_path: Path) -> None:
    tool = packer.Packer(tmp_path / "packer", (1, 16, 0), tmp_path / "plugins")
    workspace = packer.prepare(directory(tmp_path), packer=tool, templates=TEMPLATES, job=job(tmp_path))
    environment = workspace.environment()
    assert environment["HOME"] == str(workspace.directory / "home")
    assert environment["PACKER_PLUGIN_PATH"] == str(tmp_path / "plugins")
    assert environment["CHECKPOINT_DISABLE"] == "1"
    for name in ("TMPDIR", "PACKER_CACHE_DIR", "PACKER_LOG_PATH"):
        assert not Path(environment[name]).is_absolute(), name
    assert (workspace.directory / "medium.iso").read_bytes() == b"medium"
    assert workspace.argv()[:3] == [str(tmp_path / "packer"), "build", "-color=false"]


def test_two_workspaces_share_nothing(tmp_path: Path) -> None:
    tool = packer.Packer(tmp_path / "packer", (1, 6, 6))
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, two = (
        packer.prepare(tmp_path / name, packer=tool, templates=TEMPLATES, job=job(tmp_path)) for name in ("one", "two")
    )
    for name in ("disk", "console", "syslog", "log"):
        assert getattr(one, name) != getattr(two, name)
        assert getattr(one, name).is_relative_to(one.directory)


def test_a_comma_in_the_path_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "a,b"
    place.mkdir()
    with pytest.raises(HostError, match="contains a comma"):
        packer.prepare(place, packer=packer.Packer(tmp_path, (1, 6, 6)), templates=TEMPLATES, job=job(tmp_path))


def test_a_used_directory_is_refused(tmp_path: Path) -> None:
    place = directory(tmp_path)
    (place / "output").mkdir()
    with pytest.raises(StepFailed, match="already exists"):
        packer.prepare(place, packer=packer.Packer(tmp_path, (1, 6, 6)), templates=TEMPLATES, job=job(tmp_path))


def test_a_template_that_packer_rejects_is_a_failed_step(fakes: Fakes, tmp_path: Path) -> None:
    fake = fakes.packer(validate='Error: Unsupported argument: "cpu_model" is not expected here.')
    tool = packer.Packer(fake.path, (1, 6, 6))
    workspace = packer.prepare(directory(tmp_path), packer=tool, templates=TEMPLATES, job=job(tmp_path))
    with pytest.raises(StepFailed) as caught:
        packer.validate(workspace)
    assert "Unsupported argument" in caught.value.details
    assert caught.value.hint == "Packer 1.6.6 does not accept packer/*.pkr.hcl with variables.pkrvars.json"


def test_a_run_gets_the_workspace_and_nothing_of_the_users_home(fakes: Fakes, tmp_path: Path) -> None:
    fake = fakes.packer(console=[[0, "installing\n"]])
    workspace = packer.prepare(
        directory(tmp_path), packer=packer.Packer(fake.path, (1, 6, 6)), templates=TEMPLATES, job=job(tmp_path)
    )
    with run.spawn(
        workspace.argv(), cwd=workspace.directory, env=workspace.environment(), log=tmp_path / "packer.out"
    ) as process:
        assert process.wait(PATIENCE_SECONDS) == 0
    assert workspace.console.read_text(encoding="utf-8") == "installing\n"
    assert workspace.disk.exists()
    (call,) = fake.calls()
    assert call.cwd == str(workspace.directory)
    assert call.env["HOME"] == str(workspace.directory / "home")


# --- what went wrong --------------------------------------------------------------------------------------------------

LOG_1_6 = """\
2026/11/22 04:45:51 [INFO] Packer version: 1.6.6
2026/11/22 04:45:51 packer-builder-qemu plugin: Executing /usr/bin/qemu-system-x86_64: []string{"-m", "256M"}
2026/11/22 04:45:52 packer-builder-qemu plugin: Qemu stderr: qemu-system-x86_64: could not set up host memory
2026/11/22 04:45:52 packer-builder-qemu plugin: Qemu stderr: qemu-system-x86_64: could not set up host memory
2026/11/22 04:45:52 ui error: Build 'qemu.golden' errored after 1 second: Error launching VM
"""
LOG_1_16 = (
    "2026/11/22 04:46:28 packer-plugin-qemu_v1.0.9_x5.0_linux_amd64 plugin: 2026/11/22 04:46:28 "
    "Qemu stderr: qemu-system-x86_64: terminating on signal 15\n"
    "2026/11/22 04:46:28 [ERROR] build failed\n"
)


@pytest.mark.parametrize(
    ("text", "complaints"),
    [
        (
            LOG_1_6,
            [
                "qemu-system-x86_64: could not set up host memory",
                "Build 'qemu.golden' errored after 1 second: Error launching VM",
            ],
        ),
        (LOG_1_16, ["qemu-system-x86_64: terminating on signal 15", "build failed"]),
        ("", []),
    ],
)
def test_complaints_are_what_qemu_and_packer_said(tmp_path: Path, text: str, complaints: list[str]) -> None:
    workspace = packer.Workspace(tmp_path, packer.Packer(tmp_path, (1, 6, 6)))
    workspace.log.write_text(text, encoding="utf-8")
    assert packer.complaints(workspace).splitlines() == complaints


def test_complaints_without_a_log_are_none(tmp_path: Path) -> None:
    assert packer.complaints(packer.Workspace(tmp_path, packer.Packer(tmp_path, (1, 6, 6)))) == ""
