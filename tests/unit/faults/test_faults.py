"""The command ``faults``: which faults are injected, what the tests are passed, and that every fault gets a result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from build.artifact import find
from build.core import host, run
from build.core.cache import Cache
from build.core.errors import HostError, SpecError, StepFailed, VerificationFailed
from build.faults import faults
from build.faults import report as faults_report
from build.faults.machines import Target
from build.machines import acceleration, nocloud, nspawn
from build.packages.apt import Mirrors
from build.pipeline import build
from build.pipeline.build import Options
from build.spec import golden_yaml as specs
from tests.fakes import Fakes
from tests.unit.helpers import make_checkout

CONFTEST = """
def pytest_addoption(parser):
    parser.addoption("--context")
    parser.addoption("--faults")
"""
TESTS = """
import json, pathlib

def test_one(request, record_property):
    record_property("requirements", "F01 R9")
    record_property("title", "A killed worker is replaced")
    record_property("numbers", json.dumps({"requests": 40}))
    record_property("evidence", "worker was sent SIGKILL")
    context = json.loads(pathlib.Path(request.config.getoption("--context")).read_text())
    assert (context["target"], context["image"], context["spec"]["name"]) == ("vm", "IMAGE", "golden")
    assert request.config.getoption("--faults") == "F01,F02"
    assert len(context["debs"]) == 1

def test_two(record_property):
    record_property("requirements", "F02")
    SECOND
