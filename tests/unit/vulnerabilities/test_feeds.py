"""Debian's security data in its three formats: the vulnerabilities of a version, and invalid data."""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest

from build.core.errors import SpecError
from build.vulnerabilities.feeds import READERS, Component, Known

OPENSSL = Component("openssl", "3.5.4-1", {"libssl3t64": "3.5.4-1", "openssl": "3.5.4-1"})
BASH = Component("bash", "5.2.37-2", {"bash": "5.2.37-2+b5"})
LINUX = Component("linux", "6.12.95-1", {"linux-image": "6.12.95-1"}, inside=True)
PARTS = (OPENSSL, BASH, LINUX)


def known(kind: str, path: Path, *, release: str = "trixie") -> list[Known]:
    return list(READERS[kind](path, release, PARTS))


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


# --- debsecan ---------------------------------------------------------------------------------------------------------


def debsecan(directory: Path, *packages: str, packed: bool = False) -> Path:
    names = "".join(f"CVE-2026-{number},,something, with a comma\n" for number in range(4))
    text = f"VERSION 1\n{names}\n{''.join(line + chr(10) for line in packages)}\nopenssl,libssl3t64 openssl\n"
    path = directory / "trixie"
    path.write_bytes(zlib.compress(text.encode()) if packed else text.encode())
    return path


@pytest.mark.parametrize("packed", [True, False])
def test_debsecan_tells_what_is_fixed_in_the_release(tmp_path: Path, *, packed: bool) -> None:
    path = debsecan(tmp_path, "openssl,1,SHRF,3.6.0-2,3.0.17-1~deb12u3 3.5.4-1~deb13u1 3.5.4-1+deb13u1", packed=packed)
    assert known("debsecan", path) == [Known("CVE-2026-1", OPENSSL, "high", "3.5.4-1+deb13u1")]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("openssl,0,S M ,,", [Known("CVE-2026-0", OPENSSL, "unassigned", "")]),
        ("openssl,0,SM  ,,", [Known("CVE-2026-0", OPENSSL, "medium", "")]),
        ("openssl,0,SL? ,3.6.0-1,", [Known("CVE-2026-0", OPENSSL, "low", "", "fixed in unstable: 3.6.0-1")]),
        ("openssl,0,S   ,3.5.4-1,", []),
        ("openssl,0,S   ,3.6.0-1,3.5.4-1 9-1", []),
        ("openssl,0,S  F,3.6.0-1,3.0-1", [Known("CVE-2026-0", OPENSSL, "unassigned", "3.6.0-1")]),
        ("bash,0,B   ,5.2.37-2+b5,", []),
        ("bash,0,B   ,5.2.37-2+b6,", [Known("CVE-2026-0", BASH, "unassigned", "", "fixed in unstable: 5.2.37-2+b6")]),
        ("bash,0,S   ,5.2.37-2,", []),
        ("linux,3,SH  ,,", [Known("CVE-2026-3", LINUX, "high", "")]),
        ("linux-image,3,BH  ,,", []),
        ("curl,0,SH  ,,", []),
    ],
)
def test_what_debsecan_says_of_a_version(tmp_path: Path, line: str, expected: list[Known]) -> None:
    assert known("debsecan", debsecan(tmp_path, line)) == expected


