"""An untouched machine: a minimal Debian from the archive, booted as a container with systemd as its init.

It differs from a computer in what a container cannot have: the host's kernel and network are its own, no boot loader runs,
and device nodes are those that the host hands in. mmdebstrap and systemd-nspawn make and boot it; needs root.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from build.core import files, log, run
from build.core.errors import StepFailed
from build.machines import nspawn
from build.packages import apt

SUITES = {"bookworm": "Debian 12", "trixie": "Debian 13"}
VARIANT = "important"
# git for the clone; dbus, because systemd-run speaks to the machine's init over it; certificates for pip.
PACKAGES = ("ca-certificates", "dbus", "git")
KEYRINGS = Path("/usr/share/keyrings")
# What reaches the archives from this host reaches them from there: proxies, certificate authorities, clients' settings.
CERTIFICATES = Path("usr/local/share/ca-certificates")
SETTINGS = ("etc/pip.conf",)
APT_SETTINGS = re.compile(r"^Acquire::(?!.*Changelogs)(?:https?|Check-Valid-Until|Check-Date|Retries)\b.*")
NOT_HERITABLE = ("HOME", "USER", "TERM", "TMPDIR", "XDG_CACHE_HOME")
GO_SETTINGS = ("GOPROXY", "GOSUMDB", "GONOSUMDB")
# Go's caches, which the machines of a release share, and later runs: Packer takes two processors six minutes to compile.
GO_CACHES = "/var/cache/newcomer-go"
DEVICES = ("/dev/kvm", "/dev/loop-control", "/dev/net/tun")
# A container shares the host's devices and network: nothing in it shall configure them.
MASKED = (
    "console-getty.service", "networking.service", "systemd-networkd-wait-online.service", "systemd-sysctl.service",
    "systemd-udevd.service", "systemd-udev-trigger.service",
)  # fmt: skip
USER = "newcomer"
# A minimal Debian is used for so long: the machines of one run, and those of another that follows it.
TREE_SECONDS = 6 * 3600.0
MAKE_SECONDS, BOOT_SECONDS, COMMAND_SECONDS = 900.0, 120.0, 5400.0
POLL_SECONDS = 0.5


def make_tree(suite: str, tar: Path) -> None:
    """Write a minimal Debian of the suite as a tar archive, unless one of the last hours is there. Raises StepFailed."""
    if tar.exists() and time.time() - tar.stat().st_mtime < TREE_SECONDS:
        return
    mirrors = apt.host_mirrors()
    keyrings = [f"--keyring={path}" for path in sorted(KEYRINGS.glob(f"debian-archive-{suite}-*.gpg"))]
    sources = apt.sources(mirrors, suite).splitlines()
    fresh = tar.with_name(f"new-{tar.name}")
    with log.step(f"Making a minimal {SUITES[suite]}"):
        run.run(
            ["mmdebstrap", "--quiet", f"--variant={VARIANT}", f"--include={','.join(PACKAGES)}", *keyrings, suite, fresh,
             *sources],
            timeout=MAKE_SECONDS, contained=True, hint="check that the mirror is reachable: apt-get update",
        )  # fmt: skip
        fresh.rename(tar)


@dataclass(frozen=True)
class Machine:
    """A machine that runs: its tree, its process 1 as the host numbers it, and the checkout of its user."""

    name: str
    root: Path
    leader: int
    user: str
    variables: Mapping[str, str]

    @property
    def home(self) -> str:
        return "/root" if self.user == "root" else f"/home/{self.user}"

    @property
    def checkout(self) -> Path:
        """The checkout, as the host sees it."""
        return self.root / self.home.lstrip("/") / "goldsmith"

    @property
    def cache(self) -> Path:
        """The cache of its user, as the host sees it: in the home directory, or below /var/tmp where that is private."""
        own = self.root / self.home.lstrip("/") / ".cache" / "goldsmith"
        shared = sorted((self.root / "var" / "tmp").glob("goldsmith-[0-9]*"))
        return shared[0] if shared and self.user != "root" else own

    def start(self, command: str, output: Path, *, user: str = "") -> int:
        """Run a shell command in the checkout, as a service of the machine's own init; show its output while it runs.

        Returns its exit status; the output is kept in the file too. Raises StepFailed after COMMAND_SECONDS.
        """
        who = user or self.user
        home = "/root" if who == "root" else f"/home/{who}"
        settings = {"HOME": home, "USER": who, "LOGNAME": who, "SHELL": "/bin/bash", "TERM": "dumb", **self.variables}
        argv = nspawn.enter(
            self.leader, "systemd-run", "--quiet", "--pipe", "--wait", "--collect", f"--uid={who}",
            f"--working-directory={self.home}/goldsmith", *(f"--setenv={name}={value}" for name, value in settings.items()),
            "bash", "--login", "-c", command,
        )  # fmt: skip
        deadline = time.monotonic() + COMMAND_SECONDS
        shown = 0
        with run.spawn(argv, log=output, contained=False) as process:
            while True:
                status = process.wait(POLL_SECONDS)
                shown = _show(output, shown)
                if status is not None:
                    return status
                if time.monotonic() > deadline:
                    raise StepFailed(f"{command!r} did not end within {COMMAND_SECONDS:.0f} s", hint=f"see {output}")


def _show(output: Path, shown: int) -> int:
    with output.open("rb") as stream:
        stream.seek(shown)
        text = stream.read()
    sys.stdout.write(text.decode(errors="replace"))
    sys.stdout.flush()
    return shown + len(text)


@contextmanager
def running(
    name: str, tar: Path, *, directory: Path, go_caches: Path, project: Path, user: str, sudo: bool
) -> Iterator[Machine]:
    """Unpack a minimal Debian, boot it, clone the project into it, and yield it; on leaving the block it has ended.

    ``user`` is root or another name, which gets an account, with ``sudo`` one that needs no password for sudo. The tree
    stays below ``directory``; ``go_caches`` is a directory for Go's caches. Raises StepFailed when it does not come up.
    """
    root, console = directory / "root", directory / "console.log"
    files.remove_tree(root)
    root.mkdir(parents=True)
    run.run(["tar", "--extract", "--numeric-owner", "--xattrs", "--file", tar, "--directory", root], timeout=MAKE_SECONDS)
    _hand_over_settings(root)
    go_caches.mkdir(parents=True, exist_ok=True)
    go_caches.chmod(0o777)
    (root / GO_CACHES.lstrip("/")).mkdir()
    binds = [f"--bind={path}" for path in DEVICES if Path(path).exists()] + [f"--bind={go_caches}:{GO_CACHES}"]
    argv = [
        "systemd-nspawn", "--quiet", "--boot", f"--directory={root}", "--register=no", "--keep-unit", f"--machine={name}",
        "--console=pipe", "--resolv-conf=copy-host", "--timezone=off", "--capability=all", *binds,
        *(f"systemd.mask={unit}" for unit in MASKED),
    ]  # fmt: skip
    console.unlink(missing_ok=True)
    with run.spawn(argv, log=console, env=nspawn.ENVIRONMENT) as process:
        leader = _await_boot(process, console)
        go = {"GOCACHE": f"{GO_CACHES}/build", "GOMODCACHE": f"{GO_CACHES}/modules"}
        machine = Machine(name, root, leader, user, {**_variables(root), **go})
        _prepare(machine, directory, project, sudo=sudo)
        yield machine


def _await_boot(process: run.Process, console: Path) -> int:
    """Wait for systemd's word that the boot is over, whichever; return the leader."""
    deadline = time.monotonic() + BOOT_SECONDS
    state = ""
    while time.monotonic() < deadline and process.poll() is None:
        leader = nspawn.find_leader(process.pid)
        if leader:
            asking = nspawn.enter(leader, "systemctl", "is-system-running")
            state = run.run(asking, timeout=60, check=False).stdout.strip()
            if state in ("running", "degraded"):
                return leader
        time.sleep(POLL_SECONDS)
    status = process.poll()
    ended = f"systemd-nspawn ended with status {status}" if status is not None else f"systemd reports {state or 'nothing'}"
    raise StepFailed(f"the machine did not boot: {ended}", details=run.tail(console.read_text(errors="replace")))