"""


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, only_fakes: Fakes) -> Options:
    """A checkout whose tests break nothing, on a host that has everything."""
    project = make_checkout(tmp_path / "checkout")
    image = tmp_path / "artifacts" / "golden-1.2.3-0" / "image.qcow2"
    monkeypatch.setattr(host, "ensure", lambda *_needed, **_options: None)
    monkeypatch.setattr(acceleration, "probe", lambda **_options: acceleration.kvm((10, 0)))
    monkeypatch.setattr(find, "find_image", lambda *_options, **_more: image)
    image.parent.mkdir(parents=True)
    return Options(project, Cache(tmp_path / "cache"), Mirrors("http://one.example", "http://two.example"))


def write_tests(options: Options, second: str = "pass") -> None:
    directory = options.project.fault_tests
    directory.mkdir(parents=True)
    image = options.project.root.parent / "artifacts" / "golden-1.2.3-0" / "image.qcow2"
    (directory / "conftest.py").write_text(CONFTEST)
    (directory / "test_x.py").write_text(TESTS.replace("SECOND", second).replace("IMAGE", str(image)))


def test_faults_that_keep_their_promise(options: Options) -> None:
    write_tests(options)
    result = faults.run_faults(options, ["F02", "F01"], target=Target.VM)
    assert result.error is None
    line = "| F01 | A killed worker is replaced | kept | requests 40 | `worker was sent SIGKILL` |"
    assert line in result.text.splitlines()
    report = json.loads((options.cache.root / "logs" / "faults-vm" / "faults.json").read_text())
    assert (report["subject"], [one["id"] for one in report["faults"]]) == ("golden-1.2.3-0", ["F01", "F02"])
    # Only a report of the complete list is written beside the artifact.
    assert not list((options.project.root.parent / "artifacts").glob("*.json"))


@pytest.mark.parametrize(
    ("second", "details"),
    [
        ("assert 1 == 2, 'one is not two'", "F02: broke: AssertionError: one is not two"),
        (
            "import pytest; pytest.fail('not in this image: aide', pytrace=False)",
            "F02: not in this image: Failed: not in this image: aide",
        ),
        ("import pytest; pytest.skip('later')", "F02: not tried: later"),
    ],
)
def test_a_fault_that_broke_or_was_not_tried_is_told(options: Options, second: str, details: str) -> None:
    write_tests(options, second)
    result = faults.run_faults(options, ["F01", "F02"], target=Target.VM)
    assert "| F02 |" in result.text
    assert isinstance(result.error, VerificationFailed)
    assert result.error.exit_code == 3
    assert result.error.brief == "1 of 2 faults broke their promise"
    assert result.error.details == details


def test_tests_that_cannot_be_run_are_no_success(options: Options) -> None:
    write_tests(options)
    (options.project.fault_tests / "conftest.py").write_text("raise RuntimeError('no')")
    with pytest.raises(StepFailed, match="could not be tried"):
        faults.run_faults(options, ["F01"], target=Target.VM)


def test_an_unknown_fault_is_refused(options: Options) -> None:
    with pytest.raises(SpecError, match="no such fault: F99, G1"):
        faults.run_faults(options, ["F01", "F99", "G1"], target=Target.VM)


def test_a_container_needs_root(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "is_root", lambda: False)
    with pytest.raises(HostError, match="needs root"):
        faults.run_faults(options, [], target=Target.CONTAINER)


def test_a_container_gets_an_unpacked_tree_with_a_seed(
    options: Options, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def unpack(argv: list[str | Path], **_options: object) -> run.Done:
        assert argv[0] == "unsquashfs"
        Path(argv[-2]).mkdir()
        return run.Done(0, "", "")

    monkeypatch.setattr(run, "is_root", lambda: True)
    monkeypatch.setattr(build, "build_rootfs", lambda _asked: (tmp_path / "filesystem.squashfs", None))
    monkeypatch.setattr(nocloud, "make_identity", lambda directory, user: nocloud.Identity(user, directory / "key"))
    monkeypatch.setattr(nspawn, "plant_seed", lambda root, identity: (root / identity.user).touch())
    monkeypatch.setattr(run, "run", unpack)
    tree = faults._tree(options, specs.load(options.project.spec), tmp_path, None)
    assert (tree / "admin").exists()


# --- the report -------------------------------------------------------------------------------------------------------


def junit(tmp_path: Path, *cases: str) -> Path:
    path = tmp_path / "junit.xml"
    path.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
    return path


def case(ids: str, inner: str = "", numbers: str = "{}") -> str:
    properties = f"""<property name="requirements" value="{ids}"/><property name="title" value="Holds {ids}"/>"""
    figures = f"""<property name="numbers" value='{numbers}'/>"""
    return f"""<testcase name="x" time="1.5"><properties>{properties}{figures}</properties>{inner}</testcase>"""


def test_there_are_35_faults() -> None:
    assert (len(faults_report.IDS), faults_report.IDS[0], faults_report.IDS[-1]) == (35, "F01", "F35")


def test_a_fault_is_as_good_as_the_worst_of_its_tests(tmp_path: Path) -> None:
    path = junit(
        tmp_path, case("F01 F02 R9", numbers='{"lost": 0}'), case("F02", '<failure message="lost 3\nmore"/>', '{"lost": 3}')
    )
    first, second = faults_report.read(path, target="vm", ids=["F01", "F02"])
    assert (first.outcome, first.problem, first.numbers, first.seconds) == ("kept", "", {"lost": 0}, 1.5)
    assert (second.outcome, second.problem, second.numbers, second.seconds) == ("broke", "lost 3 more", {"lost": 3}, 3.0)
    assert second.promises == ("Holds F01 F02 R9", "Holds F02")


def test_a_fault_without_a_test_is_told(tmp_path: Path) -> None:
    path = junit(tmp_path, case("F01"))
    assert [one.outcome for one in faults_report.read(path, target="vm", ids=["F01", "F02"])] == ["kept", "not tried"]
    assert [one.outcome for one in faults_report.read(path, target="container", ids=["F02"])] == ["needs a clone"]
    assert "not tried" in faults_report.BROKEN
    assert "needs a clone" not in faults_report.BROKEN


def test_the_table_has_one_line_a_fault(tmp_path: Path) -> None:
    path = junit(tmp_path, case("F01", '<error message="a | b"/>'))
    table = faults_report.render(faults_report.read(path, target="vm", ids=["F01"])).splitlines()
    assert table[2:] == ["| F01 | Holds F01 | broke: a \\| b |  |  |"]
