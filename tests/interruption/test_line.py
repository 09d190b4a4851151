"""Faults of the whole pipeline: on every error nothing is published, nothing is left, and the user gets a hint.

Goldsmith itself runs from the command line to the artifact. The slow programs are fakes: mmdebstrap, the medium, Packer,
QEMU and ssh; mksquashfs, qemu-img, xorriso, ssh-keygen, sfdisk, debugfs, apt-helper and pytest are the real ones.
"""

from __future__ import annotations

import html
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from build.artifact import artifact
from build.artifact.manifest import Retries
from build.cli import main
from build.cli import options as common
from build.core import files, host, log, programs, run
from build.core.errors import EXIT_INTERRUPTED
from build.core.project import Project
from build.disk import installation
from build.machines import vm
from build.packages import apt
from build.packages import lock as locks
from build.packages.lock import Entry
from build.report import report
from build.rootfs import base
from build.spec import golden_yaml as specs
from build.spec import layers
from build.spec.layers import load_stack
from build.verify import stocktaking  # fmt: skip
from tests.fakes import Fake, Fakes
from tests.interruption.goldsmith import CHANGES, MEDIUM_TOOL
from tests.patience import PATIENCE_SECONDS
from tests.unit.archives import Lists, trusted
from tests.unit.helpers import ROOT, Mirror, make_checkout, make_deb, make_disk_image, wait_for, write_lock
from tests.unit.inventories import inventory_of, kept, said
from tests.unit.machines.test_vm import KEYS
from tests.unit.verify.test_verify import CONFTEST, GOOD

QEMU_IMG = shutil.which("qemu-img")
BIN = Path(__file__).parent / "bin"
# Limits for what hangs, in seconds; a busy host needs a minute for what an idle one does in two seconds.
PATIENCE = 300.0
STAGES = ("base", "rootfs", "media", "disk", "verify")
COPYING = "Nov 22 05:00:01 main-menu[215]: INFO: Menu item 'live-installer' selected\n"
FINISHING = "Nov 22 05:00:02 main-menu[215]: INFO: Menu item 'finish-install' selected\n"
POWERED_OFF = "[  200.000000] reboot: Power down\r\n"
PANIC = "[   12.345678] Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b\r\n"
# How an ordinary user removes files of mapped user ids; a fake has made none.
HELPER = {"when": ["--unshare-helper"]}
INSTALLED = {"syslog": COPYING + FINISHING, "console": [[0, POWERED_OFF]]}
READY = {"console": [[0, KEYS]]}


