"""golden-site apply: the trial before any change, the wait for the services after it, and the accepted names."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from build.core.errors import SpecError
from build.spec import golden_yaml as specs
from tests.unit.golden_modules import golden_module
from tests.unit.helpers import ROOT

golden = golden_module("golden.core")
applying = golden_module("golden.apply")
NAMES = ROOT / "overlays/80-firstboot/rootfs/usr/lib/golden/names"
LONG = ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 61])


class Machine:
    """Answers for systemctl, journalctl and the trial, in turn."""

    def __init__(self, *states: str, trial: int = 0) -> None:
        self.states, self.trial, self.seen = list(states), trial, list[list[str]]()

    def run(self, argv: list[Any], **_options: Any) -> SimpleNamespace:
        words = [str(word) for word in argv]
        self.seen.append(words)
        if words[0] == "unshare":
            said = b"[warn] not root\nnginx: [emerg] no such directive\n\nfailed\n"
            return SimpleNamespace(returncode=self.trial, stdout=b"", stderr=said)
        if "--property=Environment" in words:
            return SimpleNamespace(stdout=b"SERVER_NAME=a.example DOMAIN=example.org\n")
        if words[0] == "journalctl":
            return SimpleNamespace(stdout=b"the reason\n")
        return SimpleNamespace(stdout=(self.states.pop(0) if len(self.states) > 1 else self.states[0]).encode())


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between two looks; time passes by them alone."""
    taken: list[float] = []
    monkeypatch.setattr(applying.time, "sleep", taken.append)
    monkeypatch.setattr(applying.time, "monotonic", lambda: sum(taken))
    return taken


def state(active: str, *, result: str = "success", restarts: int = 0, unit: str = "nginx.service") -> str:
    return f"Id={unit}\nActiveState={active}\nSubState=x\nResult={result}\nNRestarts={restarts}\n"


def settled(monkeypatch: pytest.MonkeyPatch, *states: str) -> dict[str, str]:
    monkeypatch.setattr(applying, "run", Machine(*states).run)
    found: dict[str, str] = applying.settle(["nginx.service"])
    return found


def test_what_runs_is_looked_at_twice(monkeypatch: pytest.MonkeyPatch, pauses: list[float]) -> None:
    assert settled(monkeypatch, state("active")) == {}
    assert len(pauses) == 1


def test_a_service_that_starts_again_and_again_is_not_up(monkeypatch: pytest.MonkeyPatch, pauses: list[float]) -> None:
    states = [state("active", restarts=number) for number in range(5)]
    assert settled(monkeypatch, *states, state("failed", result="exit-code")) == {"nginx.service": "the reason"}


def test_what_is_on_its_way_is_waited_for(monkeypatch: pytest.MonkeyPatch, pauses: list[float]) -> None:
    assert settled(monkeypatch, state("activating"), state("activating"), state("active")) == {}
    assert len(pauses) == 3
    pauses.clear()
    assert settled(monkeypatch, state("activating", result="exit-code")) == {"nginx.service": "the reason"}
    assert applying.SETTLED_SECONDS < sum(pauses) < applying.SETTLED_SECONDS + 2 * applying.LOOKS_APART


@pytest.mark.parametrize("result", ["success", "exec-condition"])
def test_what_has_done_its_work_is_well(monkeypatch: pytest.MonkeyPatch, pauses: list[float], result: str) -> None:
    assert settled(monkeypatch, state("inactive", result=result)) == {}


def test_the_trial_leaves_everything_as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = Machine(trial=1)
    monkeypatch.setattr(applying, "run", machine.run)
    real = tmp_path / "golden"
    real.mkdir()
    (real / "names").write_text("before\n")
    tried: list[Path] = []

    def write(directory: Path) -> None:
        assert (directory / "names").read_text() == "before\n"
        (directory / "names").write_text("after\n")
        tried.append(directory)

    with pytest.raises(golden.Problem, match=r"nothing was changed: nginx: \[emerg\] no such directive / failed") as caught:
        applying.rehearse(write, directory=real)
    assert caught.value.code == golden.CHECK_FAILED
    assert (real / "names").read_text() == "before\n"
    assert [path.name for path in tmp_path.iterdir()] == ["golden"]
    assert machine.seen[-1][-1] == str(tried[0])
    machine.trial = 0
    applying.rehearse(write, directory=real)


