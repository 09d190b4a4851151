"""The command line: every verb tells what it does, and errors become exit codes, texts and hints."""

from __future__ import annotations

import argparse
import errno
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from build import __version__, artifact, cli, log, pipeline, words
from build.apt import Mirrors
from build.errors import CommandFailed, GoldsmithError, HostError, SpecError, StepFailed, VerificationFailed
from tests.fakes import Fakes
from tests.unit.helpers import make_checkout

VERBS = (
    "attest",
    "audit",
    "bench",
    "boot",
    "build",
    "bundle",
    "check",
    "clone",
    "container",
    "diff",
    "doctor",
    "drift",
    "faults",
    "history",
    "lock",
    "notes",
    "plan",
    "promote",
    "prune",
    "publish",
    "reproduce",
    "report",
    "requirements",
    "restore",
    "revoke",
    "rollback",
    "setup",
    "verify-artifact",
    "vulnerabilities",
)
HOST_MIRRORS = Mirrors("http://host.example/debian", "http://host.example/debian-security")
GIVEN = ("--mirror", "http://one.example/debian", "--security-mirror", "http://one.example/debian-security")


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give back what belongs to the process, and take away what the caller's environment would add."""
    for name in (*cli.MIRROR_VARIABLES, "PACKER"):
        monkeypatch.delenv(name, raising=False)
    before, mask = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}, os.umask(0o022)
    yield
    os.umask(mask)
    for number, handler in before.items():
        signal.signal(number, handler)
    log.configure()


def let_plan(monkeypatch: pytest.MonkeyPatch, act: Callable[[], int]) -> None:
    """Let the verb ``plan`` do something else."""
    monkeypatch.setattr(cli, "_plan", lambda _arguments: act())


def failing(error: BaseException) -> Callable[[], int]:
    def fail() -> int:
        raise error

    return fail


# --- help -------------------------------------------------------------------------------------------------------------


