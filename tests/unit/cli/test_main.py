"""The command line: every command describes itself, and errors become exit codes, texts and hints."""

from __future__ import annotations

import errno
import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from build import __version__
from build.artifact import artifact
from build.cli import main, plan
from build.cli import options as common
from build.core import host, log
from build.core.errors import CommandFailed, GoldsmithError, HostError, SpecError, StepFailed, VerificationFailed
from build.packages import updates
from build.packages.apt import Mirrors
from build.pipeline import build
from tests.fakes import Fakes
from tests.unit.artifacts import committable, image, parsed
from tests.unit.helpers import make_checkout

HOST_MIRRORS = Mirrors("http://host.example/debian", "http://host.example/debian-security")
GIVEN = ("--mirror", "http://one.example/debian", "--security-mirror", "http://one.example/debian-security")


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore the state of the process, and remove variables of the caller's environment."""
    for name in (*common.MIRROR_VARIABLES, "PACKER"):
        monkeypatch.delenv(name, raising=False)
    before, mask = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}, os.umask(0o022)
    yield
    os.umask(mask)
    for number, handler in before.items():
        signal.signal(number, handler)
    log.configure()


def let_plan(monkeypatch: pytest.MonkeyPatch, act: Callable[[], int]) -> None:
    """Let the command ``plan`` do something else."""
    monkeypatch.setattr(plan, "run", lambda _arguments: act())


def failing(error: BaseException) -> Callable[[], int]:
    def fail() -> int:
        raise error

    return fail


# --- help -------------------------------------------------------------------------------------------------------------


