"""Determines the source packages of a binary package: Debian's security data is about source packages.

They are in the control file of the binary package (deb-control(5)): ``Source`` when name or version differ, ``Built-Using``
and ``Static-Built-Using`` for sources whose content is also inside (the kernel in linux-signed-amd64, libraries in a Go
program). Without the file, the source's name is read from the path in the archive; its version is then assumed to be the
binary's, which may be wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from build.core.errors import StepFailed
from build.packages import deb
from build.packages.lock import Entry

_SOURCE = re.compile(r"(?P<name>[a-z0-9][a-z0-9+.-]*)(?: \((?:= )?(?P<version>[^)]+)\))?")
_BINARY_REBUILD = re.compile(r"\+b[0-9]+$")


@dataclass(frozen=True, order=True)
class Source:
    """A source package."""

    name: str
    version: str


@dataclass(frozen=True)
class Origin:
    """The sources of a binary package; ``certain`` is False when they come only from the path in the archive."""

    source: Source
    built_using: tuple[Source, ...] = ()
    certain: bool = True


def origins(entries: Iterable[Entry], file_of: Callable[[Entry], Path]) -> dict[str, Origin]:
    """Return the origin of each locked package, from its file if that is in the cache."""
    return {entry.package: _origin(entry, file_of(entry)) for entry in entries}


def _origin(entry: Entry, path: Path) -> Origin:
    try:
        return of_control(deb.control_files(path)["control"].decode())
    except (OSError, KeyError, StepFailed):
        return Origin(Source(entry.path.rsplit("/", 2)[-2], _BINARY_REBUILD.sub("", entry.version)), certain=False)


def of_control(text: str) -> Origin:
    """Return the origin from a control file."""
    unfolded = re.sub(r"\n[ \t]+", " ", text)
    fields = {name: value for name, _, value in (line.partition(":") for line in unfolded.splitlines())}
    # A binary that was only rebuilt (+b1) has its source's version in Source.
    package, version = fields["Package"].strip(), fields["Version"].strip()
    own = _sources(fields.get("Source", package), version)[0]
    using = (*_sources(fields.get("Built-Using", "")), *_sources(fields.get("Static-Built-Using", "")))
    return Origin(own, tuple(sorted(set(using) - {own})))


def _sources(text: str, version: str = "") -> list[Source]:
    matches = (_SOURCE.fullmatch(part.strip()) for part in text.split(","))
    return [Source(match["name"], match["version"] or version) for match in matches if match]


_PAIR = {"type": "array", "prefixItems": [{"type": "string"}, {"type": "string"}], "minItems": 2, "maxItems": 2}
# The JSON Schema of the data for :func:`read`: source packages as pairs of name and version.
SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": {
        "type": "object", "required": ["source", "built_using", "certain"],
        "properties": {
            "source": _PAIR, "built_using": {"type": "array", "items": _PAIR}, "certain": {"type": "boolean"},
        },
    },
}  # fmt: skip


def facts(packages: Mapping[str, Origin]) -> dict[str, Any]:
    """Return the origins as plain data for a manifest (key ``sources``), which :func:`read` reads."""
    return {
        name: {
            "source": [origin.source.name, origin.source.version],
            "built_using": [[source.name, source.version] for source in origin.built_using],
            "certain": origin.certain,
        }
        for name, origin in sorted(packages.items())
    }


def read(plain: Mapping[str, Any]) -> dict[str, Origin]:
    """Return the origins from the data of a manifest."""
    return {
        name: Origin(Source(*entry["source"]), tuple(Source(*pair) for pair in entry["built_using"]), entry["certain"])
        for name, entry in plain.items()
    }