def said_by(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    captured = capsys.readouterr()
    return int(caught.value.code or 0), captured.out, captured.err


def test_help_names_every_verb_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = said_by(capsys, "--help")
    assert code == 0
    for verb in VERBS:
        assert f"\n    {verb}" in text, verb
    assert " ".join(text.split()).endswith(
        "Exit codes: 0 done, 1 a step failed, 2 bad input or host, 3 the image failed verification, 130 interrupted."
    )


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_tells_what_it_does(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    code, text, _ = said_by(capsys, verb, "--help")
    assert code == 0
    assert text.startswith(f"usage: python -m build {verb}")
    for option in ("--project", "--cache", "--locked", "--no-install", "--accel", "--mirror", "--json", "--verbose"):
        assert option in text, option


def test_every_verb_is_tested_here() -> None:
    (verbs,) = [action for action in cli.parser()._actions if isinstance(action, argparse._SubParsersAction)]
    assert sorted(verbs.choices) == sorted(VERBS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert said_by(capsys, "--version")[:2] == (0, f"goldsmith {__version__}\n")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nonsense"],
        ["plan", "--nonsense"],
        ["build", "--accel", "xen"],
        ["lock", "nonsense"],
        ["boot", "--ssh-port", "x"],
    ],
)
def test_wrong_words_are_refused_with_usage(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    code, out, err = said_by(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith("usage: python -m build")


# --- exit codes -------------------------------------------------------------------------------------------------------


def test_success_is_nought(monkeypatch: pytest.MonkeyPatch) -> None:
    let_plan(monkeypatch, lambda: 0)
    assert cli.main(["plan"]) == 0


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StepFailed("brief", details="one\ntwo", hint="do this"), 1),
        (CommandFailed("brief", returncode=9, details="one\ntwo", hint="do this"), 1),
        (SpecError("brief", details="one\ntwo", hint="do this"), 2),
        (HostError("brief", details="one\ntwo", hint="do this"), 2),
        (VerificationFailed("brief", details="one\ntwo", hint="do this"), 3),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_become_exit_codes_and_three_parts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: GoldsmithError, code: int
) -> None:
    let_plan(monkeypatch, failing(error))
    assert cli.main(["plan"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: brief\n    one\n    two\n  -> do this\n"


INTERRUPTED = "error: Interrupted. What was finished is kept; run the same command again to continue.\n"


def test_ctrl_c_is_told_without_a_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    let_plan(monkeypatch, failing(KeyboardInterrupt()))
    assert cli.main(["plan"]) == 130
    assert capsys.readouterr().err == INTERRUPTED


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_polite_kill_unwinds_like_ctrl_c(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    unwound: list[str] = []

    def act() -> int:
        try:
            os.kill(os.getpid(), number)
            signal.pause()
        finally:
            unwound.append("done")
        return 0

    let_plan(monkeypatch, act)
    assert cli.main(["plan"]) == 130
    assert unwound == ["done"]
    assert capsys.readouterr().err == INTERRUPTED


@pytest.mark.parametrize("error", [ValueError("a surprise"), KeyError("x"), OSError(errno.EIO, "I/O error")])
def test_a_surprise_is_a_defect_with_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    let_plan(monkeypatch, failing(error))
    assert cli.main(["plan"]) == cli.EXIT_BUG == 70
    said = capsys.readouterr().err
    assert said.startswith("Traceback (most recent call last):")
    assert type(error).__name__ in said
    assert said.endswith("error: This is a defect of Goldsmith. Please report it with the text above.\n")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_no_defect(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, number: int
) -> None:
    let_plan(monkeypatch, failing(OSError(number, os.strerror(number), str(tmp_path / "x"))))
    assert cli.main(["plan"]) == 2
    assert capsys.readouterr().err == (
        f"error: {os.strerror(number)}: {tmp_path}/x\n  -> free some space, or --cache DIRECTORY\n"
    )


def test_json_lines_are_for_programs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    let_plan(monkeypatch, failing(StepFailed("brief", hint="do this")))
    assert cli.main(["plan", "--json"]) == 1
    event = json.loads(capsys.readouterr().err)
    assert (event["kind"], event["text"]) == ("error", "error: brief\n  -> do this")


# --- options ----------------------------------------------------------------------------------------------------------


def options(*words: str) -> pipeline.Options:
    return cli._options(cli.parser().parse_args(["plan", *words]))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Say which mirrors the host has, and note each question for them."""
    questions: list[str] = []

    def answer() -> Mirrors:
        questions.append("asked")
        return HOST_MIRRORS

    monkeypatch.setattr("build.apt.host_mirrors", answer)
    return questions


def test_the_mirrors_are_the_hosts(asked: list[str]) -> None:
    assert options().mirrors == HOST_MIRRORS
    assert asked == ["asked"]


def test_given_mirrors_are_taken_and_the_host_is_not_asked(asked: list[str]) -> None:
    given = [
        "--mirror",
        "http://one.example/debian/",
        "--security-mirror",
        "http://one.example/s//",
        "--snapshot",
        "http://s/",
    ]
    assert options(*given).mirrors == Mirrors("http://one.example/debian", "http://one.example/s", "http://s")
    assert asked == []


def test_one_given_mirror_leaves_the_other_to_the_host(asked: list[str]) -> None:
    assert options("--mirror", "http://one.example/debian").mirrors == Mirrors(
        "http://one.example/debian", HOST_MIRRORS.security
    )


def test_words_come_before_the_environment(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOLDSMITH_MIRROR", "http://environment.example/debian")
    monkeypatch.setenv("GOLDSMITH_SECURITY_MIRROR", "http://environment.example/security")
    monkeypatch.setenv("GOLDSMITH_SNAPSHOT", "http://snapshot.example")
    assert options("--mirror", "http://one.example/debian").mirrors == Mirrors(
        "http://one.example/debian", "http://environment.example/security", "http://snapshot.example"
    )
    assert asked == []


@pytest.mark.parametrize("install", [True, False])
def test_lists_are_updated_only_when_that_is_allowed(monkeypatch: pytest.MonkeyPatch, *, install: bool) -> None:
    answers: list[Mirrors | HostError] = [HostError("the host's apt names no Debian mirror"), HOST_MIRRORS]
    updates: list[str] = []

    def answer() -> Mirrors:
        found = answers.pop(0)
        if isinstance(found, HostError):
            raise found
        return found

    def update() -> bool:
        updates.append("update")
        return True

    monkeypatch.setattr("build.apt.host_mirrors", answer)
    monkeypatch.setattr("build.host.update_lists", update)
    if install:
        assert options().mirrors == HOST_MIRRORS
        assert updates == ["update"]
    else:
        with pytest.raises(HostError, match="names no Debian mirror"):
            options("--no-install")
        assert updates == []


def test_options_reach_the_build(asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACKER", "/environment/packer")
    plain = options("--project", str(tmp_path), "--cache", str(tmp_path / "c"))
    assert (plain.project.root, plain.cache.root) == (tmp_path, tmp_path / "c")
    assert (plain.locked, plain.install, plain.accelerator, plain.packer) == (False, True, None, "/environment/packer")
    chosen = options("--locked", "--no-install", "--accel", "tcg", "--packer", "/word/packer")
    assert (chosen.locked, chosen.install, chosen.packer) == (True, False, "/word/packer")
    assert str(chosen.accelerator) == "tcg"


def test_the_cache_is_where_the_user_keeps_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert words.default_cache() == tmp_path / "goldsmith"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert words.default_cache() == tmp_path / "home" / ".cache" / "goldsmith"


# --- verbs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", [["plan"], ["build", "--plan"]])
def test_a_plan_is_a_result_and_touches_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, only_fakes: Fakes, verb: list[str]
) -> None:
    project = make_checkout(tmp_path / "checkout")
    words = [*verb, "--project", str(project.root), "--cache", str(tmp_path / "cache"), *GIVEN]
    assert cli.main(words) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "RUN    base      never built here",
        "RUN    rootfs    never built here",
        "RUN    media     never built here",
        "RUN    disk      never built here",
        "RUN    verify    never built here",
        "RUN    artifact  not in artifacts/",
    ]
    assert captured.err == ""
    assert not (tmp_path / "cache").exists()


def test_a_checkout_without_a_spec_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["plan", "--project", str(tmp_path), "--cache", str(tmp_path / "cache"), *GIVEN]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/golden.yaml does not exist\n  -> run Goldsmith in its checkout, or name the file\n"
    )


def test_a_broken_spec_tells_every_problem(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    project = make_checkout(tmp_path / "checkout")
    text = project.spec.read_text().replace("release: trixie", "release: sid").replace("timezone: UTC", "timezone: ''")
    project.spec.write_text(text)
    assert cli.main(["build", "--project", str(project.root), "--cache", str(tmp_path / "cache"), *GIVEN]) == 2
    assert capsys.readouterr().err == (
        f"error: {project.root}/golden.yaml has 2 problems\n"
        "    release: 'sid': write trixie: the one Debian release that is supported\n"
        "    timezone: '': write a zone such as UTC or Europe/Vienna\n"
        "  -> correct golden.yaml and run again\n"
    )


def test_a_build_prints_where_the_artifact_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, asked: list[str]
) -> None:
    manifest: dict[str, Any] = {"verification": {"passed": 120, "clones": ["bios", "uefi"]}}
    monkeypatch.setattr(pipeline, "build", lambda _options: artifact.Artifact(tmp_path, manifest))
    assert cli.main(["build"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{tmp_path}\n"
    assert captured.err == "Verified: 120 tests passed on 2 clones.\n"


def test_check_says_whole_or_what_changed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plain: dict[str, Any] = {name: {} for name in (*artifact.REQUIRED, *artifact.SINCE_SCHEMA_2)}
    manifest = {**plain, "schema": artifact.SCHEMA, "name": "golden", "version": "1", "image": {"sha256": "0" * 64}}
    made = artifact.commit(tmp_path / "artifacts", contents={"image.qcow2": "image"}, manifest=manifest)
    assert cli.main(["check", "--project", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{made.path}: whole\n"
    made.image.chmod(0o644)
    made.image.write_text("other")
    assert cli.main(["check", str(made.path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == f"{made.path}: changed\n"
    assert captured.err == "warning: image.qcow2: changed\n"


def test_check_without_an_artifact_tells_what_to_do(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["check", "--project", str(tmp_path)]) == 2
    assert "there is no artifact in" in capsys.readouterr().err


def test_setup_without_the_right_to_install_names_what_is_missing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, only_fakes: Fakes
) -> None:
    project = make_checkout(tmp_path / "checkout")
    only_fakes.packer()
    apt = only_fakes.command("apt-get")
    words = ["setup", "--no-install", "--project", str(project.root), "--cache", str(tmp_path / "cache"), *GIVEN]
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert "Debian packages are missing on this host" in said
    assert "-> as root: apt-get update && apt-get install --yes --no-install-recommends " in said
    assert apt.calls() == []


def test_files_that_a_build_makes_can_be_read_by_others(monkeypatch: pytest.MonkeyPatch) -> None:
    os.umask(0o077)
    seen: list[int] = []

    def act() -> int:
        seen.append(os.umask(0o022))
        return 0

    let_plan(monkeypatch, act)
    cli.main(["plan"])
    assert seen == [0o022]
