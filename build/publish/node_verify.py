"""Tests an image on a node with two clones: the same tests as in the local build, on the node's storage and network.

Both are full clones, with administrator and site settings like an operator's clone. They are always removed. Tests that
cannot run on a cluster are skipped: those of the pristine disk image, and of firmware that the cluster does not use.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from build.core import files, log, run
from build.core.errors import GoldsmithError, StepFailed
from build.machines import nocloud, vm
from build.proxmox import guest_agent
from build.proxmox.client import Api, ApiError, TaskFailed
from build.proxmox.vms import Undo, is_taken, is_taken_by_now, take_away
from build.publish.publish import Subject
from build.spec.cluster import Settings
from build.verify import image_tests, verify

LETTERS = ("a", "b")
# The first clone's disk is larger: its root file system has to grow.
GROW_GIB = 4
CLONE_SECONDS = 3600.0
BOOT_SECONDS = 900.0
LOGIN_SECONDS = 600.0
COMMAND_SECONDS = 60.0
POLL_SECONDS = 2.0
# The tests of a clone take at most this, or as many times as long as its boot took: a node without KVM is slow in both.
# Measured with emulation on two cores: the boot took 196 s, and 27 % of the tests 1,800 s, which is 34 times the boot.
TEST_SECONDS, TESTS_PER_BOOT = 1800.0, 60.0
# The tests run on this host, for any number of nodes.
MOST_AT_ONCE = 4


@dataclass
class Clone:
    """A clone on a node, and its SSH connection."""

    name: str
    vmid: int
    directory: Path
    disk_mib: int
    address: str = ""
    # When it was started, and how long it took until it was ready, in seconds.
    started: float = 0.0
    boot_seconds: float = 0.0

    @property
    def alias(self) -> str:
        return f"goldsmith-{self.name}"

    @property
    def ssh_config(self) -> Path:
        return self.directory / "ssh_config"


@dataclass
class NodeVerifier:
    """Verifies on nodes, with the verifier's token; ``logs`` keeps the output of the tests, by node.

    ``spec`` is the specification of the image as plain data, ``disk_mib`` the size of its disk.
    """

    api: Api
    settings: Settings
    spec: Mapping[str, Any]
    disk_mib: int
    tests: Path
    scratch: Path
    logs: Path
    _slots: threading.BoundedSemaphore = field(default_factory=lambda: threading.BoundedSemaphore(MOST_AT_ONCE))

    def verify(self, subject: Subject) -> None:
        """Create two clones, test them, and remove them. Raises VerificationFailed, or StepFailed if they do not boot."""
        out = self.logs / subject.node
        with ExitStack() as stack:
            stack.enter_context(self._slots)
            directory = stack.enter_context(files.scratch(self.scratch))
            api = stack.enter_context(self.api.another())
            api.before = subject.check
            stack.enter_context(_kept(out, subject.node))
            identity = nocloud.make_identity(directory / "identity", self._user)
            clones = [stack.enter_context(self._clone(api, subject, letter, directory, identity)) for letter in LETTERS]
            for clone in clones:
                self._reach(api, subject, clone, identity)
                stack.enter_context(vm.shared_connection(clone))
            context = directory / verify.CONTEXT
            files.write_json(context, self._context(clones))
            log.info(f"{subject.node}: testing {' and '.join(f'{clone.vmid} ({clone.address})' for clone in clones)}")
            status = image_tests.run_tests(self.tests, context, out=out, timeout=tests_limit(clones))
            subject.check()
            result = image_tests.judge(out / image_tests.JUNIT, status=status)
            log.info(f"{subject.node}: {result.passed} tests passed on {len(clones)} clones, {result.skipped} skipped")

    @property
    def _user(self) -> str:
        return str(self.spec["admin"]["user"])

    def _context(self, clones: list[Clone]) -> dict[str, Any]:
        entries = [
            {
                "name": clone.name, "firmware": self.settings.firmware, "alias": clone.alias, "address": clone.address,
                "ssh_config": str(clone.ssh_config), "ports": vm.GUEST_PORTS, "disk_mib": clone.disk_mib, "console": "",
            }
            for clone in clones
        ]  # fmt: skip
        return {"target": "proxmox", "spec": self.spec, "clones": entries, "sealed": ""}

    @contextmanager
    def _clone(
        self, api: Api, subject: Subject, letter: str, directory: Path, identity: nocloud.Identity
    ) -> Iterator[Clone]:
        """Create and start a clone; always remove it afterwards."""
        undo = Undo()
        try:
            vmid = self._make(api, subject, letter, undo)
            clone = Clone(f"{subject.node}-{letter}", vmid, directory / letter, self._disk_mib(letter))
            clone.directory.mkdir()
            path = f"/nodes/{subject.node}/qemu/{vmid}"
            config = api.get(f"{path}/config")
            site = {"admin_cidrs": [_own_network(self.settings)]}
            cloud_init = guest_agent.cloud_init(user=self._user, default=self._user, keys=identity.public)
            smbios = guest_agent.smbios(str(config.get("smbios1", "")), site)
            api.put(f"{path}/config", onboot=0, smbios1=smbios, **cloud_init)
            if letter == LETTERS[0]:
                self._grow(api, path)
            api.wait(api.post(f"{path}/status/start"))
            clone.started = time.monotonic()
            yield clone
        finally:
            api.before = _nothing
            for problem in undo.run():
                log.warn(f"{subject.node}: {problem}")

    def _make(self, api: Api, subject: Subject, letter: str, undo: Undo) -> int:
        others: set[int] = set()
        while True:
            vmid, task = subject.ids.take(), {"upid": ""}

            def take_back(vmid: int = vmid, task: dict[str, str] = task) -> None:
                if vmid not in others:
                    take_away(api, subject.node, vmid, run=subject.label.run, upid=task["upid"], source=subject.vmid)

            try:
                # The clone inherits the description: by it the next run recognises VMs left by a killed run.
                task["upid"] = str(api.post(
                    f"/nodes/{subject.node}/qemu/{subject.vmid}/clone", newid=vmid, full=1, pool=self.settings.pool,
                    name=subject.label.clone_name(letter),
                ))  # fmt: skip
            except ApiError as error:
                if is_taken(error, vmid):
                    continue
                if error.status == 0:
                    undo.add(f"VM {vmid}", take_back)
                raise
            undo.add(f"VM {vmid}", take_back)
            try:
                api.wait(task["upid"], timeout=CLONE_SECONDS)
            except TaskFailed as error:
                if not is_taken_by_now(error, vmid):
                    raise
                others.add(vmid)
            else:
                return vmid

    def _disk_mib(self, letter: str) -> int:
        return self.disk_mib + (GROW_GIB << 10 if letter == LETTERS[0] else 0)

    def _grow(self, api: Api, path: str) -> None:
        upid = api.put(f"{path}/resize", disk="scsi0", size=f"+{GROW_GIB}G")
        if upid:
            api.wait(upid)

    def _reach(self, api: Api, subject: Subject, clone: Clone, identity: nocloud.Identity) -> None:
        """Find the clone's address and host key, and wait until it is up."""
        logged: list[str] = []

        def tell(text: str) -> None:
            _tell_once(logged, clone, text)

        clone.address = guest_agent.wait_address(api, subject.node, clone.vmid, timeout=BOOT_SECONDS, tell=tell)
        key = guest_agent.wait_host_key(api, subject.node, clone.vmid, timeout=LOGIN_SECONDS, tell=tell)
        nocloud.write_ssh_config(
            clone.directory, alias=clone.alias, host=clone.address, port=vm.GUEST_PORTS["ssh"], host_keys=[key],
            identity=identity,
        )  # fmt: skip
        deadline, state = time.monotonic() + LOGIN_SECONDS, ""
        while state not in ("running", "degraded", "maintenance"):
            subject.check()
            if time.monotonic() > deadline:
                raise StepFailed(
                    f"{clone.name} ({clone.address}) did not become ready within {LOGIN_SECONDS:.0f} s: "
                    f"{state or 'no login'}",
                    hint=f"check that this host can reach {clone.address} port 22; its console: qm terminal {clone.vmid}",
                )
            time.sleep(POLL_SECONDS)
            state = _execute(clone, "test ! -e /run/nologin && systemctl is-system-running").stdout.strip()
        clone.boot_seconds = time.monotonic() - clone.started
        if state != "running":
            failed = _execute(clone, "systemctl --failed --no-legend --plain").stdout
            raise StepFailed(
                f"{clone.name} booted, but its systemd state is {state}", details=run.tail(failed),
                hint="boot a test VM to investigate: nox -s boot",
            )  # fmt: skip


