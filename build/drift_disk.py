"""The bytes of a template's disk, read on its node over SSH, and what they have to be by the artifact.

The API shows no bytes. Proxmox's own ``pvesm export`` writes a volume to a pipe, whatever storage it lies on; only ZFS,
which knows its own format alone, has none that could be compared.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from build import files, log, qm, sealed
from build.artifact import Artifact

# Proxmox writes the size ahead of the bytes: 8 of them (pve-storage, Plugin.pm, write_common_header).
HEADER_BYTES = 8
RAW = "disk.raw"
# A template's volume on LVM has no device until it is used; pvesm has no word for that, its library has.
ACTIVATE = "perl -MPVE::Storage -e 'PVE::Storage::activate_volumes(PVE::Storage::config(), [$ARGV[0]])'"


class Disks:
    """Digests of disks' contents: on nodes, and of artifacts, each of which is unfolded once."""

    def __init__(self, ssh: qm.Ssh, scratch: Path) -> None:
        self.ssh, self.scratch = ssh, scratch
        self._known: dict[Path, str] = {}

    def expected(self, found: Artifact) -> str:
        """Return the SHA-256 of an artifact's disk as a machine sees it; takes a minute for a usual one."""
        if found.path not in self._known:
            with log.step(f"Unfolding {found.path.name}", done="its bytes are known"), files.scratch(self.scratch) as place:
                sealed.to_raw(found.image, place / RAW)
                self._known[found.path] = files.sha256_file(place / RAW)
        return self._known[found.path]

    def found(self, node: str, volume: str) -> str:
        """Return the SHA-256 of a volume's content. Raises GoldsmithError when the node cannot tell it."""
        name = shlex.quote(volume)
        words = f"{ACTIVATE} {name} && pvesm export {name} raw+size - | tail --bytes=+{HEADER_BYTES + 1} | sha256sum"
        with log.step(f"Reading {volume} on {node}", done="read"), self.ssh.connect(node) as client:
            # Without pipefail a failed export would be the digest of nothing.
            return qm.execute(client, node, ["bash", "-c", f"set -o pipefail; {words}"]).split()[0]
