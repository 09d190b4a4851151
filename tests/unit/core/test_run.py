"""Every child ends: at its time limit, with its block, on Ctrl-C, and when Goldsmith itself is killed."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from build.core import run
from build.core.errors import CommandFailed, HostError
from tests.fakes import Fakes
from tests.patience import PATIENCE_SECONDS
from tests.unit.helpers import gone, kill_alone, running, running_python, wait_for

ENDLESS = "300"


@pytest.fixture
def token() -> str:
    """A word that is in the arguments of no other process."""
    return f"token-{secrets.token_hex(8)}"


def sleeper(token: str) -> list[str]:
    """Return the argv of a process that sleeps, with the token among its arguments."""
    return ["sh", "-c", f"sleep {ENDLESS}; :", token]


# --- output of a command ----------------------------------------------------------------------------------------------


def test_output_is_returned_as_text() -> None:
    done = run.run(["sh", "-c", "echo out; echo err >&2; printf '\\377'"], timeout=PATIENCE_SECONDS)
    assert (done.returncode, done.stdout, done.stderr) == (0, "out\n�", "err\n")


def test_standard_input_is_empty_unless_given() -> None:
    assert run.run(["cat"], timeout=PATIENCE_SECONDS).stdout == ""
    assert run.run(["cat"], timeout=PATIENCE_SECONDS, stdin=b"given").stdout == "given"


def test_failure_tells_name_status_and_last_lines() -> None:
    with pytest.raises(CommandFailed) as caught:
        run.run(["sh", "-c", "seq 100 >&2; echo ignored; exit 3"], timeout=PATIENCE_SECONDS, hint="do this")
    error = caught.value
    assert (error.brief, error.returncode, error.hint) == ("sh failed with status 3", 3, "do this")
    assert error.details.splitlines() == [str(number) for number in range(76, 101)]


def test_failure_without_a_word_on_standard_error_tells_standard_output() -> None:
    with pytest.raises(CommandFailed) as caught:
        run.run(["sh", "-c", "echo text here; exit 1"], timeout=PATIENCE_SECONDS)
    assert caught.value.details == "text here"


def test_failure_can_be_asked_for_instead_of_raised() -> None:
    assert run.run(["sh", "-c", "exit 7"], timeout=PATIENCE_SECONDS, check=False).returncode == 7


def test_log_takes_command_and_output_of_every_run(tmp_path: Path) -> None:
    log = tmp_path / "deep" / "x.log"
    run.run(["echo", "first one"], timeout=PATIENCE_SECONDS, log=log)
    with pytest.raises(CommandFailed) as caught:
        run.run(["sh", "-c", "echo second >&2; exit 1"], timeout=PATIENCE_SECONDS, log=log)
    assert log.read_text() == "$ echo 'first one'\nfirst one\n$ sh -c 'echo second >&2; exit 1'\nsecond\n"
    assert caught.value.hint == f"the whole output is in {log}"


def test_environment_is_built_and_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DJANGO_SECRET_KEY", "secret")
    monkeypatch.setenv("LANG", "de_AT.UTF-8")
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    said = run.run(["env"], timeout=PATIENCE_SECONDS, env={"MINE": "1"}).stdout
    variables = dict(line.split("=", 1) for line in said.splitlines())
    assert "DJANGO_SECRET_KEY" not in variables
    assert (variables["LANG"], variables["LC_ALL"], variables["MINE"]) == ("C.UTF-8", "C.UTF-8", "1")
    assert variables["https_proxy"] == "http://proxy.example:3128"


def test_administrators_directories_are_searched_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert run.search_path() == "/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"


@pytest.mark.parametrize("contained", [False, True])
def test_a_missing_program_is_the_hosts_fault_and_its_package_is_named(only_fakes: Fakes, *, contained: bool) -> None:
    with pytest.raises(HostError) as caught:
        run.run(["mksquashfs", "-version"], timeout=PATIENCE_SECONDS, contained=contained)
    assert caught.value.brief == "mksquashfs cannot be run: command not found"
    assert caught.value.hint == "apt-get install --yes squashfs-tools   (as root)"


def test_which_tells_what_the_tool_is_for(only_fakes: Fakes) -> None:
    with pytest.raises(HostError) as caught:
        run.which("qemu-img", reason="make disks")
    assert caught.value.render() == (
        "qemu-img is not installed; it is needed to make disks\n  -> apt-get install --yes qemu-utils   (as root)"
    )
    fake = only_fakes.command("qemu-img")
    assert run.which("qemu-img", reason="make disks") == fake.path


# --- time limits ------------------------------------------------------------------------------------------------------


def test_time_limit_ends_the_whole_group(token: str) -> None:
    begun = time.monotonic()
    with pytest.raises(CommandFailed) as caught:
        run.run(["sh", "-c", f"sh -c 'sleep {ENDLESS}; :' {token} & wait", token], timeout=0.3, hint="try again")
    assert time.monotonic() - begun < PATIENCE_SECONDS
    assert caught.value.brief == "sh did not finish within 0 s"
    assert (caught.value.returncode, caught.value.hint) == (-1, "try again")
    assert gone(token)


def test_a_command_that_is_late_tells_what_it_said_so_far(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    with pytest.raises(CommandFailed) as caught:
        run.run(["sh", "-c", f"echo so far >&2; exec sleep {ENDLESS}"], timeout=0.5, log=log)
    assert caught.value.details == f"sh -c 'echo so far >&2; exec sleep {ENDLESS}'\nso far"
    assert log.read_text().endswith("\nso far\n")


def test_time_limit_ends_what_a_finished_command_left_behind(token: str) -> None:
    """The command itself is gone, but what it started holds its output open."""
    with pytest.raises(CommandFailed, match="did not finish within"):
        run.run(["sh", "-c", f"sh -c 'sleep {ENDLESS}; :' {token} &"], timeout=0.3)
    assert gone(token)


def test_a_command_that_succeeds_leaves_nobody_behind(token: str) -> None:
    run.run(["sh", "-c", f"sh -c 'sleep {ENDLESS}; :' {token} >/dev/null 2>&1 &"], timeout=PATIENCE_SECONDS)
    assert gone(token)


def test_a_deaf_command_is_killed_after_the_grace_time(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setattr(run, "TERMINATE_GRACE_SECONDS", 0.3)
    with pytest.raises(CommandFailed):
        run.run(["sh", "-c", f"trap '' TERM; while :; do sleep {ENDLESS}; done", token], timeout=0.3)
    assert gone(token)


# --- processes in the background --------------------------------------------------------------------------------------


@pytest.mark.parametrize("contained", [False, True])
def test_a_spawned_process_ends_with_its_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str, *, contained: bool
) -> None:
    monkeypatch.setattr(run, "TERMINATE_GRACE_SECONDS", 0.3)
    with run.spawn(sleeper(token), log=tmp_path / "log", contained=contained) as process:
        assert wait_for(lambda: running(token))
        assert process.poll() is None
        assert process.wait(0.05) is None
    assert process.poll() is not None
    assert gone(token)


def test_a_spawned_process_ends_when_the_block_fails(tmp_path: Path, token: str) -> None:
    def fail() -> None:
        with run.spawn(sleeper(token), log=tmp_path / "log", contained=False):
            assert wait_for(lambda: running(token))
            raise ValueError("in the block")

    with pytest.raises(ValueError, match="in the block"):
        fail()
    assert gone(token)


def test_a_spawned_process_tells_its_status_and_output(tmp_path: Path) -> None:
    log = tmp_path / "deep" / "log"
    with run.spawn(["sh", "-c", "echo out; echo err >&2; exit 5"], log=log) as process:
        assert process.wait(PATIENCE_SECONDS) == 5
        assert (process.poll(), process.name) == (5, "sh")
    assert log.read_text() == "out\nerr\n"


def test_contained_exit_status_and_output_are_the_commands_own() -> None:
    done = run.run(["sh", "-c", "echo text; exit 9"], timeout=PATIENCE_SECONDS, check=False, contained=True)
    assert (done.returncode, done.stdout) == (9, "text\n")


def test_a_contained_command_is_the_first_process_of_its_name_space() -> None:
    assert run.run(["sh", "-c", "echo $$"], timeout=PATIENCE_SECONDS, contained=True).stdout == "1\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_mounts_of_a_contained_command_stay_inside(tmp_path: Path) -> None:
    script = f"mount -t tmpfs none {tmp_path} && touch {tmp_path}/inside && ls {tmp_path}"
    assert run.run(["sh", "-c", script], timeout=PATIENCE_SECONDS, contained=True).stdout == "inside\n"
    assert list(tmp_path.iterdir()) == []


# --- when Goldsmith itself ends ---------------------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from build.core import run
run.TERMINATE_GRACE_SECONDS = float(sys.argv[3])
program = {program}
with run.spawn(program, log=Path(sys.argv[2]), contained={contained}) as process:
    print("started", flush=True)
    process.wait(60)
"""
# The grandchild has a separate session: no signal to a group reaches it.
ESCAPING = '["sh", "-c", f"setsid sh -c \'sleep 300; :\' {sys.argv[1]} & sleep 300; :", sys.argv[1]]'
DEAF = '["sh", "-c", "trap \'\' TERM; echo deaf; while :; do sleep 300; done", sys.argv[1]]'


