"""The lab's disks: a qcow2 file for each volume of the cluster.

An imported disk and a full clone are copies, a linked clone is an overlay, a template's disk may only be read. The
firmware's variables come from the host's OVMF package, with or without Microsoft's keys, as on a node.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from urllib.parse import quote

from build.core import files, run
from build.machines import vm

CONVERT_SECONDS = 1800.0
QUICK_SECONDS = 60.0
EMPTY_VARS = vm.OVMF_VARS.with_name("OVMF_VARS_4M.fd")


class Disks:
    """The files below a directory, by volume id."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def path(self, volume: str) -> Path:
        """Return the file of a volume. One directory for all: in a linked clone's name the base would be a directory."""
        return self.root / f"{quote(volume, safe='')}.qcow2"

    def blank(self, volume: str, size: int) -> None:
        """Make an empty disk."""
        run.run(["qemu-img", "create", "-q", "-f", "qcow2", self.path(volume), str(size)], timeout=QUICK_SECONDS)

    def variables(self, volume: str, *, enrolled: bool) -> None:
        """Make the firmware's disk; ``enrolled``: with Microsoft's keys, which enforces Secure Boot."""
        self._convert(vm.OVMF_VARS if enrolled else EMPTY_VARS, self.path(volume), "raw")

    def take(self, volume: str, source: Path) -> None:
        """Make a disk of an uploaded file."""
        kind = {".qcow2": "qcow2", ".vmdk": "vmdk"}.get(source.suffix, "raw")
        self._copy(source, self.path(volume), kind)

    def full(self, volume: str, origin: str) -> None:
        """Make an independent copy of a disk."""
        self._copy(self.path(origin), self.path(volume), "qcow2")

    def linked(self, volume: str, origin: str) -> None:
        """Make a disk that holds only what differs from a template's."""
        run.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-b", self.path(origin), "-F", "qcow2", self.path(volume)],
            timeout=QUICK_SECONDS,
        )

    def _copy(self, source: Path, target: Path, kind: str) -> None:
        if kind == "qcow2" and not self._facts(source).get("backing-filename"):
            shutil.copyfile(source, target)
        else:
            self._convert(source, target, kind)

    @staticmethod
    def _convert(source: Path, target: Path, kind: str) -> None:
        run.run(["qemu-img", "convert", "-f", kind, "-O", "qcow2", source, target], timeout=CONVERT_SECONDS)

    @staticmethod
    def _facts(path: Path) -> dict[str, object]:
        found: dict[str, object] = json.loads(
            run.run(["qemu-img", "info", "--force-share", "--output=json", path], timeout=QUICK_SECONDS).stdout
        )
        return found

    def size(self, volume: str) -> int:
        """Return how large the disk is, in bytes."""
        return int(str(self._facts(self.path(volume))["virtual-size"]))

    def resize(self, volume: str, size: int) -> None:
        """Make a disk larger."""
        run.run(["qemu-img", "resize", "-q", "-f", "qcow2", self.path(volume), str(size)], timeout=QUICK_SECONDS)

    def rename(self, old: str, new: str) -> None:
        """Give a disk another name."""
        if self.path(old).exists():
            self.path(old).replace(self.path(new))

    def seal(self, volume: str) -> None:
        """Take the right to write from a template's disk."""
        self.path(volume).chmod(0o444)

    def digest(self, volume: str) -> str:
        """Return the SHA-256 of the file of a disk."""
        return files.sha256_file(self.path(volume))

    def free(self, volume: str) -> None:
        """Remove a disk; one that is not there is no error."""
        self.path(volume).unlink(missing_ok=True)
