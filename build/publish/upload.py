"""Uploads the image to a node and removes it afterwards; each Media is one way of upload.

Over the API the file name contains the digest, and Proxmox checks the hash before it gives the file that name: a file
with that name and the right size is the image, whoever uploaded it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from build.artifact.artifact import Artifact
from build.core import log
from build.core.errors import StepFailed
from build.core.units import GIB
from build.proxmox import roles
from build.proxmox.api_errors import NO_ANSWER, ApiError, denied
from build.proxmox.client import Api
from build.proxmox.labels import Label
from build.spec.cluster import Settings

UPLOAD_ATTEMPTS = 3
SHOW_SECONDS = 0.2
# pve-storage, Status.pm: the right to upload.
UPLOAD_RIGHT = "Datastore.AllocateTemplate"


@dataclass(frozen=True)
class UploadedImage:
    """An image on a node, and its volume id there."""

    volume: str


class Media(Protocol):
    """A way to upload an image to a node and import it to a VM's disk."""

    def find(self, node: str, source: Artifact, label: Label) -> UploadedImage | None:
        """Return the image if an earlier run uploaded it completely."""
        ...

    def bring(self, node: str, source: Artifact, label: Label, tell: Callable[[int], None]) -> UploadedImage:
        """Upload the image to the node; ``tell`` is called with the number of bytes sent."""
        ...

    def disk(self, uploaded: UploadedImage) -> dict[str, Any]:
        """Return the keys of a new VM that create its disk from the image; none if ``attach`` does it."""
        ...

    def attach(self, node: str, vmid: int, uploaded: UploadedImage) -> None:
        """Add the disk to a VM that was created without a disk."""
        ...

    def remove(self, node: str, label: Label) -> None:
        """Remove the image from the node; a missing image is not an error."""
        ...


class Source(Protocol):
    """A file to upload, such as an artifact."""

    @property
    def image(self) -> Path: ...


class Uploads:
    """One progress bar for the uploads to all nodes; ``nodes``: the number of nodes."""

    def __init__(self, size: int, nodes: int) -> None:
        self.size = size
        # The text is constant: without a terminal each new text is a line.
        self._text = f"{size / GIB:.2f} GiB" + (f" to each of {nodes} nodes" if nodes > 1 else "")
        self.progress = log.Progress("uploading")
        self._sent: dict[str, int] = {}
        self._lock = threading.Lock()
        self._shown = 0.0

    def teller(self, node: str, check: Callable[[], None]) -> Callable[[int], None]:
        """Return a callback for the number of bytes sent to a node; ``check`` may end the upload by an exception."""

        def tell(sent: int) -> None:
            check()
            with self._lock:
                self._sent[node] = sent
                now = time.monotonic()
                if now - self._shown < SHOW_SECONDS and sent < self.size:
                    return
                self._shown = now
                fraction = sum(self._sent.values()) / (self.size * len(self._sent))
            self.progress.update(self._text, fraction)

        return tell


class OverApi:
    """Upload as content ``import`` and ``import-from``: Proxmox VE 8.4 and newer."""

    content, suffix = "import", ".qcow2"

    def __init__(self, api: Api, settings: Settings) -> None:
        self.api, self.settings = api, settings

    def find(self, node: str, source: Source, label: Label) -> UploadedImage | None:
        if self._size(node, label) != source.image.stat().st_size:
            return None
        log.info(f"{node}: {self._name(label)} already exists: not uploading it again")
        return UploadedImage(self._volume(label))

    def bring(self, node: str, source: Source, label: Label, tell: Callable[[int], None]) -> UploadedImage:
        for attempt in range(1, UPLOAD_ATTEMPTS + 1):
            try:
                volume = self.api.upload(
                    node, self.settings.media, source.image, name=self._name(label), sha256=label.digest,
                    content=self.content, progress=tell,
                )  # fmt: skip
                return UploadedImage(volume)
            except ApiError as error:
                if error.status != NO_ANSWER:
                    raise
                self._require_welcome(node, source.image.stat().st_size)
                # The same bytes under the same name: sending them again is harmless if the first upload succeeded.
                if attempt == UPLOAD_ATTEMPTS:
                    error.hint = f"{error.hint}; Proxmox spools an upload in /var/tmp of the node that it reaches first"
                    raise
                log.warn(f"{node}: the upload was interrupted; retrying")
        raise AssertionError

    def _require_welcome(self, node: str, size: int) -> None:
        """Raise the reason why Proxmox closed an upload: its answer does not reach a client that is still sending.

        Raises Denied without the privilege to upload, StepFailed without room for ``size`` bytes, ApiError if there is
        no answer.
        """
        path = f"/storage/{self.settings.media}"
        upload_grant = roles.Grant(path, frozenset({UPLOAD_RIGHT}), "upload the image")
        if roles.missing([upload_grant], self.api.get("/access/permissions")):
            where = f"POST /nodes/{node}{path}/upload"
            raise denied(f"Permission check failed ({path}, {UPLOAD_RIGHT})", self.api.token, where)
        free = int(self.api.get(f"/nodes/{node}{path}/status").get("avail", size))
        if free < size:
            raise StepFailed(
                f"not enough free space on storage {self.settings.media} of {node}",
                details=f"{free / GIB:.1f} GiB free, {size / GIB:.1f} GiB needed",
                hint=f"free space on the storage {self.settings.media}, or set another one in golden.yaml",
            )

    def disk(self, uploaded: UploadedImage) -> dict[str, Any]:
        return {
            "scsi0": f"{self.settings.storage}:0,import-from={uploaded.volume},discard=on,iothread=1",
            "boot": "order=scsi0",
        }

    def attach(self, node: str, vmid: int, uploaded: UploadedImage) -> None:
        """Do nothing: the disk was created with the VM."""

    def remove(self, node: str, label: Label) -> None:
        if self._size(node, label) is None:
            return
        upid = self.api.delete(f"/nodes/{node}/storage/{self.settings.media}/content/{self._volume(label)}")
        if upid:
            self.api.wait(upid)

    def _volume(self, label: Label) -> str:
        return f"{self.settings.media}:{self.content}/{self._name(label)}"

    def _name(self, label: Label) -> str:
        return label.medium.removesuffix(".qcow2") + self.suffix

    def _size(self, node: str, label: Label) -> int | None:
        listed = self.api.get(f"/nodes/{node}/storage/{self.settings.media}/content", content=self.content)
        return next((int(volume["size"]) for volume in listed if volume["volid"] == self._volume(label)), None)
