"""From which source packages a binary package was made: what Debian's security data speaks of.

A binary's own control file says it (deb-control(5)): ``Source`` when name or version differ, ``Built-Using`` and
``Static-Built-Using`` for sources whose content is inside as well (the kernel in linux-signed-amd64, libraries in a Go
program). Without the file, the archive's path names the source; its version is then the binary's, and may be wrong.
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
    """What a binary was made from; ``certain`` is False when only the archive's path told it."""

    source: Source
    built_using: tuple[Source, ...] = ()
    certain: bool = True


def origins(entries: Iterable[Entry], file_of: Callable[[Entry], Path]) -> dict[str, Origin]:
    """Return the origin of each locked package, from its file where that is here."""
    return {entry.package: _origin(entry, file_of(entry)) for entry in entries}


def _origin(entry: Entry, path: Path) -> Origin:
    try:
        return of_control(deb.control_files(path)["control"].decode())
    except (OSError, KeyError, StepFailed):
        return Origin(Source(entry.path.rsplit("/", 2)[-2], _BINARY_REBUILD.sub("", entry.version)), certain=False)


def of_control(text: str) -> Origin:
    """Return the origin that a control file tells."""
    unfolded = re.sub(r"\n[ \t]+", " ", text)
    fields = {name: value for name, _, value in (line.partition(":") for line in unfolded.splitlines())}
    # A binary that was only rebuilt (+b1) says its source's version in Source.
    package, version = fields["Package"].strip(), fields["Version"].strip()
    own = _sources(fields.get("Source", package), version)[0]
    using = (*_sources(fields.get("Built-Using", "")), *_sources(fields.get("Static-Built-Using", "")))
    return Origin(own, tuple(sorted(set(using) - {own})))


def _sources(text: str, version: str = "") -> list[Source]:
    found = (_SOURCE.fullmatch(part.strip()) for part in text.split(","))
    return [Source(match["name"], match["version"] or version) for match in found if match]


_PAIR = {"type": "array", "prefixItems": [{"type": "string"}, {"type": "string"}], "minItems": 2, "maxItems": 2}
# What :func:`read` takes: source packages as pairs of name and version.
SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": {
        "type": "object", "required": ["source", "built_using", "certain"],
        "properties": {
            "source": _PAIR, "built_using": {"type": "array", "items": _PAIR}, "certain": {"type": "boolean"},
        },
    },
}  # fmt: skip


def facts(found: Mapping[str, Origin]) -> dict[str, Any]:
    """Return the origins as plain data for a manifest (key ``sources``): what :func:`read` takes."""
    return {
        name: {
            "source": [origin.source.name, origin.source.version],
            "built_using": [[one.name, one.version] for one in origin.built_using],
            "certain": origin.certain,
        }
        for name, origin in sorted(found.items())
    }


def read(plain: Mapping[str, Any]) -> dict[str, Origin]:
    """Return the origins that a manifest tells."""
    return {
        name: Origin(Source(*one["source"]), tuple(Source(*pair) for pair in one["built_using"]), one["certain"])
        for name, one in plain.items()
    }
