"""Only booted clones and passed tests produce a ``Verdict``; everything else is reported with its evidence."""

from __future__ import annotations

import ast
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import pytest

from build.cli import main
from build.core import run
from build.core.errors import StepFailed, VerificationFailed
from build.core.junit import read_cases
from build.machines import acceleration, nocloud, vm
from build.verify import image_tests, long_tests, stocktaking, verify
from build.verify.image_tests import Verdict
from build.verify.long_tests import Stories
from tests.fakes import Fake, Fakes
from tests.patience import PATIENCE_SECONDS
from tests.unit.helpers import make_disk_image, make_spec
from tests.unit.inventories import inventory_of, kept, said
from tests.unit.machines.test_vm import KEYS, QEMU_PROGRAM, fake_ssh

CONFTEST = """
from pathlib import Path

def pytest_addoption(parser):
    parser.addoption("--context", type=Path)
"""
GOOD = """
import json
import pytest

def test_context(request):
    context = json.loads(request.config.getoption("--context").read_text())
    assert [clone["name"] for clone in context["clones"]] == ["bios", "uefi"]
    assert context["sealed"].endswith("pristine.raw")
"""
PANIC = {"console": [[0, "Kernel panic - not syncing: int3\n"]]}
READY = {"console": [[0, KEYS]]}
TCG = acceleration.tcg((7, 2), reason="a test")
KVM = acceleration.kvm((7, 2))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pristine disk with nothing on it but an fstab."""
    home = tmp_path_factory.mktemp("disk")
    (home / "root").mkdir()
    raw = make_disk_image(home, {"/": home / "root"})
    run.run(["qemu-img", "convert", "-O", "qcow2", raw, home / "image.qcow2"], timeout=60)
    return home / "image.qcow2"


@pytest.fixture
def qemu(fakes: Fakes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fake:
    """Clones that are ready at once; a test may write another plan."""
    monkeypatch.setattr(vm, "POLL_SECONDS", 0.02)
    (tmp_path / "VARS.fd").touch()
    monkeypatch.setattr(vm, "OVMF_VARS", tmp_path / "VARS.fd")
    fake_ssh(
        fakes, {"when": ["systemctl is-system-running --wait"], "stdout": "running\n"},
        {"when": ["sudo --non-interactive python3 -I -"], "stdout": said()},
    )  # fmt: skip
    return fakes.install(vm.QEMU, QEMU_PROGRAM, {"guests": {"bios": [READY], "uefi": [READY]}})


def checkout(tmp_path: Path, text: str = GOOD) -> Path:
    tests = tmp_path / "checkout" / "tests" / "image"
    tests.mkdir(parents=True)
    (tests / "conftest.py").write_text(CONFTEST)
    (tests / "test_x.py").write_text(text)
    (tests / stocktaking.PROGRAM).write_text("the fake ssh answers for it")
    return tests


def judge(
    tmp_path: Path, image: Path, tests: Path, accelerator: acceleration.Accelerator = TCG, told: Stories | None = None
) -> verify.VerifyFacts:
    for name in ("out", "scratch"):
        (tmp_path / name).mkdir()
    return verify.verify(
        image, spec=make_spec(tmp_path), tests=tests, out=tmp_path / "out", scratch=tmp_path / "scratch",
        accelerator=accelerator, expected_seconds=0.0, stories=told,
    )  # fmt: skip


# --- the whole of it --------------------------------------------------------------------------------------------------


def test_tests_that_pass_on_booted_clones_make_a_verdict(qemu: Fake, image: Path, tmp_path: Path) -> None:
    before = image.read_bytes()
    verdict = judge(tmp_path, image, checkout(tmp_path))
    assert (verdict.passed, verdict.failed, verdict.skipped) == (1, 0, 0)
    assert verdict.panics == 0
    assert verdict.clones == ("bios", "uefi")
    assert {name: list(times) for name, times in verdict.boot.items()} == {
        name: ["host keys", "login", "ready"] for name in ("bios", "uefi")
    }
    out = tmp_path / "out"
    assert (out / "junit.xml").is_file()
    assert (out / "logs" / "bios-console.log").read_text() == KEYS.replace("\r\n", "\n")
    assert "1 passed" in (out / "pytest.log").read_text()
    assert kept((out / "inventory.json").read_text()) == inventory_of()
    assert "nginx.service (3.450s)" in (out / "boot.svg").read_text()
    assert image.read_bytes() == before
    assert len([call for call in qemu.calls() if "-name" in call.argv]) == 2


def test_a_test_that_fails_is_named_and_the_evidence_stays(qemu: Fake, image: Path, tmp_path: Path) -> None:
    tests = checkout(tmp_path, GOOD + "\ndef test_bad():\n    assert 1 == 2, 'one is not two'\n")
    with pytest.raises(VerificationFailed) as caught:
        judge(tmp_path, image, tests)
    error = caught.value
    assert error.exit_code == 3
    assert error.brief == "the image failed 1 of 2 tests"
    assert "tests.image.test_x::test_bad: AssertionError: one is not two" in error.details
    log = tmp_path / "out" / "pytest.log"
    assert error.hint.startswith(f"see {log}; ")
    assert "one is not two" in log.read_text()
    assert (tmp_path / "out" / "logs" / "uefi-console.log").is_file()


def test_an_inventory_that_cannot_be_read_fails_the_build(qemu: Fake, fakes: Fakes, image: Path, tmp_path: Path) -> None:
    fake_ssh(
        fakes, {"when": ["systemctl is-system-running --wait"], "stdout": "running\n"},
        {"when": ["sudo --non-interactive python3 -I -"], "stderr": "systemd-analyze time ended with 1\n", "status": 1},
    )  # fmt: skip
    with pytest.raises(StepFailed, match="inventory of bios could not be read") as caught:
        judge(tmp_path, image, checkout(tmp_path))
    assert caught.value.details == "systemd-analyze time ended with 1"
    assert not (tmp_path / "out" / "junit.xml").exists()


def test_a_panic_under_emulation_is_tried_once_more_and_counted(
    qemu: Fake, fakes: Fakes, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fakes.install(vm.QEMU, QEMU_PROGRAM, {"guests": {"bios": [PANIC, READY], "uefi": [READY]}})
    verdict = judge(tmp_path, image, checkout(tmp_path))
    assert (verdict.passed, verdict.panics) == (1, 1)
    assert (
        "warning: clone bios: Kernel panic - not syncing: int3: known under emulation; the clones are booted once more"
    ) in capsys.readouterr().err


@contextmanager
def ended(out: Path, status: int) -> Iterator[Stories]:
    """Long tests whose process ends with a status, and whose JUnit file may exist in ``out`` before."""
    with run.spawn(["sh", "-c", f"echo a word; exit {status}"], log=out / long_tests.LOG) as process:
        process.wait(PATIENCE_SECONDS)
        yield Stories(process, out)


def test_stories_stand_in_the_same_report(qemu: Fake, image: Path, tmp_path: Path) -> None:
    junit(tmp_path, ("test_story", "", ""))
    tests = checkout(tmp_path, GOOD + "\n\n@pytest.mark.story\ndef test_told():\n    assert False\n")
    with ended(tmp_path, 0) as told:
        verdict = judge(tmp_path, image, tests, told=told)
    assert (verdict.passed, verdict.failed, verdict.skipped) == (2, 0, 0), "the clones run no long test then"
    names = {case.name for case in read_cases(tmp_path / "out" / "junit.xml")}
    assert names == {"test_x::test_context", "test_x::test_story"}


def test_a_long_test_that_fails_ends_the_clones_at_once(qemu: Fake, image: Path, tmp_path: Path) -> None:
    junit(tmp_path, ("test_story", "failure", "it came to a bad end"), ("test_other", "", ""))
    with ended(tmp_path, 3) as told, pytest.raises(VerificationFailed, match="failed 1 of 2") as caught:
        judge(tmp_path, image, checkout(tmp_path), told=told)
    assert "it came to a bad end" in caught.value.details
    assert not (tmp_path / "out" / "junit.xml").exists()


def test_stories_that_could_not_be_played_say_why(tmp_path: Path) -> None:
    with ended(tmp_path, 1) as told, pytest.raises(StepFailed, match="could not be used: it ended with status 1") as caught:
        told.finish()
    assert caught.value.details == "a word"
    assert caught.value.hint == f"see {tmp_path / long_tests.LOG}"


def test_stories_that_do_not_end_are_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_tests, "SECONDS", 0.1)
    endless = run.spawn(["sh", "-c", "trap 'exit 1' TERM; sleep 60 & wait"], log=tmp_path / long_tests.LOG)
    with endless as process, pytest.raises(StepFailed, match="did not end within"):
        Stories(process, tmp_path).finish()


def test_stories_are_played_by_a_process_of_this_checkout(tmp_path: Path) -> None:
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "__main__.py").write_text("import sys; print(sys.argv[1:])")
    places = {"project": tmp_path, "spec": tmp_path / "golden.yaml", "cache": tmp_path / "c", "out": tmp_path / "out"}
    with long_tests.playing(tmp_path / "fs", **places) as told:
        told.finish()
    words = ast.literal_eval((tmp_path / "out" / long_tests.LOG).read_text())
    assert words[0] == "container"
    parsed = main.parse(words)
    assert (parsed.squashfs, parsed.stories) == (tmp_path / "fs", tmp_path / "out")


WAITING = """
import json, time
from pathlib import Path
import pytest

