"""Writes a new layer that is complete: layer.yaml, a page, a check of golden-verify, an image test."""

from __future__ import annotations

from pathlib import Path

from build.core.errors import SpecError
from build.spec.layer_tests import TESTS
from build.spec.layer_yaml import LAYER_NAME

CHECKS = "usr/lib/golden/verify.d"
LAYER = """\
# yaml-language-server: $schema=../../build/spec/schemas/layer.schema.json
about: One sentence on what the layer {name} is for.

requires: [10-base]

tests:
  - {test}
"""
PAGE = """\
# {name}: what it is for

What the layer does, why it is there, and when to remove it.
"""
CHECK = """\
# Checks of golden-verify: see the page of 78-verify.

- check: access
  title: The files of the layer {name} are root's
  ids: [R76]
  paths:
    /{checks}/{name}.yaml: root:root 644
"""
TEST = '''\
"""The layer {name}: its files are there."""

from __future__ import annotations

from testinfra.host import Host

from .facts import gather


def test_files_are_roots(host: Host) -> None:
    """The files of the layer {name} are root's"""
    facts = gather(host, {{"access": "stat -c '%a %U:%G' /{checks}/{name}.yaml"}})
    assert facts["access"].lines == ["644 root:root"]
'''


def write(root: Path, name: str) -> list[Path]:
    """Write the files of a new layer into a checkout; return their paths, relative to it.

    Raises SpecError for a name that is not one of a layer, and when a file exists already; nothing is written then.
    """
    if not LAYER_NAME.fullmatch(name):
        hint = "write two digits, a hyphen, and lower case letters, digits or hyphens, such as 45-redis"
        raise SpecError(f"{name!r} is not the name of a layer", hint=hint)
    layer = Path("overlays") / name
    test = TESTS / f"test_{name[3:].replace('-', '_')}.py"
    words = {"name": name, "test": test.as_posix(), "checks": CHECKS}
    check = layer / "rootfs" / CHECKS / f"{name}.yaml"
    texts = {layer / "layer.yaml": LAYER, layer / "README.md": PAGE, check: CHECK, test: TEST}
    for path in (layer, test):
        if (root / path).exists():
            raise SpecError(f"{path} already exists", hint="choose another name, or edit that layer")
    for path, text in texts.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text.format(**words), encoding="utf-8")
    return list(texts)
