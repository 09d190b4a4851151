"""Helpers of several unit tests: a valid spec, small layers, locked entries, and the processes of the host."""

from __future__ import annotations

import copy
import hashlib
import http.server
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import yaml

from build.core import run
from build.core.project import Project
from build.machines.disk_image import GPT_BIOS_GRUB, GPT_ESP, GPT_LINUX
from build.packages.apt import Mirrors
from build.packages.lock import Archive, Entry, Lock
from build.spec import golden_yaml as specs
from build.spec import inputs, layers
from build.spec.golden_yaml import Spec
from build.spec.layers import Stack, load_stack
from tests.patience import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]
# Those that provide what a layer of golden.yaml provides too; profiles/app.yaml has them.
ALTERNATIVES = ("32-remote-database",)
LAYERS = tuple(sorted(path.name for path in (ROOT / "overlays").iterdir() if path.is_dir()))
NOEXEC = ["noatime", "nodev", "nosuid", "noexec"]
GOLDEN: dict[str, Any] = {
    "name": "golden",
    "version": "1.2.3",
    "release": "trixie",
    "hostname": "golden",
    "domain": "example.internal",
    "locale": "C.UTF-8",
    "timezone": "UTC",
    "kernel": "cloud",
    "disk": {
        "size": "12G",
        "partitions": [
            {"mount": "/", "size": "5G", "options": ["noatime"]},
            {"mount": "/var", "size": "1G", "options": ["noatime", "nodev", "nosuid"]},
            {"mount": "/var/log", "size": "1G", "options": [*NOEXEC]},
            {"mount": "/var/log/audit", "size": "512M", "options": [*NOEXEC]},
            {"mount": "/var/tmp", "size": "512M", "options": [*NOEXEC]},
            {"mount": "/home", "size": "512M", "options": [*NOEXEC]},
            {"mount": "/var/www", "size": "1G", "options": [*NOEXEC]},
            {"mount": "/var/cache/nginx", "size": "512M", "options": [*NOEXEC]},
        ],
    },
    "layers": [],
    "packages": [],
    "admin": {"user": "admin", "cidrs": ["192.0.2.0/24"]},
    "application": {"name": "app", "server_name": "app.example.org", "wsgi": "project.wsgi:application", "workers": 2},
}
DATE = "2026-11-20T02:11:10Z"


def golden(**changes: Any) -> dict[str, Any]:
    """Return a valid spec as plain data, with some keys changed."""
    return {**copy.deepcopy(GOLDEN), **changes}


def write_spec(directory: Path, content: Mapping[str, Any] | str) -> Path:
    """Write golden.yaml and return its path."""
    path = directory / "golden.yaml"
    text = content if isinstance(content, str) else yaml.safe_dump(dict(content), sort_keys=False)
    path.write_text(text, encoding="utf-8")
    return path


def make_spec(directory: Path, **changes: Any) -> Spec:
    """Return a valid spec, read from a file in ``directory``."""
    return specs.load(write_spec(directory, golden(**changes)))


def write_layer(
    root: Path, name: str, files: Mapping[str, str | bytes] | None = None, /, *, text: str | None = None, **keys: Any
) -> Path:
    """Write the layer ``overlays/NAME`` below ``root`` with the files of its rootfs/; return its directory.

    Without ``text`` layer.yaml holds the required keys and ``keys``.
    """
    directory = root / "overlays" / name
    directory.mkdir(parents=True)
    test = root / "tests" / "image" / "test_x.py"
    test.parent.mkdir(parents=True, exist_ok=True)
    test.touch()
    plain = {"about": "A layer for the tests of layers.", "tests": ["tests/image/test_x.py"], **keys}
    (directory / "layer.yaml").write_text(text or yaml.safe_dump(plain, sort_keys=False), encoding="utf-8")
    for path, content in (files or {}).items():
        target = directory / "rootfs" / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)
    return directory