def _prepare(machine: Machine, directory: Path, project: Path, *, sudo: bool) -> None:
    """Give the machine what its user has: an account, the right to administer, a clone of the project."""
    inside = ["install -d /run/proc && mount -t proc proc /run/proc"]
    if machine.user != "root":
        inside.append(f"useradd --create-home --shell /bin/bash {machine.user}")
    if sudo:
        inside.append(
            "apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install --yes -qq sudo && "
            f"echo '{machine.user} ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/{machine.user}"
        )
    for command in inside:
        shell = nspawn.enter(machine.leader, "/bin/sh", "-c", command)
        run.run(shell, timeout=MAKE_SECONDS, log=directory / "prepare.log")
    run.run(["git", "clone", "--quiet", "--no-hardlinks", project, machine.checkout], timeout=MAKE_SECONDS)
    run.run(["git", "-C", machine.checkout, "remote", "remove", "origin"], timeout=60)
    run.run(
        nspawn.enter(machine.leader, "chown", "--recursive", f"{machine.user}:", f"{machine.home}/goldsmith"), timeout=60
    )


def _hand_over_settings(root: Path) -> None:
    """Copy what this host needs to reach the archives: certificate authorities and settings of the clients."""
    for path in Path("/", CERTIFICATES).glob("*.crt"):
        shutil.copyfile(path, root / CERTIFICATES / path.name)
    for name in SETTINGS:
        if Path("/", name).is_file():
            shutil.copyfile(Path("/", name), root / name)
    lines = run.run(["apt-config", "dump"], timeout=60).stdout.splitlines()
    settings = "\n".join(line for line in lines if APT_SETTINGS.match(line))
    (root / "etc/apt/apt.conf.d/90host").write_text(f"{settings}\n")
    run.run(["chroot", root, "update-ca-certificates"], timeout=120)


def _variables(root: Path) -> dict[str, str]:
    """Return the variables by which this host's clients reach the archives, but for paths that the machine has not."""
    names = [name for name in run.INHERITED if name not in NOT_HERITABLE]
    values = {name: os.environ[name] for name in names if os.environ.get(name)}
    if shutil.which("go", path=run.search_path()):
        shown = run.run(["go", "env", *GO_SETTINGS], timeout=60).stdout.splitlines()
        values |= {name: value for name, value in zip(GO_SETTINGS, shown, strict=True) if value}
    return {
        name: value for name, value in values.items() if not value.startswith("/") or (root / value.lstrip("/")).exists()
    }
