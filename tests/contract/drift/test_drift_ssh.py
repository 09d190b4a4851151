"""The bytes of a template's disk, read on its node over real SSH, with a fake of Proxmox's command."""

from __future__ import annotations

import hashlib
import shlex
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paramiko
import pytest

from build.artifact.artifact import Artifact
from build.core import run
from build.drift import drift
from build.drift.disk import Disks
from build.drift.drift import TemplateReport
from build.machines import disk_image
from build.proxmox import client
from build.publish import ssh_import
from tests import proven
from tests.contract.cloning import OPERATOR
from tests.contract.shipping import DISK_MIB, Bench
from tests.fakes.sshd import HOST, Node

VOLUME = "local-lvm:base-9000-disk-1"


@pytest.fixture
def whole(bench: Bench, tmp_path: Path) -> Artifact:
    """An artifact with a real image that has some content."""
    raw, image = tmp_path / "disk.raw", tmp_path / "image.qcow2"
    with raw.open("wb") as stream:
        stream.write(b"boot" * 1000)
        stream.truncate(DISK_MIB << 20)
    run.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image], timeout=60)
    found = proven.make(bench.place / "artifacts", image, virtual_mib=DISK_MIB)
    bench.publish(found)
    return found


class Exporting:
    """A node that exports volumes: the size, and the bytes."""

    def __init__(self, tmp_path: Path) -> None:
        self.tmp_path, self.problem, self.content = tmp_path, "", b""

    def __call__(self, argv: list[str]) -> tuple[int, str]:
        if argv[:2] != ["bash", "-c"]:
            return 127, f"{argv[0]}: command not found"
        (self.tmp_path / "stream").write_bytes(struct.pack("<Q", len(self.content)) + self.content)
        command = f"echo {shlex.quote(self.problem)} >&2; exit 2" if self.problem else f"cat {self.tmp_path / 'stream'}"
        activated = self.tmp_path / "activated"
        perl = f'perl() {{ case "$*" in *activate_volumes*" {VOLUME}") touch {activated};; *) exit 9;; esac; }}'
        check = f'[ "$*" = "export {VOLUME} raw+size -" ] && [ -e {activated} ] || exit 9'
        script = f"{perl}\npvesm() {{ {check}; {command}; }}\n{argv[2]}"
        done = run.run(["bash", "-c", script], timeout=60, check=False)
        return done.returncode, done.stdout if done.returncode == 0 else done.stderr


@pytest.fixture
def exporting(tmp_path: Path) -> Iterator[Exporting]:
    key = paramiko.ECDSAKey.generate()
    key.write_private_key_file(str(tmp_path / "id_ecdsa"))
    made = Exporting(tmp_path)
    node = Node(tmp_path / "node", key.get_base64(), made)
    (tmp_path / "ssh_config").write_text(
        f"Host pve1\n HostName {HOST}\n Port {node.port}\n IdentityFile {tmp_path / 'id_ecdsa'}\n"
    )
    (tmp_path / "known_hosts").write_text(f"[{HOST}]:{node.port} {node.host_key.get_name()} {node.host_key.get_base64()}\n")
    yield made
    node.close()


def look(bench: Bench, tmp_path: Path, **changes: Any) -> TemplateReport:
    disks = Disks(ssh_import.Ssh(config=tmp_path / "ssh_config", known_hosts=tmp_path / "known_hosts"), tmp_path / "scratch")
    with client.Api(bench.settings, OPERATOR) as api:
        place = changes.get("artifacts", bench.place / "artifacts")
        [found] = drift.drift(
            drift.Job(api=api, settings=bench.settings, product="golden", artifacts=place, disks=disks)
        )  # fmt: skip
    return found


def content(found: Artifact, tmp_path: Path) -> bytes:
    disk_image.to_raw(found.image, tmp_path / "unfolded")
    return (tmp_path / "unfolded").read_bytes()


def test_the_bytes_are_those_of_the_artifact(bench: Bench, whole: Artifact, exporting: Exporting, tmp_path: Path) -> None:
    exporting.content = content(whole, tmp_path)
    found = look(bench, tmp_path)
    assert (found.changes, found.problem) == ([], "")
    digest = hashlib.sha256(exporting.content).hexdigest()
    assert found.notes == [f"the disk's bytes are those of the artifact (SHA-256 {digest})"]
    assert [path for path in (tmp_path / "scratch").iterdir() if path.is_dir()] == []


def test_a_byte_that_was_changed_is_found(bench: Bench, whole: Artifact, exporting: Exporting, tmp_path: Path) -> None:
    exporting.content = content(whole, tmp_path)[:-1] + b"x"
    [change] = look(bench, tmp_path).changes
    assert change.key == "disk content"
    assert change.found == hashlib.sha256(exporting.content).hexdigest()
    assert "stop cloning" in change.remedy


def test_a_storage_that_exports_nothing_is_no_good_disk(
    bench: Bench, whole: Artifact, exporting: Exporting, tmp_path: Path
) -> None:
    exporting.problem = "volume export format raw+size not available for PVE::Storage::ZFSPoolPlugin"
    found = look(bench, tmp_path)
    assert found.changes == []
    assert "the disk was not read" in found.problem
    assert "ZFSPoolPlugin" in found.problem


def test_a_node_that_is_not_known_is_not_spoken_to(
    bench: Bench, whole: Artifact, exporting: Exporting, tmp_path: Path
) -> None:
    (tmp_path / "known_hosts").write_text("")
    found = look(bench, tmp_path)
    assert "the disk was not read: pve1 cannot be reached over SSH" in found.problem


def test_without_the_artifact_there_is_nothing_to_compare_with(
    bench: Bench, whole: Artifact, exporting: Exporting, tmp_path: Path
) -> None:
    found = look(bench, tmp_path, artifacts=tmp_path / "nowhere")
    assert (found.changes, found.problem) == ([], "")
    assert any("is not on this host" in note for note in found.notes)