def pytest_addoption(parser):
    parser.addoption("--context", type=Path)

@pytest.fixture
def ready(request):
    clones = json.loads(request.config.getoption("--context").read_text())["clones"]
    return {clone["name"]: Path(clone["ready"]) for clone in clones}
"""


def test_a_clone_is_tested_while_the_inventory_of_the_other_is_taken(
    qemu: Fake, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tests = checkout(tmp_path, """
import time

def test_first(ready):
    deadline = time.monotonic() + 60
    while not ready["uefi"].exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not ready["bios"].exists(), "its inventory is not taken yet"
    ready["bios"].with_name("tested").touch()
    while not ready["bios"].exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
""")  # fmt: skip
    (tests / "conftest.py").write_text(WAITING)
    take = stocktaking.take

    def late(argv: Sequence[str], **options: Any) -> None:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("scratch/*/bios/tested")) and time.monotonic() < deadline:
            time.sleep(0.1)
        take(argv, **options)

    monkeypatch.setattr(stocktaking, "take", late)
    assert judge(tmp_path, image, tests).passed == 1
    assert (tmp_path / "out" / "inventory.json").is_file()


def test_qemu_that_ends_while_the_clones_are_tested_is_told_at_once(
    qemu: Fake, fakes: Fakes, image: Path, tmp_path: Path
) -> None:
    ends = {"console": [[0, KEYS], [4, "going\n"]], "ending": 1, "complaint": "qemu: no memory left"}
    fakes.install(vm.QEMU, QEMU_PROGRAM, {"guests": {"bios": [READY], "uefi": [ends]}})
    tests = checkout(tmp_path, "import time\n\ndef test_long():\n    time.sleep(300)\n")
    begun = time.monotonic()
    with pytest.raises(StepFailed, match="clone uefi: QEMU ended with status 1 while it was") as caught:
        judge(tmp_path, image, tests)
    assert "qemu: no memory left" in caught.value.details
    assert time.monotonic() - begun < 120


@pytest.mark.parametrize(("accelerator", "starts"), [(TCG, 2), (KVM, 1)], ids=["tcg", "kvm"])
def test_panics_are_not_tried_for_ever(
    qemu: Fake, fakes: Fakes, image: Path, tmp_path: Path, accelerator: acceleration.Accelerator, starts: int
) -> None:
    fakes.install(vm.QEMU, QEMU_PROGRAM, {"guests": {"bios": [PANIC], "uefi": [READY]}})
    with pytest.raises(vm.Panic):
        judge(tmp_path, image, checkout(tmp_path), accelerator)
    assert len([call for call in qemu.calls() if "bios" in call.argv]) == starts
    assert "Kernel panic" in (tmp_path / "out" / "logs" / "bios-console.log").read_text()


def test_a_clone_that_never_answers_names_a_console_that_stays(
    qemu: Fake, fakes: Fakes, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vm, "BOOT_SECONDS", 0.1)
    silent = {"console": [[0, "GRUB loading.\n"]]}
    fakes.install(vm.QEMU, QEMU_PROGRAM, {"guests": {"bios": [silent], "uefi": [silent]}})
    with pytest.raises(StepFailed) as caught:
        judge(tmp_path, image, checkout(tmp_path))
    assert "did not become ready in time" in caught.value.brief
    console = Path(caught.value.hint.removeprefix("the whole console is in "))
    assert console.parent == tmp_path / "out" / "logs"
    assert console.read_text() == "GRUB loading.\n"


# --- its parts --------------------------------------------------------------------------------------------------------


def test_tests_that_cannot_be_run_are_told(tmp_path: Path) -> None:
    tests = checkout(tmp_path)
    (tests / "conftest.py").write_text("import nonsense_that_is_not_there\n")
    with pytest.raises(VerificationFailed) as caught:
        image_tests.run_tests(tests, tmp_path / "context.json", out=tmp_path, timeout=60)
    assert caught.value.brief == "the image tests could not be run: pytest ended with status 4"
    assert "No module named 'nonsense_that_is_not_there'" in caught.value.details
    assert caught.value.hint == f"see {tmp_path}/pytest.log"


def test_only_the_named_tests_are_run(tmp_path: Path) -> None:
    tests = checkout(tmp_path)
    (tests / "conftest.py").write_text("def pytest_addoption(parser):\n    parser.addoption('--context')\n")
    (tests / "test_named.py").write_text("def test_a(): pass\ndef test_b(): pass\n")
    for only, passed in (((f"{tests}/test_named.py",), 2), ((f"{tests}/test_named.py::test_b",), 1)):
        status = image_tests.run_tests(tests, tmp_path / "context.json", out=tmp_path, timeout=60, only=only)
        assert image_tests.judge(tmp_path / image_tests.JUNIT, status=status).passed == passed


def junit(tmp_path: Path, *cases: tuple[str, str, str]) -> Path:
    """Write a JUnit file of (name, result, message)."""
    rows = "".join(
        f'<testcase classname="tests.image.test_x" name="{name}">'
        + (f"<{verdict} message={quoteattr(message)}>long</{verdict}>" if verdict else "")
        + "</testcase>"
        for name, verdict, message in cases
    )
    path = tmp_path / "junit.xml"
    path.write_text(f"<testsuites><testsuite>{rows}</testsuite></testsuites>")
    return path


def test_a_verdict_counts(tmp_path: Path) -> None:
    path = junit(tmp_path, ("a", "", ""), ("b", "", ""), ("c", "skipped", "not here"))
    assert image_tests.judge(path, status=0) == Verdict(2, 0, 1, path)


def test_failures_and_errors_are_named_with_their_first_line(tmp_path: Path) -> None:
    path = junit(tmp_path, ("a", "", ""), ("b", "failure", "first\nsecond"), ("c", "error", ""), ("d", "error", "x" * 500))
    with pytest.raises(VerificationFailed) as caught:
        image_tests.judge(path, status=1)
    assert caught.value.brief == "the image failed 3 of 4 tests"
    where = "tests.image.test_x"
    assert caught.value.details.splitlines() == [f"{where}::b: first", f"{where}::c: ", f"{where}::d: {'x' * 160}"]


def test_many_failures_are_cut(tmp_path: Path) -> None:
    path = junit(tmp_path, *((f"t{number}", "failure", "x") for number in range(40)))
    with pytest.raises(VerificationFailed) as caught:
        image_tests.judge(path, status=1)
    assert len(caught.value.details.splitlines()) == image_tests.SHOWN_FAILURES


@pytest.mark.parametrize(
    ("cases", "status"),
    [([("a", "", "")], 1), ([("a", "", "")], 2), ([], 5), ([("a", "skipped", "x")], 0), ([], 0)],
    ids=["failed without a failure", "interrupted", "nothing collected", "all skipped", "nothing at all"],
)
def test_anything_but_success_is_no_verdict(tmp_path: Path, cases: list[tuple[str, str, str]], status: int) -> None:
    with pytest.raises(VerificationFailed, match=f"pytest ended with status {status}"):
        image_tests.judge(junit(tmp_path, *cases), status=status)


def test_the_context_tells_the_tests_what_they_need(tmp_path: Path) -> None:
    with run.spawn(["sleep", "60"], log=tmp_path / "qemu.log", contained=False) as process:
        ports = {"ssh": 1, "http": 2, "https": 3}
        clone = vm.Clone(vm.CloneConfig("uefi", vm.Firmware.UEFI), tmp_path, process, TCG, "admin", ports, 16384)
        path = verify.write_context(
            tmp_path, spec=make_spec(tmp_path), clones=(clone,), raw=tmp_path / "pristine.raw", target="vm"
        )
    content: dict[str, Any] = json.loads(path.read_text())
    assert content["clones"] == [
        {
            "name": "uefi", "firmware": "uefi", "alias": "goldsmith-uefi", "ssh_config": f"{tmp_path}/ssh_config",
            "ports": ports, "disk_mib": 16384, "console": f"{tmp_path}/console.log", "ready": f"{tmp_path}/ready",
        }
    ]  # fmt: skip
    assert (content["target"], content["sealed"]) == ("vm", f"{tmp_path}/pristine.raw")
    assert content["spec"]["disk"]["partitions"][1]["options"] == ["noatime", "nodev", "nosuid"]


def test_the_two_clones_differ_where_it_matters() -> None:
    first, second = verify.WISHES
    assert {first.firmware, second.firmware} == {vm.Firmware.BIOS, vm.Firmware.UEFI}
    assert first.grow_gib > 0, "one of them proves that the root file system grows"
    assert nocloud.LOOPBACK == vm.LOOPBACK
