"""The fresh-machine gate reads its commands from README.md, and evaluates only the files on the machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from build.core.errors import SpecError, StepFailed
from tests.newcomer import __main__ as gate
from tests.newcomer import machine as machines
from tests.newcomer import readme
from tests.newcomer.machine import Machine
from tests.unit.artifacts import MANIFEST, manifest
from tests.unit.helpers import ROOT

COMMANDS = ["apt-get update && apt-get install --yes nox && nox -s build", "nox -s tests"]
SUMMARY = "= 12 passed, 1 skipped in 3.21s ="


# --- README.md --------------------------------------------------------------------------------------------------------


def test_the_readme_promises_two_commands() -> None:
    first, second = readme.commands(ROOT / "README.md")
    assert first == "apt-get update && apt-get install --yes --no-install-recommends nox python3-venv && nox -s build"
    assert second == "nox -s tests"


def test_comments_and_later_blocks_are_left_out(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("# Title\n\n```sh\none --x='# y'    # first\n\ntwo\n```\n\n```sh\nthree\n```\n")
    assert readme.commands(page) == ["one --x='# y'", "two"]


def test_a_readme_without_commands_is_an_error(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("# Title\n\n```sh\n# nothing\n```\n".replace("# nothing", ""))
    with pytest.raises(SpecError, match="has no block of shell commands"):
        readme.commands(page)


def test_an_ordinary_user_installs_through_sudo() -> None:
    assert readme.with_sudo(COMMANDS[0]) == ("sudo apt-get update && sudo apt-get install --yes nox && nox -s build")
    assert readme.administrators_part(COMMANDS[0]) == "apt-get update && apt-get install --yes nox"


# --- what counts as done ----------------------------------------------------------------------------------------------


class Recorded(gate.Walk):
    """A walk whose commands return the test's output instead of running on a machine."""

    def __init__(self, root: Path, outputs: dict[str, str] | None = None) -> None:
        super().__init__(Machine("trixie-root", root, 1, "root", {}), root, [])
        self.commands: list[tuple[str, str]] = []
        self.outputs = outputs or {}

    def do(self, command: str, *, expected: int = 0, user: str = "") -> str:
        self.commands.append((user or self.machine.user, command))
        self.expected = expected
        text = self.outputs.get(command, "")
        summaries = gate.SUMMARY.findall(text)
        self.steps.append(gate.Step("trixie-root", command, 1.0, summaries[-1] if summaries else ""))
        return text


def leave(root: Path, *, undeclared: list[str] | None = None, failed: int = 0) -> None:
    records = root / "root/.cache/goldsmith/logs/programs"
    records.mkdir(parents=True)
    (records / "disk.json").write_text(json.dumps({"started": ["x"], "undeclared": undeclared or []}))
    made = root / "root/goldsmith/artifacts/golden-1"
    made.mkdir(parents=True)
    verification = {**MANIFEST["verification"], "passed": 5, "failed": failed, "clones": ["bios", "uefi"]}
    (made / "manifest.json").write_text(json.dumps(manifest(verification=verification)))


def test_a_build_and_passing_tests_are_enough(tmp_path: Path) -> None:
    walk = Recorded(tmp_path, {"nox -s tests": f"...\n{SUMMARY}\nnox > Session tests was successful.\n"})
    leave(tmp_path)
    gate.build_and_test(walk, COMMANDS, until="")
    assert walk.commands == [("root", command) for command in COMMANDS]
    assert walk.steps[-1].summary == "12 passed, 1 skipped in 3.21s"


def test_tests_without_a_summary_did_not_run(tmp_path: Path) -> None:
    leave(tmp_path)
    with pytest.raises(StepFailed, match="ended without a summary of its tests"):
        gate.build_and_test(Recorded(tmp_path), COMMANDS, until="")


def test_a_build_that_left_no_artifact_fails(tmp_path: Path) -> None:
    leave(tmp_path)
    (tmp_path / "root/goldsmith/artifacts/golden-1/manifest.json").unlink()
    with pytest.raises(StepFailed, match="the build left 0 artifacts, not one"):
        gate.build_and_test(Recorded(tmp_path), COMMANDS, until="")


def test_a_program_that_no_stage_declares_fails(tmp_path: Path) -> None:
    leave(tmp_path, undeclared=["saw"])
    with pytest.raises(StepFailed, match=r"\{'disk': \['saw'\]\}"):
        gate.build_and_test(Recorded(tmp_path), COMMANDS, until="")


def test_no_record_of_programs_fails(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="no record"):
        gate.build_and_test(Recorded(tmp_path), COMMANDS, until="")


def test_an_artifact_that_was_not_verified_fails(tmp_path: Path) -> None:
    leave(tmp_path, failed=1)
    with pytest.raises(StepFailed, match="was not verified"):
        gate.build_and_test(Recorded(tmp_path), COMMANDS, until="")


def test_a_build_that_ends_early_runs_no_tests_and_leaves_its_stage(tmp_path: Path) -> None:
    walk = Recorded(tmp_path)
    leave(tmp_path)
    result = tmp_path / "root/.cache/goldsmith/stages/disk/0123"
    result.mkdir(parents=True)
    gate.build_and_test(walk, COMMANDS, until="disk")
    assert walk.commands == [("root", f"{COMMANDS[0]} -- --until disk")]
    result.rmdir()
    with pytest.raises(StepFailed, match="left no result of the stage disk"):
        gate.build_and_test(Recorded(tmp_path), COMMANDS, until="disk")


INSTALL = "apt-get update && apt-get install --yes --no-install-recommends"


def test_without_rights_three_commands_name_the_same_packages(tmp_path: Path) -> None:
    names = ("nox -s build -- --plan", "nox -s doctor", "nox -s setup -- --no-install")
    walk = Recorded(tmp_path, dict.fromkeys(names, f"    {INSTALL} curl xorriso\n"))
    gate.look_without_rights(walk, COMMANDS)
    assert ("root", f"{INSTALL} curl xorriso") in walk.commands
    assert walk.commands[-1][1] == "nox -s setup -- --no-install"
    walk = Recorded(tmp_path, {**walk.outputs, "nox -s doctor": f"    {INSTALL} curl\n"})
    with pytest.raises(StepFailed, match="name different commands"):
        gate.look_without_rights(walk, COMMANDS)


def test_nothing_named_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="name different commands"):
        gate.look_without_rights(Recorded(tmp_path), COMMANDS)


# --- the machine ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "handed_over"),
    [
        ('Acquire::http::Proxy "http://proxy.example:3128";', True),
        ('Acquire::https::CAInfo "/etc/x.crt";', True),
        ('Acquire::Check-Valid-Until "false";', True),
        ('Acquire::Changelogs::URI::Origin::Debian "https://x.example";', False),
        ('APT::Install-Recommends "false";', False),
        ('Acquire::GzipIndexes "true";', False),
    ],
)
def test_settings_by_which_apt_reaches_the_archive_are_handed_over(line: str, *, handed_over: bool) -> None:
    assert bool(machines.APT_SETTINGS.match(line)) is handed_over


def test_variables_that_name_a_path_of_the_host_alone_stay_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/pip.conf").touch()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/etc/pip.conf")
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere/on/that/machine")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    variables = machines._variables(tmp_path)
    assert variables["PIP_CONFIG_FILE"] == "/etc/pip.conf"
    assert variables["HTTPS_PROXY"] == "http://proxy.example:3128"
    assert not {"PIP_FIND_LINKS", "HOME", "USER"} & variables.keys()