def tests_limit(clones: Sequence[Clone]) -> float:
    """Return the seconds that the tests may take on nodes as fast as the clones booted."""
    return max(TEST_SECONDS, TESTS_PER_BOOT * max(clone.boot_seconds for clone in clones))


def _execute(clone: Clone, command: str) -> run.Done:
    """Run a command on a clone; the status is -1 after a timeout, because the clone may be booting."""
    argv = ["ssh", "-F", str(clone.ssh_config), clone.alias, command]
    return run.attempt(argv, timeout=COMMAND_SECONDS)


def _tell_once(logged: list[str], clone: Clone, text: str) -> None:
    if text not in logged:
        logged.append(text)
        log.debug(f"{clone.name}: {text}")


def _nothing() -> None:
    pass


def _own_network(settings: Settings) -> str:
    """Return this host's address towards the cluster as a network: the clone accepts SSH from it."""
    family, kind, protocol, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        # No packet is sent: the kernel only chooses a route.
        probe.connect(address)
        local = probe.getsockname()[0]
    return f"{local}/{128 if family == socket.AF_INET6 else 32}"


@contextmanager
def _kept(out: Path, node: str) -> Iterator[None]:
    """Create the directory for the output of the tests, and name it in every error."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except GoldsmithError as error:
        error.details = f"{error.details}\n(on node {node}; logs: {out})".strip()
        raise
