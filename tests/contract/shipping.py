"""Fixtures for tests of publishing: an artifact as small as Proxmox accepts it, and a bench to publish it from."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path
from typing import Any

import yaml

from build.artifact.artifact import Artifact
from build.core.yaml_table import Table
from build.proxmox import client
from build.publish import publish
from build.publish.upload import OverApi
from build.spec import cluster
from build.spec.cluster import Role, Settings, Token
from tests import proven
from tests.fakes.proxmox import Proxmox
from tests.unit.helpers import golden

DISK_MIB = 64
NAME = "golden-1.2.3"


def settings_of(host: str, port: int, cafile: str) -> Settings:
    """Return settings that lead to a fake cluster of one node, pve1, with the pool golden."""
    section = {
        "host": host, "port": port, "ca": cafile, "nodes": ["pve1"], "storage": "local-lvm", "media": "local",
        "pool": "golden",
    }  # fmt: skip
    problems: list[str] = []
    found = cluster.read(Table(section, where="proxmox", problems=problems))
    assert problems == []
    return found


def write_spec(root: Path, settings: Settings) -> None:
    """Write a golden.yaml that names the cluster of ``settings``."""
    section = {
        "host": settings.host, "port": settings.port, "ca": str(settings.ca), "nodes": list(settings.nodes),
        "storage": settings.storage, "media": settings.media, "pool": settings.pool,
    }  # fmt: skip
    (root / "golden.yaml").write_text(yaml.safe_dump(golden() | {"proxmox": section}))


def image_bytes(fill: bytes = b"\0") -> bytes:
    """Return the head of a qcow2 file and some content: as much as Proxmox looks at."""
    return struct.pack(">4sIQIIQ", b"QFI\xfb", 3, 0, 0, 16, DISK_MIB << 20) + fill * 4096


def make_artifact(place: Path, *, fill: bytes = b"\0", **changes: Any) -> Artifact:
    place.mkdir(parents=True, exist_ok=True)
    image = place / f"source-{fill.hex()}.qcow2"
    image.write_bytes(image_bytes(fill))
    return proven.make(place / "artifacts", image, virtual_mib=DISK_MIB, **changes)


def content(_subject: publish.Subject) -> None:
    """Accept every image."""


@dataclasses.dataclass
class Bench:
    """A cluster, an artifact, and a way to publish the one to the other."""

    proxmox: Proxmox
    settings: Settings
    place: Path
    token: Token
    verifier: publish.Verifier = content
    artifact: Artifact | None = None

    def publish(self, found: Artifact | None = None, **changes: Any) -> list[publish.Template]:
        with client.Api(self.settings, self.token) as api:
            job = publish.Job(
                artifact=found or self.artifact or make_artifact(self.place), settings=self.settings, api=api,
                verifier=self.verifier, nodes=self.settings.nodes, tokens={Role.PUBLISHER: api},
                media=lambda connection: OverApi(connection, self.settings),
            )  # fmt: skip
            return publish.publish(dataclasses.replace(job, **changes))

    def with_nodes(self, *names: str) -> None:
        for name in names:
            self.proxmox.add_node(name)
        self.settings = dataclasses.replace(self.settings, nodes=names)
