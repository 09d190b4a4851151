"""SBOMs: the content of an image as CycloneDX 1.6 and as SPDX 2.3, both as JSON, both from the same list.

Formats: https://cyclonedx.org/docs/1.6/json/ and https://spdx.github.io/spdx-spec/v2.3/; package addresses:
https://github.com/package-url/purl-spec. The documents are reproducible: the time is the archive's, the identifiers come
from the image's digest. A value that is not known offline is left out (CycloneDX) or ``NOASSERTION`` (SPDX), never guessed.
Debian's licence names are not SPDX expressions: CycloneDX has them as names, SPDX as a comment.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from urllib.parse import quote

from build.packages.lock import Entry, Lock
from build.packages.wheel_lock import Pin

NAMESPACE = uuid.UUID("5b1f2f0c-6d0e-5a55-8a3e-0c3a1d5f7b11")
UNKNOWN = "NOASSERTION"
KIND, VENV, SOURCE, SOURCE_VERSION = (f"goldsmith:{name}" for name in ("kind", "venv", "source", "source-version"))


class Kind(StrEnum):
    """Kind of a part: a Debian package of the image, a package of the installer, or a Python wheel."""

    DEB = "deb"
    UDEB = "udeb"
    WHEEL = "wheel"


@dataclass(frozen=True)
class Origin:
    """A part as described in the root file system: Debian source package, licence names, SPDX expression (or empty)."""

    source: str = ""
    source_version: str = ""
    licences: tuple[str, ...] = ()
    expression: str = ""


@dataclass(frozen=True, order=True)
class Part:
    """A package file in the image or of the installer; ``hashes``: SHA-256 of the file, or of each file that may fit."""

    kind: Kind
    name: str
    version: str
    hashes: tuple[str, ...]
    purl: str = field(compare=False)
    venv: str = ""
    origin: Origin = field(default=Origin(), compare=False)

    @property
    def key(self) -> tuple[str, ...]:
        """The fields that must be equal in the lock and in the SBOM."""
        return (self.kind.value, self.name, self.version, self.venv, self.purl, *self.hashes)


@dataclass(frozen=True)
class Bill:
    """An image and its parts; ``created`` in ISO 8601, ``goldsmith`` the version of the tool."""

    name: str
    version: str
    sha256: str
    created: str
    goldsmith: str
    parts: tuple[Part, ...]


def debs(lock: Lock, kind: Kind, origins: Mapping[str, Origin] | None = None) -> list[Part]:
    """Return the parts of a package lock."""
    return [_deb(entry, kind, lock.release, (origins or {}).get(entry.package, Origin())) for entry in lock.entries]


def _deb(entry: Entry, kind: Kind, release: str, origin: Origin) -> Part:
    architecture = entry.filename.rpartition("_")[2].partition(".")[0]
    version = quote(entry.version, safe=":")
    purl = f"pkg:deb/debian/{quote(entry.package, safe='')}@{version}?arch={architecture}&distro={release}"
    return Part(kind, entry.package, entry.version, (entry.sha256,), purl, origin=origin)


def wheels(venv: str, pins: Iterable[Pin], origins: Mapping[str, Origin] | None = None) -> list[Part]:
    """Return the parts of the Python environment at ``venv``."""
    return [
        Part(Kind.WHEEL, pin.name, pin.version, pin.hashes, f"pkg:pypi/{pin.name}@{quote(pin.version, safe=':')}", venv,
             (origins or {}).get(pin.name, Origin()))
        for pin in pins
    ]  # fmt: skip


# --- CycloneDX --------------------------------------------------------------------------------------------------------


def cyclonedx(bill: Bill) -> dict[str, Any]:
    """Return the SBOM as a CycloneDX 1.6 document."""
    parts = sorted(bill.parts)
    image = {
        "type": "operating-system", "bom-ref": "image", "name": bill.name, "version": bill.version,
        "hashes": [{"alg": "SHA-256", "content": bill.sha256}],
    }  # fmt: skip
    return {
        "bomFormat": "CycloneDX", "specVersion": "1.6", "serialNumber": f"urn:uuid:{_uuid(bill, 'cyclonedx')}", "version": 1,
        "metadata": {
            "timestamp": bill.created, "component": image,
            "tools": {"components": [{"type": "application", "name": "goldsmith", "version": bill.goldsmith}]},
        },
        "components": [_component(part) for part in parts],
        "dependencies": [{"ref": "image", "dependsOn": [_ref(part) for part in parts if part.kind is not Kind.UDEB]}],
    }  # fmt: skip


def _component(part: Part) -> dict[str, Any]:
    properties = {KIND: part.kind.value, VENV: part.venv, SOURCE: part.origin.source,
                  SOURCE_VERSION: part.origin.source_version}  # fmt: skip
    component: dict[str, Any] = {
        "type": "library", "bom-ref": _ref(part), "name": part.name, "version": part.version, "purl": part.purl,
        # "excluded": a tool that took part in the build, and is not in the image.
        "scope": "excluded" if part.kind is Kind.UDEB else "required",
        "hashes": [{"alg": "SHA-256", "content": digest} for digest in part.hashes],
        "properties": [{"name": name, "value": value} for name, value in properties.items() if value],
    }  # fmt: skip
    if part.origin.expression:
        component["licenses"] = [{"expression": part.origin.expression, "acknowledgement": "declared"}]
    elif part.origin.licences:
        named = [{"license": {"name": name, "acknowledgement": "declared"}} for name in part.origin.licences]
        component["licenses"] = named
    return component


def of_cyclonedx(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the keys of the parts that a document lists. Raises KeyError or TypeError when Goldsmith did not write it."""
    where = "content"
    return [
        _key(
            (_property(part, KIND), part["name"], part["version"], _property(part, VENV), part["purl"]),
            part["hashes"],
            where,
        )
        for part in document["components"]
    ]


