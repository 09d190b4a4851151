"""A current Packer and the proxmox plugin are compiled for tests, locked like those of builds, and only on request."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from build.cli import options
from build.core.errors import HostError, StepFailed
from build.disk import packer
from build.publish import node_packer
from tests import packers
from tests.fakes import Fake, Fakes

PLUGINS = {
    "qemu": f"{packer.QEMU_PLUGIN}/packer-plugin-qemu_v1.0.9_x5.0_linux_amd64",
    "proxmox": f"{node_packer.PLUGIN}/packer-plugin-proxmox_v1.1.1_x5.0_linux_amd64",
}
COMPILED = f"""#!/bin/sh
case $1 in
version) echo Packer v1.16.0 ;;
plugins) case $5 in
    {packer.QEMU_PLUGIN}) file=$PACKER_PLUGIN_PATH/{PLUGINS["qemu"]} ;;
    *) file=$PACKER_PLUGIN_PATH/{PLUGINS["proxmox"]} ;;
    esac
    /bin/mkdir -p ${{file%/*}} && : >$file ;;
esac
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("PACKER", raising=False)
    return options.default_cache() / "packer"


def fake_go(fakes: Fakes, **plugin: Any) -> Fake:
    """Make a fake Go that compiles at once."""
    return fakes.command(
        "go", {"when": ["version"], "stdout": "go version go1.24.4 linux/amd64\n"},
        {"when": [packers.PLUGIN_MODULE], "write": {"{6}": ""}, **plugin},
        {"when": ["build"], "write": {"{6}/packer": COMPILED, "{6}/packer-plugin-qemu": ""}},
    )  # fmt: skip


def requirements(tools: Path) -> dict[str, str]:
    return dict(re.findall(r"^\t(\S+) (v\S+)", (tools / "go.mod").read_text(encoding="utf-8"), re.MULTILINE))


def test_packer_and_both_plugins_are_compiled_once_and_found_again(only_fakes: Fakes, cache: Path) -> None:
    go = fake_go(only_fakes)
    assert packers.with_proxmox() is None
    assert packers.main([]) == 0
    found = packers.with_proxmox()
    assert found is not None
    assert found.plugins is not None
    assert (found.path.parent.parent, found.version) == (cache, (1, 16, 0))
    # In a separate directory: a new lock of the one does not compile the other again.
    assert (found.plugins / PLUGINS["proxmox"]).exists()
    assert found.plugins.parent != found.path.parent
    assert [path.name for path in found.plugins.parent.iterdir()] == ["plugins"]
    calls = [call for call in go.calls() if "build" in call.argv]
    assert [call.cwd for call in calls] == [str(packers.TOOLS), str(packers.PLUGIN_TOOLS)]
    for call in calls:
        assert "-mod=readonly" in call.argv
        assert (call.env["CGO_ENABLED"], call.env["GOWORK"]) == ("0", "off")
    assert packers.main([]) == 0
    assert len([call for call in go.calls() if "build" in call.argv]) == len(calls)


def test_a_plugin_that_does_not_compile_leaves_nothing(
    only_fakes: Fakes, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_go(only_fakes, status=1, stderr="verifying module: checksum mismatch\n")
    assert packers.main([]) == 1
    assert "checksum mismatch" in capsys.readouterr().err
    assert packers.proxmox_plugins() is None
    assert [path.name for path in cache.iterdir() if path.is_dir()] == [
        packer.locked_directory(tools=packers.TOOLS, cache=cache).name
    ]


def test_without_go_the_error_names_what_to_install(only_fakes: Fakes) -> None:
    only_fakes.packer(version="1.6.6")
    with pytest.raises(HostError, match="no Go") as caught:
        packers.compile_all()
    assert "golang-go" in caught.value.hint


@pytest.mark.parametrize("there", [True, False])
def test_the_tests_compile_only_where_there_is_no_packer_at_all(only_fakes: Fakes, there: bool) -> None:  # noqa: FBT001
    go = fake_go(only_fakes)
    if there:
        only_fakes.packer(version="1.6.6")
    assert packers.main(["--if-none"]) == 0
    assert any("build" in call.argv for call in go.calls()) is not there


def test_the_tests_compile_nothing_where_there_is_no_go(only_fakes: Fakes, cache: Path) -> None:
    assert packers.main(["--if-none"]) == 0
    assert not cache.exists()


def test_the_lock_stands_on_what_packer_is_locked_to() -> None:
    """Same versions, same replacement: Packer and plugin must use the same protocol."""
    plugin, current = requirements(packers.PLUGIN_TOOLS), requirements(packers.TOOLS)
    assert {name: version for name, version in plugin.items() if current.get(name, version) != version} == {}
    assert plugin["github.com/hashicorp/packer-plugin-sdk"] == current["github.com/hashicorp/packer-plugin-sdk"]
    replacements = [
        re.findall(r"^replace .*$", (tools / "go.mod").read_text(encoding="utf-8"), re.MULTILINE)
        for tools in (packers.PLUGIN_TOOLS, packers.TOOLS)
    ]
    assert replacements[0] == replacements[1] != []
    hashed = (packers.PLUGIN_TOOLS / "go.sum").read_text(encoding="utf-8")
    assert f"{packers.PLUGIN_MODULE} {plugin[packers.PLUGIN_MODULE]} h1:" in hashed


def test_a_build_block_that_has_not_what_is_replaced_is_an_error(tmp_path: Path) -> None:
    block = tmp_path / "build.pkr.hcl"
    block.write_text((packers.TEMPLATES / "proxmox" / "plugin" / "build.pkr.hcl").read_text(encoding="utf-8"))
    packers.for_the_locked_plugin(tmp_path)
    made = block.read_text(encoding="utf-8")
    assert "iso_file    = var.iso_file" in made
    assert "serials" in made
    assert "boot_iso" not in made
    with pytest.raises(StepFailed, match="0 times"):
        packers.for_the_locked_plugin(tmp_path)
