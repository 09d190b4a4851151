"""Which files of ``tests/image`` belong to which layers, and which directories of layers an image has.

A file belongs to the layers and the parts of layers (``with/NAME/``) whose layer.yaml names it; a file that none names is
for every image. A test needs the layers of its mark (``@pytest.mark.layers``) besides.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from build.core.yaml_table import load_yaml
from build.spec.layers import PARTS

MARK = "layers"
TESTS = Path("tests/image")


@dataclass(frozen=True)
class Owner:
    """A layer, or a part of one, that names a file of tests; ``needs``: layers, or what layers provide."""

    name: str
    needs: tuple[str, ...]


def words(overlays: Path, layers: Collection[str]) -> set[str]:
    """Return the names of the layers, and what they provide."""
    return {*layers, *(word for name in layers for word in _provided(overlays / name))}


def _provided(directory: Path) -> tuple[str, ...]:
    path = directory / "layer.yaml"
    return tuple(load_yaml(path).get("provides", ())) if path.is_file() else ()


def directories(overlays: Path, layers: Sequence[str]) -> list[Path]:
    """Return the directories of the layers and of their parts that an image of these layers has, in order."""
    known = words(overlays, layers)
    return [
        directory
        for name in layers
        for directory in (overlays / name, *sorted((overlays / name / PARTS).glob("*")))
        if directory.is_dir() and (directory.parent.name != PARTS or directory.name in known)
    ]


def owners(overlays: Path) -> Mapping[str, list[Owner]]:
    """Return the layers and parts that name each file of tests."""
    found: dict[str, list[Owner]] = {}
    for path in (*overlays.glob("*/layer.yaml"), *overlays.glob(f"*/{PARTS}/*/layer.yaml")):
        name = path.parent.relative_to(overlays).as_posix()
        owner = Owner(name, tuple(name.split(f"/{PARTS}/")))
        for test in load_yaml(path)["tests"]:
            found.setdefault(test, []).append(owner)
    return found


def lacking(owners_of_file: Collection[Owner], known: Collection[str]) -> set[str]:
    """Return what an image lacks for the tests of a file: nothing, if it has all that one of the file's owners needs."""
    return min(({*owner.needs} - {*known} for owner in owners_of_file), key=len, default=set())
