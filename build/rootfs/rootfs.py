"""The root file system: installs the layers over the packages, removes host-specific files, and packs the result.

Writes ``filesystem.squashfs`` for the installer and ``files.tsv``, the manifest of every path. It is bit-for-bit
reproducible.
"""

from __future__ import annotations

import hashlib
import shlex
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from build.core import files, log, run
from build.core.records import Record
from build.packages import apt
from build.packages.lock import Archive, Lock
from build.rootfs.base import BASE_TAR, extract_command, mmdebstrap, remove_mapped
from build.spec import layers
from build.spec.golden_yaml import Spec

SQUASHFS = "filesystem.squashfs"
MANIFEST = "files.tsv"
LAYER_SECONDS = 1800
PACK_SECONDS = 600
# Level 3 is the best compromise: 275 MB in 3 s (level 15: 5 % less in ten times the time), and fast to unpack under
# emulation.
SQUASHFS_OPTIONS = ("-comp", "zstd", "-Xcompression-level", "3", "-b", "256K", "-noappend", "-quiet", "-no-progress",
                    "-root-mode", "0755")  # fmt: skip
STAGING = "/run/goldsmith"
# Paths that must differ between clones, or that reveal where and when the image was built.
SEALED_AWAY = (
    "/etc/ssh/ssh_host_*", "/etc/ssl/private/ssl-cert-snakeoil.key", "/etc/ssl/certs/ssl-cert-snakeoil.pem",
    "/var/lib/dbus/machine-id", "/var/lib/systemd/random-seed", "/var/lib/systemd/credential.secret",
    "/var/cache/ldconfig/aux-cache", "/var/cache/apt/*.bin", "/var/cache/debconf/*-old", "/var/lib/dpkg/*-old",
    "/etc/passwd-", "/etc/shadow-", "/etc/group-", "/etc/gshadow-", "/etc/subuid-", "/etc/subgid-", "/etc/.pwd.lock",
    "/etc/apt/sources.list", "/etc/apt/sources.list~", "/etc/dpkg/dpkg.cfg.d/99mmdebstrap",
    "/etc/apt/apt.conf.d/99mmdebstrap", "/root/.bash_history", "/root/.cache",
    "/root/.ssh", "/var/lib/cloud", "/usr/share/info/dir",
)  # fmt: skip


@dataclass(frozen=True)
class RootfsFacts(Record):
    """What the stage notes: how many paths there are, bytes and SHA-256 of the tar archive and of the squashfs."""

    paths: int
    tar_bytes: int
    tar_sha256: str
    squashfs_bytes: int
    squashfs_sha256: str


def make_rootfs(
    out: Path, *, base: Path, spec: Spec, stack: layers.Stack, lock: Lock, mirrors: apt.Mirrors,
    wheelhouses: Mapping[str, Path], log_file: Path,
) -> RootfsFacts:  # fmt: skip
    """Install the layers over the packages and write squashfs and manifest to ``out``.

    ``wheelhouses`` maps the path of each virtual environment to the directory with its wheels.
    """
    with files.scratch(out.parent, remove=remove_mapped) as scratch:
        scratch.chmod(0o755)
        tar = scratch / "rootfs.tar"
        hooks = _hooks(scratch, spec=spec, stack=stack, lock=lock, mirrors=mirrors, wheelhouses=wheelhouses)
        arguments: list[str | Path] = [
            # No apt is needed here, and mmdebstrap's clean-up must never run apt without its configuration: it would
            # use the host's.
            "--variant=custom", "--skip=update,check/empty,cleanup/apt",
            f"--setup-hook={extract_command(base / BASE_TAR, '$1')}",
            *(f"--customize-hook={hook}" for hook in hooks),
            spec.release, tar, "deb [trusted=yes] copy:///nonexistent ./",
        ]  # fmt: skip
        with log.step(f"Installing {len(stack.layers)} layers"):
            mmdebstrap(arguments, scratch=scratch, epoch=lock.epoch, log_file=log_file, timeout=LAYER_SECONDS)
        with log.step("Packing the root file system"):
            count = _write_manifest(tar, out / MANIFEST)
            # The archive has no entry for "/" itself: its owner is the user who packs, who therefore has to be root.
            as_root = [] if run.is_root() else ["unshare", "--map-root-user", "--"]
            dated = ["env", f"SOURCE_DATE_EPOCH={lock.epoch}"]
            pack = ["mksquashfs", "-", str(out / SQUASHFS), "-tar", *SQUASHFS_OPTIONS]
            run.pipe(["cat", tar], [*as_root, *dated, *pack], timeout=PACK_SECONDS, log=log_file)
        return RootfsFacts(
            paths=count,
            tar_bytes=tar.stat().st_size,
            tar_sha256=files.sha256_file(tar),
            squashfs_bytes=(out / SQUASHFS).stat().st_size,
            squashfs_sha256=files.sha256_file(out / SQUASHFS),
        )


