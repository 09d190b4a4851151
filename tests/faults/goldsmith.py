"""Goldsmith as it is, but for what no fake program can stand in for; ``python -m tests.faults.goldsmith VERB`` runs it.

The medium is made by one fake program, since the real stage takes the installer's own files apart. The host counts as
large enough and complete, and its disk as quick as its memory: what it holds is no part of these tests.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from build import apt, cli, disk, files, host, media, pipeline, run, vm
from build.spec import Spec

MEDIUM_TOOL = "fake-medium"


def make_media(
    spec: Spec, *, squashfs: Path, installer: Mapping[str, Path], out: Path, epoch: int, log: Path
) -> Mapping[str, str]:
    """Stand in for build.media.make_media."""
    assert squashfs.is_file()
    assert all(path.is_file() for path in installer.values())
    run.run([MEDIUM_TOOL, out, spec.name, str(epoch)], timeout=60, log=log)
    return {"initrd_sha256": files.sha256_file(out)}


CHANGES: tuple[tuple[object, str, Any], ...] = (
    (os, "fsync", lambda _descriptor: None),
    (media, "make_media", make_media),
    (host, "TOOLS", ()),
    (host, "UNPRIVILEGED_TOOLS", ()),
    (host, "free_bytes", lambda _path: 1 << 40),
    (host, "memory_mib", lambda: 1 << 20),
    (apt, "POLL_SECONDS", 0.02),
    (disk, "POLL_SECONDS", 0.05),
    (vm, "POLL_SECONDS", 0.02),
    # No systemd boots in the fakes' root file system: the clones play the stories too.
    (pipeline, "plays_stories", lambda *_words: False),
)


if __name__ == "__main__":
    for module, name, value in CHANGES:
        setattr(module, name, value)
    sys.exit(cli.main())
