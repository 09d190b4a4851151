"""The initial RAM file system: what is omitted, what is added, and that an incomplete set is refused."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from build.core import run
from build.core.errors import SpecError, StepFailed
from build.media import cpio, initrd
from tests.patience import PATIENCE_SECONDS
from tests.unit.tiny_installer import MODULES, PLAN, make_installer


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A preseed directory for the tiny installer: a plan, and two additional files."""
    home = tmp_path / "preseed"
    files = home / "initrd"
    (files / "etc").mkdir(parents=True)
    (files / "etc" / "inittab.append").write_bytes(b"ttyS1::respawn:/usr/bin/stream\n")
    (files / "usr" / "lib" / "ours.d").mkdir(parents=True)
    (files / "usr" / "lib" / "ours.d" / "10hook").write_bytes(b"#!/bin/sh\n")
    (files / "usr" / "lib" / "ours.d" / "words").write_bytes(b"words\n")
    (files / "usr" / "bin").mkdir()
    (files / "usr" / "bin" / "main-menu.divert").write_bytes(b"#!/bin/sh\nexec main-menu.distrib\n")
    for path in files.rglob("*"):
        path.chmod(0o777 if path.is_dir() else 0o664)
    (home / "initrd.yaml").write_text(PLAN)
    monkeypatch.setattr(initrd, "FILES", files)
    return home


def build(tmp_path: Path, home: Path, *, plan: str = PLAN) -> tuple[bytes, cpio.Tree]:
    (home / "initrd.yaml").write_text(plan)
    installer = make_installer(tmp_path)
    return initrd.build(
        initrd.load_plan(home / "initrd.yaml"),
        netboot=installer.netboot,
        udebs=installer.udebs,
        preseed="the answers\n",
        identities="epoch 1\n",
        workdir=tmp_path / "work",
    )


def test_kernel_and_answers_are_there(tmp_path: Path, home: Path) -> None:
    kernel, tree = build(tmp_path, home)
    assert kernel == b"a kernel"
    assert tree["preseed.cfg"] == cpio.file(b"the answers\n")
    assert tree["etc/goldsmith/identities"] == cpio.file(b"epoch 1\n")
    assert tree["etc/goldsmith"] == cpio.directory()
    assert tree["init"] == cpio.file(b"#!/bin/sh\n", 0o755)
    assert stat.S_ISCHR(tree["dev/console"].mode)


def test_udebs_are_unpacked_into_usr(tmp_path: Path, home: Path) -> None:
    """The base has /bin as a link to usr/bin; a file installed as bin/partman would hide the directory."""
    _, tree = build(tmp_path, home)
    assert tree["usr/bin/partman"] == cpio.file(b"#!/bin/sh\n", 0o755)
    assert "bin/partman" not in tree
    assert tree["bin"].is_link


def test_udebs_are_registered_as_unpacked(tmp_path: Path, home: Path) -> None:
    """main-menu runs the postinst of packages in that state, and of no others."""
    _, tree = build(tmp_path, home)
    status = tree["var/lib/dpkg/status"].content.decode()
    assert "\n\nPackage: partman\nStatus: install ok unpacked\nVersion: 1\n" in status
    assert tree["var/lib/dpkg/info/partman.postinst"] == cpio.file(b"#!/bin/sh\nexit 0\n", 0o755)


def test_dropped_packages_are_forgotten(tmp_path: Path, home: Path) -> None:
    _, tree = build(tmp_path, home)
    status = tree["var/lib/dpkg/status"].content.decode()
    assert "Package: main-menu\nStatus: install ok unpacked\nInstaller-Menu-Item: 1\n\n" in status
    assert "netcfg" not in status
    assert [path for path in tree if "netcfg" in path] == []


def test_dropped_hooks_leave_no_empty_directory(tmp_path: Path, home: Path) -> None:
    """The installer takes the pattern of an empty directory for the name of a script."""
    _, tree = build(tmp_path, home)
    assert [path for path in tree if "post-base-installer" in path] == []
    assert "usr/lib/finish-install.d/95umount" in tree


def test_translations_are_left_out(tmp_path: Path, home: Path) -> None:
    _, tree = build(tmp_path, home)
    assert tree["var/lib/dpkg/info/partman.templates"].content == (
        b"Template: partman/x\nType: select\nChoices-C: a\nDescription: Go on?\n More of it.\n\n"
        b"Template: partman/y\nType: text\nDescription: Last\n"
    )


def test_only_wanted_modules_are_kept_with_their_index(tmp_path: Path, home: Path) -> None:
    _, tree = build(tmp_path, home)
    files = [path for path in tree if path.startswith(f"{MODULES}/") and not tree[path].is_directory]
    kept = {path.removeprefix(f"{MODULES}/") for path in files}
    assert {name for name in kept if name.endswith(".ko")} == {"kernel/fs/ext4.ko", "kernel/drivers/virtio_blk.ko"}
    assert {"modules.dep.bin", "modules.alias.bin", "modules.builtin"} <= kept
    assert f"{MODULES}/kernel/net" not in tree