def _hooks(
    scratch: Path, *, spec: Spec, stack: layers.Stack, lock: Lock, mirrors: apt.Mirrors, wheelhouses: Mapping[str, Path]
) -> list[str]:
    """Return the shell commands, in order, that turn the installed packages into the image; ``$1`` is its root."""
    epoch = lock.epoch
    first = _write(scratch / "sysusers.tar", layers.pack(stack.below(layers.SYSUSERS_DIRECTORIES), epoch=epoch))
    rest = _write(scratch / "layers.tar", layers.pack(stack.nodes, epoch=epoch))
    sources = _write(scratch / "debian.sources", deb822(mirrors, spec.release).encode())
    tmpfiles = [node.path for node in stack.below(layers.TMPFILES_DIRECTORIES)]
    chroot = 'chroot "$1"'
    unpack = "--extract --preserve-permissions --same-owner --directory / --file -"
    hooks = [
        *(f'rm -rf "$1"{shlex.quote(path)}' for path in stack.absent),
        f"{chroot} tar --extract --directory / --file - < {shlex.quote(str(first))}",
        f"{chroot} systemd-sysusers",
        # Inside the chroot, so that owners are accounts of the image and not of this host.
        f"umask 022; {chroot} tar {unpack} < {shlex.quote(str(rest))}",
        f'install -m 0644 {shlex.quote(str(sources))} "$1"/etc/apt/sources.list.d/debian.sources',
        f'echo {shlex.quote(spec.hostname)} > "$1"/etc/hostname; chmod 0644 "$1"/etc/hostname',
    ]  # fmt: skip
    if tmpfiles:
        hooks.append(f"{chroot} systemd-tmpfiles --create {shlex.join(tmpfiles)}")
    hooks += [f"{chroot} systemctl preset-all", f"{chroot} systemctl --global preset-all"]
    for number, venv in enumerate(stack.venvs):
        # The mapped users of an ordinary user's build cannot reach a checkout in a private home directory.
        copy = _write(scratch / f"venv{number}-{venv.requirements.name}", venv.requirements.read_bytes())
        hooks += _venv_hooks(venv, wheelhouses[venv.path], copy)
    hooks += [f"{chroot} {shlex.join(command.argv)}" for command in stack.commands]
    return [*(f"set -eu; {hook}" for hook in hooks), *_seal_hooks()]


def _venv_hooks(venv: layers.Venv, wheelhouse: Path, requirements: Path) -> list[str]:
    """Build the virtual environment with the image's Python, offline, and remove pip from it.

    ``requirements`` is the lock of its wheels.

    Byte code contains the hash of its source instead of its time, so that it is reproducible.
    """
    python = f"{venv.path}/bin/python"
    environment = "env PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1"
    chroot = f'chroot "$1" {environment}'
    staging = f'"$1"{STAGING}'
    wheels, locked = shlex.quote(str(wheelhouse)), shlex.quote(str(requirements))
    install = f"install --quiet --no-index --no-compile --require-hashes --find-links {STAGING}"
    return [
        f"umask 022; mkdir -p {staging}; cp {wheels}/*.whl {locked} {staging}/",
        f"umask 022; {chroot} python3 -m venv {venv.path}",
        f"umask 022; {chroot} {python} -m pip {install} --requirement {STAGING}/{requirements.name}",
        f"{chroot} {python} -m pip check",
        f"{chroot} {python} -m pip uninstall --quiet --yes pip",
        f"umask 022; {chroot} {python} -m compileall -q --invalidation-mode unchecked-hash {venv.path}/lib",
        f"rm -rf {staging}",
    ]


def _seal_hooks() -> list[str]:
    """Remove files that each clone must create, and traces of the build."""
    globs = " ".join(f'"$1"{pattern}' for pattern in SEALED_AWAY)
    return [
        f"set -eu; rm -rf {globs}",
        # Empty and not absent: systemd fills it at first boot, and treats an absent one as "uninitialized" permanently.
        'set -eu; : > "$1"/etc/machine-id; chmod 0444 "$1"/etc/machine-id',
        'set -eu; find "$1"/var/log "$1"/var/tmp -xdev -type f -delete',
    ]


def deb822(mirrors: apt.Mirrors, release: str) -> str:
    """Return the image's apt sources: the build host's mirrors, each bound to Debian's keyring (requirement R34)."""
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    parts = [
        (mirrors.base(Archive.DEBIAN), f"{release} {release}-updates"),
        (mirrors.base(Archive.SECURITY), f"{release}-security"),
    ]
    return "\n".join(
        f"Types: deb\nURIs: {address}\nSuites: {suites}\nComponents: main\nSigned-By: {keyring}\n"
        for address, suites in parts
    )


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    path.chmod(0o644)
    return path


def _write_manifest(tar: Path, target: Path) -> int:
    """Write one line for each path of the archive: path, type, mode, owner, size in bytes, SHA-256 or link target."""
    with tarfile.open(tar) as archive:
        lines = sorted(_manifest_lines(archive))
    files.write_atomic(target, "# path\ttype\tmode\tuid:gid\tbytes\tsha256 or target\n" + "\n".join(lines) + "\n")
    return len(lines)


def _manifest_lines(archive: tarfile.TarFile) -> Iterable[str]:
    for member in archive:
        kind, body = "other", ""
        if member.isreg():
            stream = archive.extractfile(member)
            assert stream is not None
            kind, body = "file", hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]
        elif member.issym():
            kind, body = "link", member.linkname
        elif member.islnk():
            kind, body = "hardlink", "/" + member.linkname.removeprefix("./")
        elif member.isdir():
            kind = "directory"
        path = "/" + member.name.removeprefix("./").removeprefix(".").replace("\n", "\\n")
        yield f"{path}\t{kind}\t{member.mode:04o}\t{member.uid}:{member.gid}\t{member.size}\t{body}"
