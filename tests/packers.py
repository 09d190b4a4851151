"""Every Packer on this host, for the tests that want the real one."""

from __future__ import annotations

import os
from pathlib import Path

from build import packer, words

TEMPLATES = Path(__file__).parents[1] / "packer"
TOOLS = TEMPLATES / "tools"


def packers() -> list[packer.Packer]:
    """Return the Packer of $PACKER, the one in PATH and the one compiled into the cache, each file once."""
    cache = words.default_cache() / "packer"
    found: dict[Path, packer.Packer] = {}
    for chosen in (os.environ.get("PACKER", ""), ""):
        one = packer.find(tools=TOOLS, cache=cache, chosen=chosen)
        if one is not None:
            found[one.path.resolve()] = one
    compiled = packer.compiled(tools=TOOLS, cache=cache)
    if compiled is not None:
        found[compiled.path.resolve()] = compiled
    return list(found.values())
