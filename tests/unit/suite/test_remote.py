"""Commands on the machine under test run in the same environment on every connection, and timeouts scale with its pace."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from testinfra.host import Host

from build.core import run
from build.verify import image_tests
from tests.image import remote
from tests.image.conftest import EVERYWHERE, connect
from tests.image.remote import BUSY_HOST, Remote, pace, seconds, until

PLACE = Path(__file__).parents[2] / "image"
PLACES = sorted([*PLACE.glob("*.py"), *(PLACE.parent / "faults").glob("*.py")])
# A number of seconds that does not follow the machine's pace, in what runs on the machine or waits for it.
LITERAL = re.compile(
    r"timeout=\d|settimeout\(\d[\d.]*\)|\$\(seq \d+\)|monotonic\(\) \+ \d[\d.]*$|\btimeout \d|for (try|i) in \d"
)
SHOWN = "umask; pwd; env | sort; test -t 0 || echo no terminal"


@contextmanager
def entered(*way: str, name: str = "here", shell: bool = False, lasting: bool = True) -> Iterator[Host]:
    """Enter this machine."""
    remote_host = Remote(name, way or ["env"], shell=shell, lasting=lasting)
    yield Host(remote_host)
    remote_host.close()


@pytest.fixture(params=[True, False], ids=["lasting", "for each command"])
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    """This machine, entered as a container is."""
    with entered(lasting=request.param) as found:
        yield found


def test_surroundings_are_the_same_on_every_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Umask, directory and environment are the tests' own, whatever those of the session are"""
    monkeypatch.setenv("LC_ALL", "tr_TR.UTF-8")
    monkeypatch.setenv("SESSION_OF", "somewhere")
    monkeypatch.chdir(tmp_path)
    said = []
    for lasting in (True, False):
        with entered("sh", "-c", 'umask 027; exec "$@"', "sh", lasting=lasting) as found:
            said.append(found.check_output(SHOWN).splitlines())
    lines = said[0]
    assert {line for line in lines if "PACE" not in line} == {line for line in said[1] if "PACE" not in line}
    assert lines[:2] == ["0022", "/"]
    assert "LC_ALL=C.UTF-8" in lines
    assert not any(line.startswith("SESSION_OF") for line in lines)
    assert any(re.fullmatch(r"PACE=[1-9]\d*", line) for line in lines)


def test_over_ssh_sudo_gets_the_same_command(monkeypatch: pytest.MonkeyPatch) -> None:
    argv = Remote("clone", ["ssh", "-F", "config", "clone"], shell=True).argv(["sh", "-c", "echo 'a b'"], {"PACE": "7"})
    assert argv[:4] == ["ssh", "-F", "config", "clone"]
    assert argv[4].startswith("sudo --non-interactive env -i -C / PATH=/usr/local/sbin:")
    assert argv[4].endswith("""PACE=7 sh -c 'echo '"'"'a b'"'"''""")


def test_status_and_outputs_come_back(host: Host) -> None:
    done = host.run("echo out; printf '\\377' >&2; echo %s; exit 3", "a b; c")
    assert (done.rc, done.stdout, done.stderr_bytes) == (3, "out\na b; c\n", b"\xff")
    assert host.run("kill -TERM $$").rc in (-15, 143)
    assert host.run("cat").stdout == ""


def test_a_lost_connection_is_told_and_the_next_command_has_another() -> None:
    with entered() as host:
        with pytest.raises(RuntimeError, match="the connection to here ended with status -9 during 'kill"):
            host.run("kill -KILL $PPID")
        assert host.check_output("echo again") == "again"


def test_a_machine_that_cannot_be_reached_is_told() -> None:
    broken = ("sh", "-c", "echo no route >&2; exit 255", "sh")
    match = "the connection to there ended with status 255 during 'connecting': no route"
    with entered(*broken, name="there", shell=True) as host, pytest.raises(RuntimeError, match=match):
        host.run("true")


def test_the_pace_is_measured_once_and_limits_follow_it(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_paces", {"env": 7})
    first = pace(host)
    assert 1 <= first <= remote.SLOWEST
    assert pace(host) == first
    assert seconds(host, 5) == 5 * first
    assert host.check_output("echo $PACE") == str(first)


def test_a_slow_machine_has_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work takes half a second more: five times the reference"""
    begin = "subprocess.run([sys.executable"
    monkeypatch.setattr(remote, "AGENT", remote.AGENT.replace(begin, f"time.sleep(0.5); {begin}", 1))
    with entered() as host:
        assert pace(host) >= 5


def test_a_wait_ends_with_its_condition_or_its_time(host: Host, tmp_path: Path) -> None:
    tries = tmp_path / "tries"
    count = f"echo >>{tries}; test $(wc -l <{tries}) -ge 3"
    assert host.run(until(count, 60, pause=0.01) + f"; wc -l <{tries}").stdout.strip() == "3"
    tries.unlink()
    host.run(until(f"echo >>{tries}; false", 0.05, pause=0.01))
    assert len(tries.read_text()) == 5 * BUSY_HOST * pace(host)


def test_a_clone_is_not_touched_before_it_may_be(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    way = ["sh", "-c", f'test -e {ready} || exit 9; exec "$@"', "sh"]
    host = connect({"name": "clone", "enter": way, "ready": str(ready)})
    waited: list[float] = []

    def arrive(pause: float) -> None:
        waited.append(pause)
        ready.touch()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.image.remote.time.sleep", arrive)
        assert host.check_output("echo there") == "there"
    host.backend.close()
    assert waited == [remote.POLL_SECONDS]


@pytest.mark.parametrize("path", PLACES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_limit_is_a_number_of_seconds(path: Path) -> None:
    """What a test waits for has a limit of seconds times the machine's pace"""
    found = [line.strip() for line in path.read_text().splitlines() if LITERAL.search(line) and "PACE" not in line]
    assert found == []


@pytest.mark.parametrize(
    "line", ["socket.create_connection(x, timeout=60)", "for i in $(seq 100); do", "timeout 150 python3", "x.settimeout(2)",
             "deadline = time.monotonic() + 60", "for try in 1 2 3; do"],
)  # fmt: skip
def test_a_number_of_seconds_is_found(line: str) -> None:
    assert LITERAL.search(line)


@pytest.mark.parametrize("name", EVERYWHERE)
def test_modules_that_run_everywhere_have_long_service_tests(name: str) -> None:
    assert "pytest.mark.story" in (PLACE / f"{name}.py").read_text(), "or it has no business in EVERYWHERE"


def test_a_clone_runs_one_module_of_each_kind_where_a_container_runs_all(tmp_path: Path) -> None:
    context = tmp_path / "context.json"
    machine = {"name": "clone", "enter": ["env"], "firmware": "", "ports": {}, "disk_mib": 0, "console": ""}
    context.write_text(json.dumps({"target": "vm", "spec": {}, "clones": [machine], "sealed": ""}))
    argv: list[str | Path] = [
        sys.executable, "-m", "pytest", PLACE, "-p", "no:cacheprovider", "--context", context, "--collect-only", "-q",
        "-m", image_tests.NO_STORIES,
    ]  # fmt: skip
    done = run.run(argv, timeout=300, cwd=PLACE.parents[1])
    chosen = {Path(line.partition("::")[0]).stem for line in done.stdout.splitlines() if "::" in line}
    assert set(EVERYWHERE) <= chosen
    assert "test_nginx" in chosen
    assert not {"test_backup", "test_deploy", "test_app"} & chosen