@dataclass
class Line:
    """One checkout with its cache and its fake programs, and the output of a run."""

    root: Path
    fakes: Fakes
    mirror: Mirror
    out: str = ""
    err: str = ""

    @property
    def project(self) -> Project:
        return Project(self.root / "checkout")

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    def words(self, *more: str) -> list[str]:
        mirrors = self.mirror.mirrors
        return [
            "build", "--no-install", "--project", str(self.project.root), "--cache", str(self.cache),
            "--mirror", mirrors.debian, "--security-mirror", mirrors.security, *more,
        ]  # fmt: skip

    # --- fakes: each method replaces one program by another of the same name ---

    def tool(self, name: str, *rules: dict[str, Any]) -> Fake:
        return self.fakes.install(name, str(BIN / "tool.py"), {"rules": list(rules)})

    def mmdebstrap(self, **rule: Any) -> Fake:
        """Make the mmdebstrap that fills base.tar (by default well); the one that installs the layers works."""
        good = {"copy": str(self.root / "rootfs.tar"), "to": -2}
        return self.tool("mmdebstrap", HELPER, {"when": ["--variant=custom"], **good}, {**good, **rule})

    def layering(self, **rule: Any) -> Fake:
        """Make the mmdebstrap that installs the layers; the one that fills base.tar works."""
        good = {"copy": str(self.root / "rootfs.tar"), "to": -2}
        return self.tool("mmdebstrap", HELPER, {"when": ["--variant=custom"], **good, **rule}, good)

    def medium(self, **rule: Any) -> Fake:
        return self.tool(MEDIUM_TOOL, {"copy": str(self.root / "rootfs.tar"), "to": 0, **rule})

    def packer(self, **plan: Any) -> Fake:
        return self.fakes.packer(**(plan or INSTALLED))

    def qemu(self, bios: list[dict[str, Any]], uefi: list[dict[str, Any]] | None = None) -> Fake:
        plan = {"guests": {"bios": bios, "uefi": uefi or [READY]}}
        return self.fakes.install(vm.QEMU, str(BIN / "qemu.py"), plan)

    def ssh(self, state: str = "running", *, inventory: str | None = None) -> None:
        """Make an ssh to guests in that state, as a shell script: it is started often. They print their ``inventory``."""
        path = self.fakes.directory / "ssh"
        told = path.with_name("inventory")
        told.write_text(said() if inventory is None else inventory)
        path.write_text(
            '#!/bin/sh\ncase "$*" in\n*" -M "*) exec sleep 600 ;;\n'
            f"*'systemctl is-system-running --wait') echo {state} ;;\n*' python3 -I -') exec cat {told} ;;\nesac\n"
        )
        path.chmod(0o755)

    def image_test(self, text: str) -> None:
        (self.project.image_tests / "test_x.py").write_text(text)

    # --- what is there ---

    def forget(self, first: str) -> None:
        """Remove a stage, all later ones and the artifact, as if they had never been made."""
        for stage in STAGES[STAGES.index(first) :]:
            files.remove_tree(self.cache / "stages" / stage)
        files.remove_tree(self.project.artifacts)

    def stored(self, entry: Entry) -> Path:
        return apt.Store(self.cache / "files").path(entry)

    def locked(self) -> Entry:
        """Return the entry of the one package that is locked."""
        return locks.parse(self.project.rootfs_lock).entries[0]

    def published(self) -> list[Path]:
        return artifact.committed(self.project.artifacts)

    def scratch(self) -> list[Path]:
        return [path for path in self.root.rglob(f"{files.SCRATCH_PREFIX}*") if path.is_dir()]

    def processes(self) -> list[str]:
        """Return the programs that have to do with this checkout, this test's own Python left out."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(self.root) in command and int(path.parent.name) != os.getpid():
                found.append(command)
        return found

    # --- runs ---

    def run(self, capsys: pytest.CaptureFixture[str], *more: str) -> int:
        """Build in this process; return the exit code and keep the output."""
        try:
            code = main.main(self.words(*more))
        finally:
            log.configure()
        self.out, self.err = capsys.readouterr()
        if code == EXIT_INTERRUPTED:
            raise KeyboardInterrupt  # it was meant for the tests
        return code

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        """Start a build as a separate process."""
        words = [sys.executable, "-m", "tests.interruption.goldsmith", *self.words(*more)]
        return subprocess.Popen(words, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def assert_nothing_came_of_it(self) -> None:
        assert self.published() == []
        assert self.scratch() == []
        assert wait_for(lambda: not self.processes()), self.processes()


def write_rootfs(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("./etc/hostname")
        info.size = 7
        archive.addfile(info, io.BytesIO(b"golden\n"))


def install_fakes(line: Line) -> None:
    """Put every fake in its place, each one working."""
    line.mmdebstrap()
    line.medium()
    line.packer()
    line.qemu([READY])
    line.ssh()
    wrapper = line.fakes.directory / "qemu-img"
    # What Packer's fake installed is empty; the image that is made from it is not.
    wrapper.write_text(
        '#!/bin/sh\nfor last in "$@"; do :; done\n'
        f'case "$1:$last" in convert:*/image.qcow2) exec cp {line.root}/image.qcow2 "$last" ;; esac\n'
        f'exec {QEMU_IMG} "$@"\n'
    )
    wrapper.chmod(0o755)


def prepare(root: Path, mirror: Mirror) -> None:
    """Fill ``root`` with a checkout, the files that its locks name, and the disk that will be installed."""
    project = make_checkout(root / "checkout")
    (project.packer / "tools" / "go.sum").touch()
    (project.root / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    (project.image_tests / "conftest.py").write_text(CONFTEST)
    (project.image_tests / "test_x.py").write_text(GOOD)
    (project.image_tests / stocktaking.PROGRAM).write_text("the fake ssh answers for it\n")
    spec = specs.load(project.spec)
    request = layers.request_digest(spec, load_stack(project.overlays, spec))
    write_lock(project.rootfs_lock, mirror.add("nginx", make_deb(root, "nginx")), request=request)
    write_lock(project.installer_lock, mirror.add("udeb", b"a part of the installer"))
    (root / "tree").mkdir()
    raw = make_disk_image(root, {"/": root / "tree"})
    run.run(["qemu-img", "convert", "-O", "qcow2", raw, root / "image.qcow2"], timeout=60)
    write_rootfs(root / "rootfs.tar")


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mirror]:
    with Mirror(tmp_path_factory.mktemp("archive")) as started:
        yield started


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, mirror: Mirror) -> Line:
    """A completed pipeline run: every test begins with a copy of it."""
    root = tmp_path_factory.mktemp("built")
    prepare(root, mirror)
    (root / "bin").mkdir()
    line = Line(root, Fakes(root / "bin"), mirror)
    install_fakes(line)
    with pytest.MonkeyPatch.context() as patch:
        change(patch, line)
        assert main.main(line.words()) == 0
    log.configure()
    return line


def change(patch: pytest.MonkeyPatch, line: Line) -> None:
    for module, name, value in CHANGES:
        patch.setattr(module, name, value)
    patch.setenv("PATH", f"{line.fakes.directory}{os.pathsep}{os.environ['PATH']}")
    for name in ("http_proxy", "HTTP_PROXY", "PACKER", *common.MIRROR_VARIABLES):
        patch.delenv(name, raising=False)


@pytest.fixture
def line(built: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    """A test's copy of the completed pipeline run, whose stages it may remove."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for name in ("checkout", "cache"):
        shutil.copytree(built.root / name, tmp_path / name, symlinks=True)
    for name in ("image.qcow2", "rootfs.tar"):
        shutil.copyfile(built.root / name, tmp_path / name)
    (tmp_path / "bin").mkdir()
    made = Line(tmp_path, Fakes(tmp_path / "bin"), built.mirror)
    install_fakes(made)
    change(monkeypatch, made)
    yield made
    for number, handler in before.items():
        signal.signal(number, handler)
    files.remove_tree(made.project.artifacts)


