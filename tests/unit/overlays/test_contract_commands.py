"""golden-contract, golden-app run and the service of destinations: the programs that they start, files and output."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.golden_modules import golden_module
from tests.unit.overlays.conftest import Programs, Result

Command = Callable[..., Result]
app_run = golden_module("golden.app_run")
contract_command = golden_module("golden.commands.contract")
destinations = golden_module("golden.commands.destinations")
grants = golden_module("golden.grants")
releases = golden_module("golden.releases")


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The active release, with a contract."""
    top = tmp_path / "app"
    (top / "releases/image/code").mkdir(parents=True)
    (top / "current").symlink_to("releases/image")
    (top / "releases/image/code/golden-app.yaml").write_text("destinations: ['192.0.2.1:25', 'gone.invalid:25']\n")
    for module in (contract_command, destinations):
        monkeypatch.setattr(module, "Releases", lambda: releases.Releases(top, tmp_path / "static"))
    monkeypatch.setattr(shutil, "chown", lambda *_words, **_names: None)
    return top / "releases/image"


def test_a_contract_is_checked(command: Command, tmp_path: Path) -> None:
    assert command("contract", "--check", tmp_path).code == 0
    (tmp_path / "golden-app.yaml").write_text("web: {body: x}\ncolour: red\n")
    result = command("contract", "--check", tmp_path)
    assert result.code == 3
    assert "golden-app.yaml has 2 faults" in result.err
    assert "web.body: 'x': write a size" in result.err
    assert "colour: 'red': there is no such key" in result.err


def test_grants_are_written_and_shown(command: Command, release: Path) -> None:
    result = command("contract")
    assert result.code == 2
    assert "has no contract" in result.err
    assert command("contract", "--write", release).code == 0
    assert json.loads(command("contract", "--json").out)["contract"]["destinations"] == ["192.0.2.1:25", "gone.invalid:25"]
    modes = {path.stat().st_mode & 0o777 for path in (release / "grants").rglob("*") if not path.is_symlink()}
    assert modes == {0o750, 0o640}


def test_destinations_are_opened_and_stay_while_names_are_away(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: Command, release: Path, programs: Programs
) -> None:
    for name in ("RULES", "SEEN"):
        monkeypatch.setattr(destinations, name, tmp_path / name)
    monkeypatch.setattr(golden_module("golden.destinations").seen_now, "__kwdefaults__", {"lookup": _lookup})
    command("contract", "--write", release)
    result = command("destinations")
    assert result.code == 0
    assert result.out == "open: 192.0.2.1 25; cannot be looked up: gone.invalid:25\n"
    assert programs.named("nft") == [["-f", "-"]]
    assert programs.inputs[-1].decode() == (tmp_path / "RULES").read_text()
    assert "gunicorn . 192.0.2.1 . 25" in (tmp_path / "RULES").read_text()
    (release / "code/golden-app.yaml").write_text("")
    command("contract", "--write", release)
    assert command("destinations").out == "open: nothing\n"
    assert "add element" not in (tmp_path / "RULES").read_text()


def test_destinations_of_a_release_that_is_tried_are_open_meanwhile(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: Command, release: Path, programs: Programs
) -> None:
    for name in ("RULES", "SEEN"):
        monkeypatch.setattr(destinations, name, tmp_path / name)
    candidate = tmp_path / "candidate"
    monkeypatch.setattr(golden_module("golden.trial"), "CANDIDATE", candidate)
    monkeypatch.setattr(golden_module("golden.destinations").seen_now, "__kwdefaults__", {"lookup": lambda host: [host]})
    (release / "code/golden-app.yaml").write_text("destinations: ['192.0.2.1:25']\n")
    command("contract", "--write", release)
    (tmp_path / "next").mkdir()
    (tmp_path / "next/code").mkdir()
    (tmp_path / "next/code/golden-app.yaml").write_text("destinations: ['192.0.2.1:25', '192.0.2.7:443']\n")
    command("contract", "--write", tmp_path / "next")
    candidate.symlink_to(tmp_path / "next")
    assert command("destinations").out == "open: 192.0.2.1 25, 192.0.2.7 443\n"
    candidate.unlink()
    assert command("destinations").out == "open: 192.0.2.1 25\n"


def _lookup(host: str) -> list[str]:
    if host == "gone.invalid":
        raise OSError(host)
    return [host]


# --- golden-app run ---------------------------------------------------------------------------------------------------


def test_a_command_has_a_unit_of_the_application() -> None:
    argv = app_run.argv(["createsuperuser", "--email", "a b"], terminal=True)
    assert argv[-5:] == ["/opt/app/current/venv/bin/python", "manage.py", "createsuperuser", "--email", "a b"]
    assert "--pty" in argv
    assert any(word.startswith("--unit=application-run-") for word in argv)
    assert any(word.startswith("--unit=application-owner-") for word in app_run.argv(["dbshell"], owner=True))


CALLER = """
import sys
sys.path += {places!r}
from golden import app_run
app_run.argv = lambda words, **options: [sys.executable, "-c", words[0]]
sys.exit(app_run.run(sys.argv[1:]))
"""


def run(program: str, **options: Any) -> subprocess.CompletedProcess[str]:
    places = [path for path in sys.path if path.endswith("dist-packages")]
    return subprocess.run(
        [sys.executable, "-c", CALLER.format(places=places), program],
        text=True, check=False, timeout=60, **({"capture_output": True} | options),
    )  # fmt: skip


def test_input_output_errors_and_exit_code_are_the_commands() -> None:
    program = "import sys; print(sys.stdin.read().upper()); print('e' * 200000, file=sys.stderr); sys.exit(7)"
    done = run(program, input="some\ntext")
    assert (done.returncode, done.stdout, done.stderr) == (7, "SOME\nTEXT\n", "e" * 200000 + "\n")


def test_two_outputs_that_are_one_pipe_keep_their_order() -> None:
    """``golden-app run ... 2>&1 | less`` shows what the command wrote in its order, whatever the pieces"""
    program = "import os\nfor number in range(2000): os.write(1 + number % 2, b'%d ' % number)"
    done = run(program, capture_output=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.stdout.split() == [str(number) for number in range(2000)]


def test_a_command_that_reads_nothing_ends_while_the_input_is_open() -> None:
    reader = subprocess.Popen(["sleep", "60"], stdout=subprocess.PIPE)
    try:
        assert run("print('done')", stdin=reader.stdout).stdout == "done\n"
    finally:
        reader.kill()
        reader.communicate()


def test_a_command_is_needed(command: Command) -> None:
    for words in ((), ("--",)):
        result = command("app", "run", *words)
        assert result.code == 2
        assert "golden-app run -- help" in result.err
