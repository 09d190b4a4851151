"""The installer ISO is complete, boots with BIOS and UEFI, and is reproducible; real tools, a tiny installer."""

from __future__ import annotations

import gzip
import hashlib
import io
import re
from pathlib import Path

import pytest

from build.core import run
from build.core.errors import StepFailed
from build.core.files import sha256_file
from build.media import cpio, disk_ids, initrd, iso_image
from tests.unit.helpers import make_spec
from tests.unit.tiny_installer import PLAN, TinyInstaller, make_installer

EPOCH = 1790000000
SHIM, GRUB = b"a signed shim" * 1000, b"a signed GRUB" * 2000
PATHS = {
    "/.disk/base_installable", "/.disk/info", "/boot/bios.img", "/boot/efi.img", "/boot/grub/grub.cfg", "/boot/initrd",
    "/boot/linux", "/dists/trixie/Release", "/live/filesystem.squashfs",
}  # fmt: skip


@pytest.fixture
def installer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyInstaller:
    plan = tmp_path / "initrd.yaml"
    plan.write_text(PLAN)
    files = tmp_path / "initrd"
    files.mkdir()
    monkeypatch.setattr(initrd, "FILES", files)
    monkeypatch.setattr(initrd.load_plan, "__defaults__", (plan,))
    return make_installer(tmp_path)


@pytest.fixture
def squashfs(tmp_path: Path) -> Path:
    return make_squashfs(tmp_path, {path: SHIM if "shim" in path else GRUB for path in iso_image.EFI_FILES.values()})


def make_squashfs(directory: Path, files: dict[str, bytes]) -> Path:
    root, path = directory / "root", directory / "filesystem.squashfs"
    for name, content in {**files, "etc/hostname": b"golden\n"}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    run.run(["mksquashfs", root, path, "-noappend", "-quiet", "-no-progress"], timeout=60)
    return path


def make(directory: Path, installer: TinyInstaller, squashfs: Path, *, name: str = "medium.iso") -> Path:
    out = directory / name
    spec = make_spec(directory)
    iso_image.make_media(
        spec, squashfs=squashfs, installer=installer.files, out=out, epoch=EPOCH, log=directory / "media.log"
    )
    return out


def read(iso: Path, path: str) -> bytes:
    """Return a file of the medium."""
    target = iso.parent / "read" / path.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    run.run(["xorriso", "-osirrox", "on", "-indev", iso, "-extract", path, target], timeout=60)
    target.chmod(0o644)
    return target.read_bytes()


def test_everything_is_on_the_medium(tmp_path: Path, installer: TinyInstaller, squashfs: Path) -> None:
    iso = make(tmp_path, installer, squashfs)
    listed = run.run(["xorriso", "-indev", iso, "-find", "/", "-type", "f"], timeout=60).stdout
    assert {line.strip("'") for line in listed.splitlines() if line.startswith("'/")} == PATHS
    assert read(iso, "/live/filesystem.squashfs") == squashfs.read_bytes()
    assert read(iso, "/boot/linux") == b"a kernel"
    assert read(iso, "/boot/grub/grub.cfg") == iso_image.GRUB_CONFIG.read_bytes()
    # By these two cdrom-detect and base-installer know the medium as one that can be installed from.
    assert read(iso, "/.disk/info").startswith(b"golden 1.2.3,")
    assert b"\nCodename: trixie\n" in read(iso, "/dists/trixie/Release")


def test_the_initial_ram_file_system_can_be_read_back(tmp_path: Path, installer: TinyInstaller, squashfs: Path) -> None:
    tree = cpio.read(io.BytesIO(gzip.decompress(read(make(tmp_path, installer, squashfs), "/boot/initrd"))))
    assert "d-i partman-auto/method string regular\n" in tree["preseed.cfg"].content.decode()
    assert {(entry.uid, entry.gid) for entry in tree.values()} == {(0, 0)}


def identities_of(iso: Path) -> str:
    tree = cpio.read(io.BytesIO(gzip.decompress(read(iso, "/boot/initrd"))))
    return tree[disk_ids.TABLE].content.decode()