def test_contained_children_die_when_goldsmith_is_killed(tmp_path: Path, token: str) -> None:
    with running_python(HOLD.format(program=ESCAPING, contained=True), token, tmp_path / "log", "10") as goldsmith:
        assert wait_for(lambda: len(running(token)) >= 4), "Goldsmith, namespace, child, grandchild"
        kill_alone(goldsmith, token)


def test_other_children_die_too_when_goldsmith_is_killed(tmp_path: Path, token: str) -> None:
    program = "[sys.executable, '-c', 'import time; time.sleep(300)', sys.argv[1]]"
    with running_python(HOLD.format(program=program, contained=False), token, tmp_path / "log", "10") as goldsmith:
        assert goldsmith.stdout is not None
        assert goldsmith.stdout.readline() == b"started\n"
        assert wait_for(lambda: len(running(token)) == 2)
        kill_alone(goldsmith, token)


def test_a_child_whose_parent_is_gone_already_does_not_start(tmp_path: Path) -> None:
    """Goldsmith may be killed before its child has asked the kernel to be killed too."""
    for parent, expected in ((os.getpid(), True), (os.getppid(), False)):
        command = [*run.dies_with(parent), "touch", str(tmp_path / str(parent))]
        done = subprocess.run(command, check=False, timeout=PATIENCE_SECONDS)
        assert (done.returncode == 0, (tmp_path / str(parent)).exists()) == (expected, expected)


