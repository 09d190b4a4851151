"""SBOMs: every entry of the locks, in two standard formats, and nothing that is unknown."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from build.artifact import licences as artifact_licences
from build.artifact import sbom
from build.artifact.sbom import Bill, Kind, Origin, Part
from build.packages.wheel_lock import Pin
from tests.unit.helpers import DATE, entry, make_lock

VENV = "/opt/app/venv"
UUID = r"urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
DEPENDENCY = "spdxElementId", "relationshipType", "relatedSpdxElement"


@pytest.fixture
def bill() -> Bill:
    known = {
        "libstdc++6": Origin("gcc-14", "14.2.0-19", ("GPL-3+ with GCC exception", "LGPL-2.1+")),
        "nginx": Origin("nginx", "1.0-1"),
    }
    lock = make_lock(entry("nginx"), entry("libstdc++6", version="1:14.2.0-19~x+b1"))
    parts = sbom.debs(lock, Kind.DEB, known) + sbom.debs(make_lock(entry("nginx-udeb")), Kind.UDEB)
    pins = [Pin("django", "5.2.19", ("d" * 64,)), Pin("x-y", "1+local", ("0" * 64, "1" * 64))]
    python = {"django": Origin(expression="BSD-3-Clause"), "x-y": Origin(expression="LicenseRef-Mine")}
    parts += sbom.wheels(VENV, pins, python)
    return Bill("golden", "1.2.3", "a" * 64, DATE, "0.1.0", tuple(parts))


def by_name(documents: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in documents}


# --- the formats, as their schemas ask for ------------------------------------------------------------------------------


def strictly(value: dict[str, Any], required: dict[str, str], optional: dict[str, str] | None = None) -> None:
    """Compare an object with the patterns of its keys' JSON; a key that is not listed is an error."""
    known = {**required, **(optional or {})}
    assert required.keys() <= value.keys() <= known.keys(), value
    for key, one in value.items():
        text = one if isinstance(one, str) else json.dumps(one)
        assert re.fullmatch(known[key], text, re.DOTALL), (key, one)


def test_cyclonedx_is_what_version_1_6_asks_for(bill: Bill) -> None:
    document = sbom.cyclonedx(bill)
    strictly(document, {
        "bomFormat": "CycloneDX", "specVersion": r"1\.6", "serialNumber": UUID, "version": "1", "metadata": ".+",
        "components": ".+", "dependencies": ".+",
    })  # fmt: skip
    strictly(document["metadata"], {"timestamp": TIME, "component": ".+", "tools": ".+"})
    purl = r"pkg:(deb/debian/[a-z0-9.%A-F-]+@[^?]+\?arch=amd64&distro=trixie|pypi/[a-z0-9-]+@\S+)"
    for one in document["components"]:
        strictly(one, {
            "type": "library", "bom-ref": r"[A-Za-z0-9.-]+", "name": ".+", "version": ".+", "purl": purl,
            "scope": "required|excluded", "hashes": ".+", "properties": ".+",
        }, {"licenses": ".+"})  # fmt: skip
        for each in one["hashes"]:
            strictly(each, {"alg": "SHA-256", "content": "[0-9a-f]{64}"})
        for each in one["properties"]:
            strictly(each, {"name": "goldsmith:[a-z-]+", "value": ".+"})
        licences = one.get("licenses", [])
        # Either one expression, or names: the schema does not take both.
        assert all("license" in each for each in licences) or [list(each) for each in licences] == [
            ["expression", "acknowledgement"]
        ]
    refs = [one["bom-ref"] for one in document["components"]]
    assert len(set(refs)) == len(refs)
    [top] = document["dependencies"]
    assert top["ref"] == document["metadata"]["component"]["bom-ref"]
    assert set(top["dependsOn"]) == set(refs) - {"udeb-nginx-udeb"}


