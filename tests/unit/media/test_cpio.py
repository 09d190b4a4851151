"""The archive of the initial RAM file system: its bytes are reproducible, and only a valid archive is read."""

from __future__ import annotations

import io
import stat

import pytest

from build.media import cpio

TREE = {
    "init": cpio.file(b"#!/bin/sh\n", 0o755),
    "dev": cpio.directory(),
    "dev/console": cpio.Entry(stat.S_IFCHR | 0o644, device=(5, 1)),
    "bin": cpio.link("usr/bin"),
}
EPOCH = 1790000000


def written(tree: cpio.Tree, *, epoch: int = EPOCH) -> bytes:
    stream = io.BytesIO()
    cpio.write(tree, stream, epoch=epoch)
    return stream.getvalue()


def test_what_is_written_can_be_read() -> None:
    assert cpio.read(io.BytesIO(written(TREE))) == TREE


def test_bytes_follow_the_kernels_format() -> None:
    """Worked out by hand from Documentation/driver-api/early-userspace/buffer-format.rst."""
    fields = (1, 0o120777, 0, 0, 1, 16, 7, 0, 0, 0, 0, 4, 0)
    link = b"070701" + b"".join(f"{field:08X}".encode() for field in fields) + b"bin\0\0\0usr/bin\0"
    trailer = b"070701" + b"0" * 32 + b"00000001" + b"0" * 48 + b"0000000B" + b"00000000" + b"TRAILER!!!\0" + b"\0" * 3
    assert written({"bin": cpio.link("usr/bin")}, epoch=16) == link + trailer


def test_bytes_do_not_depend_on_the_order_of_making() -> None:
    backwards = dict(reversed(TREE.items()))
    assert list(backwards) != list(TREE)
    assert written(backwards) == written(TREE)


def test_a_parent_comes_before_what_is_in_it() -> None:
    data = written(TREE)
    assert data.index(b"dev\0") < data.index(b"dev/console\0")


def test_only_wanted_paths_are_kept() -> None:
    found = cpio.read(io.BytesIO(written(TREE)), wanted=lambda path: not path.startswith("dev"))
    assert set(found) == {"init", "bin"}


def test_leading_dot_and_root_are_left_out() -> None:
    assert set(cpio.read(io.BytesIO(written({".": cpio.directory(), "./init": TREE["init"]})))) == {"init"}


@pytest.mark.parametrize("cut", [60, 111, 130])
def test_a_cut_off_archive_is_refused(cut: int) -> None:
    with pytest.raises(ValueError, match=r"no newc cpio header|ends too early"):
        cpio.read(io.BytesIO(written(TREE)[:-cut]))


def test_other_bytes_are_refused() -> None:
    with pytest.raises(ValueError, match="no newc cpio header at byte 0"):
        cpio.read(io.BytesIO(b"070707" + b"0" * 200))


def test_hard_links_are_refused() -> None:
    data = bytearray(written({"a": cpio.file(b"x")}))
    data[38:46] = b"00000002"
    with pytest.raises(ValueError, match="a is a hard link"):
        cpio.read(io.BytesIO(bytes(data)))
