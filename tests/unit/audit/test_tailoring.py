"""Exceptions from the CIS profile: every line has a rule and a reason, and becomes XCCDF that oscap accepts."""

from __future__ import annotations

import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

from build.audit import tailoring
from build.core import run
from build.core.errors import SpecError

COMMITTED = Path(__file__).parents[2] / "audit" / "cis-tailoring.conf"
REASON = "the clone's seed brings this, and no image can"


def write(directory: Path, text: str) -> Path:
    path = directory / "tailoring.conf"
    path.write_text(text)
    return path


def test_lines_are_read(tmp_path: Path) -> None:
    path = write(tmp_path, f"# why\n\nrule_one  {REASON}\nrule_two\t{REASON}\n")
    assert tailoring.load(path) == {"rule_one": REASON, "rule_two": REASON}


@pytest.mark.parametrize("line", ["rule_one", "rule_one too short", "rule:one " + REASON, " rule_one " + REASON])
def test_a_line_without_a_rule_and_a_reason_is_an_error(tmp_path: Path, line: str) -> None:
    with pytest.raises(SpecError, match="line 2"):
        tailoring.load(write(tmp_path, f"# why\n{line}\n"))


def test_a_rule_stands_there_once(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="twice"):
        tailoring.load(write(tmp_path, f"rule_one {REASON}\nrule_one {REASON}\n"))


def test_a_rule_that_the_profile_does_not_have_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="does not have"):
        tailoring.check({"rule_one": REASON}, selected={"rule_two"}, path=tmp_path)


def test_the_committed_file_is_read() -> None:
    assert all(tailoring.load(COMMITTED).values())


def test_the_document_deselects_with_the_reason() -> None:
    document = tailoring.render(
        {"rule_one": "a < b & c, as the reason"}, datastream="/x/ds.xml", time="2026-11-22T08:00:00+00:00"
    )
    profile = ElementTree.fromstring(document).find(f"{{{tailoring.XCCDF}}}Profile")
    assert profile is not None
    assert profile.get("extends") == tailoring.BASE_PROFILE
    (select,) = profile.findall(f"{{{tailoring.XCCDF}}}select")
    assert (select.get("idref"), select.get("selected")) == (f"{tailoring.PREFIX}rule_one", "false")
    assert select.findtext(f"{{{tailoring.XCCDF}}}remark") == "a < b & c, as the reason"


@pytest.mark.skipif(shutil.which("oscap") is None, reason="the host has no oscap; the audit itself validates on the clone")
def test_oscap_accepts_the_document(tmp_path: Path) -> None:
    path = tmp_path / "tailoring.xml"
    path.write_text(tailoring.render(tailoring.load(COMMITTED), datastream="/x/ds.xml", time="2026-11-22T08:00:00+00:00"))
    run.run(["oscap", "xccdf", "validate", "--skip-schematron", path], timeout=60)