def test_spdx_is_what_version_2_3_asks_for(bill: Bill) -> None:
    document = sbom.spdx(bill)
    strictly(document, {
        "spdxVersion": r"SPDX-2\.3", "dataLicense": r"CC0-1\.0", "SPDXID": "SPDXRef-DOCUMENT", "name": "golden-1.2.3",
        "documentNamespace": UUID, "creationInfo": ".+", "packages": ".+", "relationships": ".+",
    })  # fmt: skip
    strictly(document["creationInfo"], {"created": TIME, "creators": r'\["Tool: goldsmith-0\.1\.0"\]'})
    for one in document["packages"]:
        strictly(one, {
            "SPDXID": r"SPDXRef-[A-Za-z0-9.-]+", "name": ".+", "versionInfo": ".+", "downloadLocation": "NOASSERTION",
            "filesAnalyzed": "false", "licenseConcluded": "NOASSERTION", "copyrightText": "NOASSERTION", "checksums": ".+",
            "licenseDeclared": "NOASSERTION|BSD-3-Clause",
        }, {
            "primaryPackagePurpose": "OPERATING-SYSTEM", "externalRefs": ".+", "licenseComments": ".+", "sourceInfo": ".+",
            "comment": "(deb|udeb|wheel)(: /.+)?",
        })  # fmt: skip
        for each in one["checksums"]:
            strictly(each, {"algorithm": "SHA256", "checksumValue": "[0-9a-f]{64}"})
        for each in one.get("externalRefs", []):
            strictly(each, {"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": "pkg:.+"})
    ids = [one["SPDXID"] for one in document["packages"]]
    assert len(set(ids)) == len(ids)
    for link in document["relationships"]:
        strictly(link, dict.fromkeys(DEPENDENCY, r"SPDXRef-.+|DESCRIBES|CONTAINS|BUILD_TOOL_OF"))
        assert {link["spdxElementId"], link["relatedSpdxElement"]} <= {*ids, "SPDXRef-DOCUMENT"}
    assert [link["spdxElementId"] for link in document["relationships"] if link["relationshipType"] == "BUILD_TOOL_OF"] == [
        "SPDXRef-udeb-nginx-udeb"
    ]


# --- content --------------------------------------------------------------------------------------------------------------


def test_both_list_exactly_the_parts(bill: Bill) -> None:
    expected = sorted(part.key for part in bill.parts)
    assert sorted(sbom.of_cyclonedx(sbom.cyclonedx(bill))) == expected
    assert sorted(sbom.of_spdx(sbom.spdx(bill))) == expected
    assert len(expected) == 5


def test_addresses_of_packages_are_those_of_their_specification(bill: Bill) -> None:
    parts = {part.name: part for part in bill.parts}
    assert parts["libstdc++6"].purl == "pkg:deb/debian/libstdc%2B%2B6@1:14.2.0-19~x%2Bb1?arch=amd64&distro=trixie"
    assert unquote(parts["libstdc++6"].purl).startswith("pkg:deb/debian/libstdc++6@1:14.2.0-19~x+b1?")
    assert parts["x-y"].purl == "pkg:pypi/x-y@1%2Blocal"


def test_nothing_is_invented(bill: Bill) -> None:
    cyclonedx, spdx = by_name(sbom.cyclonedx(bill)["components"]), by_name(sbom.spdx(bill)["packages"])
    named = {"acknowledgement": "declared"}
    assert cyclonedx["libstdc++6"]["licenses"] == [
        {"license": {"name": "GPL-3+ with GCC exception", **named}}, {"license": {"name": "LGPL-2.1+", **named}},
    ]  # fmt: skip
    assert cyclonedx["django"]["licenses"] == [{"expression": "BSD-3-Clause", **named}]
    assert "licenses" not in cyclonedx["nginx"]
    assert "licenses" not in cyclonedx["nginx-udeb"]
    # Debian's names are not SPDX expressions, and a LicenseRef in an expression requires the text of the licence.
    assert spdx["libstdc++6"]["licenseDeclared"] == "NOASSERTION"
    assert "GPL-3+ with GCC exception, LGPL-2.1+" in spdx["libstdc++6"]["licenseComments"]
    assert (spdx["django"]["licenseDeclared"], spdx["x-y"]["licenseDeclared"]) == ("BSD-3-Clause", "NOASSERTION")
    assert spdx["libstdc++6"]["sourceInfo"] == "built from Debian's source package gcc-14 14.2.0-19"
    assert "sourceInfo" not in spdx["nginx-udeb"]


