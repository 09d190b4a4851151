"""The committed schema of manifest.json matches its dataclasses, and refuses what the reader refuses."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from build.artifact import manifest_schema
from build.core import run
from build.core.errors import SpecError
from tests.unit.artifact.test_manifest import FIRST, SECOND
from tests.unit.artifacts import MANIFEST, parsed

ROOT = Path(__file__).parents[3]
CHECK_SECONDS = 60

# The path in the manifest, and the value there instead; None: no value.
WRONG: tuple[tuple[tuple[str | int, ...], object], ...] = (
    (("schema",), 3), (("schema",), None), (("name",), 5), (("image", "sha256"), None), (("image", "bytes"), "5"),
    (("inputs", "layers"), []), (("stages",), {}), (("stages", 0, "seconds"), "long"), (("stages", 0, "reused"), 1),
    (("packages", "nginx"), 1), (("wheels",), None), (("built", "started"), None), (("accelerator", "qemu"), [7, "2"]),
    (("sources", "nginx", "source"), ["nginx"]), (("sources", "nginx", "certain"), None), (("updates", "looked"), "yes"),
)  # fmt: skip


def changed(place: tuple[str | int, ...], value: object) -> dict[str, Any]:
    content = copy.deepcopy(SECOND)
    inner: Any = content
    for step in place[:-1]:
        inner = inner[step]
    if value is None:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return content


def refused(contents: dict[str, dict[str, Any]], directory: Path) -> set[str]:
    paths = {str(directory / f"{number}.json"): name for number, name in enumerate(contents)}
    for path, name in paths.items():
        Path(path).write_text(json.dumps(contents[name]), encoding="utf-8")
    done = run.run(
        [sys.executable, "-m", "check_jsonschema", "--output-format", "json", "--schemafile", ROOT / manifest_schema.PATH,
         *paths], timeout=CHECK_SECONDS, check=False,
    )  # fmt: skip
    return {paths[error["filename"]] for error in json.loads(done.stdout).get("errors", [])}


def test_the_checked_in_schema_is_what_the_dataclasses_read(tmp_path: Path) -> None:
    manifest_schema.write(tmp_path)
    written = (tmp_path / manifest_schema.PATH).read_bytes()
    assert written == (ROOT / manifest_schema.PATH).read_bytes(), "run python -m build.artifact.manifest_schema"


def test_the_schema_is_a_schema() -> None:
    run.run(
        [sys.executable, "-m", "check_jsonschema", "--check-metaschema", ROOT / manifest_schema.PATH], timeout=CHECK_SECONDS
    )


def test_the_schema_accepts_what_the_reader_reads(tmp_path: Path) -> None:
    contents = {"schema 1": FIRST, "schema 2": SECOND, "few keys": MANIFEST}
    assert all(parsed(copy.deepcopy(content)) for content in contents.values())
    assert refused(contents, tmp_path) == set()


def test_reader_and_schema_refuse_the_same(tmp_path: Path) -> None:
    contents = {f"{place}: {value!r}": changed(place, value) for place, value in WRONG}
    for name, content in contents.items():
        try:
            parsed(content)
        except SpecError:
            continue
        pytest.fail(f"the reader accepts {name}")
    assert refused(contents, tmp_path) == contents.keys()
