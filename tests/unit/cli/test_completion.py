"""The completion of bash: sessions, options, values and paths, as bash itself completes them."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from build.cli import completion, main
from build.core import run
from tests.unit.helpers import ROOT


@pytest.fixture(scope="module")
def script() -> str:
    commands = {name: completion.words_of(name) for name in main.COMMANDS}
    return completion.render(commands, completion.other_sessions(ROOT))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a directory that looks like a checkout."""
    for name in ("golden.yaml", "noxfile.py"):
        (tmp_path / name).touch()
    (tmp_path / "artifacts").mkdir()
    return tmp_path


def completed(script: str, directory: Path, *words: str) -> list[str]:
    """Return what bash offers for the last of the words of a command line."""
    call = f"_goldsmith nox {shlex.quote(words[-1])} {shlex.quote(words[-2])}"
    place = f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}"
    lines = [script, place, call, "printf '%s\\n' \"${COMPREPLY[@]}\""]
    done = run.run(["bash", "--norc", "-c", "\n".join(lines)], cwd=directory, timeout=run.LOCAL_SECONDS)
    return [line for line in done.stdout.splitlines() if line]


def test_sessions_are_offered(script: str, checkout: Path) -> None:
    offered = completed(script, checkout, "nox", "-s", "")
    assert set(main.COMMANDS) <= set(offered)
    assert {"tests", "lab", "newcomer"} <= set(offered)
    assert completed(script, checkout, "nox", "-s", "rep") == ["replace", "report", "reproduce"]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("clone", "--", "--adm"), ["--admin-cidr"]),
        (("build", "--", "--until", ""), ["base", "rootfs", "media", "disk", "verify", "artifact"]),
        (("build", "--", "--until", "me"), ["media"]),
        (("plan", "--", "--accel", ""), ["kvm", "tcg"]),
        (("plan", "--", "--spec", "gold"), ["golden.yaml"]),
        (("boot", "--", "--artifact", "arti"), ["artifacts"]),
        (("check", "--", "arti"), ["artifacts"]),
        (("audit", "--", "ly"), ["lynis"]),
        (("clone", "--", "--name", "a"), []),
        (("tests", "--", ""), []),
        (("nonsense", "--", ""), []),
    ],
)  # fmt: skip
def test_what_follows_the_two_hyphens(script: str, checkout: Path, words: tuple[str, ...], offered: list[str]) -> None:
    assert completed(script, checkout, "nox", "-s", *words) == offered


def test_each_option_of_each_command_is_offered(script: str, checkout: Path) -> None:
    for command in ("promote", "vulnerabilities"):
        options = [word for word in completion.words_of(command).offered if word.startswith("--")]
        assert completed(script, checkout, "nox", "-s", command, "--", "--") == options


def test_elsewhere_nox_completes_its_own_words(script: str, tmp_path: Path) -> None:
    assert completed(script, tmp_path, "nox", "-s", "") == []
    theirs = "_python_argcomplete() { COMPREPLY=(theirs); }\n"
    assert completed(theirs + script, tmp_path, "nox", "-s", "") == ["theirs"]


def test_the_script_has_no_fault(script: str, tmp_path: Path) -> None:
    path = tmp_path / "completion.bash"
    path.write_text(script)
    done = run.attempt(["shellcheck", "--shell=bash", path], timeout=run.LOCAL_SECONDS)
    assert (done.returncode, done.stdout) == (0, "")


def test_it_is_printed_or_written(tmp_path: Path, capsys: pytest.CaptureFixture[str], script: str) -> None:
    assert main.main(["completion", "--project", str(ROOT)]) == 0
    assert capsys.readouterr().out == script
    target = tmp_path / "new" / "nox"
    assert main.main(["completion", "--project", str(ROOT), "-o", str(target)]) == 0
    assert target.read_text() == script
    assert str(target) in capsys.readouterr().out


def test_a_file_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main.main(["completion", "--project", str(ROOT), "-o", str(tmp_path / "file" / "nox")]) == 2
    assert "--output" in capsys.readouterr().err


def test_no_checkout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["completion", "--project", str(tmp_path)]) == 2
    assert "noxfile.py cannot be read" in capsys.readouterr().err
