"""Profiles: a spec file that extends another one, names that distinguish them, and layers outside of overlays/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from build.core.errors import SpecError
from build.core.project import Project
from build.packages import lock
from build.packages.apt import Mirrors
from build.spec import golden_yaml as specs
from build.spec import inputs, layers, profiles
from build.spec.layers import load_stack
from tests.unit.helpers import ROOT, golden, make_checkout, write_layer, write_spec

PROFILES = sorted((ROOT / "profiles").glob("*.yaml"))


def profile(directory: Path, stem: str, /, **keys: Any) -> Path:
    """Write the profile ``profiles/STEM.yaml``, and golden.yaml beside its directory; return its path."""
    write_spec(directory, golden(layers=["10-base"], packages=["vim"]))
    path = directory / "profiles" / f"{stem}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(keys, sort_keys=False), encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    with pytest.raises(SpecError) as caught:
        specs.load(path)
    assert caught.value.exit_code == 2
    return caught.value.render()


# --- what a profile has -----------------------------------------------------------------------------------------------


def test_a_profile_has_what_it_says_and_inherits_the_rest(tmp_path: Path) -> None:
    path = profile(tmp_path, "web", extends="../golden.yaml", name="golden-web", layers=[], admin={"user": "anna"})
    spec = specs.load(path)
    assert (spec.name, spec.layers, spec.admin.user, spec.file) == ("golden-web", (), "anna", "web.yaml")
    assert (spec.packages, spec.admin.cidrs, spec.hostname) == (("vim",), ("192.0.2.0/24",), "golden")


def test_a_profile_extends_a_profile(tmp_path: Path) -> None:
    profile(tmp_path, "base", extends="../golden.yaml", name="golden-base", packages=["git"], timezone="Europe/Vienna")
    spec = specs.load(profile(tmp_path, "db", extends="base.yaml", name="golden-db", packages=["htop"]))
    assert (spec.name, spec.packages, spec.timezone) == ("golden-db", ("htop",), "Europe/Vienna")


def test_profiles_do_not_share_a_ledger(tmp_path: Path) -> None:
    content = golden(releases={"ledger": "releases/all.jsonl", "soak": "24h"})
    path = profile(tmp_path, "web", extends="../golden.yaml", name="golden-web")
    write_spec(tmp_path, content)
    assert specs.load(tmp_path / "golden.yaml").releases.ledger == Path("releases/all.jsonl")
    releases = specs.load(path).releases
    assert (releases.ledger, releases.soak_seconds) == (Path("releases/all-golden-web.jsonl"), 86400)
    path = profile(tmp_path, "web", extends="../golden.yaml", name="golden-web", releases={"ledger": "web.jsonl"})
    assert specs.load(path).releases.ledger == Path("web.jsonl")


def test_each_profile_has_a_lock_beside_it(tmp_path: Path) -> None:
    assert Project(tmp_path).rootfs_lock == tmp_path / "overlays" / "rootfs.lock"
    assert Project(tmp_path, tmp_path / "golden.yaml").rootfs_lock == tmp_path / "overlays" / "rootfs.lock"
    assert Project(tmp_path, tmp_path / "profiles" / "web.yaml").rootfs_lock == tmp_path / "profiles" / "web.lock"


def test_the_name_is_read_without_the_rest(tmp_path: Path) -> None:
    assert profiles.name_of(profile(tmp_path, "web", extends="../golden.yaml", name="golden-web", colour=1)) == "golden-web"
    assert profiles.name_of(tmp_path / "none.yaml") == ""


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_circle_is_refused(tmp_path: Path) -> None:
    profile(tmp_path, "a", extends="b.yaml", name="golden-a")
    path = profile(tmp_path, "b", extends="a.yaml", name="golden-b")
    text = refusal(path)
    assert "the files extend each other in a circle: b.yaml -> a.yaml -> b.yaml" in text
    assert f"{tmp_path / 'profiles' / 'a.yaml'}: extends: 'b.yaml'" in text
    assert "circle" in refusal(profile(tmp_path, "c", extends="c.yaml", name="golden-c"))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    text = refusal(profile(tmp_path, "web", extends="golden.yaml", name="golden-web"))
    assert f"extends: 'golden.yaml': {tmp_path / 'profiles' / 'golden.yaml'} does not exist" in text
    assert "extends: ['x'] is not a spec file" in refusal(profile(tmp_path, "web", extends=["x"], name="golden-web"))


def test_a_name_is_not_inherited(tmp_path: Path) -> None:
    text = refusal(profile(tmp_path, "web", extends="../golden.yaml"))
    assert "name: this key is missing, and is not inherited" in text


def test_problems_name_the_files_they_may_come_from(tmp_path: Path) -> None:
    path = profile(tmp_path, "web", extends="../golden.yaml", name="golden-web", colour="red", timezone="Mars/Phobos")
    text = refusal(path)
    assert f"{path} has 2 problems" in text
    assert "correct web.yaml (or golden.yaml, which it extends) and run again" in text


# --- layers elsewhere -------------------------------------------------------------------------------------------------


def test_a_layer_may_lie_outside_of_the_checkout(tmp_path: Path) -> None:
    root = tmp_path / "checkout"
    write_layer(root, "10-base", {"/etc/x": "x"})
    write_layer(tmp_path / "our", "90-site", {"/etc/site": "ours"}, requires=["10-base"])
    write_spec(root, golden(layers=["10-base", "../our/overlays/90-site"]))
    spec = specs.load(root / "golden.yaml")
    assert spec.layers == ("10-base", "90-site")
    assert "outside" not in spec.as_inputs()
    stack = load_stack(root / "overlays", spec)
    assert [(node.path, node.layer) for node in stack.nodes] == [("/etc/site", "90-site"), ("/etc/x", "10-base")]


def test_a_path_is_relative_to_the_file_that_has_it(tmp_path: Path) -> None:
    path = profile(tmp_path, "web", extends="../golden.yaml", name="golden-web")
    write_spec(tmp_path, golden(layers=["our/90-site"]))
    assert specs.load(path).outside == {"90-site": tmp_path / "our" / "90-site"}


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    root = tmp_path / "checkout"
    write_layer(root, "10-base", {"/etc/x": "x"})
    write_spec(root, golden(layers=["../our/90-site"]))
    with pytest.raises(SpecError) as caught:
        load_stack(root / "overlays", specs.load(root / "golden.yaml"))
    assert caught.value.details == (
        f"golden.yaml: layers: '90-site': there is no such directory in {tmp_path / 'our'}/: "
        "correct the path, or make the layer"
    )


# --- the layers of a profile ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "problem"),
    [
        (["10-base", "50-ngnix"], ("web.yaml: layers: '50-ngnix': there is no such directory in overlays/: correct the "
         "name; there are 10-base, 40-app, 50-nginx")),
        (["10-base", "40-app"], ("web.yaml: layers: 40-app requires '50-nginx', which is not in the image: add it, or "
         "remove 40-app")),
        (["10-base", "10-base"], "layers: '10-base': duplicate entry: remove one"),
        (["50-nginx", "10-base"], ("layers: ['50-nginx', '10-base']: write the layers in ascending order, in which they are "
         "installed: [10-base, 50-nginx]")),
    ],
    ids=["unknown", "missing", "double", "unordered"],
)  # fmt: skip
def test_wrong_layers_are_told_with_the_file(tmp_path: Path, named: list[str], problem: str) -> None:
    write_layer(tmp_path, "10-base")
    write_layer(tmp_path, "40-app", requires=["50-nginx"])
    write_layer(tmp_path, "50-nginx")
    path = profile(tmp_path, "web", extends="../golden.yaml", name="golden-web", layers=named)
    with pytest.raises(SpecError) as caught:
        load_stack(tmp_path / "overlays", specs.load(path))
    assert caught.value.details == problem
    assert caught.value.brief.endswith("web.yaml has 1 problem")
    assert caught.value.hint.startswith("correct web.yaml")


# --- the profiles of this checkout ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_each_profile_is_valid_and_has_its_lock(path: Path) -> None:
    project = Project(ROOT, path)
    spec = specs.load(path)
    assert spec.name == f"golden-{path.stem}"
    stack = load_stack(project.overlays, spec)
    locked = lock.parse(project.rootfs_lock)
    assert locked.request == layers.request_digest(spec, stack), f"run nox -s lock -- --spec profiles/{path.name} rootfs"
    whole = lock.parse(Project(ROOT).rootfs_lock).versions()
    assert {name: version for name, version in locked.versions().items() if whole.get(name, version) != version} == {}


def test_profiles_share_the_stages_whose_inputs_are_the_same(tmp_path: Path) -> None:
    project = make_checkout(tmp_path / "checkout")
    path = project.root / "profiles" / "other.yaml"
    path.parent.mkdir()
    path.write_text("extends: ../golden.yaml\nname: golden-other\n")
    path.with_suffix(".lock").write_bytes(project.rootfs_lock.read_bytes())

    def keys(of: Project) -> dict[str, str]:
        spec = specs.load(of.spec)
        stack = load_stack(of.overlays, spec)
        locks = (lock.parse(of.rootfs_lock), lock.parse(of.installer_lock))
        gathered = inputs.Inputs(of, spec, stack, Mirrors("http://a", "http://b"), *locks)
        return {stage: key.key for stage, key in inputs.stage_keys(gathered).items()}

    one, two = keys(project), keys(Project(project.root, path))
    assert {stage for stage in one if one[stage] == two[stage]} == {"base", "rootfs"}
