"""Lets two clones on a node judge an image there: the same tests as at home, over the node's own storage and network.

A full clone each, told its administrator and its site the way an operator's clone is. They are removed in every case.
The tests leave out, visibly, what a cluster cannot show: the sealed disk from outside, and the firmware it does not use.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from build import files, image_tests, log, pve_guest, run, seed, verify, vm
from build.cluster import Settings
from build.errors import GoldsmithError, StepFailed
from build.publish import Subject
from build.publish_machine import EXISTS, Undo, take_away
from build.pve import Api, ApiError

LETTERS = ("a", "b")
# The first clone's disk is larger: its root file system has to grow.
GROW_GIB = 4
CLONE_SECONDS = 3600.0
BOOT_SECONDS = 900.0
LOGIN_SECONDS = 600.0
COMMAND_SECONDS = 60.0
POLL_SECONDS = 2.0
TEST_SECONDS = 1800.0
PORTS = {"ssh": 22, "http": 80, "https": 443}
# The tests run here, whatever the number of nodes.
MOST_AT_ONCE = 4


@dataclass
class Clone:
    """A clone on a node, and how it is reached."""

    name: str
    vmid: int
    directory: Path
    disk_mib: int
    address: str = ""

    @property
    def alias(self) -> str:
        return f"goldsmith-{self.name}"

    @property
    def ssh_config(self) -> Path:
        return self.directory / "ssh_config"


@dataclass
class Judge:
    """Verifies on nodes, with the verifier's token; ``logs`` keeps what the tests said, by node."""

    api: Api
    settings: Settings
    manifest: Mapping[str, Any]
    tests: Path
    scratch: Path
    logs: Path
    _slots: threading.BoundedSemaphore = field(default_factory=lambda: threading.BoundedSemaphore(MOST_AT_ONCE))

    def verify(self, subject: Subject) -> None:
        """Make two clones, test them, and remove them. Raises VerificationFailed, or StepFailed when they do not boot."""
        out = self.logs / subject.node
        with ExitStack() as stack:
            stack.enter_context(self._slots)
            directory = stack.enter_context(files.scratch(self.scratch))
            api = stack.enter_context(self.api.another())
            api.before = subject.check
            stack.enter_context(_kept(out, subject.node))
            identity = seed.make_identity(directory / "identity", self._user)
            clones = [stack.enter_context(self._clone(api, subject, letter, directory, identity)) for letter in LETTERS]
            for clone in clones:
                self._reach(api, subject, clone, identity)
                stack.enter_context(vm.shared_connection(clone))
            context = directory / verify.CONTEXT
            files.write_json(context, self._context(clones))
            log.info(f"{subject.node}: testing {' and '.join(f'{one.vmid} ({one.address})' for one in clones)}")
            status = image_tests.run_tests(self.tests, context, out=out, timeout=TEST_SECONDS)
            subject.check()
            verdict = image_tests.judge(out / image_tests.JUNIT, status=status, facts={})
            log.info(f"{subject.node}: {verdict.passed} tests passed on {len(clones)} clones, {verdict.skipped} left out")

    @property
    def _user(self) -> str:
        return str(self.manifest["inputs"]["spec"]["admin"]["user"])

    def _context(self, clones: list[Clone]) -> dict[str, Any]:
        machines = [
            {
                "name": one.name, "firmware": self.settings.firmware, "alias": one.alias, "address": one.address,
                "ssh_config": str(one.ssh_config), "ports": PORTS, "disk_mib": one.disk_mib, "console": "",
            }
            for one in clones
        ]  # fmt: skip
        return {"target": "proxmox", "spec": self.manifest["inputs"]["spec"], "clones": machines, "sealed": ""}

    @contextmanager
    def _clone(
        self, api: Api, subject: Subject, letter: str, directory: Path, identity: seed.Identity
    ) -> Iterator[Clone]:
        """Make and start a clone; take it away again whatever happens."""
        undo = Undo()
        try:
            vmid = self._make(api, subject, letter, undo)
            clone = Clone(f"{subject.node}-{letter}", vmid, directory / letter, self._disk_mib(letter))
            clone.directory.mkdir()
            path = f"/nodes/{subject.node}/qemu/{vmid}"
            config = api.get(f"{path}/config")
            site = {"admin_cidrs": [_own_network(self.settings)]}
            told = pve_guest.cloud_init(user=self._user, keys=identity.public)
            api.put(f"{path}/config", onboot=0, smbios1=pve_guest.smbios(str(config.get("smbios1", "")), site), **told)
            if letter == LETTERS[0]:
                self._grow(api, path)
            api.wait(api.post(f"{path}/status/start"))
            yield clone
        finally:
            api.before = _nothing
            for problem in undo.run():
                log.warn(f"{subject.node}: {problem}")

    def _make(self, api: Api, subject: Subject, letter: str, undo: Undo) -> int:
        while True:
            vmid, task = subject.ids.take(), {"upid": ""}

            def take_back(vmid: int = vmid, task: dict[str, str] = task) -> None:
                take_away(
                    api, subject.node, vmid, run=subject.label.run, upid=task["upid"], source=subject.vmid
                )

            try:
                # The description comes along: the next run knows by it what a killed one has left.
                task["upid"] = str(api.post(
                    f"/nodes/{subject.node}/qemu/{subject.vmid}/clone", newid=vmid, full=1, pool=self.settings.pool,
                    name=subject.label.clone_name(letter),
                ))  # fmt: skip
            except ApiError as error:
                if any(words in error.brief for words in EXISTS):
                    continue
                if error.status == 0:
                    undo.add(f"VM {vmid}", take_back)
                raise
            undo.add(f"VM {vmid}", take_back)
            api.wait(task["upid"], timeout=CLONE_SECONDS)
            return vmid

    def _disk_mib(self, letter: str) -> int:
        return int(self.manifest["image"]["virtual_mib"]) + (GROW_GIB << 10 if letter == LETTERS[0] else 0)

    def _grow(self, api: Api, path: str) -> None:
        upid = api.put(f"{path}/resize", disk="scsi0", size=f"+{GROW_GIB}G")
        if upid:
            api.wait(upid)

    def _reach(self, api: Api, subject: Subject, clone: Clone, identity: seed.Identity) -> None:
        """Find the clone's address and host key, and wait until it is up."""
        seen: list[str] = []

        def tell(text: str) -> None:
            _tell_once(seen, clone, text)

        clone.address = pve_guest.wait_address(api, subject.node, clone.vmid, timeout=BOOT_SECONDS, tell=tell)
        key = pve_guest.wait_host_key(api, subject.node, clone.vmid, timeout=LOGIN_SECONDS, tell=tell)
        seed.write_ssh_config(
            clone.directory, alias=clone.alias, host=clone.address, port=PORTS["ssh"], host_keys=[key], identity=identity
        )  # fmt: skip
        deadline, state = time.monotonic() + LOGIN_SECONDS, ""
        while state not in ("running", "degraded", "maintenance"):
            subject.check()
            if time.monotonic() > deadline:
                raise StepFailed(
                    f"{clone.name} ({clone.address}) did not become ready: {state or 'no login'}",
                    hint=f"can this host reach {clone.address} port 22? Its console: qm terminal {clone.vmid}",
                )
            time.sleep(POLL_SECONDS)
            state = _execute(clone, "test ! -e /run/nologin && systemctl is-system-running").stdout.strip()
        if state != "running":
            failed = _execute(clone, "systemctl --failed --no-legend --plain").stdout
            raise StepFailed(
                f"{clone.name} booted, but systemd says {state}", details=run.tail(failed),
                hint="a clone to look at: nox -s boot",
            )  # fmt: skip


def _execute(clone: Clone, command: str) -> run.Done:
    argv = ["ssh", "-F", str(clone.ssh_config), clone.alias, command]
    return run.run(argv, timeout=COMMAND_SECONDS, check=False)


def _tell_once(seen: list[str], clone: Clone, text: str) -> None:
    if text not in seen:
        seen.append(text)
        log.debug(f"{clone.name}: {text}")


def _nothing() -> None:
    pass


def _own_network(settings: Settings) -> str:
    """Return the network of one address from which this host reaches the cluster: SSH is answered there."""
    family, kind, protocol, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        # No packet is sent: the kernel only chooses a route.
        probe.connect(address)
        own = probe.getsockname()[0]
    return f"{own}/{128 if family == socket.AF_INET6 else 32}"


@contextmanager
def _kept(out: Path, node: str) -> Iterator[None]:
    """Make the directory for what the tests say, and name it in every error."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except GoldsmithError as error:
        error.details = f"{error.details}\n(on node {node}; logs: {out})".strip()
        raise
