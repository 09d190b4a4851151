"""Compares the content of a template's disk, read on its node over SSH, with the artifact.

The API does not return disk content. ``pvesm export`` of Proxmox writes a volume on any storage to a pipe; only ZFS,
which exports its own format, cannot be compared.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from build.artifact.artifact import Artifact
from build.core import files, log
from build.machines import disk_image
from build.publish import ssh_import

# Proxmox writes the size before the content, in 8 bytes (pve-storage, Plugin.pm, write_common_header).
HEADER_BYTES = 8
RAW = "disk.raw"
# A template's volume on LVM has no device until it is activated; pvesm has no command for that, its library has.
ACTIVATE = "perl -MPVE::Storage -e 'PVE::Storage::activate_volumes(PVE::Storage::config(), [$ARGV[0]])'"


class Disks:
    """Digests of disks: on nodes, and of artifacts, each of which is converted once."""

    def __init__(self, ssh: ssh_import.Ssh, scratch: Path) -> None:
        self.ssh, self.scratch = ssh, scratch
        self._known: dict[Path, str] = {}

    def expected(self, source: Artifact) -> str:
        """Return the SHA-256 of an artifact's raw disk; takes about a minute."""
        if source.path not in self._known:
            with (
                log.step(f"Converting {source.path.name} to a raw disk", done="its digest is known"),
                files.scratch(self.scratch) as place,
            ):
                disk_image.to_raw(source.image, place / RAW)
                self._known[source.path] = files.sha256_file(place / RAW)
        return self._known[source.path]

    def found(self, node: str, volume: str) -> str:
        """Return the SHA-256 of a volume's content. Raises GoldsmithError if the node cannot export it."""
        name = shlex.quote(volume)
        command = f"{ACTIVATE} {name} && pvesm export {name} raw+size - | tail --bytes=+{HEADER_BYTES + 1} | sha256sum"
        with log.step(f"Reading {volume} on {node}", done="read"), self.ssh.connect(node) as client:
            # Without pipefail a failed export would give the digest of empty input.
            return ssh_import.execute(client, node, ["bash", "-c", f"set -o pipefail; {command}"]).split()[0]