@pytest.mark.parametrize("contained", [False, True])
def test_ctrl_c_leaves_nobody(tmp_path: Path, token: str, *, contained: bool) -> None:
    program = "['sh', '-c', 'sleep 300; :', sys.argv[1]]"
    with running_python(HOLD.format(program=program, contained=contained), token, tmp_path / "log", "0.3") as goldsmith:
        assert wait_for(lambda: len(running(token)) >= 2)
        goldsmith.send_signal(signal.SIGINT)
        said = goldsmith.communicate(timeout=PATIENCE_SECONDS)[0]
        assert b"KeyboardInterrupt" in said
        assert gone(token)


def test_a_second_ctrl_c_does_not_wait_for_the_deaf(tmp_path: Path, token: str) -> None:
    with running_python(HOLD.format(program=DEAF, contained=False), token, tmp_path / "log", "60") as goldsmith:
        assert goldsmith.stdout is not None
        assert goldsmith.stdout.readline() == b"started\n"
        assert wait_for(lambda: (tmp_path / "log").read_text() == "deaf\n")
        goldsmith.send_signal(signal.SIGINT)
        time.sleep(0.5)  # so that the second one comes within the grace time of the first
        assert goldsmith.poll() is None
        goldsmith.send_signal(signal.SIGINT)
        goldsmith.communicate(timeout=PATIENCE_SECONDS)
        assert gone(token)


