"""How versions are ordered in the ecosystems whose records are read: Debian's, Python's (PyPI), Go's."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cmp_to_key
from typing import Any

from packaging.version import InvalidVersion, Version

from build.packages import versions

DEBIAN, PYPI, GO = "Debian", "PyPI", "Go"
# The range types of OSV whose versions are ordered by the rules of the ecosystem.
RANGES = {DEBIAN: "ECOSYSTEM", PYPI: "ECOSYSTEM", GO: "SEMVER"}
_SEMVER = re.compile(r"v?(\d{1,9})\.(\d{1,9})\.(\d{1,9})(?:-([0-9A-Za-z.-]+))?(?:\+[0-9A-Za-z.-]+)?", re.ASCII)

Order = Callable[[str], Any]


def order(ecosystem: str) -> Order:
    """Return a sort key for versions of an ecosystem; it raises ValueError for what is not a version there."""
    return {DEBIAN: cmp_to_key(versions.compare), PYPI: _python, GO: _semantic}[ecosystem]


def _python(version: str) -> Version:
    # PEP 440; OSV's "0" is before every version.
    try:
        return Version(version if version != "0" else "0.dev0")
    except InvalidVersion as error:
        raise ValueError(str(error)) from error


def _semantic(version: str) -> tuple[Any, ...]:
    """Semantic Versioning 2.0.0, section 11; Go writes a "v" before it."""
    if version == "0":
        return ((-1, 0, 0), 0, ())
    match = _SEMVER.fullmatch(version)
    if not match:
        raise ValueError(f"{version!r} is not a semantic version")
    numbers = tuple(map(int, match.group(1, 2, 3)))
    # A release is after its pre-releases; a number is before a word.
    words = match[4].split(".") if match[4] else []
    parts = tuple((0, int(word), "") if re.fullmatch(r"[0-9]{1,18}", word) else (1, 0, word) for word in words)
    return (numbers, 0, parts) if words else (numbers, 1, ())
