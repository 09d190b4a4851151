"""The key of each stage changes with what shapes its result, and with nothing else."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

from build import base, inputs
from build import spec as specs
from build.apt import Mirrors
from build.layers import load_stack
from build.lock import Lock
from build.project import Project
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
    "the planes": (lambda root: edit(root / "docs/planes.md", "planes", "other"), "verify"),
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


CODE = {
    "base": ["base"],
    "rootfs": ["rootfs", "layers"],
    "media": ["media", "preseed", "initrd", "cpio", "debs"],
    "disk": ["disk", "packer", "console"],
    "verify": ["verify", "vm", "seed", "sealed", "stocktaking", "inventory", "boot_plot"],
    "artifact": ["artifact", "assemble", "report", "plots", "compare", "desk"],
}


@pytest.mark.parametrize(("first", "module"), [(stage, name) for stage, names in CODE.items() for name in names])
def test_code_that_shapes_a_stage_is_part_of_its_key(checkout: Path, first: str, module: str) -> None:
    before = keys(checkout)
    with (checkout / "build" / f"{module}.py").open("a") as stream:
        stream.write("\nSOMETHING_NEW = 1\n")
    assert changed(before, keys(checkout)) == LATER[first]


def test_modules_beside_the_stages_shape_nothing(checkout: Path) -> None:
    before = keys(checkout)
    for module in ("log", "run", "files", "cli", "doctor", "host", "pipeline", "cache", "locksmith", "apt"):
        with (checkout / "build" / f"{module}.py").open("a") as stream:
            stream.write("\nSOMETHING_NEW = 1\n")
    assert changed(before, keys(checkout)) == set()


def test_every_stage_names_its_own_module() -> None:
    """A stage whose code is left out of its key would never be made again."""
    tree = ast.parse((ROOT / "build" / "inputs.py").read_text(encoding="utf-8"))
    named = {
        word.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "code"
        for word in node.args
        if isinstance(word, ast.Constant)
    }
    assert set(inputs.STAGES) <= named


def test_the_request_is_the_question_a_lock_answers(checkout: Path) -> None:
    def request() -> str:
        spec = specs.load(checkout / "golden.yaml")
        return base.request_digest(spec, load_stack(checkout / "overlays", spec))

    before = request()
    edit(checkout / "overlays/10-base/rootfs/etc/x", "x", "y")
    assert request() == before, "a file of a layer asks for no other packages"
    edit(checkout / "overlays/10-base/layer.yaml", "nginx", "curl")
    assert request() != before