def test_a_missing_module_is_a_hole(tmp_path: Path, home: Path) -> None:
    with pytest.raises(StepFailed, match="lacks kernel modules: squashfs") as caught:
        build(tmp_path, home, plan=PLAN.replace("[ext4,", "[ext4, squashfs,"))
    assert "nox -s lock" in caught.value.hint


def test_modules_of_two_kernels_are_refused(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The archive's netboot package and its module udebs are out of step for days after a point release."""
    monkeypatch.setattr("tests.unit.tiny_installer.VERSION", "6.12.107+deb13-amd64")
    with pytest.raises(StepFailed, match="are for 2 kernels, not one") as caught:
        build(tmp_path, home)
    assert caught.value.details == "6.12.107+deb13-amd64\n6.12.94+deb13-amd64"


def test_dependencies_of_modules_are_kept() -> None:
    text = "kernel/ext4.ko.xz: kernel/jbd2.ko.xz kernel/crc16.ko.xz\nkernel/jbd2.ko.xz:\nkernel/crc16.ko.xz:\n"
    text += "kernel/xfs.ko.xz:\n"
    assert initrd._closure(text, ["ext4"]) == {"kernel/ext4.ko.xz", "kernel/jbd2.ko.xz", "kernel/crc16.ko.xz"}


def test_our_files_are_laid_with_modes_from_their_content(tmp_path: Path, home: Path) -> None:
    _, tree = build(tmp_path, home)
    assert tree["usr/lib/ours.d"] == cpio.directory()
    assert tree["usr/lib/ours.d/10hook"].mode & 0o7777 == 0o755
    assert tree["usr/lib/ours.d/words"].mode & 0o7777 == 0o644
    assert tree["etc/inittab"].content == b"::sysinit:/sbin/init\nttyS1::respawn:/usr/bin/stream\n"
    assert "etc/inittab.append" not in tree


def test_a_diverted_program_stays_under_the_name_that_dpkg_divert_gives(tmp_path: Path, home: Path) -> None:
    _, tree = build(tmp_path, home)
    assert tree["usr/bin/main-menu"] == cpio.file(b"#!/bin/sh\nexec main-menu.distrib\n", 0o755)
    assert tree["usr/bin/main-menu.distrib"] == cpio.file(b"\x7fELF", 0o755)
    assert "usr/bin/main-menu.divert" not in tree


@pytest.mark.parametrize("suffix", ["append", "divert"])
def test_appending_to_nothing_is_an_error(tmp_path: Path, home: Path, suffix: str) -> None:
    (home / "initrd" / "etc" / f"innitab.{suffix}").write_text("x")
    with pytest.raises(StepFailed, match="the installer has no etc/innitab"):
        build(tmp_path, home)


def test_a_pattern_that_matches_nothing_is_told(tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(tmp_path, home, plan=PLAN.replace("[usr/bin/netcfg,", "[usr/bin/netcfg, usr/bin/nettcfg,"))
    assert "no file like usr/bin/nettcfg" in capsys.readouterr().err


def test_every_problem_of_the_plan_is_told(tmp_path: Path) -> None:
    path = tmp_path / "initrd.yaml"
    path.write_text(PLAN.replace("kernel:", "kernle:").replace("[ext4,", "[Ext4,"))
    with pytest.raises(SpecError) as caught:
        initrd.load_plan(path)
    for word in ("kernle", "kernel", "Ext4"):
        assert word in caught.value.details


# --- the files of the repository --------------------------------------------------------------------------------------


def test_the_plan_of_the_repository_is_valid() -> None:
    plan = initrd.load_plan()
    assert {"ext4", "squashfs", "virtio_blk", "virtio_scsi", "sr_mod", "isofs", "vfat"} <= set(plan.modules)
    assert "save-logs" in plan.packages_dropped


def scripts() -> list[Path]:
    files = [path for path in initrd.FILES.rglob("*") if path.is_file()]
    return sorted(path for path in files if path.read_bytes().startswith(b"#!/bin/sh\n"))


@pytest.mark.parametrize("path", scripts(), ids=lambda path: path.name)
def test_our_scripts_are_valid_shell(path: Path) -> None:
    run.run(["sh", "-n", path], timeout=PATIENCE_SECONDS)


def test_our_boot_step_takes_the_place_of_debians() -> None:
    status = (initrd.FILES / "var/lib/dpkg/status.append").read_text()
    assert "Package: goldsmith-boot\nStatus: install ok unpacked\n" in status
    assert "\nProvides: bootable-system\n" in status
    assert status.endswith("\n\n")
