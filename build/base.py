"""The Debian packages of the image, installed by mmdebstrap from a lock into ``base.tar``: the same bytes every time.

Nothing but the locked files can be installed: they are laid out as an archive of their own. An edited overlay does not
come by here again, unless it changes what must lie there before packages are installed.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from build import apt, files, layers, log, run
from build.errors import StepFailed
from build.lock import Entry, Lock
from build.spec import Spec

BASE_TAR = "base.tar"
INSTALL_SECONDS = 1800
CLEANUP_SECONDS = 600
ALWAYS = ("apt", "debian-archive-keyring")


def requested_packages(spec: Spec, stack: layers.Stack) -> tuple[str, ...]:
    """Return the names that the image asks for; their dependencies follow from them."""
    return tuple(sorted({*stack.packages, *spec.packages, *ALWAYS, spec.kernel.package}))


def request_digest(spec: Spec, stack: layers.Stack) -> str:
    """Return the hash of the question that a package lock answers."""
    return files.digest({"release": spec.release, "packages": requested_packages(spec, stack)})


def mode() -> str:
    """Return mmdebstrap's mode for this user: real root, or a user name space."""
    return "root" if run.is_root() else "unshare"


def remove_mapped(path: Path) -> None:
    """Remove a tree that may hold files of mapped user ids, as mmdebstrap's unshare mode makes them."""
    if not run.is_root():
        run.run(["mmdebstrap", "--unshare-helper", "rm", "-rf", "--one-file-system", *path.glob("mmdebstrap.*")],
                timeout=CLEANUP_SECONDS, check=False)  # fmt: skip
    files.remove_tree(path)


def make_base(
    out: Path, *, spec: Spec, stack: layers.Stack, lock: Lock, store: apt.Store, log_file: Path
) -> Mapping[str, Any]:
    """Install the locked packages into ``out/base.tar``; every file of the lock must be in the store."""
    with files.scratch(out.parent, remove=remove_mapped) as scratch:
        scratch.chmod(0o755)
        repository = _local_repository(scratch / "repository", lock, store)
        early = scratch / "early.tar"
        early.write_bytes(layers.pack(stack.early, epoch=lock.epoch))
        words: list[str | Path] = [
            "--variant=essential", f"--include={','.join(requested_packages(spec, stack))}",
            "--dpkgopt=force-confold", *(f"--dpkgopt={option}" for option in stack.dpkg_options()),
            f"--setup-hook={extract_command(early, '$1')}",
            spec.release, out / BASE_TAR, f"deb [trusted=yes] copy://{repository} ./",
        ]  # fmt: skip
        with log.step(f"Installing {len(lock.entries)} packages into a root file system"):
            mmdebstrap(words, scratch=scratch, epoch=lock.epoch, log_file=log_file, timeout=INSTALL_SECONDS)
    return {"packages": len(lock.entries), "tar_bytes": (out / BASE_TAR).stat().st_size}


def _local_repository(directory: Path, lock: Lock, store: apt.Store) -> Path:
    """Lay the locked files out as an archive of their own, so that nothing else can be installed."""
    directory.mkdir()
    stanzas = [_stanza(entry, store, directory) for entry in lock.entries]
    index = "\n".join(stanzas).encode()
    (directory / "Packages").write_bytes(index)
    # apt's essential packages are selected by the code name, which a flat archive has only from its Release file.
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
    control = run.run(["dpkg-deb", "--field", target], timeout=60).stdout
    return f"{control.rstrip()}\nFilename: ./{entry.filename}\nSize: {entry.size}\nSHA256: {entry.sha256}\n"


def mmdebstrap(words: Sequence[str | Path], *, scratch: Path, epoch: int, log_file: Path, timeout: float) -> None:
    """Run mmdebstrap to a tar archive; raise StepFailed with its last lines when it fails."""
    try:
        run.run(
            ["mmdebstrap", f"--mode={mode()}", "--format=tar", "--architectures=amd64", '--aptopt=APT::Sandbox::User ""',
             *words],
            timeout=timeout, log=log_file, contained=run.is_root(),
            env={"SOURCE_DATE_EPOCH": str(epoch), "TMPDIR": str(scratch)},
        )  # fmt: skip
    except StepFailed as error:
        raise StepFailed(
            "mmdebstrap cannot make the root file system", details=error.details, hint=f"the whole output is in {log_file}"
        ) from error


def extract_command(tar: Path, target: str) -> str:
    """Return the shell command that unpacks a root file system's archive with everything it carries.

    Without device nodes: mmdebstrap makes its own in every mode, and an ordinary user may not.
    """
    quoted = shlex.quote(str(tar))
    options = '--extract --preserve-permissions --numeric-owner --xattrs --xattrs-include="*" --exclude="./dev/*"'
    return f'tar --directory "{target}" {options} --file {quoted}'
