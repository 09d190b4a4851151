"""Debian packages made by dpkg-deb are read; others, and damaged ones, are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from build.core import run
from build.core.errors import StepFailed
from build.packages import deb

CONTROL = "Package: thing\nVersion: 1\nArchitecture: all\nMaintainer: Test <test@example.org>\nDescription: thing\n"


def package(directory: Path, *, compression: str = "xz") -> Path:
    """Make a package with the real dpkg-deb."""
    tree, path = directory / "tree", directory / "thing.udeb"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(CONTROL)
    (tree / "DEBIAN" / "templates").write_text("Template: thing/x\n")
    (tree / "usr" / "bin").mkdir(parents=True)
    (tree / "usr" / "bin" / "thing").write_text("#!/bin/sh\n")
    (tree / "usr" / "bin" / "thing").chmod(0o755)
    (tree / "usr" / "bin" / "other").symlink_to("thing")
    (tree / "usr" / "big").write_bytes(b"b" * 100_000)
    run.run(["dpkg-deb", "--root-owner-group", f"-Z{compression}", "--build", tree, path], timeout=60)
    return path


@pytest.mark.parametrize("compression", ["xz", "gzip", "none"])
def test_content_and_control_are_read(tmp_path: Path, compression: str) -> None:
    path = package(tmp_path, compression=compression)
    assert deb.control_files(path) == {"control": CONTROL.encode(), "templates": b"Template: thing/x\n"}
    found = {item.name: (item, content) for item, content in deb.content(path)}
    program, content = found["usr/bin/thing"]
    assert (program.mode & 0o777, content) == (0o755, b"#!/bin/sh\n")
    assert found["usr/bin/other"][0].linkname == "thing"
    assert found["usr/bin"][0].isdir()
    assert len(found["usr/big"][1]) == 100_000


def test_single_files_are_extracted(tmp_path: Path) -> None:
    assert deb.extract(package(tmp_path), frozenset({"usr/bin/thing"})) == {"usr/bin/thing": b"#!/bin/sh\n"}


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match=r"thing\.udeb does not contain boot/linux"):
        deb.extract(package(tmp_path), frozenset({"usr/bin/thing", "boot/linux"}))


def test_an_unknown_compression_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match=r"data\.tar\.zst is compressed in a way that is not supported"):
        list(deb.content(package(tmp_path, compression="zstd")))


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "thing.udeb"
    path.write_bytes(b"<html>the mirror is closed</html>")
    with pytest.raises(StepFailed, match="is not a Debian package") as caught:
        deb.control_files(path)
    assert str(path) in caught.value.hint


def test_a_package_without_content_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "thing.udeb"
    path.write_bytes(deb.AR_MAGIC + b"debian-binary   0           0     0     100644  4         `\n2.0\n")
    with pytest.raises(StepFailed, match=r"has no data\.tar"):
        list(deb.content(path))