def read_stack(root: Path, *names: str, **changes: Any) -> Stack:
    """Read the named layers of ``root/overlays`` for a valid spec."""
    return load_stack(root / "overlays", make_spec(root, layers=list(names), **changes))


def every_layer(*, without: str = "") -> Stack:
    """Return the layers of this checkout, also those that golden.yaml leaves out; without one and those that require it.

    Of two that provide the same, the one of golden.yaml is taken.
    """
    overlays = ROOT / "overlays"
    spec = replace(specs.load(ROOT / "golden.yaml"), layers=tuple(name for name in LAYERS if name not in ALTERNATIVES))
    stack = load_stack(overlays, spec)
    return load_stack(overlays, replace(spec, layers=layers.without(stack.layers, without))) if without else stack


def entry(package: str, content: bytes = b"", *, archive: Archive = Archive.DEBIAN, version: str = "1.0-1") -> Entry:
    """Return the locked entry of a file with ``content``."""
    body = content or package.encode()
    # The archive's file names leave out the epoch of a version.
    path = f"pool/main/{package[0]}/{package}/{package}_{version.rpartition(':')[2]}_amd64.deb"
    return Entry(package, version, archive, path, len(body), hashlib.sha256(body).hexdigest())


def make_lock(*entries: Entry, request: str = "a-question") -> Lock:
    """Return a lock of the entries."""
    return Lock("trixie", DATE, request, tuple(sorted(entries)))


def write_lock(path: Path, *entries: Entry, request: str = "a-question") -> Path:
    """Write a lock file and return its path."""
    path.write_text(make_lock(*entries, request=request).render("A lock for tests."), encoding="utf-8")
    return path


def running(token: str) -> list[int]:
    """Return the processes of this host with ``token`` among their arguments; a zombie has none."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if token.encode() in words:
            found.append(int(path.parent.name))
    return found


def gone(token: str) -> bool:
    """Return True when no process with ``token`` is left; the kernel takes a moment to remove a killed one."""
    return wait_for(lambda: not running(token))


def wait_for(condition: Callable[[], object], *, seconds: float = PATIENCE_SECONDS) -> bool:
    """Wait until ``condition`` holds; return True if it did in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def start_python(code: str, *words: str | Path) -> subprocess.Popen[bytes]:
    """Start a separate Python process that runs ``code`` and can import Goldsmith's package."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@contextmanager
def running_python(code: str, *words: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a separate Python process that runs ``code``; it is killed at the end of the block."""
    process = start_python(code, *words)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def kill_alone(process: subprocess.Popen[bytes], token: str) -> None:
    """Kill this process only; every process with ``token`` must end too."""
    process.send_signal(signal.SIGKILL)
    process.wait(PATIENCE_SECONDS)
    assert gone(token), running(token)


class Mirror:
    """An archive on the loopback interface: a real HTTP server for a directory, which records its requests."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.requests: list[str] = []
        mirror = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *arguments: Any) -> None:
                super().__init__(*arguments, directory=str(root))

            def log_request(self, code: object = "-", size: object = "-") -> None:
                mirror.requests.append(f"{self.path} {code} {size}")

            def log_error(self, *_arguments: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def mirrors(self) -> Mirrors:
        return Mirrors(f"{self.address}/debian", f"{self.address}/debian-security")

    def add(self, package: str, content: bytes, *, archive: Archive = Archive.DEBIAN, version: str = "1.0-1") -> Entry:
        """Put a package's file into the archive and return its locked entry."""
        made = entry(package, content, archive=archive, version=version)
        self.path(made).parent.mkdir(parents=True, exist_ok=True)
        self.path(made).write_bytes(content)
        return made

    def path(self, of: Entry) -> Path:
        name = "debian-security" if of.archive is Archive.SECURITY else "debian"
        return self.root / name / of.path