# --- names ------------------------------------------------------------------------------------------------------------


def written_names(tmp_path: Path, given: str, *, hosts: str = "") -> list[str]:
    """Run the script of golden-names.service; return the names after those of spec and host."""
    (tmp_path / "site-names").write_text(f"{given}\n")
    (tmp_path / "hosts").write_text(hosts)
    script = NAMES.read_text().replace("/run/golden", str(tmp_path)).replace("/etc/hosts", str(tmp_path / "hosts"))
    variables = {"SERVER_NAME": "golden.example.org", "DOMAIN": "example.org", "PATH": os.environ["PATH"]}
    subprocess.run(["/bin/sh", "-c", script], env=variables, check=True, capture_output=True)
    names = (tmp_path / "names").read_text()
    assert (tmp_path / "server-names.conf").read_text() == f"server_name {names.strip()};\n"
    return names.split()


@pytest.mark.parametrize(
    "name", ["a", LONG, "x--y.example.org", "1.example.org", "a" * 63, f"{'a' * 40}.example.org", "xn--bcher-kva.example"]
)
def test_names_of_every_length(tmp_path: Path, name: str) -> None:
    assert len(LONG) == 253
    assert written_names(tmp_path, name)[0] == name


@pytest.mark.parametrize(
    "name", [f"{LONG}e", "a" * 64, f"www.{'a' * 64}.org", "-a", "a-.example.org", "a..b", ".a", "a.", "a_b", "a;b"]
)
def test_names_that_are_left_out(tmp_path: Path, name: str) -> None:
    assert written_names(tmp_path, name)[0] == "golden.example.org"


def test_names_of_other_servers_are_in_the_certificate_alone(tmp_path: Path) -> None:
    (tmp_path / "other-names").write_text("api.example.org golden.example.org\n")
    (tmp_path / "site-names").write_text("www.example.org api.example.org\n")
    script = NAMES.read_text().replace("/run/golden", str(tmp_path))
    variables = {"SERVER_NAME": "golden.example.org", "DOMAIN": "example.org", "PATH": os.environ["PATH"]}
    subprocess.run(["/bin/sh", "-c", script], env=variables, check=True, capture_output=True)
    own = (tmp_path / "server-names.conf").read_text().removeprefix("server_name ").rstrip(";\n").split()
    assert own[0] == "www.example.org"
    assert not {"api.example.org", "golden.example.org"} & set(own)
    assert (tmp_path / "names").read_text().split() == [*own, "api.example.org", "golden.example.org"]
    assert (tmp_path / "site.env").read_text().split() == ["SITE_HOSTS=" + own[0], *own[1:]]
    # Every name of the machine is another server's.
    (tmp_path / "other-names").write_text((tmp_path / "names").read_text())
    subprocess.run(["/bin/sh", "-c", script], env=variables, check=True, capture_output=True)
    assert (tmp_path / "server-names.conf").read_text() == "server_name unnamed.invalid;\n"


@pytest.mark.parametrize(
    ("key", "value", "good"),
    [
        ("server_name", LONG, True), ("server_name", f"{LONG}e", False), ("server_name", "a" * 64, False),
        ("server_name", "192.0.2.1", False), ("domain", "example.org", True), ("domain", ".".join(["a" * 63] * 3), False),
        ("domain", ".".join([*["a" * 62] * 2, "b" * 62]), True),
    ],
)  # fmt: skip
def test_names_of_the_spec(tmp_path: Path, key: str, value: str, good: bool) -> None:  # noqa: FBT001
    text = (ROOT / "golden.yaml").read_text()
    old = {"server_name": "server_name: golden.example.internal", "domain": "domain: example.internal"}[key]
    assert old in text
    (tmp_path / "golden.yaml").write_text(text.replace(old, f"{key}: {value}"))
    if good:
        specs.load(tmp_path / "golden.yaml")
        return
    with pytest.raises(SpecError, match="1 problem"):
        specs.load(tmp_path / "golden.yaml")