def _key(words: Iterable[Any], hashes: Iterable[Mapping[str, Any]], name: str) -> tuple[str, ...]:
    return (*(str(word) for word in words), *sorted(str(each[name]) for each in hashes))


def _property(component: Mapping[str, Any], name: str) -> str:
    return next((str(entry["value"]) for entry in component.get("properties", ()) if entry["name"] == name), "")


def _ref(part: Part) -> str:
    """Return an identifier that is unique within the SBOM, with only the characters that SPDX allows."""
    words = [part.kind.value, part.venv.strip("/"), part.name]
    return re.sub(r"[^A-Za-z0-9.-]", "-", "-".join(word for word in words if word).replace("+", ".plus."))


def _uuid(bill: Bill, form: str) -> uuid.UUID:
    return uuid.uuid5(NAMESPACE, f"{form} {bill.name} {bill.version} {bill.sha256}")


# --- SPDX -------------------------------------------------------------------------------------------------------------


def spdx(bill: Bill) -> dict[str, Any]:
    """Return the SBOM as an SPDX 2.3 document."""
    parts = sorted(bill.parts)
    image = {
        **_package("image", bill.name, bill.version, (bill.sha256,)), "primaryPackagePurpose": "OPERATING-SYSTEM",
        "licenseDeclared": UNKNOWN,
    }  # fmt: skip
    links = [_link("DOCUMENT", "DESCRIBES", "image")]
    for part in parts:
        tool = part.kind is Kind.UDEB
        links.append(_link(_ref(part), "BUILD_TOOL_OF", "image") if tool else _link("image", "CONTAINS", _ref(part)))
    return {
        "spdxVersion": "SPDX-2.3", "dataLicense": "CC0-1.0", "SPDXID": "SPDXRef-DOCUMENT",
        "name": f"{bill.name}-{bill.version}", "documentNamespace": f"urn:uuid:{_uuid(bill, 'spdx')}",
        "creationInfo": {"created": bill.created, "creators": [f"Tool: goldsmith-{bill.goldsmith}"]},
        "packages": [image, *(_part(part) for part in parts)], "relationships": links,
    }  # fmt: skip


def _package(ref: str, name: str, version: str, hashes: Iterable[str]) -> dict[str, Any]:
    return {
        "SPDXID": f"SPDXRef-{ref}", "name": name, "versionInfo": version, "downloadLocation": UNKNOWN,
        "filesAnalyzed": False, "licenseConcluded": UNKNOWN, "copyrightText": UNKNOWN,
        "checksums": [{"algorithm": "SHA256", "checksumValue": digest} for digest in hashes],
    }  # fmt: skip


def _part(part: Part) -> dict[str, Any]:
    package = _package(_ref(part), part.name, part.version, part.hashes)
    # An expression with non-standard names needs the texts of these licences too.
    known = part.origin.expression and "Ref-" not in part.origin.expression
    package["licenseDeclared"] = part.origin.expression if known else UNKNOWN
    package["externalRefs"] = [
        {"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": part.purl}
    ]  # fmt: skip
    if part.origin.licences:
        package["licenseComments"] = f"names in its own copyright file: {', '.join(part.origin.licences)}"
    if part.origin.source:
        package["sourceInfo"] = f"built from Debian's source package {part.origin.source} {part.origin.source_version}"
    # SPDX has no separate keys for these two.
    package["comment"] = f"{part.kind.value}: {part.venv}" if part.venv else part.kind.value
    return package


def _link(subject: str, kind: str, related: str) -> dict[str, str]:
    return {"spdxElementId": f"SPDXRef-{subject}", "relationshipType": kind, "relatedSpdxElement": f"SPDXRef-{related}"}


def of_spdx(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the keys of the parts that a document lists. Raises KeyError or TypeError when Goldsmith did not write it."""
    keys = []
    for part in document["packages"]:
        if part["SPDXID"] != "SPDXRef-image":
            kind, _, venv = str(part["comment"]).partition(": ")
            purl = part["externalRefs"][0]["referenceLocator"]
            words = (kind, part["name"], part["versionInfo"], venv, purl)
            keys.append(_key(words, part["checksums"], "checksumValue"))
    return keys