@pytest.mark.parametrize("content", [b"", b"VERSION 2\n", b"\x78\x9cgarbage", zlib.compress(b"VERSION 9\n"), b"<html>"])
def test_what_is_no_data_of_debsecan(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "trixie"
    path.write_bytes(content)
    with pytest.raises(SpecError, match="is not a data file of debsecan"):
        known("debsecan", path)


@pytest.mark.parametrize("line", ["openssl,1", "openssl,x,SHRF,,", "openssl,99,SHRF,,", "openssl,1,SH,,"])
def test_a_damaged_line_of_debsecan_is_told(tmp_path: Path, line: str) -> None:
    with pytest.raises(SpecError, match="entry 1 of its packages"):
        known("debsecan", debsecan(tmp_path, line))


# --- OSV --------------------------------------------------------------------------------------------------------------


def osv(name: str = "DEBIAN-CVE-2026-1", *events: dict[str, str], **changes: Any) -> dict[str, Any]:
    affected = {
        "package": {"ecosystem": "Debian:13", "name": "openssl"},
        "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, *events]}],
        "ecosystem_specific": {"urgency": "not yet assigned"},
    }
    return {"id": name, "modified": "2026-11-20T00:00:00Z", "affected": [affected | changes.pop("affected", {})], **changes}


@pytest.mark.parametrize(
    ("record", "fixed"),
    [
        (osv(), ""),
        (osv("DEBIAN-CVE-2026-1", {"fixed": "3.5.4-1+deb13u1"}), "3.5.4-1+deb13u1"),
        (osv("CVE-2026-1", {"fixed": "3.5.0-1"}, {"introduced": "3.5.2-1"}, {"fixed": "3.5.6-1"}), "3.5.6-1"),
        (osv("CVE-2026-1", {"last_affected": "3.5.4-1"}), ""),
        (osv("CVE-2026-1", affected={"ranges": [], "versions": ["3.5.4-1"]}), ""),
        (osv("CVE-2026-1", affected={"package": {"ecosystem": "Debian", "name": "openssl"}}), ""),
    ],
)
def test_osv_knows_a_version_that_is_affected(tmp_path: Path, record: dict[str, Any], fixed: str) -> None:
    (found,) = known("osv", write(tmp_path / "one.json", record))
    assert (found.id, found.component, found.urgency, found.fixed) == ("CVE-2026-1", OPENSSL, "unassigned", fixed)


@pytest.mark.parametrize(
    "record",
    [
        osv("CVE-2026-1", {"fixed": "3.5.4-1"}),
        osv("CVE-2026-1", {"fixed": "3.5.0-1"}, {"introduced": "3.5.5-1"}),
        osv("CVE-2026-1", {"last_affected": "3.5.3-1"}),
        osv("CVE-2026-1", withdrawn="2026-11-21T00:00:00Z"),
        osv("CVE-2026-1", affected={"ranges": [{"type": "GIT", "events": [{"introduced": "0"}]}]}),
        osv("CVE-2026-1", affected={"ranges": [], "versions": ["3.5.3-1"]}),
        osv("CVE-2026-1", affected={"package": {"ecosystem": "Debian:13", "name": "curl"}}),
    ],
)
def test_osv_leaves_out_what_is_not_affected(tmp_path: Path, record: dict[str, Any]) -> None:
    assert known("osv", write(tmp_path / "one.json", record)) == []


def test_osv_prefers_what_it_says_of_the_release(tmp_path: Path) -> None:
    record = osv("CVE-2026-1", {"fixed": "3.5.4-1"})
    record["affected"].append(osv()["affected"][0] | {"package": {"ecosystem": "Debian", "name": "openssl"}})
    assert known("osv", write(tmp_path / "one.json", record)) == []


def test_an_advisory_of_osv_is_told_by_its_cves(tmp_path: Path) -> None:
    record = osv("DSA-6000-1", {"fixed": "9-1"}, upstream=["CVE-2026-7", "DEBIAN-CVE-2026-8"], aliases=["GHSA-x"])
    found = known("osv", write(tmp_path / "one.json", [record, osv("DSA-6001-1")]))
    assert [(one.id, one.note) for one in found] == [
        ("CVE-2026-7", "DSA-6000-1"), ("CVE-2026-8", "DSA-6000-1"), ("DSA-6001-1", ""),
    ]  # fmt: skip


def test_osv_comes_as_a_directory_and_as_a_zip(tmp_path: Path) -> None:
    home = tmp_path / "records"
    write(home / "a" / "1.json", osv("CVE-2026-1"))
    write(home / "2.json", osv("CVE-2026-2"))
    write(home / "other.json", "no JSON, and nothing of that distribution")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in home.rglob("*.json"):
            archive.write(path, path.name)
    for place in (home, tmp_path / "all.zip"):
        assert sorted(one.id for one in known("osv", place)) == ["CVE-2026-1", "CVE-2026-2"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("one.json", '{"Debian:13', "is not JSON"),
        ("one.json", "<html>", "has no record of Debian:13"),
        ("one.json", json.dumps(osv(affected={"package": {"ecosystem": "Debian:12", "name": "openssl"}})), "has no record"),
        ("one.json", json.dumps(osv(affected={"package": {"ecosystem": "Alpine:v3", "name": "openssl"}})), "has no record"),
        ("one.json", '{"about": "Debian:13"}', "it has no id"),
        ("one.json", '{"id": "x", "affected": [{"package": "Debian:13"}]}', "names no package"),
        ("all.zip", "PK but no zip", "cannot be read"),
        ("nowhere/one.json", None, "cannot be read"),
    ],
)
def test_what_is_no_osv(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        write(path, content)
    with pytest.raises(SpecError, match=message):
        known("osv", path)


def test_an_empty_directory_is_no_osv(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="contains no OSV record"):
        known("osv", tmp_path)


# --- the tracker ------------------------------------------------------------------------------------------------------


def tracker(directory: Path, status: dict[str, str] | None, *, source: str = "openssl", release: str = "trixie") -> Path:
    entry: dict[str, Any] = {"scope": "remote", "releases": {release: status} if status else {"sid": {}}}
    other = {"CVE-2026-9": {"releases": {"trixie": {"status": "resolved", "fixed_version": "0"}}}}
    return write(directory / "tracker.json", {source: {"CVE-2026-1": entry}, "another": other})


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({"status": "resolved", "fixed_version": "3.5.4-1", "urgency": "high"}, None),
        ({"status": "resolved", "fixed_version": "0", "urgency": "high"}, None),
        ({"status": "resolved", "fixed_version": "3.5.4-1+deb13u1", "urgency": "high"}, ("high", "3.5.4-1+deb13u1", "")),
        ({"status": "open", "urgency": "not yet assigned"}, ("unassigned", "", "")),
        ({"status": "open", "urgency": "low**", "nodsa": "Minor issue", "nodsa_reason": "postponed"},
         ("low", "", "postponed: Minor issue")),
        ({"status": "open", "urgency": "unimportant", "nodsa": "Minor issue", "nodsa_reason": ""},
         ("unimportant", "", "Minor issue")),
        ({"status": "undetermined"}, ("unassigned", "", "not determined yet whether it is affected")),
        (None, None),
    ],
)  # fmt: skip
def test_what_the_tracker_says_of_a_version(
    tmp_path: Path, status: dict[str, str] | None, expected: tuple[str, str, str] | None
) -> None:
    found = known("tracker", tracker(tmp_path, status))
    assert [(one.id, one.urgency, one.fixed, one.note) for one in found] == ([("CVE-2026-1", *expected)] if expected else [])


def test_the_tracker_knows_the_source_inside_of_a_package(tmp_path: Path) -> None:
    (found,) = known("tracker", tracker(tmp_path, {"status": "open"}, source="linux"))
    assert found.component == LINUX


@pytest.mark.parametrize("content", ["{", "[]", '{"openssl": 1}'])
def test_what_is_no_json_of_the_tracker(tmp_path: Path, content: str) -> None:
    with pytest.raises(SpecError, match="is not JSON"):
        known("tracker", write(tmp_path / "tracker.json", content))


def test_a_tracker_that_knows_nothing_of_the_release_is_no_answer(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="has no entry of forky"):
        known("tracker", tracker(tmp_path, {"status": "open"}), release="forky")
