"""The requirements that apply to an image are computed from its layers and their tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from build.report import applicability, requirements
from build.spec import golden_yaml as specs
from tests.unit.helpers import ROOT


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout with a base, a web server, and a part of the base for what the web server provides."""
    layers = {
        "10-base": {"tests": ["tests/image/test_base.py"]}, "10-base/with/web": {"tests": ["tests/image/test_both.py"]},
        "50-web": {"tests": ["tests/image/test_web.py"], "provides": ["web"]},
    }  # fmt: skip
    for name, content in layers.items():
        (tmp_path / "overlays" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "overlays" / name / "layer.yaml").write_text(yaml.safe_dump(content))
    tests = {
        "base": 'req("R1", "R2")\ndef test_a(): ...\n@pytest.mark.layers("web")\n@pytest.mark.req("R3")\ndef test_b(): ...',
        "both": 'req("R4", "F1")\ndef test_c(): ...', "web": 'req("R2", "R5")\ndef test_d(): ...',
    }  # fmt: skip
    (tmp_path / "tests" / "image").mkdir(parents=True)
    for name, text in tests.items():
        (tmp_path / "tests" / "image" / f"test_{name}.py").write_text(f"import pytest\n\n@pytest.mark.{text}\n")
    return tmp_path


def test_a_requirement_whose_tests_all_need_other_layers_does_not_apply(root: Path) -> None:
    assert applicability.absent(root, ["10-base"]) == {
        "R3": "its tests belong to web", "R4": "its tests belong to web", "R5": "its tests belong to 50-web",
    }  # fmt: skip
    assert applicability.absent(root, ["10-base", "50-web"]) == {}
    assert set(applicability.absent(root, ["50-web"])) == {"R1", "R3", "R4"}


def test_each_profile_has_its_share_of_the_requirements() -> None:
    known = {one.name for one in requirements.load(ROOT / requirements.LIST)}
    absent = {
        path.stem: set(applicability.absent(ROOT, specs.load(path).layers))
        for path in (ROOT / "golden.yaml", *(ROOT / "profiles").glob("*.yaml"))
    }
    assert absent["golden"] == {"R71"}, "the web application firewall is a layer that golden.yaml leaves out"
    assert absent["golden"] < absent["web"] < absent["base"] < known
    # SSH, accounts, partitions, the packet filter, the audit log: they are the base's.
    assert absent["base"].isdisjoint({"R1", "R5", "R6", "R9", "R27", "R30", "R31", "R80"})
    assert {"R13", "R64"} <= absent["base"]
    assert "R64" not in absent["web"]
    assert "R64" in absent["db"]
