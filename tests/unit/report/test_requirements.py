"""The table of requirements: its list is valid, its marks are found, and the page in docs/ is up to date."""

from __future__ import annotations

from pathlib import Path

import pytest

from build.core import junit
from build.core.errors import SpecError
from build.report import requirements

ROOT = Path(__file__).parents[3]

MODULE = """
import pytest

pytestmark = pytest.mark.req("R1")


@pytest.mark.req("R2", "F03")
def test_plain(): ...


@pytest.mark.parametrize("x", [pytest.param(1, marks=pytest.mark.req("R4"))])
def test_parameters(x): ...


@pytest.mark.req("R5")
class TestGroup:
    def test_inside(self): ...


def helper(): ...
"""

JUNIT = """<testsuites><testsuite>
<testcase classname="t" name="a"><properties><property name="requirements" value="R1 R2"/></properties></testcase>
<testcase classname="t" name="b"><properties><property name="requirements" value="R2"/></properties>
  <failure message="no"/></testcase>
</testsuite></testsuites>"""


def test_marks_are_found_on_modules_classes_functions_and_parameters(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text(MODULE)
    found = requirements.marks(tmp_path)
    assert set(found) == {"R1", "R2", "F03", "R4", "R5"}
    assert found["R1"] == [f"tests/test_it.py::{name}" for name in ("test_inside", "test_parameters", "test_plain")]
    assert found["R5"] == ["tests/test_it.py::test_inside"]


def test_a_requirement_is_as_good_as_the_worst_of_its_tests(tmp_path: Path) -> None:
    (tmp_path / "junit.xml").write_text(JUNIT)
    assert junit.results([tmp_path / "junit.xml"]) == {"R1": "passed", "R2": "failed"}


def test_entries_that_are_not_as_described_are_named(tmp_path: Path) -> None:
    path = tmp_path / "requirements.yaml"
    path.write_text("Q1: {section: x, text: something is required}\nR1: {section: x, text: short, why: no}\n")
    with pytest.raises(SpecError) as caught:
        requirements.load(path)
    told = caught.value.render()
    assert "'Q1'" in told
    assert "R1.text" in told
    assert "why" in told


def test_the_list_is_complete() -> None:
    names = [one.name for one in requirements.load(ROOT / requirements.LIST)]
    assert names == [f"R{number}" for number in range(1, 102)] + [f"F{number:02}" for number in range(1, 36)]


def test_tests_carry_known_ids_only() -> None:
    names = {one.name for one in requirements.load(ROOT / requirements.LIST)}
    assert {name: tests for name, tests in requirements.marks(ROOT).items() if name not in names} == {}


def test_every_requirement_and_every_fault_has_a_test() -> None:
    names = {one.name for one in requirements.load(ROOT / requirements.LIST)}
    assert names - set(requirements.marks(ROOT)) == set()


def test_the_page_is_the_current_one() -> None:
    """`nox -s requirements` writes it again."""
    assert (ROOT / requirements.PAGE).read_text(encoding="utf-8") == requirements.page(ROOT)
