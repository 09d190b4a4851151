"""Profiles: a spec file that ``extends`` another one, and has only the keys that differ.

Tables are merged key by key; a list or a single value replaces the inherited one. Paths in a file are relative to that
file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from build.core.errors import SpecError
from build.core.yaml_table import load_yaml

EXTENDS = "extends"
# A name inherited by two profiles would give both the same artifacts, templates and channels.
OWN = ("name",)


@dataclass(frozen=True)
class Merged:
    """The keys of a spec file with those that it inherits.

    ``files``: the file and what it extends, the file itself first; ``outside``: the layers that are given by a path, by
    their names; ``own_ledger``: the file itself names the ledger of its releases, or extends nothing.
    """

    content: Any
    files: tuple[Path, ...]
    outside: Mapping[str, Path]
    own_ledger: bool


def merged(path: Path) -> Merged:
    """Read a spec file and all that it extends.

    Raises SpecError for a file that cannot be read, a profile that extends itself through others, and one without a name.
    """
    files = [path]
    contents = [load_yaml(path)]
    while isinstance(contents[-1], dict) and EXTENDS in contents[-1]:
        files.append(_extended(contents[-1][EXTENDS], files))
        contents.append(load_yaml(files[-1]))
    outside: dict[str, Path] = {}
    for file, content in reversed(list(zip(files, contents, strict=True))):
        outside |= _take_paths(content, file)
    whole = contents[-1]
    for content in reversed(contents[:-1]):
        whole = _merge(whole, content)
    if len(files) > 1:
        _check_own(contents[0], path)
    return Merged(whole, tuple(files), outside, len(files) == 1 or _has_ledger(contents[0]))


def name_of(path: Path) -> str:
    """Return the name of the image in a spec file, which may have other faults; empty without file or name."""
    if not path.is_file():
        return ""
    content = merged(path).content
    name = content.get("name") if isinstance(content, dict) else None
    return name if isinstance(name, str) else ""


def _extended(value: object, files: list[Path]) -> Path:
    """Return the file that the last of ``files`` extends."""
    path = files[-1]
    if not isinstance(value, str) or not value.endswith(".yaml"):
        raise SpecError(
            f"{path}: {EXTENDS}: {value!r} is not a spec file", hint="write the path of one, such as ../golden.yaml"
        )
    target = Path(os.path.normpath(path.parent / value))
    if not target.is_file():
        raise SpecError(
            f"{path}: {EXTENDS}: {value!r}: {target} does not exist",
            hint=f"write the path of a spec file, relative to {path.parent}/",
        )
    if target.resolve() in {file.resolve() for file in files}:
        names = " -> ".join(file.name for file in (*files, target))
        raise SpecError(f"{path}: {EXTENDS}: {value!r}: the files extend each other in a circle: {names}",
                        hint="remove one of the keys")  # fmt: skip
    return target


def _take_paths(content: object, file: Path) -> dict[str, Path]:
    """Replace the layers of a file that are paths by their names; return the paths by the names."""
    outside: dict[str, Path] = {}
    entries = content.get("layers") if isinstance(content, dict) else None
    layers = entries if isinstance(entries, list) else []
    for index, layer in enumerate(layers):
        if isinstance(layer, str) and "/" in layer:
            path = Path(os.path.normpath(file.parent / layer))
            outside[path.name] = path
            layers[index] = path.name
    return outside


def _merge(below: object, above: object) -> Any:
    """Return two values as one: tables key by key, otherwise ``above``."""
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    return {**below, **{key: _merge(below.get(key), value) for key, value in above.items()}}


def _check_own(content: Mapping[str, object], path: Path) -> None:
    for key in OWN:
        if key not in content:
            raise SpecError(
                f"{path}: {key}: this key is missing, and is not inherited",
                hint="add it: artifacts, templates, channels and releases of profiles are kept apart by their names",
            )


def _has_ledger(content: Mapping[str, object]) -> bool:
    releases = content.get("releases")
    return isinstance(releases, dict) and "ledger" in releases
