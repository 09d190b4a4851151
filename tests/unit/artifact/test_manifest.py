"""The manifest's reader reports every error, and its writer produces the same bytes again, for both schemas."""

from __future__ import annotations

import ast
import copy
import json
from pathlib import Path
from typing import Any

import pytest

from build.artifact import artifact
from build.artifact.manifest import Manifest, Retries
from build.core import files
from build.core.errors import SpecError
from build.packages.source_packages import Origin, Source
from build.packages.updates import Looked, PendingUpdates, Update
from tests import proven
from tests.unit.artifacts import MANIFEST, committable, parsed
from tests.unit.helpers import DATE

BUILD = Path(__file__).parents[3] / "build"
# What the first Goldsmith wrote: without commit, audit, sources and pending updates.
FIRST: dict[str, Any] = {
    **MANIFEST, "goldsmith": "0.1.0",
    "image": {**MANIFEST["image"], "file": "image.qcow2", "format": "qcow2"},
    "inputs": {
        **MANIFEST["inputs"], "artifact_key": "k", "stage_keys": {"base": "k"}, "lock_changes": ["nginx 1 -> 2"],
        "squashfs_sha256": "a" * 64, "rootfs_tar_sha256": "b" * 64,
    },
    "accelerator": {
        "kind": "tcg", "reason": "no KVM", "cpus": 2, "cpu": "max", "qemu": [7, 2], "timeout_scale": 10.0,
    },
    "stages": [{"stage": "base", "key": "k", "seconds": 51, "reused": True, "facts": {"x": [1, 2.5, None]}}],
}  # fmt: skip
SOURCES = {"nginx": {"source": ["nginx", "1.26-1"], "built_using": [["go", "1"]], "certain": True}}
LOOKED = {
    "set": "rootfs", "locked_as_of": DATE, "archive_as_of": DATE, "note": "", "problem": "", "looked_at": DATE,
    "updates": [{"package": "nginx", "locked": "1", "candidate": "2", "security": True}],
}  # fmt: skip
SECOND: dict[str, Any] = {
    **committable(**FIRST), "schema": 2, "sources": SOURCES, "updates": {"looked": True, "sets": [LOOKED]},
    "inputs": {**FIRST["inputs"], "commit": proven.COMMIT, "dirty": False},
    "wheels": {"40-app": {"venv": "/opt/app", "lock": "wheels/40-app/requirements.lock", "packages": {"django": "5"}}},
    "built": {"builder": "x", "invocation": "1", "started": DATE, "finished": DATE, "remote": ""},
    "verification": {**FIRST["verification"], "by": "a key that this version does not know"},
}  # fmt: skip


@pytest.mark.parametrize("value", [FIRST, SECOND, MANIFEST], ids=["schema 1", "schema 2", "few keys"])
def test_what_is_read_is_written_byte_for_byte(value: dict[str, Any], tmp_path: Path) -> None:
    files.write_json(tmp_path / "before", value)
    files.write_json(tmp_path / "after", parsed(copy.deepcopy(value)).as_json())
    assert (tmp_path / "after").read_bytes() == (tmp_path / "before").read_bytes()


def test_an_artifact_is_written_as_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"the pristine disk")
    made = proven.make(tmp_path / "artifacts", tmp_path / "image", by="another")
    files.write_json(tmp_path / "again", made.manifest.as_json())
    assert (tmp_path / "again").read_bytes() == (made.path / "manifest.json").read_bytes()


def test_the_parts_are_typed() -> None:
    found = parsed(SECOND)
    assert found.sources == {"nginx": Origin(Source("nginx", "1.26-1"), (Source("go", "1"),))}
    update = Update("nginx", "1", "2", security=True)
    assert found.updates == PendingUpdates(looked=True, sets=(Looked("rootfs", DATE, DATE, (update,), looked_at=DATE),))
    assert (found.retries, found.inputs.dirty, found.accelerator.qemu) == (Retries(1, 0), False, (7, 2))
    assert sorted(found.verification.ready_seconds) == [61.0, 70.5]
    assert (found.stage("base"), found.stage("media")) == (found.stages[0], None)


def test_an_old_manifest_says_what_it_does_not_know() -> None:
    found = parsed(FIRST)
    assert (found.wheels, found.built, found.sources, found.updates) == (None, None, None, None)
    assert (found.inputs.commit, found.inputs.dirty) == (None, None)
    assert (found.inputs.administrator, found.inputs.release) == ("", "")


@pytest.mark.parametrize(("key", "value", "problem"), [
    ("name", 5, "name: 5 is not text"), ("image", [], "image: [] is not an object"),
    ("image", {"sha256": "a", "bytes": "1"}, "image.bytes: '1' is not a whole number\nimage.virtual_mib: missing"),
    ("inputs", {"archive_date": DATE, "dirty": "no"}, "inputs.dirty: 'no' is not true or false"),
    ("stages", [{"stage": "base", "seconds": 1, "facts": {}}], "stages[0].reused: missing"),
    ("packages", {"nginx": None}, "packages.nginx: None is not text"),
    ("sources", {"nginx": {}}, "sources: KeyError: 'source'"),
    ("sources", [], "sources: AttributeError: 'list' object has no attribute 'items'"),
    ("audit", {"x": {"value": "91", "shown": "91", "limit": ""}}, "audit.x.value: '91' is not a number"),
])  # fmt: skip
def test_file_and_key_are_named(tmp_path: Path, key: str, value: object, problem: str) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({**SECOND, key: value}))
    with pytest.raises(SpecError) as caught:
        artifact.load(tmp_path)
    assert caught.value.brief == f"{tmp_path}/manifest.json is not a manifest of schema 2"
    assert caught.value.details == problem
    assert caught.value.hint == "it is damaged, or another version of Goldsmith wrote it: build the artifact again"


def test_the_first_schema_is_read_and_not_committed(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"manifest\.json is not a manifest of schema 2"):
        artifact.commit(tmp_path / "artifacts", contents={}, manifest=parsed(FIRST))
    assert not (tmp_path / "artifacts").exists()


def is_manifest(node: ast.AST) -> bool:
    """Return True if an expression is called a manifest: ``manifest`` or ``found.manifest``."""
    return (isinstance(node, ast.Name) and node.id == "manifest") or (
        isinstance(node, ast.Attribute) and node.attr == "manifest"
    )


@pytest.mark.parametrize("path", sorted(BUILD.rglob("*.py")), ids=lambda path: path.relative_to(BUILD).as_posix())
def test_no_module_reads_a_manifest_by_string_keys(path: Path) -> None:
    wrong = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        subscript = isinstance(node, ast.Subscript) and is_manifest(node.value)
        get = isinstance(node, ast.Attribute) and node.attr == "get" and is_manifest(node.value)
        wrong += [ast.unparse(node)] if subscript or get else []
    assert not wrong


def test_a_manifest_is_one_object() -> None:
    values: tuple[object, ...] = ([], "x", None)
    for value in values:
        with pytest.raises(SpecError, match=r"^x is not a manifest of schema 2"):
            Manifest.read(value, "x")
