"""What is taken from a tar archive that others may have made."""

from __future__ import annotations

import tarfile


def plain(member: tarfile.TarInfo) -> bool:
    """Return True if a member of a tar archive is a regular file: no link, device or directory, and nothing sparse.

    The header of a sparse file gives its size, so that a small archive can hold a huge one.
    """
    return member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()
