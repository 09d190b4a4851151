"""The image tests expect the content of the layers: presets, accounts, keys of site.yaml, audit rules."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from build.core.errors import SpecError
from build.spec import expected_yaml, layer_tests
from build.spec.golden_yaml import load
from tests.unit.helpers import LAYERS, ROOT, read_stack, write_layer

OVERLAYS = ROOT / "overlays"
FILES = sorted(OVERLAYS.glob(f"**/{expected_yaml.NAME}"))
MODULES = "rootfs/usr/lib/python3/dist-packages/golden"
# In the module golden.report itself.
OWN_PARTS = {"system", "logins", "users", "defence", "timers"}


def found_in(directory: Path) -> dict[str, set[str]]:
    """Return what the files of a layer declare, by the keys of expected.yaml."""
    return {
        "units": set(lines(directory, "etc/systemd/system-preset/[0-8]*.preset", r"enable (\S+)$")),
        "service_accounts": set(lines(directory, "etc/sysusers.d/*.conf", r"u!? (\S+) ")),
        "audit_rules": {path.name for path in directory.glob("rootfs/etc/audit/rules.d/*.rules")},
        "report_parts": {path.stem for path in directory.glob(f"{MODULES}/report_parts/*.py")}
        | (OWN_PARTS if directory.name == "76-operations" and directory.parent == OVERLAYS else set()),
        "site_keys": {path.stem for path in directory.glob(f"{MODULES}/site_keys/*.py")},
    }


def lines(directory: Path, pattern: str, expression: str) -> Iterator[str]:
    for path in directory.glob(f"rootfs/{pattern}"):
        yield from (
            match[1] for line in path.read_text(encoding="utf-8").splitlines() if (match := re.match(expression, line))
        )


@pytest.mark.parametrize("directory", sorted({*OVERLAYS.glob("*/"), *OVERLAYS.glob("*/with/*/")}), ids=str)
def test_a_layer_expects_what_it_has(directory: Path) -> None:
    path = directory / expected_yaml.NAME
    expected = expected_yaml.read(path) if path.is_file() else {}
    for key, found in found_in(directory).items():
        assert set(expected.get(key, ())) == found, key


def test_the_layers_of_an_image_are_one_list() -> None:
    golden = load(ROOT / "golden.yaml").layers
    expected = expected_yaml.merged(layer_tests.directories(OVERLAYS, golden))
    assert expected["ports"] == [22, 80, 443]
    assert set(expected["confined"]) >= {"nginx.service", "chrony.service"}
    base = expected_yaml.merged(layer_tests.directories(OVERLAYS, load(ROOT / "profiles/base.yaml").layers))
    assert base["ports"] == [22]
    assert base["confined"] == {"chrony.service": "/usr/sbin/chronyd"}
    assert "55-firewall.rules" in base["audit_rules"]
    # Two layers may name one thing.
    assert expected["units"]["logrotate.timer"] == "rotates the access log"


def test_a_layer_knows_where_its_tests_are() -> None:
    owners = layer_tests.owners(OVERLAYS)
    words = layer_tests.words(OVERLAYS, ["10-base", "15-audit", "60-mac"])
    assert layer_tests.lacking(owners["tests/image/test_mac.py"], words) == set()
    assert layer_tests.lacking(owners["tests/image/test_nginx.py"], words) == {"50-nginx"}
    assert layer_tests.words(OVERLAYS, LAYERS) >= {"application", "database", "web-server"}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"unit": ["x"]}, "'unit': unknown key; known are units, "),
        ({"units": ["x"]}, "units: ['x']: write a mapping that is not empty"),
        ({"ports": []}, "ports: []: write a list that is not empty"),
        ([], "expected.yaml is not a mapping"),
    ],
)
def test_a_wrong_file_is_refused_with_the_layer(tmp_path: Path, content: Any, problem: str) -> None:
    directory = write_layer(tmp_path, "10-base")
    (directory / expected_yaml.NAME).write_text(yaml.safe_dump(content))
    with pytest.raises(SpecError) as caught:
        read_stack(tmp_path, "10-base")
    assert problem in caught.value.details
