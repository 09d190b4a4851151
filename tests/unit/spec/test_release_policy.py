"""The gates of promotion in golden.yaml: defaults, values, and an error for every invalid value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from build.core.errors import SpecError
from build.core.yaml_table import Table
from build.spec import golden_yaml as specs
from build.spec import release_policy
from tests.unit.helpers import ROOT


def read(**values: Any) -> tuple[release_policy.Policy, list[str]]:
    problems: list[str] = []
    return release_policy.read(Table(values, where="releases", problems=problems)), problems


def test_nothing_said_is_one_channel_without_gates() -> None:
    assert read() == (release_policy.Policy(), [])


def test_values() -> None:
    policy, problems = read(
        channels=["stable", "edge"], soak="36h", signers="docs/signers", ledger="docs/releases.jsonl",
        audit={"at_least": {"cis.raw": 95}, "at_most": {"exposure.nginx": 1.5}},
        vulnerabilities={"data": {"osv": ["data/osv.zip"], "tracker": ["data/tracker.json"]}, "at_most": {"fixable": 0},
                         "age": "24h"},
    )  # fmt: skip
    assert problems == []
    assert policy == release_policy.Policy(
        channels=("stable", "edge"), soak_seconds=36 * 3600, at_least={"cis.raw": 95.0}, at_most={"exposure.nginx": 1.5},
        signers=Path("docs/signers"), signatures=1, ledger=Path("docs/releases.jsonl"),
        vulnerability_data=(("osv", "data/osv.zip"), ("tracker", "data/tracker.json")),
        vulnerabilities_at_most={"fixable": 0.0}, vulnerability_seconds=86_400,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("channels", ["candidate"]), ("channels", ["v1"]), ("channels", ["revoked"]), ("channels", ["With Blank"]),
        ("soak", "soon"), ("soak", 24), ("signers", "/etc/signers"), ("signers", "../signers"), ("signatures", 2),
        ("signatures", -1), ("ledger", "/var/ledger"), ("sok", "24h"), ("audit", []), ("audit", {"at_least": {"a": "b"}}),
        ("audit", {"atleast": {}}), ("audit", {"at_most": {"a": True}}),
        ("vulnerabilities", {"at_most": {"awful": 0}}), ("vulnerabilities", {"age": "soon"}),
        ("vulnerabilities", {"dat": {}}),
        ("vulnerabilities", {"data": {"osv": ["/tmp/osv"]}}), ("vulnerabilities", {"data": {"cve": ["a"]}}),
    ],
)  # fmt: skip
def test_wrong_values_are_named(key: str, value: Any) -> None:
    assert any(f"releases.{key}" in problem for problem in read(**{key: value})[1])


def test_gates_shape_no_image(tmp_path: Path) -> None:
    plain = (ROOT / "golden.yaml").read_text()
    (tmp_path / "golden.yaml").write_text(plain + "\nreleases: {soak: 1d}\n")
    gated = specs.load(tmp_path / "golden.yaml")
    assert gated.releases.soak_seconds == 86_400
    assert gated.as_inputs() == specs.load(ROOT / "golden.yaml").as_inputs()


@pytest.mark.parametrize("soak", ["0", "'0'", "0h", "0d"])
def test_no_soak(tmp_path: Path, soak: str) -> None:
    plain = (ROOT / "golden.yaml").read_text()
    (tmp_path / "golden.yaml").write_text(f"{plain}\nreleases: {{soak: {soak}}}\n")
    assert specs.load(tmp_path / "golden.yaml").releases.soak_seconds == 0


@pytest.mark.parametrize("soak", ["false", "-1h", "1", "1.5h"])
def test_what_is_no_duration(tmp_path: Path, soak: str) -> None:
    plain = (ROOT / "golden.yaml").read_text()
    (tmp_path / "golden.yaml").write_text(f"{plain}\nreleases: {{soak: {soak}}}\n")
    with pytest.raises(SpecError) as caught:
        specs.load(tmp_path / "golden.yaml")
    assert "releases.soak" in caught.value.details
