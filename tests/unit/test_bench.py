"""The bench: what a measured build is given, and what it must not touch."""

from __future__ import annotations

from pathlib import Path

from build import bench


def test_a_shared_cache_has_downloads_and_bases_only(tmp_path: Path) -> None:
    own, new = tmp_path / "own", tmp_path / "new"
    for name in ("files/ab/deb", "stages/base/key/base.tar", "stages/base/.key.flock", "stages/disk/key/image", "logs/x"):
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        (own / name).write_text(name)
    bench._share(own, new)
    found = {path.relative_to(new).as_posix() for path in new.rglob("*") if path.is_file()}
    assert found == {"files/ab/deb", "stages/base/key/base.tar"}
    # Links: half a gigabyte is not copied, and what removes the new cache leaves the old one.
    assert (new / "files/ab/deb").samefile(own / "files/ab/deb")
