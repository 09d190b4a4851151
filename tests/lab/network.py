"""The lab's separate network: a namespace with a bridge and its DHCP server, without external access.

The whole lab runs in it, the fake Proxmox and the commands under test included, so that a clone is reached at the address
its agent reports, as on a real bridge. The DHCP server is the one inside QEMU's user network, joined to the bridge by a tap.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, Protocol

from build.core import run
from build.core.errors import HostError, StepFailed
from build.machines import vm

BRIDGE = "vmbr0"
NETWORK = "10.99.0.0/24"
HOST = "10.99.0.1"
# Nothing but addresses for DHCP is behind these: the namespace has no external access.
GATEWAY, NAMES, FIRST_GUEST = "10.99.0.2", "10.99.0.3", "10.99.0.15"
DHCP_TAP = "tapdhcp"
TUN = Path("/dev/net/tun")
INSIDE = "GOLDSMITH_LAB_INSIDE"
SECONDS = 30.0
BRIDGE_UP_SECONDS = 10.0


class Wires(Protocol):
    """How a machine's cards are plugged in."""

    def plug(self, tap: str, bridge: str) -> None:
        """Make a tap device on a bridge."""
        ...

    def unplug(self, tap: str) -> None:
        """Remove it; one that is not there is no error."""
        ...


def enter(module: str, arguments: Sequence[str]) -> None:
    """Continue in a separate network namespace: return at once if this is one, else start ``module`` again in one.

    An ordinary user gets a user namespace as well.
    """
    if INSIDE in os.environ:
        return
    _start(module, arguments)


def _start(module: str, arguments: Sequence[str]) -> NoReturn:
    unshare = run.which("unshare", reason="give the lab a separate network")
    user = [] if run.is_root() else ["--user", "--map-root-user"]
    words = [str(unshare), *user, "--net", "--", sys.executable, "-m", module, *arguments]
    os.execve(unshare, words, {**os.environ, INSIDE: "1"})


def available() -> str:
    """Return why a namespace with a bridge cannot be created on this host, or an empty string."""
    if not shutil.which("ip", path=run.search_path()):
        return "ip is missing: apt-get install --yes iproute2   (as root)"
    user = [] if run.is_root() else ["--user", "--map-root-user"]
    script = f"ip link add {BRIDGE} type bridge && ip tuntap add {DHCP_TAP} mode tap"
    done = run.run(["unshare", *user, "--net", "--", "sh", "-c", script], timeout=SECONDS, check=False)
    return "" if done.returncode == 0 else run.tail(done.stderr, 1) or "no network namespace"


def _ip(*words: str, check: bool = True) -> None:
    run.run(["ip", *words], timeout=SECONDS, check=check)


class Bridge:
    """The bridge of this namespace."""

    def plug(self, tap: str, bridge: str) -> None:
        """Make a tap device on the bridge."""
        if bridge != BRIDGE:
            raise StepFailed(f"bridge '{bridge}' does not exist", hint=f"the lab has {BRIDGE}")
        _ip("tuntap", "add", tap, "mode", "tap")
        _ip("link", "set", tap, "master", BRIDGE, "up")

    def unplug(self, tap: str) -> None:
        """Remove a tap device."""
        _ip("link", "delete", tap, check=False)


@contextmanager
def bridged(directory: Path) -> Iterator[Bridge]:
    """Set up the bridge and its DHCP server in this namespace."""
    if INSIDE not in os.environ:
        raise HostError("the lab's network needs a separate namespace", hint="start it with: nox -s lab")
    if not os.access(TUN, os.R_OK | os.W_OK):
        raise HostError(
            f"{TUN} cannot be opened: the machines' network cards are made with it",
            hint=f"run the lab as root, or as root: modprobe tun; chmod 0666 {TUN}   (what udev does on Debian)",
        )
    bridge = Bridge()
    _ip("link", "set", "lo", "up")
    _ip("link", "add", BRIDGE, "type", "bridge", "forward_delay", "0")
    _ip("address", "add", f"{HOST}/{NETWORK.rpartition('/')[2]}", "dev", BRIDGE)
    _ip("link", "set", BRIDGE, "up")
    bridge.plug(DHCP_TAP, BRIDGE)
    log = directory / "dhcp.log"
    with run.spawn(dhcp_argv(), log=log, cwd=directory) as process:
        _await_up(process, log)
        yield bridge


def dhcp_argv() -> list[str]:
    """Return a QEMU without a machine: its user network, whose DHCP server it is, and a tap, joined by a hub."""
    user = f"user,id=user,net={NETWORK},host={GATEWAY},dns={NAMES},dhcpstart={FIRST_GUEST}"
    return [
        vm.QEMU, "-machine", "none", "-display", "none", "-nodefaults", "-no-user-config",
        "-netdev", user, "-netdev", "hubport,hubid=0,id=port0,netdev=user",
        "-netdev", f"tap,id=tap,ifname={DHCP_TAP},script=no,downscript=no", "-netdev", "hubport,hubid=0,id=port1,netdev=tap",
    ]  # fmt: skip


def _await_up(process: run.Process, log: Path) -> None:
    """Wait until the tap has a reader: what is sent before is lost."""
    deadline = time.monotonic() + BRIDGE_UP_SECONDS
    while "LOWER_UP" not in run.run(["ip", "link", "show", DHCP_TAP], timeout=SECONDS).stdout:
        status = process.poll()
        if status is not None or time.monotonic() > deadline:
            how = f"it was not up within {BRIDGE_UP_SECONDS:.0f} s" if status is None else run.ending("it", status)
            said = run.tail(log.read_text(errors="replace"))
            raise StepFailed(f"the lab's DHCP server did not start: {how}", details=said)
        time.sleep(0.05)