def calls(line: Line) -> int:
    """Return how many fake programs were started."""
    return sum(len(path.read_text().splitlines()) for path in line.fakes.directory.glob("*.calls"))


# --- the way it should go ---------------------------------------------------------------------------------------------


def test_a_finished_line_is_an_artifact(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    line.forget("base")
    assert line.run(capsys) == 0, line.err
    (path,) = line.published()
    assert line.out == f"{path}\n"
    assert artifact.check(path) == []
    assert kept((path / "inventory.json").read_text()) == inventory_of()
    assert "Verified: 1 tests passed on 2 clones." in line.err
    assert line.scratch() == []
    assert wait_for(lambda: not line.processes())


def test_a_whole_build_starts_only_what_its_stages_declare(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    line.forget("base")
    assert line.run(capsys) == 0, line.err
    records = {path.stem: json.loads(path.read_text()) for path in (line.cache / "logs" / programs.DIRECTORY).iterdir()}
    assert records.keys() == {host.LOCKS, host.UPDATES, *STAGES, "artifact"}
    assert {stage: record["undeclared"] for stage, record in records.items() if record["undeclared"]} == {
        "media": [MEDIUM_TOOL],
    }  # fmt: skip
    started = {program for record in records.values() for program in record["started"]}
    assert {"mmdebstrap", "packer", vm.QEMU, "ssh", "xorriso"} <= started
    assert f"stage media started {MEDIUM_TOOL}, which build/core/host.py does not declare" in line.err


def test_a_second_build_starts_nothing(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    before = line.published()
    assert line.run(capsys) == 0, line.err
    assert (line.published(), calls(line)) == (before, 0)
    assert "REUSE  artifact" in line.err


# --- pending updates, and the newest packages -------------------------------------------------------------------------


@pytest.fixture
def lists(line: Line, monkeypatch: pytest.MonkeyPatch) -> Lists:
    """Lists of the archive, which has a newer nginx than the lock."""
    monkeypatch.setattr(apt, "sources", trusted(apt.sources))
    monkeypatch.setattr(apt, "SYNC_PAUSES", (0.0,))
    found = Lists(line.mirror)
    spec = specs.load(line.project.spec)
    for name in layers.requested_packages(spec, load_stack(line.project.overlays, spec)):
        body = make_deb(line.root, name, version="2.0-1")
        found.list(line.mirror.add(name, body, version="2.0-1"))
    essential = line.mirror.add("base-files", make_deb(line.root, "base-files", version="13.8"), version="13.8")
    found.list(essential, fields="Essential: yes\n")
    # An index that is empty is not even asked for.
    found.add("ata-modules", "1.0-1", udeb=True)
    found.publish()
    return found


@pytest.fixture
def no_lists(line: Line) -> None:
    """An archive without lists, as the other tests have it."""
    files.remove_tree(line.mirror.root / "debian" / "dists")
    files.remove_tree(line.mirror.root / "debian-security" / "dists")


def pending(line: Line) -> str:
    """Return the report's text about pending updates; manifest and output have the same."""
    (path,) = line.published()
    said = report.pending(artifact.load(path).manifest.updates)
    assert f"NOTE   updates   {said}\n" in line.err
    assert said in html.unescape((path / "verification" / "report.html").read_text())
    return said


@pytest.mark.usefixtures("lists")
def test_a_build_looks_for_pending_updates(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    line.forget("verify")
    assert line.run(capsys) == 0, line.err
    assert pending(line).startswith("rootfs: 0 security, ")
    asked = len(line.mirror.requests)
    assert line.run(capsys) == 0, line.err
    assert "NOTE   updates   rootfs: 0 security, " in line.err, "an unchanged build shows the last look"
    assert line.run(capsys, "--plan") == 0
    assert "NOTE   updates   rootfs: 0 security, " in line.out
    assert len(line.mirror.requests) == asked, "and neither it nor a plan fetches anything"


@pytest.mark.usefixtures("no_lists")
def test_a_build_without_lists_says_so(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    line.forget("verify")
    assert line.run(capsys) == 0, line.err
    assert pending(line).startswith("not checked: apt-get failed with status 100: ")


def test_a_build_without_network_works_and_says_so(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    line.forget("verify")
    words = ["--mirror", "http://127.0.0.1:9/debian", "--security-mirror", "http://127.0.0.1:9/debian-security"]
    line.forget("base")
    assert line.run(capsys, *words) == 0, line.err
    assert pending(line).startswith("not checked: the mirror cannot be reached: Could not connect to 127.0.0.1:9")


def test_fresh_builds_with_the_newest_packages(line: Line, lists: Lists, capsys: pytest.CaptureFixture[str]) -> None:
    """The installer's index is out of step: its committed set is complete, and is used."""
    lists.index("main/debian-installer").write_bytes(b"of another day")
    # The fakes install the same image whatever is in it, and an artifact has its name from the image.
    files.remove_tree(line.project.artifacts)
    assert line.run(capsys, "--fresh") == 0, line.err
    assert "warning: the mirror is being updated: " in line.err
    assert "installer.lock is used instead, which is complete" in line.err
    (path,) = line.published()
    made = artifact.load(path)
    assert made.manifest.packages["nginx"] == "2.0-1"
    assert "nginx 1.0-1 -> 2.0-1" in (made.manifest.inputs.lock_changes or ())
    assert report.pending(made.manifest.updates).startswith("rootfs: 0 security, 0 other, ")
    assert line.run(capsys) == 0
    assert line.out == f"{path}\n", "the next build takes the same set"
    assert line.run(capsys, "--locked", "--plan") == 0
    assert "REUSE  verify    in the cache\nRUN    artifact  " in line.out, "and --locked the committed one"


@pytest.mark.usefixtures("no_lists")
def test_fresh_that_cannot_read_the_archive_is_an_error(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    files.remove_tree(line.project.artifacts)
    words = ["--mirror", "http://127.0.0.1:9/debian", "--security-mirror", "http://127.0.0.1:9/debian-security"]
    assert line.run(capsys, "--fresh", *words) == 1
    assert "error: the mirror cannot be reached: " in line.err
    line.assert_nothing_came_of_it()


# --- the archive and the cache ----------------------------------------------------------------------------------------


def test_a_damaged_file_in_the_cache_is_fetched_again(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    line.forget("base")
    stored = line.stored(line.locked())
    stored.write_bytes(b"damaged")
    assert line.run(capsys) == 0, line.err
    assert "nginx_1.0-1_amd64.deb in the cache is damaged; it is fetched again" in line.err
    assert files.sha256_file(stored) == line.locked().sha256
    assert len(line.published()) == 1


@pytest.fixture
def gone(line: Line) -> Iterator[Entry]:
    """The locked package, damaged in the cache and replaced by another file in the archive."""
    entry = line.locked()
    line.forget("base")
    line.stored(entry).write_bytes(b"damaged")
    there = line.mirror.path(entry)
    content = there.read_bytes()
    there.write_bytes(b"another file under the same name")
    yield entry
    there.write_bytes(content)


def test_a_file_with_another_checksum_is_never_built_from(
    line: Line, gone: Entry, capsys: pytest.CaptureFixture[str]
) -> None:
    assert line.run(capsys, "--locked") == 2
    assert (
        "error: the archive no longer has 1 of the 1 files in rootfs.lock\n    nginx_1.0-1_amd64.deb\n"
        "  -> run nox -s lock, check and commit the changes; or build without --locked; or set a snapshot archive\n"
    ) in line.err
    assert calls(line) == 0 or not (line.fakes.directory / "mmdebstrap.calls").exists()
    assert not line.stored(gone).exists()
    line.assert_nothing_came_of_it()


def test_an_archive_that_cannot_be_read_is_told(line: Line, gone: Entry, capsys: pytest.CaptureFixture[str]) -> None:
    line.fakes.command("apt-get", stderr="E: Failed to fetch InRelease: Connection refused\n", status=100)
    assert line.run(capsys) == 1
    assert "E: Failed to fetch InRelease: Connection refused" in line.err
    assert line.err.endswith("  -> check that the mirror is reachable: apt-get update\n")
    line.assert_nothing_came_of_it()


# --- base and rootfs --------------------------------------------------------------------------------------------------


def log_named_in(line: Line) -> str:
    """Return the content of the log that the hint names."""
    return Path(line.err.rsplit("the whole output is in ", 1)[1].strip()).read_text()


@pytest.mark.parametrize("stage", ["base", "rootfs"])
def test_mmdebstrap_that_fails_is_quoted(line: Line, capsys: pytest.CaptureFixture[str], stage: str) -> None:
    line.forget(stage)
    rule = {"status": 25, "stderr": "I: installing\nE: dpkg was interrupted\n"}
    _ = line.mmdebstrap(**rule) if stage == "base" else line.layering(**rule)
    assert line.run(capsys) == 1
    assert "error: mmdebstrap failed to create the root file system\n    I: installing\n    E: dpkg was" in line.err
    assert "E: dpkg was interrupted" in log_named_in(line)
    line.assert_nothing_came_of_it()


def test_mmdebstrap_that_hangs_is_ended(
    line: Line, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line.forget("base")
    monkeypatch.setattr(base, "INSTALL_SECONDS", 5.0)
    line.mmdebstrap(sleep=600, stderr="I: downloading\n")
    assert line.run(capsys) == 1
    assert "mmdebstrap failed to create the root file system" in line.err
    assert "I: downloading" in log_named_in(line)
    line.assert_nothing_came_of_it()


def test_a_full_disk_while_packing_is_told(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    line.forget("rootfs")
    words = "FATAL ERROR: Write failed because No space left on device\n"
    line.tool("mksquashfs", {"drain": True, "status": 1, "stderr": words})
    assert line.run(capsys) == 1
    assert words in line.err
    line.assert_nothing_came_of_it()


def test_a_full_cache_is_told_with_the_place(
    line: Line, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_words: object, **_options: object) -> None:
        raise OSError(28, os.strerror(28))

    line.forget("rootfs")
    monkeypatch.setattr("build.rootfs.rootfs._write_manifest", full)
    assert line.run(capsys) == 1
    assert "error: rootfs: No space left on device: " in line.err
    assert line.err.endswith(f"  -> free disk space: df -h {line.cache}\n")
    line.assert_nothing_came_of_it()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_under_the_artifacts_publishes_nothing(line: Line) -> None:
    """A real one: too small for the image."""
    line.forget("verify")
    line.project.artifacts.mkdir()
    build = [sys.executable, "-m", "tests.interruption.goldsmith", *line.words()]
    mount = 'mount -t tmpfs -o size=48k none "$0" && "$@"; status=$?; ls -A "$0"; exit $status'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mount, line.project.artifacts, *build],
        cwd=ROOT, check=False, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "error: No space left on device: " in done.stderr
    assert done.stderr.endswith("  -> free some space, or --cache DIRECTORY\n")
    assert done.stdout == ".commit.lock\n.scratch.lock\n", "nothing was left on the small file system"
    line.assert_nothing_came_of_it()


# --- media and disk ---------------------------------------------------------------------------------------------------


def test_a_medium_that_cannot_be_made_is_told(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    line.forget("media")
    line.medium(status=5, stderr="xorriso : FAILURE : Image write error\n")
    assert line.run(capsys) == 1
    assert "xorriso : FAILURE : Image write error" in line.err
    assert "FAILURE" in log_named_in(line)
    line.assert_nothing_came_of_it()


def test_packer_that_fails_is_quoted_and_its_logs_stay(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    line.forget("disk")
    line.packer(syslog=COPYING, console=[[0, "GRUB loading\n"]], ending="fail", complaint="Error launching VM: no memory")
    assert line.run(capsys) == 1
    assert "Error launching VM: no memory" in line.err
    (logs,) = (line.cache / "logs").glob("disk-*")
    assert str(logs) in line.err
    assert (logs / "console.log").read_text() == "GRUB loading\n"
    line.assert_nothing_came_of_it()


def test_packer_that_hangs_is_ended(line: Line, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    line.forget("disk")
    monkeypatch.setattr(installation, "SILENCE_SECONDS", 0.1)
    line.packer(syslog=COPYING, ending="hang")
    assert line.run(capsys) == 1
    assert "copying the root file system" in line.err
    line.assert_nothing_came_of_it()


def test_a_question_of_the_installer_ends_the_build(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    line.forget("disk")
    question = "Partition disks\n---------------\n  1: Yes\n\nPrompt: '?' for help> "
    line.packer(syslog=COPYING, console=[[0, question]], ending="hang")
    assert line.run(capsys) == 1
    assert "Partition disks" in line.err
    assert "preseed" in line.err.splitlines()[-1]
    line.assert_nothing_came_of_it()


def test_a_panic_of_the_installer_is_tried_once_more_and_counted(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    line.forget("disk")
    line.packer(attempts=[{"syslog": COPYING, "console": [[0, PANIC]], "ending": "hang"}, INSTALLED])
    assert line.run(capsys) == 0, line.err
    (path,) = line.published()
    assert artifact.load(path).manifest.retries == Retries(installer=1, clones=0)
    assert "warning: " in line.err


def test_two_panics_of_the_installer_end_the_build(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    line.forget("disk")
    line.packer(syslog=COPYING, console=[[0, PANIC]], ending="hang")
    assert line.run(capsys) == 1
    assert "Kernel panic - not syncing: Attempted to kill init!" in line.err
    line.assert_nothing_came_of_it()


# --- verify -----------------------------------------------------------------------------------------------------------


def console_named_in(line: Line) -> str:
    return Path(line.err.rsplit("the whole console is in ", 1)[1].strip()).read_text()


def pytest_log_named_in(line: Line) -> str:
    return Path(line.err.rsplit("  -> see ", 1)[1].partition(";")[0]).read_text()


def test_clones_that_never_answer_are_given_up(
    line: Line, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line.forget("verify")
    monkeypatch.setattr(vm, "BOOT_SECONDS", 0.1)
    line.qemu([{"console": [[0, "GRUB loading.\n"]]}], [{"console": [[0, "GRUB loading.\n"]]}])
    assert line.run(capsys) == 1
    assert "did not become ready in time: its SSH host keys did not appear on the console" in line.err
    assert console_named_in(line) == "GRUB loading.\n"
    line.assert_nothing_came_of_it()


def test_a_clone_whose_machine_ends_is_told_at_once(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    line.forget("verify")
    line.qemu([{"console": [[0.2, "GRUB loading.\n"]], "ending": 1, "complaint": "qemu: out of memory"}])
    assert line.run(capsys) == 1
    assert "clone bios: QEMU ended with status 1 while booting\n    qemu: out of memory\n" in line.err
    assert console_named_in(line) == "GRUB loading.\n"
    line.assert_nothing_came_of_it()


def test_a_clone_that_cannot_be_started_is_told(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    line.forget("verify")
    line.qemu([{"monitor": "deaf", "ending": 1, "complaint": "qemu: could not set up host forwarding rule"}])
    assert line.run(capsys) == 1
    assert "error: QEMU did not start: it ended with status 1\n    qemu: could not set up host forwarding rule\n" in line.err
    line.assert_nothing_came_of_it()


def test_a_clone_with_a_failed_unit_is_told(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    line.forget("verify")
    line.ssh(state="degraded")
    assert line.run(capsys) == 1
    assert "booted, but its systemd state is degraded" in line.err
    line.assert_nothing_came_of_it()


@pytest.mark.parametrize("text", ["", "Bootup is not yet finished.\n", said(svg="<svg/>"), said(exposure=None)])
def test_a_clone_whose_inventory_cannot_be_read_is_told(line: Line, capsys: pytest.CaptureFixture[str], text: str) -> None:
    line.forget("verify")
    line.ssh(inventory=text)
    assert line.run(capsys) == 1
    assert "the inventory of bios" in line.err or "plot of systemd-analyze" in line.err
    line.assert_nothing_came_of_it()


def test_a_panic_of_a_clone_is_tried_once_more_and_counted(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    line.forget("verify")
    line.qemu([{"console": [[0, PANIC]]}, READY])
    assert line.run(capsys) == 0, line.err
    (path,) = line.published()
    assert artifact.load(path).manifest.retries == Retries(installer=0, clones=1)
    assert "known under emulation; the clones are booted once more" in line.err


def test_an_image_that_fails_a_test_is_never_published(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    line.image_test(GOOD + "\n\ndef test_bad():\n    assert not 'a default password'\n")
    files.remove_tree(line.project.artifacts)
    assert line.run(capsys) == 3
    assert "error: the image failed 1 of 2 tests\n    tests.image.test_x::test_bad: " in line.err
    assert "a default password" in pytest_log_named_in(line)
    line.assert_nothing_came_of_it()
    line.image_test(GOOD)
    assert line.run(capsys) == 0, "the image itself is kept, and checked again"


def test_tests_that_cannot_be_run_are_no_success(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    line.image_test("import nonsense_that_is_not_there\n")
    files.remove_tree(line.project.artifacts)
    assert line.run(capsys) == 3
    assert "No module named 'nonsense_that_is_not_there'" in pytest_log_named_in(line)
    line.assert_nothing_came_of_it()


# --- Ctrl-C, kill -9, and neighbours ----------------------------------------------------------------------------------

SLOW_TEST = GOOD + "\n\ndef test_slow():\n    import time\n    time.sleep(600)\n"


def hold(line: Line, stage: str) -> Fake | None:
    """Let a stage never end; return the program whose call shows that it has begun."""
    if stage == "testing":
        line.image_test(SLOW_TEST)
        files.remove_tree(line.project.artifacts)
        return None
    line.forget("verify" if stage == "booting" else stage)
    holders = {
        "base": lambda: line.mmdebstrap(sleep=600),
        "rootfs": lambda: line.layering(sleep=600),
        "media": lambda: line.medium(sleep=600),
        "disk": lambda: line.packer(syslog=COPYING, ending="hang"),
        "booting": lambda: line.qemu([{}], [{}]),
    }
    return holders[stage]()


def begun(line: Line, stage: str, holder: Fake | None) -> bool:
    if holder is None:
        return any("pytest" in command and "--context" in command for command in line.processes())
    words = {"base": "--variant=essential", "rootfs": "--variant=custom", "disk": "build", "booting": "-qmp"}
    return any(words.get(stage, "golden") in call.argv for call in holder.calls())


@pytest.fixture
def held(line: Line, request: pytest.FixtureRequest) -> Iterator[tuple[Line, subprocess.Popen[bytes]]]:
    """A build as a separate process, in the middle of a stage that never ends."""
    stage = request.param
    holder = hold(line, stage)
    goldsmith = line.start()
    try:
        reached = wait_for(lambda: goldsmith.poll() is not None or begun(line, stage, holder), seconds=PATIENCE)
        assert reached, "the stage did not begin"
        assert goldsmith.poll() is None, goldsmith.communicate()[1].decode()
        yield line, goldsmith
    finally:
        goldsmith.kill()
        goldsmith.communicate()


Held = tuple[Line, "subprocess.Popen[bytes]"]


@pytest.mark.parametrize("held", [*STAGES[:-1], "booting", "testing"], indirect=True)
def test_ctrl_c_in_any_stage_leaves_nothing(held: Held) -> None:
    line, goldsmith = held
    goldsmith.send_signal(signal.SIGINT)
    out, err = goldsmith.communicate(timeout=PATIENCE)
    assert goldsmith.returncode == 130, err.decode()
    assert out == b""
    last = "error: Interrupted. Completed stages are cached; run the same command again to continue.\n"
    assert err.decode().endswith(last)
    assert b"Traceback" not in err
    line.assert_nothing_came_of_it()


@pytest.mark.parametrize("held", ["disk"], indirect=True)
def test_a_polite_kill_leaves_nothing(held: Held) -> None:
    line, goldsmith = held
    goldsmith.send_signal(signal.SIGTERM)
    _, err = goldsmith.communicate(timeout=PATIENCE)
    assert goldsmith.returncode == 130, err.decode()
    line.assert_nothing_came_of_it()


@pytest.mark.parametrize("held", ["disk", "booting"], indirect=True)
def test_what_a_kill_leaves_is_removed_by_the_next_build(held: Held, capsys: pytest.CaptureFixture[str]) -> None:
    line, goldsmith = held
    goldsmith.kill()
    goldsmith.wait(PATIENCE_SECONDS)
    assert wait_for(lambda: not line.processes()), line.processes()
    assert line.published() == []
    assert line.scratch()
    install_fakes(line)
    assert line.run(capsys) == 0, line.err
    assert len(line.published()) == 1
    assert line.scratch() == []


def test_two_builds_at_once_share_the_work(line: Line) -> None:
    line.forget("disk")
    packer = line.packer(syslog=COPYING + FINISHING, console=[[1.5, POWERED_OFF]])
    both = [line.start() for _ in range(2)]
    said = [one.communicate(timeout=PATIENCE) for one in both]
    assert [one.returncode for one in both] == [0, 0], said
    (path,) = line.published()
    assert [out.decode() for out, _ in said] == [f"{path}\n"] * 2
    assert len([call for call in packer.calls() if call.argv[0] == "build"]) == 1
    assert sum(b"another build is running stage disk" in err for _, err in said) == 1
    assert line.scratch() == []
