"""Brings the image to a node, once, and takes it away again; how it travels is a Media's own business.

Over the API the file has a name that holds its digest, and Proxmox checks its hash before it gives it that name: what
bears the name and has the size is the image, whoever uploaded it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from build import log
from build.artifact import Artifact
from build.cluster import Settings
from build.labels import Label
from build.pve import Api, ApiError

UPLOAD_ATTEMPTS = 3
SHOW_SECONDS = 0.2
GIB = 1 << 30


@dataclass(frozen=True)
class Brought:
    """An image on a node, and what the node calls it."""

    volume: str


class Media(Protocol):
    """A way for an image to get onto a node and into a machine's disk."""

    def find(self, node: str, source: Artifact, label: Label) -> Brought | None:
        """Return the image if an earlier run brought it to the node whole."""
        ...

    def bring(self, node: str, source: Artifact, label: Label, tell: Callable[[int], None]) -> Brought:
        """Bring the image to the node; ``tell`` is told how many bytes are there."""
        ...

    def disk(self, brought: Brought) -> dict[str, Any]:
        """Return the keys of a new machine that make its disk of the image; none when ``attach`` does it."""
        ...

    def attach(self, node: str, vmid: int, brought: Brought) -> None:
        """Give a machine that was made without a disk its disk."""
        ...

    def remove(self, node: str, label: Label) -> None:
        """Take the image away from the node; one that is not there is no error."""
        ...


class Source(Protocol):
    """A file that is uploaded: an artifact, for one."""

    @property
    def image(self) -> Path: ...


class Uploads:
    """One bar for the uploads to all nodes together; ``nodes``: to how many an image may have to go."""

    def __init__(self, size: int, nodes: int) -> None:
        self.size = size
        # The text stays as it is: without a terminal each new text is a line.
        self._text = f"{size / GIB:.2f} GiB" + (f" to each of {nodes} nodes" if nodes > 1 else "")
        self.progress = log.Progress("uploading")
        self._sent: dict[str, int] = {}
        self._lock = threading.Lock()
        self._shown = 0.0

    def teller(self, node: str, check: Callable[[], None]) -> Callable[[int], None]:
        """Return what is told how much a node has got; ``check`` may end the upload by an exception."""

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

    def find(self, node: str, source: Source, label: Label) -> Brought | None:
        if self._size(node, label) != source.image.stat().st_size:
            return None
        log.info(f"{node}: {self._name(label)} is there already: it is not uploaded again")
        return Brought(self._volume(label))

    def bring(self, node: str, source: Source, label: Label, tell: Callable[[int], None]) -> Brought:
        for attempt in range(1, UPLOAD_ATTEMPTS + 1):
            try:
                volume = self.api.upload(
                    node, self.settings.media, source.image, name=self._name(label), sha256=label.digest,
                    content=self.content, progress=tell,
                )  # fmt: skip
                return Brought(volume)
            except ApiError as error:
                # The same bytes under the same name: to send them again changes nothing that came through.
                if error.status != 0 or attempt == UPLOAD_ATTEMPTS:
                    raise
                log.warn(f"{node}: the upload broke off; it is begun again")
        raise AssertionError

    def disk(self, brought: Brought) -> dict[str, Any]:
        return {
            "scsi0": f"{self.settings.storage}:0,import-from={brought.volume},discard=on,iothread=1", "boot": "order=scsi0"
        }

    def attach(self, node: str, vmid: int, brought: Brought) -> None:
        """Do nothing: the disk was made with the machine."""

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
        return next((int(one["size"]) for one in listed if one["volid"] == self._volume(label)), None)
