"""The bench: what a measured build is given, what it must not modify, and what its page contains."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from build.artifact import artifact
from build.bench import bench
from build.core import run
from build.core.cache import Cache
from build.core.errors import StepFailed
from build.machines import acceleration, nocloud, vm
from build.packages.apt import Mirrors
from build.pipeline.build import Options
from tests.unit.helpers import make_checkout

MEMORY = "MemTotal:        2004096 kB\nMemFree:          900000 kB\nMemAvailable:    1582720 kB\nBuffers: 1 kB\n"
COLD = {
    "seconds": 600.0, "cpu_seconds": 900.0, "load": 1.5, "commit": "c0", "run": "2026-11-29T01:00:00+00:00",
    "stages": [{"stage": "base", "seconds": 60.0, "memory_mib": 31}], "unverified": 300.0, "image_bytes": 246_000_000,
    "boot": {"bios": {"ready": 120.0}},
}  # fmt: skip
PLAIN = {
    "seconds": 1200.0, "cpu_seconds": 1800.0, "load": 1.5, "commit": "c0", "run": COLD["run"], "image_bytes": 333_000_000,
}  # fmt: skip
IDLE = {"used_mib": 411, "total_mib": 1957, "cpu_seconds": 90.0, "load": 1.0, "commit": "c1", "run": "another"}
MACHINE = dict.fromkeys(("date", "cpu", "cores", "memory_gib", "accelerator", "host"), "x")


def page(**results: dict[str, Any]) -> str:
    return bench.render(MACHINE, results)


def test_a_shared_cache_has_downloads_and_bases_only(tmp_path: Path) -> None:
    own, new = tmp_path / "own", tmp_path / "new"
    for name in ("files/ab/deb", "stages/base/key/base.tar", "stages/base/.key.flock", "stages/disk/key/image", "logs/x"):
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        (own / name).write_text(name)
    bench._share(own, new)
    found = {path.relative_to(new).as_posix() for path in new.rglob("*") if path.is_file()}
    assert found == {"files/ab/deb", "stages/base/key/base.tar"}
    # Links: half a gigabyte is not copied, and what removes the new cache leaves the old one.
    assert (new / "files/ab/deb").samefile(own / "files/ab/deb")


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_plain_installation_of_the_same_run_is_compared() -> None:
    text = " ".join(page(cold=COLD, plain=PLAIN).split())
    assert "20 min 00 s. Ours took 5 min 00 s to the same point (base to disk), 0.25 of it" in text
    assert "0.50 of it. By processor time, the whole build took 0.50 of it." in text


@pytest.mark.parametrize("results", [
    {"cold": COLD}, {"plain": PLAIN}, {"cold": COLD, "plain": PLAIN | {"run": "another"}},
    {"cold": {name: value for name, value in COLD.items() if name != "run"},
     "plain": {name: value for name, value in PLAIN.items() if name != "run"}},
])  # fmt: skip
def test_figures_of_two_runs_have_no_ratio(results: dict[str, Any]) -> None:
    assert "## Against a plain installation" not in page(**results)


def test_sizes_are_rows() -> None:
    text = page(cold=COLD, plain=PLAIN, memory=IDLE)
    assert (
        "| size of the image, compressed | 246 MB | c0 |\n"
        "| size of the plain installation's image, compressed | 333 MB | c0 |\n"
        "| memory in use on an idle clone | 411 of 1957 MiB | c1 |\n"
    ) in text
    assert "## The image" not in page(unchanged=PLAIN)


# --- what is measured -------------------------------------------------------------------------------------------------


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(
        make_checkout(tmp_path / "checkout"),
        Cache(tmp_path / "cache"),
        Mirrors("http://127.0.0.1:9/debian", "http://127.0.0.1:9/debian-security"),
    )


def test_the_plain_installation_brings_the_cold_build_of_its_run(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []

    def measure(name: str, figures: dict[str, Any]) -> Any:
        def note(*_arguments: object) -> dict[str, Any]:
            measured.append(name)
            return {key: figures[key] for key in figures if key not in ("cpu_seconds", "load", "commit", "run")}

        return note

    monkeypatch.setattr(bench, "_build", measure("cold", COLD))
    monkeypatch.setattr(bench, "_plain", measure("plain", PLAIN))
    monkeypatch.setattr(bench, "_with_cost", lambda act: dict(act()) | {"cpu_seconds": 1.0, "load": 1.0})
    monkeypatch.setattr(bench, "describe_machine", lambda *_arguments: MACHINE)
    monkeypatch.setattr(run, "run", lambda *_arguments, **_options: run.Done(0, "", ""))
    monkeypatch.setattr(bench, "_commit", lambda _root: "c2")
    for path in (bench.RESULTS, bench.PAGE):
        (options.project.root / path).parent.mkdir(parents=True, exist_ok=True)
    bench.run_all(options, ("plain",))
    assert measured == ["cold", "plain"]
    results = json.loads((options.project.root / bench.RESULTS).read_text())["results"]
    assert results["cold"]["run"] == results["plain"]["run"]
    assert "## Against a plain installation" in (options.project.root / bench.PAGE).read_text()


def test_memory_in_use_is_what_is_not_available() -> None:
    assert bench.memory_in_use(MEMORY) == (411, 1957)


@pytest.mark.parametrize("text", ["", "MemTotal: 5 kB\n", "MemTotal: x kB\nMemAvailable: 1 kB\n", "cat: no such file\n"])
def test_what_is_no_meminfo_is_refused(text: str) -> None:
    with pytest.raises(StepFailed, match="no MemTotal or MemAvailable"):
        bench.memory_in_use(text)


class Idle:
    """A clone whose first AIDE database takes ``busy`` questions, and whose memory in use differs from time to time."""

    accelerator = SimpleNamespace(timeout_scale=1.0)

    def __init__(self, busy: int) -> None:
        self.busy, self.asked = busy, list[str]()
        self.available = iter((1000, 1400, 1200, 1300, 1100))

    def console_text(self) -> str:
        return "the console\n"

    def execute(self, command: str, *, check: bool = True) -> run.Done:
        self.asked.append(command)
        if "is-active" in command:
            assert not check
            self.busy -= 1
            return run.Done(0 if self.busy >= 0 else 3, "", "")
        return run.Done(0, f"MemTotal: {2000 << 10} kB\nMemAvailable: {next(self.available) << 10} kB\n", "")


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Idle:
    made = Idle(busy=2)

    @contextmanager
    def clone(image: Path, *_arguments: object, **_options: object) -> Iterator[Idle]:
        assert image == tmp_path / "image.qcow2"
        yield made

    monkeypatch.setattr(bench, "READING_SECONDS", 0.0)
    monkeypatch.setattr(acceleration, "probe", lambda **_options: None)
    monkeypatch.setattr(nocloud, "make_identity", lambda *_arguments: None)
    monkeypatch.setattr(vm, "clone", clone)
    monkeypatch.setattr(vm, "wait_ready", lambda *_arguments: None)
    monkeypatch.setattr(artifact, "newest", lambda *_arguments: SimpleNamespace(image=tmp_path / "image.qcow2"))
    return made


def test_memory_is_read_when_the_clone_is_idle(options: Options, idle: Idle, tmp_path: Path) -> None:
    assert bench._memory(tmp_path / "clone", tmp_path, options) == {"used_mib": 800, "total_mib": 2000}
    assert [command.split()[0] for command in idle.asked] == ["systemctl"] * 3 + ["cat"] * bench.READINGS


def test_a_clone_that_is_never_idle_is_told(
    options: Options, idle: Idle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle.busy = 1_000_000
    monkeypatch.setattr(bench, "SETTLE_SECONDS", 0.01)
    with pytest.raises(StepFailed, match="golden-aide-first is still active"):
        bench._memory(tmp_path / "clone", tmp_path, options)
