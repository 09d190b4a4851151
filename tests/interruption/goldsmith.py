"""Goldsmith with replacements for the parts that no fake program covers: ``python -m tests.interruption.goldsmith COMMAND``.

The medium is made by one fake program, since the real stage takes the installer's own files apart. The host counts as
large enough and complete, and its disk as quick as its memory: what it holds is no part of these tests.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from build.cli import main
from build.core import files, host, run
from build.disk import installation
from build.machines import vm
from build.media import iso_image
from build.packages import apt
from build.pipeline import build
from build.spec.golden_yaml import Spec

MEDIUM_TOOL = "fake-medium"


def make_media(
    spec: Spec, *, squashfs: Path, installer: Mapping[str, Path], out: Path, epoch: int, log: Path
) -> iso_image.MediaFacts:
    """Stand in for build.media.make_media."""
    assert squashfs.is_file()
    assert all(path.is_file() for path in installer.values())
    run.run([MEDIUM_TOOL, out, spec.name, str(epoch)], timeout=60, log=log)
    digest = files.sha256_file(out)
    return iso_image.MediaFacts(digest, out.stat().st_size, digest)


BUILDS_TOOLS = (*host.TOOLS, *host.UNPRIVILEGED_TOOLS, *host.CONTAINER_TOOLS)
_version = host.version

CHANGES: tuple[tuple[object, str, Any], ...] = (
    (os, "fsync", lambda _descriptor: None),
    (iso_image, "make_media", make_media),
    (host, "missing_packages", lambda _tools: ()),
    (host, "version", lambda tool: "" if tool in BUILDS_TOOLS else _version(tool)),
    (host, "free_bytes", lambda _path: 1 << 40),
    (host, "memory_mib", lambda: 1 << 20),
    (apt, "POLL_SECONDS", 0.02),
    (installation, "POLL_SECONDS", 0.05),
    (vm, "POLL_SECONDS", 0.02),
    # No systemd boots in the root file system of the fakes: the clones run the long service tests too.
    (build, "plays_stories", lambda *_words: False),
)


if __name__ == "__main__":
    for module, name, value in CHANGES:
        setattr(module, name, value)
    sys.exit(main.main())
