"""JSON Schema of manifest.json, from the dataclasses that read it: `python -m build.artifact.manifest_schema` writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from build.artifact import manifest
from build.core import files, records

ROOT = Path(__file__).parents[2]
PATH = "build/artifact/schemas/manifest.schema.json"


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of the manifests that Goldsmith reads: schemas 1 and 2."""
    content = records.schema(manifest.Manifest)
    content["properties"]["schema"] = {"enum": list(manifest.READABLE)}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema", "title": manifest.FILE, **content,
        "if": {"properties": {"schema": {"const": manifest.SCHEMA}}}, "then": {"required": list(manifest.SINCE_SCHEMA_2)},
    }  # fmt: skip


def write(root: Path = ROOT) -> None:
    """Write the schema into a checkout."""
    files.write_atomic(root / PATH, json.dumps(schema(), indent=2) + "\n")


if __name__ == "__main__":
    write()
