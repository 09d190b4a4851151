"""The verification report: failures first, nothing unescaped, no reference to anything outside."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jinja2
import pytest

from build import report

MANIFEST: dict[str, Any] = {
    "name": "golden",
    "version": "1.2.3",
    "image": {"sha256": "ab" * 32, "bytes": 335_000_000, "virtual_mib": 16384},
    "packages": {"nginx": "1.26", "apt": "3.0"},
    "inputs": {"archive_date": "2026-11-20T02:11:10Z"},
    "accelerator": {"kind": "tcg", "reason": "there is no /dev/kvm <really>"},
    "retries": {"installer": 1, "clones": 0},
    "audit": {"lynis.index": {"value": 91, "shown": "91 (251 tests)", "limit": ">= 90"}},
    "stages": [
        {"stage": "base", "seconds": 51.2, "reused": True},
        {"stage": "disk", "seconds": 500.0, "reused": False},
    ],
    "verification": {
        "clones": ["bios", "uefi"],
        "boot": {"uefi": {"ready": 70.5, "host keys": 40.1}, "bios": {"host keys": 35.0, "ready": 61.0}},
    },
}
JUNIT = """<?xml version="1.0" encoding="utf-8"?>
<testsuites><testsuite name="pytest">
<testcase classname="tests.image.test_ssh" name="test_b[root]"><properties>
  <property name="title" value="Root cannot log in &lt;ever&gt;" /><property name="requirements" value="R41 R42" />
</properties></testcase>
<testcase classname="tests.image.test_ssh" name="test_a">
  <failure message="&lt;script&gt;alert(1)&lt;/script&gt; != 'ü'">long</failure>
</testcase>
<testcase classname="tests.image.test_boot" name="test_c"><error message="fixture broke">long</error></testcase>
<testcase classname="tests.image.test_boot" name="test_d"><skipped message="needs KVM" /></testcase>
<testcase classname="tests.image.test_boot" name="test_e" />
</testsuite></testsuites>
"""


class Reader(HTMLParser):
    """Collects the tags, the references and the text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [f"{name}={value}" for name, value in attrs if name in {"src", "href", "action", "style"}]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def junit(tmp_path: Path) -> Path:
    path = tmp_path / "junit.xml"
    path.write_text(JUNIT, encoding="utf-8")
    return path


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    return reader


def test_failures_come_first(junit: Path) -> None:
    assert [(case.result, case.name) for case in report.read_cases(junit)] == [
        ("failed", "test_boot::test_c"),
        ("failed", "test_ssh::test_a"),
        ("skipped", "test_boot::test_d"),
        ("passed", "test_boot::test_e"),
        ("passed", "test_ssh::test_b[root]"),
    ]


def test_a_case_tells_title_requirements_and_message(junit: Path) -> None:
    cases = {case.name: case for case in report.read_cases(junit)}
    passed, failed = cases["test_ssh::test_b[root]"], cases["test_boot::test_c"]
    assert (passed.title, passed.requirements, passed.message) == ("Root cannot log in <ever>", "R41 R42", "")
    assert (failed.title, failed.message) == ("test_boot::test_c", "fixture broke")


def test_the_page_tells_what_was_built_and_judged(junit: Path) -> None:
    text = re.sub(r"\s+", " ", read(report.render(junit, MANIFEST)).text)
    for part in (
        "golden 1.2.3", "2 passed, 2 failed, 1 skipped", "on 2 clones", "ab" * 32, "335 MB compressed, 16384 MiB virtual",
        "2, archive as of 2026-11-20T02:11:10Z", "1 of the installer, 0 of the clones", "51.2 s", "8 min 20 s",
        "from the cache", "host keys after 35.0 s, ready after 61.0 s", "R41 R42", "91 (251 tests)",
    ):  # fmt: skip
        assert part in text, part


def test_what_tests_say_is_text_and_never_markup(junit: Path) -> None:
    page = report.render(junit, MANIFEST)
    reader = read(page)
    assert "script" not in reader.tags
    assert "<script>alert(1)</script> != 'ü'" in reader.text
    assert "there is no /dev/kvm <really>" in reader.text
    assert "Root cannot log in <ever>" in reader.text


def test_the_page_stands_alone(junit: Path) -> None:
    reader = read(report.render(junit, MANIFEST))
    assert reader.references == []
    assert not {"link", "script", "img", "iframe"} & set(reader.tags)


def test_a_report_never_leaves_a_gap(junit: Path) -> None:
    with pytest.raises(jinja2.UndefinedError, match="retries"):
        report.render(junit, {key: value for key, value in MANIFEST.items() if key != "retries"})
