"""The Debian packages of the image, installed by mmdebstrap from a lock into ``base.tar``: bit-for-bit reproducible.

Only the locked files can be installed: they are in a separate local archive. Editing an overlay does not rerun this
stage unless the edit changes files needed before package installation.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from build.core import files, log, run
from build.core.errors import StepFailed
from build.core.records import Record
from build.packages import apt
from build.packages.lock import Entry, Lock
from build.spec import layers
from build.spec.golden_yaml import Spec

BASE_TAR = "base.tar"
INSTALL_SECONDS = 1800
CLEANUP_SECONDS = 600


@dataclass(frozen=True)
class BaseFacts(Record):
    """What the stage notes: how many packages are installed, and bytes of the archive."""

    packages: int
    tar_bytes: int


def mode() -> str:
    """Return mmdebstrap's mode for this user: real root, or a user namespace."""
    return "root" if run.is_root() else "unshare"


def remove_mapped(path: Path) -> None:
    """Remove a tree that may contain files of mapped user ids, as created by mmdebstrap's unshare mode."""
    if not run.is_root():
        run.run(["mmdebstrap", "--unshare-helper", "rm", "-rf", "--one-file-system", *path.glob("mmdebstrap.*")],
                timeout=CLEANUP_SECONDS, check=False)  # fmt: skip
    files.remove_tree(path)


def make_base(out: Path, *, spec: Spec, stack: layers.Stack, lock: Lock, store: apt.Store, log_file: Path) -> BaseFacts:
    """Install the locked packages into ``out/base.tar``; every file of the lock must be in the store."""
    with files.scratch(out.parent, remove=remove_mapped) as scratch:
        scratch.chmod(0o755)
        repository = _local_repository(scratch / "repository", lock, store)
        early = scratch / "early.tar"
        early.write_bytes(layers.pack(stack.early, epoch=lock.epoch))
        arguments: list[str | Path] = [
            "--variant=essential", f"--include={','.join(layers.requested_packages(spec, stack))}",
            "--dpkgopt=force-confold", *(f"--dpkgopt={option}" for option in stack.dpkg_options()),
            f"--setup-hook={extract_command(early, '$1')}",
            spec.release, out / BASE_TAR, f"deb [trusted=yes] copy://{repository} ./",
        ]  # fmt: skip
        with log.step(f"Installing {len(lock.entries)} packages into a root file system"):
            mmdebstrap(arguments, scratch=scratch, epoch=lock.epoch, log_file=log_file, timeout=INSTALL_SECONDS)
    return BaseFacts(len(lock.entries), (out / BASE_TAR).stat().st_size)


def _local_repository(directory: Path, lock: Lock, store: apt.Store) -> Path:
    """Create a local archive of the locked files, so that nothing else can be installed."""
    directory.mkdir()
    stanzas = [_stanza(entry, store, directory) for entry in lock.entries]
    index = "\n".join(stanzas).encode()
    (directory / "Packages").write_bytes(index)
    # apt selects the essential packages by the code name, which a flat archive has only in its Release file.
    (directory / "Release").write_text(
        f"Origin: Debian\nLabel: Debian\nSuite: {lock.release}\nCodename: {lock.release}\nArchitectures: amd64\n"
        f"SHA256:\n {hashlib.sha256(index).hexdigest()} {len(index)} Packages\n"
    )
    return directory


def _stanza(entry: Entry, store: apt.Store, directory: Path) -> str:
    source, target = store.path(entry), directory / entry.filename
    try:
        os.link(source, target)
    except OSError:
        target.symlink_to(source)
    control = run.run(["dpkg-deb", "--field", target], timeout=run.LOCAL_SECONDS).stdout
    return f"{control.rstrip()}\nFilename: ./{entry.filename}\nSize: {entry.size}\nSHA256: {entry.sha256}\n"


def mmdebstrap(arguments: Sequence[str | Path], *, scratch: Path, epoch: int, log_file: Path, timeout: float) -> None:
    """Run mmdebstrap to a tar archive; raise StepFailed with its last lines if it fails."""
    try:
        run.run(
            ["mmdebstrap", f"--mode={mode()}", "--format=tar", "--architectures=amd64", '--aptopt=APT::Sandbox::User ""',
             *arguments],
            timeout=timeout, log=log_file, contained=run.is_root(),
            env={"SOURCE_DATE_EPOCH": str(epoch), "TMPDIR": str(scratch)},
        )  # fmt: skip
    except StepFailed as error:
        raise StepFailed(
            "mmdebstrap failed to create the root file system",
            details=error.details,
            hint=f"the whole output is in {log_file}",
        ) from error


def extract_command(tar: Path, target: str) -> str:
    """Return the shell command that unpacks a root file system's archive with all metadata.

    Without device nodes: mmdebstrap creates them in every mode, and an ordinary user may not.
    """
    quoted = shlex.quote(str(tar))
    options = '--extract --preserve-permissions --numeric-owner --xattrs --xattrs-include="*" --exclude="./dev/*"'
    return f'tar --directory "{target}" {options} --file {quoted}'
