"""The manifest describes the image completely; the artifact contains the results of the stages."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from build.artifact import artifact, assemble, checks, provenance
from build.artifact.stage_facts import open_cache
from build.audit import ledger
from build.audit.ledger import Better, Figure
from build.core import files, host, run
from build.core.errors import StepFailed
from build.core.host import Tool
from build.core.records import Record
from build.disk.installation import DiskFacts
from build.machines.acceleration import AcceleratorRecord
from build.media.iso_image import MediaFacts
from build.packages import lock as locks
from build.packages import wheel_lock
from build.packages.apt import Mirrors
from build.packages.updates import PendingUpdates
from build.packages.wheel_lock import Wheel
from build.pipeline import build  # fmt: skip
from build.pipeline.build import Gathered, Options
from build.report.context import ReportContext
from build.rootfs.base import BaseFacts
from build.rootfs.rootfs import RootfsFacts
from build.verify.verify import VerifyFacts
from tests import proven
from tests.patience import PATIENCE_SECONDS
from tests.unit.helpers import DATE, make_checkout, write_layer
from tests.unit.inventories import PLOT, inventory_of

MIRRORS = Mirrors("http://one.example/debian", "http://one.example/debian-security")
TCG = AcceleratorRecord("tcg", "there is no /dev/kvm")
FACTS: dict[str, Record] = {
    "base": BaseFacts(1, 2),
    "rootfs": RootfsFacts(paths=1, tar_bytes=2, tar_sha256="bb" * 32, squashfs_bytes=3, squashfs_sha256="aa" * 32),
    "media": MediaFacts("dd" * 32, 4, "cc" * 32),
    "disk": DiskFacts(1, ("a panic",), {"partitioning": 1.5}, 5, "Packer 1.6.6", TCG),
    "verify": VerifyFacts(
        passed=2, failed=0, skipped=1, panics=1, clones=("bios", "uefi"), seconds=90.0,
        boot={"bios": {"ready": 60.0}, "uefi": {"ready": 70.0}}, accelerator=TCG,
    ),
}  # fmt: skip
NOT_LOOKED = PendingUpdates(looked=False, reason="the mirror cannot be reached")
JUNIT = proven.junit(passed=2, skipped=1)


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Options:
    monkeypatch.setattr(host, "needed", lambda: (Tool("sh", "dash", "x"), Tool("uname", "coreutils", "x", ("uname", "-r"))))
    return Options(make_checkout(tmp_path / "checkout"), open_cache(tmp_path / "cache"), MIRRORS)


def stage_files(stage: str, out: Path) -> None:
    """Leave in ``out`` what a stage leaves."""
    texts = {
        "rootfs": {"files.tsv": "# path\n/etc\n"},
        "disk": {"console.log": "installer", "syslog.log": "syslog"},
        "verify": {
            "junit.xml": JUNIT,
            "pytest.log": "1 passed",
            "inventory.json": json.dumps(inventory_of()),
            "boot.svg": PLOT,
            "logs/bios-console.log": "bios",
            "logs/uefi-qemu.log": "",
        },
    }
    for name, text in texts.get(stage, {}).items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(text)
    if stage == "rootfs":
        source = out / "source"
        (source / "var/lib/dpkg").mkdir(parents=True)
        (source / "var/lib/dpkg/status").write_text("Package: nginx\nStatus: install ok installed\nVersion: 1.0-1\n")
        (source / "usr/share/doc").mkdir(parents=True)
        run.run(["mksquashfs", source, out / "filesystem.squashfs", "-quiet", "-no-progress"], timeout=60)
    if stage == "disk":
        run.run(["qemu-img", "create", "-q", "-f", "qcow2", out / "image.qcow2", "64M"], timeout=60)


def finish(options: Options, *, leave_out: str = "") -> Gathered:
    gathered = build.gather(options, settle=False)
    for stage in ("base", "rootfs", "media", "disk", "verify"):

        def make(out: Path, stage: str = stage) -> Record:
            stage_files(stage, out)
            return FACTS[stage]

        if stage != leave_out:
            options.cache.obtain(gathered.keys[stage], make)
    return gathered


def put_together(options: Options, gathered: Gathered, changes: tuple[str, ...] = ()) -> artifact.Artifact:
    context = ReportContext(gathered.inputs.project, options.cache.root)
    return assemble.assemble(
        gathered.inputs, gathered.keys, options.cache, made={}, changes=changes, updates=NOT_LOOKED,
        render_report=lambda side: context.report(side, gathered.inputs.rootfs_lock),
    )  # fmt: skip


def test_the_artifact_holds_what_the_stages_left(options: Options) -> None:
    made = put_together(options, finish(options))
    found = sorted(path.relative_to(made.path).as_posix() for path in made.path.rglob("*") if path.is_file())
    assert found == [
        "SHA256SUMS", "boot.svg", "image.qcow2", "inputs.json", "installer.lock", "inventory.json",
        "logs/clone-bios-console.log", "logs/clone-uefi-qemu.log", "logs/installer-console.log",
        "logs/installer-syslog.log", "logs/tests.log", "manifest.json", "provenance.json", "rootfs.files.tsv", "rootfs.lock",
        "sbom.cdx.json", "sbom.spdx.json", "verification/junit.xml", "verification/report.html",
    ]  # fmt: skip
    assert artifact.check(made.path) == []
    assert (made.path / "logs" / "installer-console.log").read_text() == "installer"
    assert "test_y" in (made.path / "verification" / "report.html").read_text()


def test_the_manifest_tells_everything_about_the_image(options: Options) -> None:
    options.project.auditors.mkdir(parents=True)
    ledger.save(options.project.audit_ledger, [Figure("lynis.index", 91, Better.HIGHER, 90)], kept={}, tools={})
    gathered = finish(options)
    made = put_together(options, gathered, changes=("nginx 1 -> 2",))
    manifest = json.loads((made.path / "manifest.json").read_text())
    assert manifest == made.manifest.as_json()
    image = made.image.read_bytes()
    assert manifest["image"] == {
        "file": "image.qcow2", "format": "qcow2", "sha256": hashlib.sha256(image).hexdigest(), "bytes": len(image),
        "virtual_mib": 64,
    }  # fmt: skip
    inputs = manifest["inputs"]
    assert inputs["artifact_key"] == gathered.keys["artifact"].key
    assert inputs["stage_keys"] == {stage: key.key for stage, key in gathered.keys.items()}
    assert (inputs["archive_date"], inputs["lock_changes"]) == (DATE, ["nginx 1 -> 2"])
    assert (inputs["squashfs_sha256"], inputs["rootfs_tar_sha256"]) == ("aa" * 32, "bb" * 32)
    assert list(inputs["layers"]) == ["10-base"]
    assert inputs["spec"]["hostname"] == "golden"
    assert (manifest["packages"], manifest["installer"]) == ({"nginx": "1.0-1"}, {"udeb": "1.0-1"})
    release = run.run(["uname", "-r"], timeout=PATIENCE_SECONDS).stdout.strip()
    assert manifest["tools"] == {"uname": release, "packer": "Packer 1.6.6"}
    assert manifest["accelerator"] == {"kind": "tcg", "reason": "there is no /dev/kvm"}
    assert manifest["verification"]["boot"]["uefi"] == {"ready": 70.0}
    assert manifest["retries"] == {"installer": 1, "clones": 1}
    assert manifest["audit"] == {"lynis.index": {"value": 91.0, "shown": "91", "limit": ">= 90"}}
    assert [stage["stage"] for stage in manifest["stages"]] == ["base", "rootfs", "media", "disk", "verify"]
    assert {stage["reused"] for stage in manifest["stages"]} == {True}
    assert manifest["stages"][3]["facts"] == {
        "retries": 1, "panics": ["a panic"], "steps": {"partitioning": 1.5}, "image_bytes": 5, "packer": "Packer 1.6.6",
    }  # fmt: skip
    assert manifest["updates"] == {"looked": False, "reason": "the mirror cannot be reached"}
    assert "not checked: the mirror cannot be reached" in (made.path / "verification" / "report.html").read_text()


def test_the_locks_in_the_artifact_can_be_built_from(options: Options) -> None:
    gathered = finish(options)
    made = put_together(options, gathered)
    for name, expected in (("rootfs.lock", gathered.inputs.rootfs_lock), ("installer.lock", gathered.inputs.installer_lock)):
        assert locks.parse(made.path / name) == expected


def test_what_is_put_together_verifies(options: Options) -> None:
    write_layer(options.project.root, "20-app", {"/etc/y": "y"}, python={"venv": "/opt/app", "requirements": "wheels.lock"})
    (options.project.overlays / "20-app" / "wheels.lock").write_text(wheel_lock.render([Wheel("django", "5.2", "d" * 64)]))
    text = options.project.spec.read_text().replace("- 10-base", "- 10-base\n- 20-app")
    options.project.spec.write_text(text)
    made = put_together(options, finish(options))
    assert [check.render() for check in checks.examine(made) if check.problems] == []
    assert made.manifest.as_json()["wheels"] == {
        "20-app": {"venv": "/opt/app", "lock": "wheels/20-app/requirements.lock", "packages": {"django": "5.2"}}
    }
    bill = json.loads((made.path / "sbom.cdx.json").read_text())
    assert [(one["name"], one["version"], one["scope"]) for one in bill["components"]] == [
        ("nginx", "1.0-1", "required"),
        ("udeb", "1.0-1", "excluded"),
        ("django", "5.2", "required"),
    ]


def test_only_the_run_itself_tells_two_artifacts_of_the_same_inputs_apart(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered = finish(options)
    first = put_together(options, gathered)
    kept = {name: (first.path / name).read_text() for name in ("sbom.cdx.json", "sbom.spdx.json", "provenance.json")}
    files.remove_tree(first.path)
    monkeypatch.setattr("time.time", lambda: 2e9)
    second = put_together(options, gathered)
    assert [(second.path / name).read_text() == text for name, text in kept.items()] == [True, True, False]
    before, after = (json.loads(text) for text in (kept["provenance.json"], (second.path / "provenance.json").read_text()))
    assert {path.rpartition(".")[2] for path in provenance.differences(before, after)} == {
        "startedOn",
        "finishedOn",
        "invocationId",
    }


def test_stages_that_nobody_needed_may_be_gone(options: Options) -> None:
    made = put_together(options, finish(options, leave_out="media"))
    assert [stage.stage for stage in made.manifest.stages] == ["base", "rootfs", "disk", "verify"]


@pytest.mark.parametrize("stage", ["rootfs", "disk", "verify"])
def test_a_stage_that_is_needed_and_gone_is_told(options: Options, stage: str) -> None:
    gathered = finish(options, leave_out=stage)
    with pytest.raises(StepFailed) as caught:
        put_together(options, gathered)
    assert caught.value.render() == f"the result of stage {stage} is no longer in the cache\n  -> run the build again"
    assert not options.project.artifacts.exists()