def test_the_same_bill_is_the_same_bytes_in_whatever_order(bill: Bill) -> None:
    other = Bill(bill.name, bill.version, bill.sha256, bill.created, bill.goldsmith, tuple(reversed(bill.parts)))
    assert (sbom.cyclonedx(other), sbom.spdx(other)) == (sbom.cyclonedx(bill), sbom.spdx(bill))
    another = Bill(bill.name, bill.version, "b" * 64, bill.created, bill.goldsmith, bill.parts)
    assert sbom.cyclonedx(another)["serialNumber"] != sbom.cyclonedx(bill)["serialNumber"]


def test_one_wheel_in_two_environments_stands_there_twice(bill: Bill) -> None:
    pins = [Pin("django", "5", ("d" * 64,))]
    parts = sbom.wheels("/opt/a", pins) + sbom.wheels("/opt/b", pins)
    both = Bill("golden", "1", "a" * 64, DATE, "0", tuple(parts))
    assert len({one["bom-ref"] for one in sbom.cyclonedx(both)["components"]}) == 2
    assert sorted(sbom.of_spdx(sbom.spdx(both))) == sorted(part.key for part in parts)


def test_a_part_is_told_apart_by_its_hash() -> None:
    one, other = (Part(Kind.DEB, "x", "1", (hashed * 64,), "pkg:deb/debian/x@1") for hashed in "ab")
    assert one.key != other.key


# --- what the root file system contains -------------------------------------------------------------------------------

MACHINE = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: age

Files: *
Copyright: 2019 Google LLC
License: BSD-3-clause

Files: debian/*
License: GPL-3.0+  or
 later

License: GPL-3.0+
 text
"""


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def test_debian_says_where_a_package_comes_from(tmp_path: Path) -> None:
    write(tmp_path, artifact_licences.STATUS, (
        "Package: age\nStatus: install ok installed\nSource: age (1.2.1-1)\nVersion: 1.2.1-1+b5\nDescription: x\n y\n\n"
        "Package: nginx\nVersion: 1.26\n\nPackage: libc6\nSource: glibc\nVersion: 2.41\n"
    ))  # fmt: skip
    write(tmp_path, "usr/share/doc/age/copyright", MACHINE)
    write(tmp_path, "usr/share/doc/nginx/copyright", "Free words.\nLicense: something\n")
    (tmp_path / "usr/share/doc/libc6").symlink_to("age")
    assert artifact_licences.debian(tmp_path) == {
        "age": Origin("age", "1.2.1-1", ("BSD-3-clause", "GPL-3.0+ or")),
        "nginx": Origin("nginx", "1.26"),
        "libc6": Origin("glibc", "2.41", ("BSD-3-clause", "GPL-3.0+ or")),
    }


@pytest.mark.parametrize("target", ["/etc/hostname", "../../../../../../etc/hostname", "copyright", "/usr/share/doc/none"])
def test_a_link_out_of_the_root_file_system_is_not_followed(tmp_path: Path, target: str) -> None:
    root = tmp_path / "root"
    write(root, artifact_licences.STATUS, "Package: age\nVersion: 1\n")
    (root / "usr/share/doc/age").mkdir(parents=True)
    (root / "usr/share/doc/age/copyright").symlink_to(target)
    assert artifact_licences.debian(root) == {"age": Origin("age", "1")}


def test_a_wheel_says_its_licence(tmp_path: Path) -> None:
    texts = {
        "django-5.dist-info": "Name: Django\nLicense-Expression: BSD-3-Clause\nLicense: x\n\nLicense: y\n",
        "asgiref-3.dist-info": "Name: asgiref\nLicense: BSD-3-Clause\n",
        "x_y-1.dist-info": "Name: X_y\nLicense: A long text\n        of two lines\n",
    }
    for name, text in texts.items():
        write(tmp_path, f"lib/python3.13/site-packages/{name}/METADATA", text)
    assert artifact_licences.python(tmp_path) == {
        "django": Origin(expression="BSD-3-Clause"), "asgiref": Origin(licences=("BSD-3-Clause",)), "x-y": Origin(),
    }  # fmt: skip