def make_deb(directory: Path, package: str, *, version: str = "1.0-1", fields: str = "") -> bytes:
    """Return the bytes of a tiny Debian package, made by the real dpkg-deb."""
    tree = directory / f"deb-{package}"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        f"Package: {package}\nVersion: {version}\nArchitecture: amd64\nMaintainer: Test <test@example.org>\n"
        f"{fields}Description: a package for tests\n"
    )
    run.run(["dpkg-deb", "--root-owner-group", "--build", tree, directory / f"{package}.deb"], timeout=60)
    return (directory / f"{package}.deb").read_bytes()


UUIDS = {mount: f"00000000-0000-4000-8000-{number:012x}" for number, mount in enumerate(("/", "/var", "/var/log"), 1)}
_MIB = 1 << 20


def make_disk_image(directory: Path, trees: Mapping[str, Path]) -> Path:
    """Return a small raw disk like the one that the installer leaves: GPT and an ext4 file system for each tree.

    ``trees`` maps mount points to directories; that of ``/`` is given an /etc/fstab.
    """
    raw = directory / "disk.raw"
    fstab = trees["/"] / "etc" / "fstab"
    fstab.parent.mkdir(exist_ok=True)
    fstab.write_text(
        "# comment\nUUID=ABCD-1234 /boot/efi vfat umask=0077 0 1\n"
        + "".join(f"UUID={UUIDS[mount]} {mount} ext4 defaults 0 2\n" for mount in trees)
    )
    table = ["label: gpt", f"size=1MiB, type={GPT_BIOS_GRUB}", f"size=1MiB, type={GPT_ESP}"]
    table += [f"size=16MiB, type={GPT_LINUX}" for _ in trees]
    with raw.open("wb") as stream:
        stream.truncate((4 + 16 * len(trees)) * _MIB)
    run.run(["sfdisk", "--quiet", raw], timeout=60, stdin="\n".join(table).encode())
    esp = f"{raw}@@{2 * _MIB}"
    run.run(["mformat", "-i", esp, "-N", "ABCD1234", "-T", "2048", "-h", "64", "-s", "32", "::"], timeout=60)
    run.run(["mmd", "-i", esp, "::EFI"], timeout=60)
    for number, (mount, tree) in enumerate(trees.items()):
        run.run(
            [
                "mkfs.ext4",
                "-q",
                "-F",
                "-U",
                UUIDS[mount],
                "-d",
                tree,
                "-E",
                f"offset={(3 + 16 * number) * _MIB}",
                raw,
                "16M",
            ],
            timeout=60,
        )
    return raw


CODE = '"""A module of a checkout for tests, small because it is read for every key."""\n'


def make_checkout(root: Path, **changes: Any) -> Project:
    """Make a small checkout with everything that a plan reads: spec, one layer, locks, code, templates, tests."""
    root.mkdir()
    write_spec(root, golden(layers=["10-base"], **changes))
    write_layer(
        root, "10-base", {"/etc/x": "x", "/etc/early": "x", "/etc/dpkg/dpkg.cfg.d/x": "path-exclude=/x\n"},
        packages=["nginx"], early=["/etc/early"],
    )  # fmt: skip
    for entries in inputs.ENTRIES.values():
        for name in entries:
            module = root / "build" / f"{name}.py"
            module.parent.mkdir(parents=True, exist_ok=True)
            module.write_text(f"{CODE}NAME = {name!r}\n")
    for name in (
        "preseed/preseed.cfg.j2", "packer/qemu.pkr.hcl", "packer/README.md", "packer/tools/go.mod", "packer/tools/go.sum",
        "packer/proxmox/source.pkr.hcl", "tests/image/planes.md",
    ):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    project = Project(root)
    spec = specs.load(project.spec)
    request = layers.request_digest(spec, load_stack(project.overlays, spec))
    write_lock(project.rootfs_lock, entry("nginx"), request=request)
    write_lock(project.installer_lock, entry("udeb"))
    return project
