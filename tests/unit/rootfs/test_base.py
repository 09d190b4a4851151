"""The packages of the image: only the locked files can be installed, and a failure names the log to read."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import pytest

from build.core.errors import StepFailed
from build.packages.apt import Store
from build.packages.lock import Entry, Lock
from build.rootfs import base
from build.spec import layers
from build.spec.golden_yaml import Kernel
from tests.fakes import Fakes
from tests.unit.helpers import entry, make_deb, make_lock, make_spec, read_stack, write_layer

# Keeps what it is given: its arguments, its environment, and the archive it would install from.
MMDEBSTRAP = """#!{python}
import json, os, pathlib, shutil, sys
note = pathlib.Path({note!r})
repository = sys.argv[-1].removeprefix("deb [trusted=yes] copy://").removesuffix(" ./")
shutil.copytree(repository, note / "repository")
early = next(word for word in sys.argv if word.startswith("--setup-hook=")).split()[-1]
shutil.copy(early, note / "early.tar")
(note / "call.json").write_text(json.dumps({{"argv": sys.argv[1:], "env": dict(os.environ)}}))
pathlib.Path(sys.argv[-2]).write_bytes(b"a root file system")
print("I: success")
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache" / "files")


def hold(store: Store, package: str, directory: Path) -> Entry:
    """Put a package into the store and return its entry."""
    content = make_deb(directory, package)
    made = entry(package, content)
    store.path(made).parent.mkdir(parents=True, exist_ok=True)
    store.path(made).write_bytes(content)
    return made


def fake_mmdebstrap(fakes: Fakes, tmp_path: Path) -> Path:
    note = tmp_path / "noted"
    note.mkdir()
    program = fakes.directory / "mmdebstrap"
    program.write_text(MMDEBSTRAP.format(python=sys.executable, note=str(note)))
    program.chmod(0o755)
    return note


def make(tmp_path: Path, store: Store, lock: Lock) -> base.BaseFacts:
    write_layer(
        tmp_path, "10-base", {"/etc/early.conf": "early", "/etc/dpkg/dpkg.cfg.d/x": "path-exclude=/usr/share/man/*\n"},
        packages=["nginx"], early=["/etc/early.conf"],
    )  # fmt: skip
    stack = read_stack(tmp_path, "10-base")
    out = tmp_path / "cache" / "out"
    out.mkdir()
    return base.make_base(out, spec=make_spec(tmp_path), stack=stack, lock=lock, store=store, log_file=tmp_path / "base.log")


def test_nothing_but_the_locked_files_can_be_installed(tmp_path: Path, fakes: Fakes, store: Store) -> None:
    note = fake_mmdebstrap(fakes, tmp_path)
    lock = make_lock(hold(store, "nginx", tmp_path), hold(store, "apt", tmp_path))
    hold(store, "other", tmp_path)
    facts = make(tmp_path, store, lock)
    assert facts == base.BaseFacts(packages=2, tar_bytes=18)
    repository = note / "repository"
    names = [one.filename for one in lock.entries]
    assert sorted(path.name for path in repository.iterdir()) == sorted([*names, "Packages", "Release"])
    index = (repository / "Packages").read_text()
    stanzas = [dict(line.split(": ", 1) for line in part.splitlines()) for part in index.strip().split("\n\n")]
    assert [(one["Package"], one["Filename"], one["Size"], one["SHA256"]) for one in stanzas] == [
        (one.package, f"./{one.filename}", str(one.size), one.sha256) for one in lock.entries
    ]
    release = (repository / "Release").read_text()
    assert "Codename: trixie\n" in release
    assert f" {hashlib.sha256(index.encode()).hexdigest()} {len(index)} Packages\n" in release
    for one in lock.entries:
        assert hashlib.sha256((repository / one.filename).read_bytes()).hexdigest() == one.sha256


def test_mmdebstrap_is_told_everything_that_shapes_the_result(tmp_path: Path, fakes: Fakes, store: Store) -> None:
    note = fake_mmdebstrap(fakes, tmp_path)
    lock = make_lock(hold(store, "nginx", tmp_path))
    make(tmp_path, store, lock)
    call = json.loads((note / "call.json").read_text())
    assert "--include=apt,debian-archive-keyring,linux-image-cloud-amd64,nginx" in call["argv"]
    assert {"--dpkgopt=force-confold", "--dpkgopt=path-exclude=/usr/share/man/*"} <= set(call["argv"])
    assert call["argv"][-3:-1] == ["trixie", str(tmp_path / "cache" / "out" / "base.tar")]
    assert call["env"]["SOURCE_DATE_EPOCH"] == str(lock.epoch)
    assert b"etc/early.conf" in (note / "early.tar").read_bytes()
    assert "I: success" in (tmp_path / "base.log").read_text()
    assert not list((tmp_path / "cache").glob(".scratch-*"))


def test_a_store_on_another_file_system_is_linked_to(
    tmp_path: Path, fakes: Fakes, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_words: object) -> None:
        raise OSError("Invalid cross-device link")

    note = fake_mmdebstrap(fakes, tmp_path)
    monkeypatch.setattr(os, "link", refuse)
    lock = make_lock(hold(store, "nginx", tmp_path))
    make(tmp_path, store, lock)
    assert hashlib.sha256((note / "repository" / lock.entries[0].filename).read_bytes()).hexdigest() == (
        lock.entries[0].sha256
    )


def test_a_failure_tells_the_last_lines_and_where_the_others_are(tmp_path: Path, fakes: Fakes, store: Store) -> None:
    fakes.command("mmdebstrap", stderr="I: running\nE: apt-get install failed\n", status=25)
    with pytest.raises(StepFailed) as caught:
        make(tmp_path, store, make_lock(hold(store, "nginx", tmp_path)))
    assert caught.value.render() == (
        "mmdebstrap failed to create the root file system\n    I: running\n    E: apt-get install failed\n"
        f"  -> the whole output is in {tmp_path}/base.log"
    )
    assert "E: apt-get install failed" in (tmp_path / "base.log").read_text()
    assert not list((tmp_path / "cache").glob(".scratch-*"))


def test_what_is_asked_for_is_sorted_and_complete(tmp_path: Path) -> None:
    write_layer(tmp_path, "10-base", packages=["nginx", "curl"])
    stack = read_stack(tmp_path, "10-base")
    spec = make_spec(tmp_path, packages=["vim", "curl"], kernel="generic")
    assert spec.kernel is Kernel.GENERIC
    assert layers.requested_packages(spec, stack) == (
        "apt", "curl", "debian-archive-keyring", "linux-image-amd64", "nginx", "vim",
    )  # fmt: skip


def test_a_path_with_blanks_and_quotes_survives_the_hooks_shell() -> None:
    command = base.extract_command(Path("/a b/it's.tar"), "$1")
    assert command.endswith("""--file '/a b/it'"'"'s.tar'""")
    assert '--directory "$1"' in command
