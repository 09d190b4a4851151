"""The compositions of layers that `nox -s compositions` tests: their specs, and what happens when one fails."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from build.core import host, run
from build.core.errors import StepFailed, VerificationFailed
from build.core.project import Project
from build.spec import golden_yaml as specs
from build.spec import layers
from tests.compositions import __main__ as compositions

PROJECT = Project(Path(__file__).parents[3])


def test_a_composition_has_no_layer_that_requires_a_missing_one(tmp_path: Path) -> None:
    found = compositions.compositions(PROJECT)
    assert list(found) == list(specs.load(PROJECT.spec).layers)
    for name, left in found.items():
        assert name not in left
        if left:
            chosen = compositions.write_spec(tmp_path, PROJECT, name, left)
            spec = specs.load(chosen.spec)
            assert (spec.name, spec.layers) == (f"golden-without-{name}", left)
            # Reads every layer, and raises for what is required and missing.
            layers.load_stack(chosen.overlays, spec)
            assert chosen.rootfs_lock == tmp_path / f"{name}.lock"


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The compositions that were tested; one of them fails."""
    tried: list[str] = []

    def test(name: str, _chosen: object) -> None:
        tried.append(name)
        if name == "26-bans":
            raise StepFailed("the container did not come up")

    monkeypatch.setattr(compositions, "test", test)
    monkeypatch.setattr(compositions, "write_spec", lambda *_words: PROJECT)
    monkeypatch.setattr(compositions, "replace", lambda chosen, **_changes: chosen)
    monkeypatch.setattr(run, "is_root", lambda: True)
    monkeypatch.setattr(host, "ensure", lambda _tools, **_options: None)
    return tried


def test_the_others_are_tested_after_a_failure(tried: list[str], tmp_path: Path) -> None:
    chosen: Any = SimpleNamespace(install=False, cache=SimpleNamespace(root=tmp_path), project=PROJECT)
    wanted = {"10-base": (), "26-bans": ("10-base",), "70-backup": ("10-base",)}
    with pytest.raises(VerificationFailed, match="1 of 3 compositions failed") as caught:
        compositions.test_all(wanted, chosen)
    assert tried == ["26-bans", "70-backup"]
    assert caught.value.details == "without 26-bans: the container did not come up"
    assert "nox -s compositions -- 26-bans" in caught.value.hint


def test_an_outside_layer_keeps_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = specs.load(PROJECT.spec)
    monkeypatch.setattr(specs, "load", lambda _path: dataclasses.replace(spec, outside={"90-site": tmp_path}))
    compositions.write_spec(tmp_path, PROJECT, "26-bans", ("10-base", "90-site"))
    assert f"- {tmp_path}\n" in (tmp_path / "26-bans.yaml").read_text()
