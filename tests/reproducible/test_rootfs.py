"""Same inputs, same bytes: the real root file system and medium, built twice from the same locks, have one SHA-256 each.

Takes two to four minutes, natively. When the cache holds the result of a former build of these very inputs, that is one of
the two, and only the other is built.

Where /tmp is a tmpfs, as on Debian 13, that other one is made on a file system that lists a directory in another order.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from build.cli import options as cli_options
from build.core import files
from build.core.cache import Cache
from build.core.project import Project
from build.media import iso_image
from build.packages import wheels
from build.packages.apt import Store, host_mirrors
from build.pipeline import build
from build.rootfs import base as bases
from build.rootfs import rootfs
from build.spec import inputs

ROOT = Path(__file__).parents[2]


def build_once(gathered: inputs.Inputs, cache: Cache, scratch: Path) -> tuple[str, str]:
    """Build base and layers in ``scratch``; return the hashes of archive and squashfs, which is ``rootfs/`` there."""
    for name in ("base", "rootfs"):
        (scratch / name).mkdir(parents=True)
    bases.make_base(
        scratch / "base", spec=gathered.spec, stack=gathered.stack, lock=gathered.rootfs_lock,
        store=Store(cache.root / "files"), log_file=scratch / "base.log",
    )  # fmt: skip
    houses = {venv.path: wheels.fetch(venv.requirements, cache=cache.root) for venv in gathered.stack.venvs}
    facts = rootfs.make_rootfs(
        scratch / "rootfs", base=scratch / "base", spec=gathered.spec, stack=gathered.stack, lock=gathered.rootfs_lock,
        mirrors=gathered.mirrors, wheelhouses=houses, log_file=scratch / "rootfs.log",
    )  # fmt: skip
    return facts.tar_sha256, facts.squashfs_sha256


@pytest.mark.slow
@pytest.mark.req("R4")
def test_two_builds_give_the_same_bytes(tmp_path: Path) -> None:
    cache = Cache(cli_options.default_cache())
    options = build.Options(project=Project(ROOT), cache=cache, mirrors=host_mirrors())
    gathered = build.gather(options, settle=True)
    first = build_once(gathered.inputs, cache, tmp_path / "first")
    known = cache.lookup(gathered.keys["rootfs"])
    if known is None:
        second, other_files = build_once(gathered.inputs, cache, tmp_path / "second"), tmp_path / "second" / "rootfs"
    else:
        facts = known.facts_as(rootfs.RootfsFacts)
        second, other_files = (facts.tar_sha256, facts.squashfs_sha256), known.path
    # Named first: two hashes do not say which file it is.
    lines = [set((path / rootfs.MANIFEST).read_text().splitlines()) for path in (tmp_path / "first" / "rootfs", other_files)]
    assert sorted(lines[0] ^ lines[1]) == []
    assert first == second
    squashfs = tmp_path / "first" / "rootfs" / rootfs.SQUASHFS
    one, other = (medium(gathered.inputs, cache, squashfs, tmp_path / name) for name in ("one", "other"))
    assert one == other


def medium(gathered: inputs.Inputs, cache: Cache, squashfs: Path, scratch: Path) -> tuple[str, str]:
    """Make the real medium in ``scratch``; return the hashes of its initial RAM file system and of the ISO."""
    scratch.mkdir()
    store, iso = Store(cache.root / "files"), scratch / "medium.iso"
    facts = iso_image.make_media(
        gathered.spec, squashfs=squashfs, out=iso, epoch=gathered.rootfs_lock.epoch, log=scratch / "media.log",
        installer={entry.filename: store.path(entry) for entry in gathered.installer_lock.entries},
    )  # fmt: skip
    return facts.initrd_sha256, files.sha256_file(iso)
