"""Fails, naming them, when file systems are nearly out of space or of inodes; the failure is the alert."""

from __future__ import annotations

import os
import sys
from pathlib import Path

LIMIT_PERCENT = 90
KINDS = {"ext4", "ext3", "ext2", "xfs", "btrfs", "vfat", "tmpfs", "overlay"}
NO_DATA = ("/run/credentials", "/dev", "/proc", "/sys")


def mounts() -> dict[int, str]:
    """Return the mount points of writable file systems that hold data, one for each device."""
    found: dict[int, str] = {}
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        _source, point, kind, _options, *_rest = line.split()
        point = point.encode().decode("unicode_escape")
        # The sandbox mounts most of it read-only, so that the file system itself is asked.
        if kind in KINDS and not point.startswith(NO_DATA) and os.access(point, os.X_OK):
            found.setdefault(Path(point).stat().st_dev, point)
    return found


def used_percent(total: int, free: int, available: int) -> int:
    """Return what df shows: what is used, of what ordinary users may ever use; rounded up."""
    used = total - free
    return -(-100 * used // (used + available)) if used + available > 0 else 0


def main() -> None:
    """Look at each, say what is too full, fail if anything is."""
    full = []
    for point in sorted(mounts().values()):
        status = os.statvfs(point)
        blocks = used_percent(status.f_blocks, status.f_bfree, status.f_bavail)
        inodes = used_percent(status.f_files, status.f_ffree, status.f_favail)
        full += [f"{point}: {blocks} % of the space is used"] if blocks >= LIMIT_PERCENT else []
        full += [f"{point}: {inodes} % of the inodes are used"] if inodes >= LIMIT_PERCENT else []
    for line in full:
        print(f"<3>{line}; find what grew with: du -xh --max-depth=2 {line.split(':')[0]} | sort -h | tail")
    sys.exit(1 if full else 0)


if __name__ == "__main__":
    main()
