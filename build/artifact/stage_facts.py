"""The types of the stages' facts, with which the cache reads the results of earlier builds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from build.core.cache import Cache
from build.disk.installation import DiskFacts
from build.media.iso_image import MediaFacts
from build.rootfs.base import BaseFacts
from build.rootfs.rootfs import RootfsFacts
from build.verify.verify import VerifyFacts

KINDS: Mapping[str, type] = {
    "base": BaseFacts, "rootfs": RootfsFacts, "media": MediaFacts, "disk": DiskFacts, "verify": VerifyFacts,
}  # fmt: skip


def open_cache(root: Path) -> Cache:
    """Return a cache that knows the stages."""
    return Cache(root, KINDS)
