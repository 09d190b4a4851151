"""Small artifacts for tests of comparisons and reports: in memory, and as a directory below ``artifacts``."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

from build.artifact import artifact
from build.artifact.artifact import Artifact
from build.artifact.contents import Side
from build.artifact.manifest import SCHEMA, Manifest
from build.report.compare import Comparison, compare
from build.report.requirements import Requirement
from tests.unit.helpers import DATE, entry, make_lock
from tests.unit.inventories import PLOT, inventory_of

MANIFEST: dict[str, Any] = {
    "schema": 1, "name": "golden", "version": "1.2.3",
    "image": {"sha256": "ab" * 32, "bytes": 335_000_000, "virtual_mib": 16384},
    "packages": {"nginx": "1.26-1", "apt": "3.0"}, "installer": {"udeb": "1.0"}, "tools": {},
    "inputs": {"archive_date": DATE, "spec": {"disk": {"size_mib": 16384}}, "layers": {"10-base": "cd" * 32}},
    "accelerator": {"kind": "tcg", "reason": "there is no /dev/kvm <really>"},
    "retries": {"installer": 1, "clones": 0},
    "audit": {"lynis.index": {"value": 91, "shown": "91 (251 tests)", "limit": ">= 90"}},
    "stages": [
        {"stage": "base", "seconds": 51.2, "reused": True, "facts": {}},
        {"stage": "disk", "seconds": 500.0, "reused": False, "facts": {}},
    ],
    "verification": {
        "passed": 2, "failed": 0, "skipped": 1, "clones": ["bios", "uefi"],
        "boot": {"uefi": {"ready": 70.5, "host keys": 40.1}, "bios": {"host keys": 35.0, "ready": 61.0}},
    },
}  # fmt: skip
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
FILES = (
    "# path\ttype\tmode\tuid:gid\tbytes\tsha256 or target\n/\tdirectory\t0755\t0:0\t0\t\n"
    f"/etc/nginx.conf\tfile\t0644\t0:0\t1000\t{'11' * 32}\n/usr/bin/su\tfile\t4755\t0:0\t84360\t{'22' * 32}\n"
    "/bin\tlink\t0777\t0:0\t0\tusr/bin\n"
)


def manifest(**changes: Any) -> dict[str, Any]:
    """Return a valid manifest, with some parts changed."""
    return {**copy.deepcopy(MANIFEST), **changes}


def parts(**changes: Any) -> dict[str, str]:
    """Return the files of an artifact that are read; one that is None is left out."""
    lock = make_lock(entry("nginx", version="1.26-1"), entry("apt", version="3.0"))
    found = {
        "verification/junit.xml": JUNIT, "rootfs.files.tsv": FILES, "inventory.json": json.dumps(inventory_of()),
        "boot.svg": PLOT, "rootfs.lock": lock.render("A lock."), **changes,
    }  # fmt: skip
    return {name: text for name, text in found.items() if text is not None}


def committable(**changes: Any) -> dict[str, Any]:
    """Return a manifest that may be committed, with some parts changed."""
    built = {"builder": "x", "invocation": "1", "started": DATE, "finished": DATE, "remote": ""}
    return manifest(**{"schema": SCHEMA, "wheels": {}, "built": built, "stages": [], "audit": {}, **changes})


def parsed(described: dict[str, Any]) -> Manifest:
    """Return a manifest as the modules know it."""
    return Manifest.read(described, "manifest.json")


def make_side(described: dict[str, Any] | None = None, contents: dict[str, str] | None = None) -> Side:
    """Return an artifact in memory."""
    return Side(parsed(described or manifest()), (parts() if contents is None else contents).get)


def compared(old: Side, new: Side) -> Comparison:
    """Compare two sides with one requirement."""
    return compare(old, new, requirements=[requirement("R41")])


def requirement(name: str, text: str = "Root does not log in <at all>") -> Requirement:
    """Return a requirement."""
    return Requirement(name, "ssh", text, "", "")


def store(root: Path, described: dict[str, Any], contents: dict[str, str] | None = None, *, age: int = 0) -> Artifact:
    """Write an artifact below ``root``; one with a greater ``age`` is older."""
    name = artifact.name_of(described["name"], described["version"], described["image"]["sha256"])
    for path, text in (parts() if contents is None else contents).items():
        target = root / name / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    (root / name / "manifest.json").write_text(json.dumps(described), encoding="utf-8")
    os.utime(root / name, (2e9 - age, 2e9 - age))
    return artifact.load(root / name)


def image(digit: str, **changes: Any) -> dict[str, Any]:
    """Return the manifest's part about an image whose digest is that digit only."""
    return {**MANIFEST["image"], "sha256": digit * 64, **changes}