def test_the_file_systems_identities_are_those_of_what_is_installed(
    tmp_path: Path, installer: TinyInstaller, squashfs: Path
) -> None:
    told = identities_of(make(tmp_path, installer, squashfs))
    assert told.startswith(f"epoch {EPOCH}\n1 ")
    (tmp_path / "other").mkdir()
    other = make_squashfs(tmp_path / "other", dict.fromkeys(iso_image.EFI_FILES.values(), SHIM))
    others = identities_of(make(tmp_path / "other", installer, other))
    assert {word for word in told.split() if "-" in word}.isdisjoint(others.split())


def test_both_kinds_of_firmware_can_start_it(tmp_path: Path, installer: TinyInstaller, squashfs: Path) -> None:
    iso = make(tmp_path, installer, squashfs)
    report = run.run(["xorriso", "-indev", iso, "-report_el_torito", "plain"], timeout=60).stdout
    assert re.search(r"boot img :\s+1\s+BIOS\s+y\s+none", report), report
    assert re.search(r"boot img :\s+2\s+UEFI\s+y\s+none", report), report
    assert "/boot/bios.img" in report
    assert "/boot/efi.img" in report


def test_uefi_starts_the_signed_programs_of_the_image(tmp_path: Path, installer: TinyInstaller, squashfs: Path) -> None:
    iso = make(tmp_path, installer, squashfs)
    image = tmp_path / "efi.img"
    image.write_bytes(read(iso, "/boot/efi.img"))
    for name, content in (("BOOTX64.EFI", SHIM), ("grubx64.efi", GRUB)):
        run.run(["mcopy", "-i", image, f"::EFI/BOOT/{name}", tmp_path / name], timeout=60)
        assert (tmp_path / name).read_bytes() == content


def test_the_hash_of_the_initial_ram_file_system_is_told(tmp_path: Path, installer: TinyInstaller, squashfs: Path) -> None:
    iso = tmp_path / "medium.iso"
    told = iso_image.make_media(
        make_spec(tmp_path), squashfs=squashfs, installer=installer.files, out=iso, epoch=EPOCH, log=tmp_path / "log"
    )
    initrd = hashlib.sha256(read(iso, "/boot/initrd")).hexdigest()
    assert told == iso_image.MediaFacts(initrd, iso.stat().st_size, sha256_file(iso))


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path, installer: TinyInstaller, squashfs: Path) -> None:
    first = sha256_file(make(tmp_path, installer, squashfs))
    (tmp_path / "elsewhere").mkdir()
    # Later, and from files with other times.
    for path in (squashfs, *installer.files.values()):
        path.touch()
    assert sha256_file(make(tmp_path / "elsewhere", installer, squashfs, name="other.iso")) == first


def test_nothing_but_the_medium_is_left(tmp_path: Path, installer: TinyInstaller, squashfs: Path) -> None:
    before = set(tmp_path.iterdir())
    make(tmp_path, installer, squashfs)
    new = {path.name for path in set(tmp_path.iterdir()) - before}
    assert new <= {"medium.iso", "media.log", "golden.yaml", ".scratch.lock"}


def test_a_root_file_system_without_shim_is_refused(tmp_path: Path, installer: TinyInstaller) -> None:
    squashfs = make_squashfs(tmp_path, {})
    with pytest.raises(StepFailed, match=r"lacks usr/lib/shim/shimx64\.efi\.signed") as caught:
        make(tmp_path, installer, squashfs)
    assert "20-boot" in caught.value.hint
    assert not (tmp_path / "medium.iso").exists()


def test_a_set_without_netboot_package_is_refused(tmp_path: Path, installer: TinyInstaller, squashfs: Path) -> None:
    udebs = TinyInstaller({name: path for name, path in installer.files.items() if name.endswith(".udeb")})
    with pytest.raises(StepFailed, match="contains 0 netboot packages, not one"):
        make(tmp_path, udebs, squashfs)


def test_the_menu_of_the_medium_waits_for_nobody() -> None:
    text = iso_image.GRUB_CONFIG.read_text()
    assert text.count("\nset timeout=0\n") == 1
    assert text.count("menuentry") == 1
    # The last console is the installer's. With two of them it would start twice.
    assert re.findall(r"console=(\S+)", text) == ["ttyS0,115200"]