def said_by(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main.main(words)
    captured = capsys.readouterr()
    return int(caught.value.code or 0), captured.out, captured.err


def test_help_names_every_command_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = said_by(capsys, "--help")
    assert code == 0
    for command in main.COMMANDS:
        assert f"\n    {command}" in text, command
    assert " ".join(text.split()).endswith(
        "Exit codes: 0 done, 1 a step failed, 2 bad input or host, 3 the image failed verification, 130 interrupted."
    )


@pytest.mark.parametrize("command", main.COMMANDS)
def test_every_command_describes_itself(capsys: pytest.CaptureFixture[str], command: str) -> None:
    code, text, _ = said_by(capsys, command, "--help")
    assert code == 0
    assert text.startswith(f"usage: python -m build {command}")
    assert " ".join(main.COMMANDS[command].split()) in " ".join(text.split()).replace("- ", "-")
    for option in ("--log-json", "--verbose"):
        assert option in text, option


def test_only_commands_with_a_json_result_offer_json(capsys: pytest.CaptureFixture[str]) -> None:
    offering = {command for command in main.COMMANDS if "--json " in said_by(capsys, command, "--help")[1]}
    assert offering == {
        "clone", "diff", "drift", "fleet", "history", "lock", "promote", "prune", "replace", "reproduce", "restore",
        "revoke", "rollback", "verify-artifact", "vulnerabilities",
    }  # fmt: skip


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
        ["boot", "--mirror", "http://one.example/debian"],
        ["promote", "1.4.0", "--mirror", "http://one.example/debian"],
        ["build", "--json"],
    ],
)
def test_wrong_words_are_refused_with_usage(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    code, out, err = said_by(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith("usage: python -m build")


# --- exit codes -------------------------------------------------------------------------------------------------------


def test_success_is_nought(monkeypatch: pytest.MonkeyPatch) -> None:
    let_plan(monkeypatch, lambda: 0)
    assert main.main(["plan"]) == 0


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
    assert main.main(["plan"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: brief\n    one\n    two\n  -> do this\n"


INTERRUPTED = "error: Interrupted. Completed stages are cached; run the same command again to continue.\n"


def test_ctrl_c_is_told_without_a_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    let_plan(monkeypatch, failing(KeyboardInterrupt()))
    assert main.main(["plan"]) == 130
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
    assert main.main(["plan"]) == 130
    assert unwound == ["done"]
    assert capsys.readouterr().err == INTERRUPTED


@pytest.mark.parametrize("error", [ValueError("a surprise"), KeyError("x"), OSError(errno.EIO, "I/O error")])
def test_a_surprise_is_a_defect_with_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    let_plan(monkeypatch, failing(error))
    assert main.main(["plan"]) == main.EXIT_BUG == 70
    said = capsys.readouterr().err
    assert said.startswith("Traceback (most recent call last):")
    assert type(error).__name__ in said
    assert said.endswith("error: This is a bug in Goldsmith. Please report it with the text above.\n")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_no_defect(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, number: int
) -> None:
    let_plan(monkeypatch, failing(OSError(number, os.strerror(number), str(tmp_path / "x"))))
    assert main.main(["plan"]) == 2
    assert capsys.readouterr().err == (
        f"error: {os.strerror(number)}: {tmp_path}/x\n  -> free some space, or --cache DIRECTORY\n"
    )


def test_json_lines_are_for_programs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    let_plan(monkeypatch, failing(StepFailed("brief", hint="do this")))
    assert main.main(["plan", "--log-json"]) == 1
    event = json.loads(capsys.readouterr().err)
    assert (event["kind"], event["text"]) == ("error", "error: brief\n  -> do this")


# --- options ----------------------------------------------------------------------------------------------------------


def options(*words: str) -> build.Options:
    return common.build_of(main.parse(["plan", *words]))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Set the mirrors of the host, and record each query for them."""
    questions: list[str] = []

    def answer() -> Mirrors:
        questions.append("asked")
        return HOST_MIRRORS

    monkeypatch.setattr("build.packages.apt.host_mirrors", answer)
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
    answers: list[Mirrors | HostError] = [HostError("the host's apt has no Debian mirror"), HOST_MIRRORS]
    updates: list[str] = []

    def answer() -> Mirrors:
        found = answers.pop(0)
        if isinstance(found, HostError):
            raise found
        return found

    def update() -> bool:
        updates.append("update")
        return True

    monkeypatch.setattr("build.packages.apt.host_mirrors", answer)
    monkeypatch.setattr("build.core.host.update_lists", update)
    if install:
        assert options().mirrors == HOST_MIRRORS
        assert updates == ["update"]
    else:
        with pytest.raises(HostError, match="has no Debian mirror"):
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
    assert common.default_cache() == tmp_path / "goldsmith"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert common.default_cache() == tmp_path / "home" / ".cache" / "goldsmith"


def test_a_private_home_is_no_place_for_the_cache_of_an_ordinary_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mapped users make the root file system; home directories of Debian 13 have mode 0700."""
    # pytest's own directories are private.
    with tempfile.TemporaryDirectory(dir="/tmp") as scratch:
        home, shared = Path(scratch, "home"), Path(scratch, "shared")
        home.mkdir()
        for path in (Path(scratch), home):
            path.chmod(0o755)
        monkeypatch.setenv("XDG_CACHE_HOME", str(home))
        monkeypatch.setattr("build.core.run.is_root", lambda: False)
        assert common.default_cache(shared) == home / "goldsmith"
        home.chmod(0o700)
        assert common.default_cache(shared) == shared / f"goldsmith-{os.geteuid()}"
        monkeypatch.setattr("build.core.run.is_root", lambda: True)
        assert common.default_cache(shared) == home / "goldsmith"


# --- commands ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "brief", "hint"),
    [
        (["--locked"], "--fresh and --locked contradict each other", "leave one out; "),
        (["--plan"], "--fresh fetches package lists, and --plan fetches nothing", "nox -s lock -- --check names"),
    ],
)
def test_options_of_a_build_that_contradict_each_other_are_refused(
    capsys: pytest.CaptureFixture[str], only_fakes: Fakes, more: list[str], brief: str, hint: str
) -> None:
    assert main.main(["build", "--fresh", *more, *GIVEN]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {brief}\n")
    assert f"  -> {hint}" in said
    assert list(only_fakes.directory.glob("*.calls")) == []


@pytest.mark.parametrize("verb", [["plan"], ["build", "--plan"]])
def test_a_plan_is_a_result_and_touches_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, only_fakes: Fakes, verb: list[str]
) -> None:
    only_fakes.command("apt-cache", stdout="packer:\n  Candidate: 1.6.6-1\n")
    project = make_checkout(tmp_path / "checkout")
    words = [*verb, "--project", str(project.root), "--cache", str(tmp_path / "cache"), *GIVEN]
    assert main.main(words) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[:7] == [
        "RUN    base      not cached",
        "RUN    rootfs    not cached",
        "RUN    media     not cached",
        "RUN    disk      not cached",
        "RUN    verify    not cached",
        "RUN    artifact  not in artifacts/",
        f"NOTE   updates   not checked: {updates.NOT_KEPT}",
    ]
    assert lines[7:9] == ["", "Missing on this host:"]
    assert lines[-1].startswith("    apt-get update && apt-get install --yes --no-install-recommends ")
    assert {"mmdebstrap", "xorriso"} <= {*lines[-1].split()}
    assert captured.err == ""
    assert not (tmp_path / "cache").exists()


def test_a_checkout_without_a_spec_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main.main(["plan", "--project", str(tmp_path), "--cache", str(tmp_path / "cache"), *GIVEN]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/golden.yaml does not exist\n  -> run Goldsmith in its checkout, or give the path\n"
    )


def test_a_broken_spec_tells_every_problem(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    project = make_checkout(tmp_path / "checkout")
    text = project.spec.read_text().replace("release: trixie", "release: sid").replace("timezone: UTC", "timezone: ''")
    project.spec.write_text(text)
    assert main.main(["build", "--project", str(project.root), "--cache", str(tmp_path / "cache"), *GIVEN]) == 2
    assert capsys.readouterr().err == (
        f"error: {project.root}/golden.yaml has 2 problems\n"
        "    release: 'sid': write trixie: the one Debian release that is supported\n"
        "    timezone: '': write a zone such as UTC or Europe/Vienna\n"
        "  -> correct golden.yaml and run again\n"
    )


def test_a_build_prints_where_the_artifact_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, asked: list[str]
) -> None:
    counts = {**committable()["verification"], "passed": 120}
    made = artifact.Artifact(tmp_path, parsed(committable(verification=counts)))
    monkeypatch.setattr(build, "build", lambda _options: made)
    assert main.main(["build"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{tmp_path}\n"
    assert captured.err == "Verified: 120 tests passed on 2 clones.\n"


def test_check_says_whole_or_what_changed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    manifest = parsed(committable(version="1", image=image("0")))
    made = artifact.commit(tmp_path / "artifacts", contents={"image.qcow2": "image"}, manifest=manifest)
    assert main.main(["check", "--project", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{made.path}: whole\n"
    made.image.chmod(0o644)
    made.image.write_text("other")
    assert main.main(["check", str(made.path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == f"{made.path}: changed\n"
    assert captured.err == "warning: image.qcow2: changed\n"


def test_check_without_an_artifact_tells_what_to_do(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main.main(["check", "--project", str(tmp_path)]) == 2
    assert "there is no artifact in" in capsys.readouterr().err


def test_setup_without_the_right_to_install_names_what_is_missing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, only_fakes: Fakes
) -> None:
    project = make_checkout(tmp_path / "checkout")
    only_fakes.packer()
    apt = only_fakes.command("apt-get")
    words = ["setup", "--no-install", "--project", str(project.root), "--cache", str(tmp_path / "cache")]
    assert main.main(words) == 2
    said = capsys.readouterr().err
    assert "Debian packages are missing on this host" in said
    assert "-> as root: apt-get update && apt-get install --yes --no-install-recommends " in said
    assert apt.calls() == []


def test_setup_for_the_tests_names_what_only_they_need(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, only_fakes: Fakes
) -> None:
    project = make_checkout(tmp_path / "checkout")
    only_fakes.packer()
    words = ["setup", "--no-install", "--project", str(project.root), "--cache", str(tmp_path / "cache")]
    assert main.main(words) == 2
    assert "chromium" not in capsys.readouterr().err
    assert main.main([*words, "--tests"]) == 2
    said = capsys.readouterr().err
    for tool in host.TEST_TOOLS:
        assert f"{tool.package}: to {tool.reason}" in said


def test_files_that_a_build_makes_can_be_read_by_others(monkeypatch: pytest.MonkeyPatch) -> None:
    os.umask(0o077)
    seen: list[int] = []

    def act() -> int:
        seen.append(os.umask(0o022))
        return 0

    let_plan(monkeypatch, act)
    main.main(["plan"])
    assert seen == [0o022]
