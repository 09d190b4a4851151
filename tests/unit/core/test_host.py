"""The host: missing tools are reported with the exact command, and are installed unless that is disabled.

Every apt-get here is a fake: a test installs nothing.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from build.core import host, run
from build.core.errors import HostError
from build.core.host import Tool
from tests.fakes import Fakes

TOOLS = (
    Tool("sawmill", "sawmill-tools", "saw wood", ("sawmill", "--version")),
    Tool("plane", "planes", "plane wood"),
    Tool("/nowhere/at/all/template.bin", "templates", "draw lines"),
)
GLUE = Tool("glue-that-no-path-holds", "glue", "glue wood")
COMMAND = "apt-get update && apt-get install --yes --no-install-recommends planes sawmill-tools templates"


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "is_root", lambda: True)


@pytest.fixture
def user(monkeypatch: pytest.MonkeyPatch, only_fakes: Fakes) -> None:
    """An ordinary user whose PATH holds fakes only, and no sudo."""
    monkeypatch.setattr(run, "is_root", lambda: False)
    monkeypatch.setenv("PATH", str(only_fakes.directory))


# --- which tools ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("root")
def test_every_tool_says_what_it_is_for() -> None:
    for tool in host.needed(container=True):
        assert re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", tool.package), tool
        assert re.match(r"[a-z]+ \S+", tool.reason), tool
        assert not tool.version or tool.version[0] == tool.probe, "a tool's version comes from the tool itself"


def test_an_ordinary_user_needs_one_tool_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "is_root", lambda: True)
    as_root = host.needed()
    monkeypatch.setattr(run, "is_root", lambda: False)
    assert [tool.package for tool in host.needed() if tool not in as_root] == ["uidmap"]


def test_a_container_needs_more_tools() -> None:
    more = {tool.probe for tool in host.needed(container=True)} - {tool.probe for tool in host.needed()}
    assert more == {"systemd-nspawn"}


@pytest.mark.usefixtures("root")
def test_a_stage_needs_its_own_tools_only() -> None:
    packages = {stage: {tool.package for tool in host.needed((stage,), container=True)} for stage in host.STAGES}
    assert "qemu-system-x86" in packages["disk"] & packages["verify"]
    assert packages["base"] == {"debian-archive-keyring", "mmdebstrap", "util-linux"}
    assert "ovmf" not in packages["disk"]
    assert packages[host.CONTAINER] == {"systemd-container", "squashfs-tools", "openssh-client", "util-linux"}
    assert {tool.package for tool in host.needed(host.STAGES, container=True)} == set().union(*packages.values())


def test_every_tool_is_declared_by_a_stage() -> None:
    for tool in (*host.TOOLS, *host.UNPRIVILEGED_TOOLS, *host.CONTAINER_TOOLS):
        assert tool.stages, tool
        assert {*tool.stages} <= {*host.STAGES}, tool


def test_reasons_name_each_missing_package_once(only_fakes: Fakes) -> None:
    only_fakes.command("plane")
    second = Tool("saw", "sawmill-tools", "cut boards")
    assert host.reasons((*TOOLS, second)) == ("sawmill-tools: to saw wood, and to cut boards\ntemplates: to draw lines")


def test_tools_are_found_in_path_or_at_their_place(only_fakes: Fakes, tmp_path: Path) -> None:
    assert [host.find(tool) for tool in TOOLS] == ["", "", ""]
    fake = only_fakes.command("plane")
    assert host.find(TOOLS[1]) == str(fake.path)
    assert host.find(Tool(str(tmp_path), "x", "be there")) == str(tmp_path)
    assert host.missing_packages(TOOLS) == ("sawmill-tools", "templates")


@pytest.mark.parametrize(
    ("output", "version"),
    [
        ({"stdout": "Sawmill\nversion 3.7 (Debian 1:3.7-1)\n"}, "version 3.7 (Debian 1:3.7-1)"),
        ({"stderr": "sawmill 1.47.0\n", "status": 1}, "sawmill 1.47.0"),
        ({"stdout": "no number\n"}, ""),
        ({"stdout": "9" * 100}, "9" * 70),
    ],
)
def test_a_version_is_the_first_line_with_a_digit(only_fakes: Fakes, output: dict[str, object], version: str) -> None:
    only_fakes.command("sawmill", **output)
    assert host.version(TOOLS[0]) == version
    assert host.version(TOOLS[1]) == ""


# --- bringing what is missing -----------------------------------------------------------------------------------------


def all_here(fakes: Fakes) -> tuple[Tool, ...]:
    fakes.command("sawmill")
    fakes.command("plane")
    return TOOLS[:2]


@pytest.mark.usefixtures("root")
def test_nothing_is_done_when_nothing_is_missing(only_fakes: Fakes) -> None:
    apt = only_fakes.command("apt-get")
    host.ensure(all_here(only_fakes), install=True)
    assert apt.calls() == []


@pytest.mark.usefixtures("root")
def test_forbidden_installation_names_everything_and_runs_nothing(only_fakes: Fakes) -> None:
    apt = only_fakes.command("apt-get")
    with pytest.raises(HostError) as caught:
        host.ensure(TOOLS, install=False)
    assert caught.value.exit_code == 2
    assert caught.value.render() == (
        "3 Debian packages are missing on this host\n"
        "    sawmill-tools: to saw wood\n    planes: to plane wood\n    templates: to draw lines\n"
        f"  -> as root: {COMMAND}"
    )
    assert apt.calls() == []


@pytest.mark.usefixtures("user")
def test_a_user_without_sudo_is_given_the_command(only_fakes: Fakes) -> None:
    apt = only_fakes.command("apt-get")
    with pytest.raises(HostError) as caught:
        host.ensure(TOOLS, install=True)
    assert caught.value.hint == f"as root: {COMMAND}"
    assert apt.calls() == []


@pytest.mark.usefixtures("user")
def test_a_user_whose_sudo_asks_for_a_password_is_given_the_command(only_fakes: Fakes) -> None:
    sudo = only_fakes.command("sudo", status=1, stderr="sudo: a password is required\n")
    with pytest.raises(HostError, match="3 Debian packages are missing"):
        host.ensure(TOOLS, install=True)
    assert [call.argv for call in sudo.calls()] == [["--non-interactive", "true"]]


@pytest.mark.usefixtures("user")
def test_a_user_with_free_sudo_installs_through_it(only_fakes: Fakes) -> None:
    plane = str(only_fakes.directory / "plane")
    sudo = only_fakes.command("sudo", {"when": ["install"], "write": {plane: "#!/bin/sh\n"}})
    host.ensure(TOOLS[1:2], install=True)
    assert [call.argv for call in sudo.calls()] == [
        ["--non-interactive", "true"],
        ["--non-interactive", "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "update", "-qq"],
        [
            "--non-interactive", "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "--yes", "-qq",
            "--no-install-recommends", "planes",
        ],
    ]  # fmt: skip


@pytest.mark.usefixtures("root")
def test_root_installs_what_is_missing_and_says_so_first(only_fakes: Fakes, capsys: pytest.CaptureFixture[str]) -> None:
    only_fakes.real("env")
    brought = {str(only_fakes.directory / name): "#!/bin/sh\n" for name in ("plane", GLUE.probe)}
    apt = only_fakes.command("apt-get", {"when": ["install"], "write": brought})
    host.ensure((TOOLS[1], GLUE), install=True)
    assert [call.argv for call in apt.calls()] == [
        ["update", "-qq"],
        ["install", "--yes", "-qq", "--no-install-recommends", "glue", "planes"],
    ]
    assert {call.env["DEBIAN_FRONTEND"] for call in apt.calls()} == {"noninteractive"}
    first = capsys.readouterr().err.splitlines()[0]
    assert first == "Installing host tools by apt: glue planes   (--no-install switches this off)"


@pytest.mark.usefixtures("root")
def test_a_package_that_does_not_bring_its_tool_is_told(only_fakes: Fakes) -> None:
    only_fakes.real("env")
    only_fakes.command("apt-get")
    with pytest.raises(HostError) as caught:
        host.ensure(TOOLS, install=True)
    assert caught.value.brief == "still missing after the installation: planes sawmill-tools templates"


@pytest.mark.usefixtures("root")
def test_a_failed_installation_is_told_with_the_command(only_fakes: Fakes) -> None:
    only_fakes.real("env")
    only_fakes.command(
        "apt-get", {"when": ["update"]}, stderr="E: Unable to locate package planes\n", status=100
    )  # fmt: skip
    with pytest.raises(HostError) as caught:
        host.ensure(TOOLS, install=True)
    assert caught.value.render() == (
        f"apt failed to install the host tools\n    E: Unable to locate package planes\n  -> as root: {COMMAND}"
    )


@pytest.mark.parametrize(
    ("output", "known"),
    [
        ("packer:\n  Installed: (none)\n  Candidate: 1.6.6+ds2-2\n", True),
        ("packer:\n  Installed: (none)\n  Candidate: (none)\n", False),
        ("", False),
    ],
)
def test_a_package_is_known_when_it_has_a_candidate(only_fakes: Fakes, output: str, *, known: bool) -> None:
    fake = only_fakes.command("apt-cache", stdout=output)
    assert host.has_package("packer") is known
    assert fake.calls()[0].argv == ["policy", "packer"]


@pytest.mark.usefixtures("user")
def test_lists_are_not_updated_without_the_right_to(only_fakes: Fakes) -> None:
    apt = only_fakes.command("apt-get")
    assert host.update_lists() is False
    assert apt.calls() == []


# --- space and memory -------------------------------------------------------------------------------------------------


def test_free_space_is_that_of_the_nearest_directory_that_exists(tmp_path: Path) -> None:
    assert host.free_bytes(tmp_path / "not" / "yet" / "there") == pytest.approx(host.free_bytes(tmp_path), rel=0.2)


def test_too_little_space_is_told_in_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "free_bytes", lambda _path: 5 << 29)
    with pytest.raises(HostError) as caught:
        host.require_space(tmp_path, 12 << 30)
    assert caught.value.render() == (
        f"{tmp_path} has 2.5 GiB free; a build needs 12 GiB\n"
        f"  -> free disk space, or choose another directory: --cache DIRECTORY (now {tmp_path})"
    )
    host.require_space(tmp_path, 5 << 29)


def test_too_little_memory_is_told_in_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "memory_mib", lambda: 3000)
    with pytest.raises(HostError) as caught:
        host.require_memory(6144)
    assert caught.value.render() == (
        "3000 MiB of memory are available; two test VMs need 6144 MiB\n"
        "  -> end other programs, or build on a host with more memory"
    )
    host.require_memory(3000)


def test_available_memory_is_less_than_all() -> None:
    assert 0 < host.memory_mib() < 1 << 24
