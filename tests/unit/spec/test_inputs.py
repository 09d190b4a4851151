"""The key of each stage depends on the inputs of its result, and on nothing else."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from build.core import run
from build.core.project import OBSERVERS, Project, forget_code
from build.packages.apt import Mirrors
from build.packages.lock import Lock
from build.spec import golden_yaml as specs
from build.spec import inputs, layers
from build.spec.layers import load_stack
from tests.unit.helpers import ROOT, entry, golden, make_checkout, make_lock, write_spec

LATER = {stage: set(inputs.STAGES[number:]) for number, stage in enumerate(inputs.STAGES)}
MIRRORS = Mirrors("http://one.example/debian", "http://one.example/debian-security")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return make_checkout(tmp_path / "checkout").root


def keys(
    root: Path, *, mirrors: Mirrors = MIRRORS, rootfs: Lock | None = None, installer: Lock | None = None
) -> dict[str, str]:
    project = Project(root)
    spec = specs.load(project.spec)
    gathered = inputs.Inputs(
        project, spec, load_stack(project.overlays, spec), mirrors,
        rootfs or make_lock(entry("nginx")), installer or make_lock(entry("udeb")),
    )  # fmt: skip
    return {stage: key.key for stage, key in inputs.stage_keys(gathered).items()}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {stage for stage in inputs.STAGES if before[stage] != after[stage]}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_nothing_changed_means_the_same_keys(checkout: Path) -> None:
    assert keys(checkout) == keys(checkout)


EDITS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file of a layer": (lambda root: edit(root / "overlays/10-base/rootfs/etc/x", "x", "y"), "rootfs"),
    "an early file": (lambda root: edit(root / "overlays/10-base/rootfs/etc/early", "x", "y"), "base"),
    "dpkg's options": (lambda root: edit(root / "overlays/10-base/rootfs/etc/dpkg/dpkg.cfg.d/x", "/x", "/y"), "base"),
    "the packages": (lambda root: edit(root / "overlays/10-base/layer.yaml", "nginx", "curl"), "base"),
    "the kernel": (lambda root: write_spec(root, golden(layers=["10-base"], kernel="generic")), "base"),
    "the host name": (lambda root: write_spec(root, golden(layers=["10-base"], hostname="other")), "rootfs"),
    "the version": (lambda root: write_spec(root, golden(layers=["10-base"], version="9.9.9")), "media"),
    "the domain": (lambda root: write_spec(root, golden(layers=["10-base"], domain="b.example")), "verify"),
    "the answers": (lambda root: edit(root / "preseed/preseed.cfg.j2", "preseed", "other"), "media"),
    "the template": (lambda root: edit(root / "packer/qemu.pkr.hcl", "packer", "other"), "disk"),
    "the planes": (lambda root: edit(root / "tests/image/planes.md", "planes", "other"), "verify"),
    "an image test": (lambda root: (root / "tests/image/test_x.py").write_text("assert 1\n"), "verify"),
}


@pytest.mark.parametrize(("apply", "first"), EDITS.values(), ids=EDITS.keys())
def test_a_change_reaches_its_stage_and_all_later_ones(checkout: Path, apply: Callable[[Path], object], first: str) -> None:
    before = keys(checkout)
    apply(checkout)
    assert changed(before, keys(checkout)) == LATER[first]


@pytest.mark.parametrize("name", ["packer/README.md", "packer/tools/go.mod", "packer/proxmox/source.pkr.hcl"])
def test_words_and_tools_shape_nothing(checkout: Path, name: str) -> None:
    before = keys(checkout)
    (checkout / name).write_text("other")
    assert changed(before, keys(checkout)) == set()


def test_a_reason_in_a_layer_shapes_nothing(checkout: Path) -> None:
    before = keys(checkout)
    edit(checkout / "overlays/10-base/layer.yaml", "A layer for the tests of layers.", "Another sentence about it.")
    assert changed(before, keys(checkout)) == set()


def test_locks_reach_their_stages(checkout: Path) -> None:
    before = keys(checkout)
    newer = entry("nginx", b"another file")
    assert changed(before, keys(checkout, rootfs=make_lock(newer))) == LATER["base"]
    assert changed(before, keys(checkout, installer=make_lock(newer))) == LATER["media"]


def test_mirrors_are_written_into_the_image_and_a_snapshot_is_not(checkout: Path) -> None:
    before = keys(checkout)
    other = Mirrors("http://two.example/debian", MIRRORS.security)
    assert changed(before, keys(checkout, mirrors=other)) == LATER["rootfs"]
    with_snapshot = Mirrors(MIRRORS.debian, MIRRORS.security, "http://snapshot.example")
    assert changed(before, keys(checkout, mirrors=with_snapshot)) == set()


@pytest.fixture
def whole_checkout(checkout: Path) -> Path:
    """A checkout that has all the code of this one."""
    shutil.copytree(ROOT / "build", checkout / "build", dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    return checkout


def imported_by(stage: str) -> set[str]:
    """Return the modules that Python loads when it imports the modules of a stage."""
    entries = [name.replace("/", ".") for name in inputs.ENTRIES[stage]]
    program = f"import sys, {', '.join(f'build.{name}' for name in entries)}; print(*sys.modules)"
    names = run.run([sys.executable, "-c", program], cwd=ROOT, timeout=60).stdout.split()
    paths = {name.removeprefix("build.").replace(".", "/") for name in names if name.startswith("build.")}
    return {path for path in paths if (ROOT / "build" / f"{path}.py").is_file()}


@pytest.mark.parametrize("stage", inputs.STAGES)
def test_every_module_that_a_stage_imports_is_part_of_its_key(whole_checkout: Path, stage: str) -> None:
    expected = imported_by(stage) - OBSERVERS
    assert {name.split("/")[0] for name in expected} >= {name.split("/")[0] for name in inputs.ENTRIES[stage]}
    assert set(Project(whole_checkout).code(*inputs.ENTRIES[stage])) == expected


@pytest.mark.parametrize("stage", inputs.STAGES)
def test_a_change_of_an_imported_module_changes_the_key(whole_checkout: Path, stage: str) -> None:
    """The last module in the order of their names, which is seldom one of the entries."""
    entries = inputs.ENTRIES[stage]
    changed_module = max(Project(whole_checkout).code(*entries))
    first = next(name for name in inputs.STAGES if changed_module in Project(whole_checkout).code(*inputs.ENTRIES[name]))
    before = keys(whole_checkout)
    with (whole_checkout / "build" / f"{changed_module}.py").open("a") as stream:
        stream.write("\nSOMETHING_NEW = 1\n")
    forget_code()
    assert changed(before, keys(whole_checkout)) == LATER[first]


def test_modules_beside_the_stages_shape_nothing(whole_checkout: Path) -> None:
    before = keys(whole_checkout)
    for module in (*OBSERVERS, "cli/main", "cli/doctor", "pipeline/build", "audit/audit", "publish/publish"):
        with (whole_checkout / "build" / f"{module}.py").open("a") as stream:
            stream.write("\nSOMETHING_NEW = 1\n")
    forget_code()
    assert changed(before, keys(whole_checkout)) == set()


def test_the_request_is_the_question_a_lock_answers(checkout: Path) -> None:
    def request() -> str:
        spec = specs.load(checkout / "golden.yaml")
        return layers.request_digest(spec, load_stack(checkout / "overlays", spec))

    before = request()
    edit(checkout / "overlays/10-base/rootfs/etc/x", "x", "y")
    assert request() == before, "a file of a layer asks for no other packages"
    edit(checkout / "overlays/10-base/layer.yaml", "nginx", "curl")
    assert request() != before
