"""Wheels and Go modules: the order of their versions, and their OSV records."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from build.core.errors import SpecError
from build.packages import versions
from build.vulnerabilities import ecosystems, feeds, findings
from build.vulnerabilities.feeds import Component, Known

DJANGO = Component("PyPI:django", "5.2.1", {"/opt/app": "5.2.1"}, ecosystem="PyPI")
NET = Component("Go:golang.org/x/net", "0.38.0", {"go.sum": "0.38.0"}, ecosystem="Go")
# Each is later than the one before it.
IN_ORDER = {
    "PyPI": ["0", "0.1", "1.0a1", "1.0rc1", "1.0", "1.0.post1", "1.9", "1.10", "2!0.1"],
    "Go": ["0", "0.0.0-20190308221718-c2843e01d9a2", "0.0.1", "0.9.0", "0.10.0", "1.0.0-alpha", "1.0.0-alpha.1",
           "1.0.0-alpha.beta", "1.0.0-rc.2", "1.0.0-rc.11", "1.0.0", "v1.0.1"],
    "Debian": ["0", "1.0~rc1-1", "1.0-1", "1.0-1+deb13u1", "1.0-2", "1:0.1-1"],
}  # fmt: skip


@pytest.mark.parametrize("name", IN_ORDER)
def test_versions_are_in_order(name: str) -> None:
    key = ecosystems.order(name)
    ordered = [key(version) for version in IN_ORDER[name]]
    assert all(left < right for left, right in itertools.pairwise(ordered))


@pytest.mark.parametrize(
    ("name", "version"), [("PyPI", "one"), ("Go", "1.2"), ("Go", "1.2.3.4"), ("Go", f"{'9' * 5000}.0.0")]
)
def test_what_is_no_version(name: str, version: str) -> None:
    with pytest.raises(ValueError, match=r"version|Invalid"):
        ecosystems.order(name)(version)


def test_numbers_of_any_length_are_compared() -> None:
    assert versions.newer("1." + "9" * 5000, "1." + "8" * 5000)
    assert versions.newer("1." + "1" * 5001, "1." + "9" * 5000)
    assert versions.compare("1.007", "1.7") == 0


def record(ecosystem: str, name: str, kind: str, *events: dict[str, str], **changes: Any) -> dict[str, Any]:
    affected = {
        "package": {"ecosystem": ecosystem, "name": name},
        "ranges": [{"type": kind, "events": [{"introduced": "0"}, *events]}],
    }
    return {"id": "GHSA-1", "aliases": ["CVE-2026-7"], "affected": [affected], **changes}


def known(tmp_path: Path, *records: dict[str, Any]) -> list[Known]:
    path = tmp_path / "osv.json"
    path.write_text(json.dumps(records))
    return list(feeds.read_osv(path, "trixie", [DJANGO, NET]))


def test_a_wheel_is_found_by_any_spelling_of_its_name(tmp_path: Path) -> None:
    found = record("PyPI", "Django", "ECOSYSTEM", {"fixed": "5.2.2"}, database_specific={"severity": "MODERATE"})
    assert known(tmp_path, found) == [Known("CVE-2026-7", DJANGO, "medium", "5.2.2", "GHSA-1")]


def test_a_go_module_is_found(tmp_path: Path) -> None:
    found = record("Go", "golang.org/x/net", "SEMVER", {"fixed": "0.45.0"})
    assert known(tmp_path, found) == [Known("CVE-2026-7", NET, "unassigned", "0.45.0", "GHSA-1")]


@pytest.mark.parametrize(
    "other",
    [
        record("PyPI", "django", "ECOSYSTEM", {"fixed": "5.2.1"}),
        record("Go", "golang.org/x/net", "SEMVER", {"fixed": "0.9.0"}),
        record("Go", "django", "SEMVER"), record("npm", "django", "SEMVER"), record("PyPI", "django", "GIT"),
    ],
)  # fmt: skip
def test_what_is_not_affected_is_left_out(tmp_path: Path, other: dict[str, Any]) -> None:
    assert known(tmp_path, other, record("PyPI", "another", "ECOSYSTEM")) == []


def test_data_of_no_ecosystem_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="has no record of Debian:13, Go, PyPI"):
        known(tmp_path, record("npm", "django", "SEMVER"))


def test_a_range_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"the ranges of PyPI:django 5\.2\.1 cannot be read"):
        known(tmp_path, record("PyPI", "django", "ECOSYSTEM", {"fixed": "one"}))


def test_debians_data_is_not_asked_about_others(tmp_path: Path) -> None:
    path = tmp_path / "tracker.json"
    path.write_text(json.dumps({"django": {"CVE-1": {"releases": {"trixie": {"status": "open"}}}}}))
    named = Component("django", "5.2.1", {}, ecosystem="PyPI")
    assert list(feeds.read_tracker(path, "trixie", [named])) == []


def test_covered(tmp_path: Path) -> None:
    path = tmp_path / "osv.json"
    path.write_text(json.dumps([record("PyPI", "x", "ECOSYSTEM"), record("Debian:13", "y", "ECOSYSTEM")]))
    assert feeds.covered(path, "trixie") == {"Debian", "PyPI"}


def test_modules_of_a_go_sum(tmp_path: Path) -> None:
    path = tmp_path / "go.sum"
    lines = ("a.example/x v1.2.0", "a.example/x v1.2.0/go.mod", "b.example/y v2.0.0+incompatible")
    path.write_text("".join(f"{line} h1:abc=\n" for line in lines))
    assert [(part.source, part.version, part.name) for part in findings.go_modules(path)] == [
        ("Go:a.example/x", "1.2.0", "a.example/x"), ("Go:b.example/y", "2.0.0", "b.example/y"),
    ]  # fmt: skip
    path.write_text("a.example/x v1.2.0\n")
    with pytest.raises(SpecError, match="line 1"):
        findings.go_modules(path)


def test_wheels_of_several_environments() -> None:
    (part,) = findings.wheels({"/opt/a": {"Typing_Extensions": "4.1"}, "/opt/b": {"typing-extensions": "4.1"}})
    assert (part.name, part.version, sorted(part.packages)) == ("typing-extensions", "4.1", ["/opt/a", "/opt/b"])
