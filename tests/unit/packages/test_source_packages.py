"""The sources of a package: from its control file, else from its path in the archive."""

from __future__ import annotations

from pathlib import Path

import pytest

from build.packages import source_packages
from build.packages.apt import Store
from build.packages.lock import Archive, Entry
from build.packages.source_packages import Origin, Source
from tests.unit.helpers import entry, make_deb


def control(*lines: str, package: str = "libx1", version: str = "1.2-3") -> str:
    return "".join(f"{line}\n" for line in (f"Package: {package}", f"Version: {version}", "Architecture: amd64", *lines))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (control(), Origin(Source("libx1", "1.2-3"))),
        (control("Source: x"), Origin(Source("x", "1.2-3"))),
        (control("Source: x (1.2-3)", version="1.2-3+b4"), Origin(Source("x", "1.2-3"))),
        (control("Source: lvm2 (2.03.31-2)", version="2:1.02.205-2"), Origin(Source("lvm2", "2.03.31-2"))),
        (
            control("Source: linux-signed-amd64 (6.12.95+1)", "Built-Using: linux (= 6.12.95-1)"),
            Origin(Source("linux-signed-amd64", "6.12.95+1"), (Source("linux", "6.12.95-1"),)),
        ),
        (
            control("Static-Built-Using: golang-1.24 (= 1.24.4-1),", " golang-x-crypto (= 1:0.25.0-1)", package="age"),
            Origin(Source("age", "1.2-3"), (Source("golang-1.24", "1.24.4-1"), Source("golang-x-crypto", "1:0.25.0-1"))),
        ),
        (control("Built-Using: libx1 (= 1.2-3)"), Origin(Source("libx1", "1.2-3"))),
    ],
)
def test_a_control_file_tells_the_sources(text: str, expected: Origin) -> None:
    assert source_packages.of_control(text) == expected


def store(root: Path, one: Entry, content: bytes) -> Store:
    made = Store(root)
    made.path(one).parent.mkdir(parents=True)
    made.path(one).write_bytes(content)
    return made


def test_the_packages_own_file_is_read(tmp_path: Path) -> None:
    content = make_deb(tmp_path, "libssl3t64", version="3.5.4-1+b1", fields="Source: openssl (3.5.4-1)\n")
    one = entry("libssl3t64", content, version="3.5.4-1+b1")
    found = source_packages.origins([one], store(tmp_path / "files", one, content).path)
    assert found == {"libssl3t64": Origin(Source("openssl", "3.5.4-1"))}


@pytest.mark.parametrize("content", [None, b"no package at all"])
def test_without_the_file_the_path_tells_it_and_that_is_said(tmp_path: Path, content: bytes | None) -> None:
    path = "pool/updates/main/o/openssl/libssl3t64_3.5.4-1+b1_amd64.deb"
    one = Entry("libssl3t64", "3.5.4-1+b1", Archive.SECURITY, path, 1, "0" * 64)
    made = Store(tmp_path) if content is None else store(tmp_path, one, content)
    assert source_packages.origins([one], made.path) == {"libssl3t64": Origin(Source("openssl", "3.5.4-1"), certain=False)}


def test_a_manifest_gives_back_what_it_was_told() -> None:
    told = {
        "a": Origin(Source("x", "1"), (Source("y", "2"), Source("z", "3"))),
        "b": Origin(Source("b", "1:2-3"), certain=False),
    }
    assert source_packages.read(source_packages.facts(told)) == told
