"""The report: all data of the artifact, failures first, everything escaped, no external reference."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import jinja2
import pytest

from build.core.errors import SpecError, StepFailed
from build.core.junit import cases_of
from build.report import html, report
from tests.unit.artifacts import JUNIT, compared, image, make_side, manifest, parsed, parts, requirement

REQUIREMENTS = [requirement("R41"), requirement("R7", "Something else")]


class Reader(HTMLParser):
    """Collects the tags, the references and the text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.headers_without_scope = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.text += " " * (tag in ("td", "th"))
        outward = {"src", "href", "xlink:href", "action", "style", "srcset", "data", "poster"}
        self.references += [value or "" for name, value in attrs if name in outward and not (value or "").startswith("#")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        self.headers_without_scope += tag == "th" and "scope" not in dict(attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def page(*, before: bool = True, old: bool = False) -> str:
    """Return the page of an artifact that has two before it; an ``old`` one has no inventory."""
    side = make_side(contents=parts(**{"inventory.json": None, "boot.svg": None})) if old else make_side()
    earlier = [
        make_side(manifest(image=image("1"), version="1.0.0", audit={})),
        make_side(manifest(image=image("2"), version="1.1.0", packages={"nginx": "1.26-1"})),
    ]
    changes = compared(earlier[1], side) if before else None
    return report.render(side, earlier=earlier if before else [], comparison=changes, requirements=REQUIREMENTS)


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    return reader


def words(text: str) -> str:
    return re.sub(r"\s+", " ", read(text).text)


def test_failures_come_first() -> None:
    assert [(case.result, case.name) for case in cases_of(JUNIT)] == [
        ("failed", "test_boot::test_c"),
        ("failed", "test_ssh::test_a"),
        ("skipped", "test_boot::test_d"),
        ("passed", "test_boot::test_e"),
        ("passed", "test_ssh::test_b[root]"),
    ]


def test_a_case_tells_title_requirements_and_message() -> None:
    cases = {case.name: case for case in cases_of(JUNIT)}
    passed, failed = cases["test_ssh::test_b[root]"], cases["test_boot::test_c"]
    assert (passed.title, passed.requirements, passed.message) == ("Root cannot log in <ever>", "R41 R42", "")
    assert (failed.title, failed.message) == ("test_boot::test_c", "fixture broke")


def test_the_page_tells_what_was_built_and_judged() -> None:
    text = words(page())
    for part in (
        "golden 1.2.3", "2 passed, 2 failed, 1 skipped", "on 2 clones", "ab" * 32, "335 MB compressed, 16384 MiB virtual",
        "2, archive as of 2026-11-20T02:11:10Z", "1 of the installer, 0 of the clones", "51.2 s, from the cache",
        "8 min 20 s", "host keys after 35.0 s, ready after 61.0 s", "91 (251 tests)",
        "Compared with golden-1.1.0-222222222222", "kernel 1.2 s, userspace 1 min 35 s", "/usr/bin",
    ):  # fmt: skip
        assert part in text, part


def test_each_requirement_has_its_text_and_result() -> None:
    text = words(page())
    assert "R41 Root does not log in <at all> passed" in text
    assert f"R7 Something else {report.UNTESTED}" in text
    assert "1 of 2 are proven" in text


def test_the_trend_is_that_of_the_stored_releases() -> None:
    text = page()
    assert "Metrics over 3 stored releases" in text
    assert "lynis.index over 2 releases" in text, "the oldest was never audited"
    assert "from 1 (golden-1.1.0-222222222222) to 2" not in text
    assert re.search(r"<title>Packages</title><desc>from 2 \(golden-1\.0\.0-1{12}\) to 2 \(golden-1\.2\.3-", text)


def test_the_first_release_says_so() -> None:
    text = words(page(before=False))
    assert "There is no earlier artifact." in text
    assert "Metrics over 1 stored release," in text


def test_an_older_artifact_says_what_it_lacks() -> None:
    text = words(page(old=True))
    assert "This artifact has no inventory.json" in text
    assert "Not compared: Units" in text


def test_what_tests_and_machines_say_is_text_and_never_markup() -> None:
    reader = read(page())
    assert "script" not in reader.tags
    assert reader.handlers == []
    assert "<script>alert(1)</script> != 'ü'" in reader.text
    assert "there is no /dev/kvm <really>" in reader.text
    assert "Root cannot log in <ever>" in reader.text


def test_the_page_stands_alone() -> None:
    reader = read(page())
    assert reader.references == []
    assert not {"link", "script", "img", "iframe", "object", "image", "use"} & set(reader.tags)
    assert "default-src 'none'" in page()


def test_every_plot_says_what_it_shows_and_every_heading_what_it_heads() -> None:
    text = page()
    plots = re.findall(r"<svg .*?</svg>", text, re.DOTALL)
    assert len(plots) >= 9
    for plot in plots:
        root = ElementTree.fromstring(plot)
        space = root.tag.removesuffix("svg")
        assert root.get("role") == "img"
        assert (root.findtext(f"{space}title") or "").strip()
        if root.get("class") == "plot":
            assert (root.findtext(f"{space}desc") or "").strip()
    assert read(text).headers_without_scope == 0


def test_a_report_never_leaves_a_gap() -> None:
    incomplete = {key: value for key, value in manifest().items() if key != "retries"}
    with pytest.raises(SpecError, match="is not a manifest") as caught:
        make_side(incomplete)
    assert caught.value.details == "missing: retries"
    with pytest.raises(jinja2.UndefinedError, match="entries"):
        html.environment().from_string("{{ manifest.entries }}").render(manifest=parsed(manifest()))


def test_an_artifact_without_results_has_no_report() -> None:
    with pytest.raises(StepFailed, match=r"has no verification/junit\.xml"):
        report.render(make_side(contents={}), earlier=[], comparison=None, requirements=[])
