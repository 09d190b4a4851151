"""The way for Proxmox VE before 8.4, whose API takes no images: the file over SSH, and ``qm disk import`` on the node.

Each node's name, user and key come from the user's own SSH configuration. A host key that is not known is refused.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import paramiko

from build import log
from build.artifact import Artifact
from build.cluster import Settings
from build.errors import HostError, StepFailed
from build.labels import Label
from build.publish_media import Brought
from build.pve import Api

CONNECT_SECONDS = 30.0
COMMAND_SECONDS = 7200.0
# Proxmox's own place for what is on its way to a storage.
PLACE = PurePosixPath("/var/tmp")
USER = "root"


class SshFailed(StepFailed):
    """A node did what it was told over SSH, and failed, or did not answer."""


@dataclass(frozen=True)
class Ssh:
    """How nodes are reached: the user's SSH configuration and known hosts."""

    config: Path = field(default_factory=lambda: Path.home() / ".ssh" / "config")
    known_hosts: Path = field(default_factory=lambda: Path.home() / ".ssh" / "known_hosts")

    @contextmanager
    def connect(self, node: str) -> Iterator[paramiko.SSHClient]:
        """Connect to a node whose host key is known; raise HostError otherwise."""
        options = self._options(node)
        client = paramiko.SSHClient()
        client.set_missing_host_key_policy(paramiko.RejectPolicy())
        if self.known_hosts.is_file():
            client.load_host_keys(os.fspath(self.known_hosts))
        try:
            client.connect(
                options.get("hostname", node), port=int(options.get("port", 22)), username=options.get("user", USER),
                key_filename=options.get("identityfile"), timeout=CONNECT_SECONDS, banner_timeout=CONNECT_SECONDS,
                auth_timeout=CONNECT_SECONDS,
            )  # fmt: skip
            yield client
        except paramiko.BadHostKeyException as error:
            raise HostError(f"{node} shows another host key than the known one", details=str(error),
                            hint="find out why before anything else") from error  # fmt: skip
        except paramiko.AuthenticationException as error:
            raise HostError(f"{node} does not let us in over SSH", hint=f"try: ssh {USER}@{node} true") from error
        except paramiko.SSHException as error:
            hint = f"try: ssh {USER}@{node} true; its key belongs into {self.known_hosts}"
            raise HostError(f"{node} cannot be reached over SSH: {error}", hint=hint) from error
        except OSError as error:
            raise SshFailed(f"the connection to {node} failed: {error}", hint="is the node up?") from error
        finally:
            client.close()

    def _options(self, node: str) -> Mapping[str, Any]:
        found = paramiko.SSHConfig()
        if self.config.is_file():
            found = paramiko.SSHConfig.from_path(os.fspath(self.config))
        options: Mapping[str, Any] = found.lookup(node)
        return options


class OverSsh:
    """A Media that needs no content type ``import``."""

    def __init__(self, api: Api, settings: Settings, ssh: Ssh) -> None:
        self.api, self.settings, self.ssh = api, settings, ssh

    def find(self, node: str, source: Artifact, label: Label) -> Brought | None:
        path = _path(label)
        with self.ssh.connect(node) as client, client.open_sftp() as sftp:
            try:
                size = sftp.stat(str(path)).st_size
            except FileNotFoundError:
                return None
        # It got its name after its hash was checked.
        if size != source.image.stat().st_size:
            return None
        log.info(f"{node}: {path} is there already: it is not sent again")
        return Brought(str(path))

    def bring(self, node: str, source: Artifact, label: Label, tell: Callable[[int], None]) -> Brought:
        path, part = _path(label), _part(label)
        with self.ssh.connect(node) as client:
            with client.open_sftp() as sftp:
                sftp.put(os.fspath(source.image), str(part), callback=lambda sent, _size: tell(sent))
            got = execute(client, node, ["sha256sum", str(part)]).split()[0]
            if got != label.digest:
                raise SshFailed(f"{node}: the image was damaged on its way", hint="run the same command again")
            execute(client, node, ["mv", str(part), str(path)])
        return Brought(str(path))

    def disk(self, brought: Brought) -> dict[str, Any]:  # noqa: ARG002 (every Media has it)
        """Return nothing: ``attach`` makes the disk."""
        return {}

    def attach(self, node: str, vmid: int, brought: Brought) -> None:
        with self.ssh.connect(node) as client:
            execute(client, node, ["qm", "disk", "import", str(vmid), brought.volume, self.settings.storage])
        path = f"/nodes/{node}/qemu/{vmid}/config"
        config = self.api.get(path)
        unused = sorted(key for key in config if key.startswith("unused"))
        if not unused:
            raise StepFailed(f"{node}: VM {vmid} got no disk by qm disk import", hint="look at the node's task list")
        # Both at once: the boot order may name a disk only when it is there.
        self.api.put(path, scsi0=f"{config[unused[-1]]},discard=on,iothread=1", boot="order=scsi0")

    def remove(self, node: str, label: Label) -> None:
        with self.ssh.connect(node) as client:
            execute(client, node, ["rm", "-f", str(_path(label)), str(_part(label))])


def _path(label: Label) -> PurePosixPath:
    return PLACE / label.medium


def _part(label: Label) -> PurePosixPath:
    return PLACE / f"{label.medium}.part"


def execute(client: paramiko.SSHClient, node: str, argv: list[str]) -> str:
    """Run a command on a node to its end; return what it wrote."""
    _stdin, stdout, stderr = client.exec_command(shlex.join(argv), timeout=COMMAND_SECONDS)
    text, complaints = str(stdout.read(), errors="replace"), str(stderr.read(), errors="replace")
    status = stdout.channel.recv_exit_status()
    if status != 0:
        raise SshFailed(
            f"{node}: {' '.join(argv[:3])} failed with status {status}", details=complaints.strip() or text.strip(),
            hint="run it by hand on the node to see more",
        )  # fmt: skip
    return text