def test_an_interrupt_while_a_child_starts_leaves_nobody(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    """Between the child's first instruction and our first look at it there may be a tenth of a second."""
    real = subprocess.Popen

    def start_and_interrupt(*words: Any, **options: Any) -> Any:
        started = real(*words, **options)
        assert wait_for(lambda: running(token))
        os.kill(os.getpid(), signal.SIGINT)
        return started

    monkeypatch.setattr("build.core.run.subprocess.Popen", start_and_interrupt)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run.run(sleeper(token), timeout=60)
    assert gone(token)
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_just_after_a_command_ended_leaves_nobody(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    """The command is reaped already, and what it started in the background is not ended yet."""
    real = subprocess.Popen.communicate

    def communicate_and_interrupt(popen: Any, *words: Any, **options: Any) -> Any:
        real(popen, *words, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr("build.core.run.subprocess.Popen.communicate", communicate_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        run.run(["sh", "-c", f"sh -c 'sleep {ENDLESS}; :' {token} >/dev/null 2>&1 &"], timeout=PATIENCE_SECONDS)
    assert gone(token)


# --- pipes ------------------------------------------------------------------------------------------------------------


def test_a_pipe_joins_two_commands(tmp_path: Path) -> None:
    target = tmp_path / "out"
    run.pipe(["echo", "through"], ["sh", "-c", f"tr a-z A-Z >{target}"], timeout=PATIENCE_SECONDS, log=tmp_path / "log")
    assert target.read_text() == "THROUGH\n"


@pytest.mark.parametrize(
    ("producer", "consumer", "brief"),
    [
        (["sh", "-c", "echo cause >&2; exit 4"], ["cat"], "sh failed with status 4"),
        (["yes"], ["head", "--cause"], "head failed with status 1"),
    ],
)
def test_a_pipe_names_the_command_that_failed(tmp_path: Path, producer: list[str], consumer: list[str], brief: str) -> None:
    log = tmp_path / "log"
    with pytest.raises(CommandFailed) as caught:
        run.pipe(producer, consumer, timeout=PATIENCE_SECONDS, log=log)
    assert caught.value.brief == brief
    assert "cause" in caught.value.details
    assert caught.value.hint == f"the whole output is in {log}"


def test_a_pipe_has_a_time_limit_and_leaves_nobody(tmp_path: Path, token: str) -> None:
    with pytest.raises(CommandFailed, match="did not finish within 0 s"):
        run.pipe(sleeper(token), sleeper(token), timeout=0.3, log=tmp_path / "log")
    assert gone(token)


def test_a_pipe_into_a_missing_program_leaves_nobody(tmp_path: Path, token: str) -> None:
    with pytest.raises(HostError, match="no-such-tool cannot be run"):
        run.pipe(sleeper(token), ["no-such-tool"], timeout=PATIENCE_SECONDS, log=tmp_path / "log")
    assert gone(token)


@pytest.mark.parametrize(
    ("status", "text"),
    [(1, "QEMU ended with status 1"), (0, "QEMU ended with status 0"), (-15, "QEMU was ended by SIGTERM"),
     (137, "QEMU was ended by SIGKILL"), (255, "QEMU ended with status 255"), (128, "QEMU ended with status 128")],
)  # fmt: skip
def test_an_end_is_told_with_its_status_or_signal(status: int, text: str) -> None:
    assert run.ending("QEMU", status) == text


def test_a_program_that_a_signal_ends_in_a_container_is_told_by_the_signal(tmp_path: Path) -> None:
    with run.spawn(["sh", "-c", "sleep 300 & wait $!"], log=tmp_path / "log") as process:
        assert wait_for(lambda: process.poll() is None)
        process.terminate()
        status = process.poll()
    assert status is not None
    assert run.ending("it", status) in ("it was ended by SIGTERM", "it was ended by SIGKILL")


def test_a_command_that_may_not_answer_has_a_status_of_its_own() -> None:
    done = run.attempt(["sleep", "60"], timeout=0.1)
    assert (done.returncode, done.stdout) == (-1, "")
    assert done.stderr == "sleep did not finish within 0 s"
    assert run.attempt(["sh", "-c", "exit 3"], timeout=60).returncode == 3
