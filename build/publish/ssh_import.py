"""Import for Proxmox VE before 8.4, whose API accepts no images: the file over SSH, and ``qm disk import`` on the node.

Host name, user and key of each node come from the user's SSH configuration. An unknown host key is rejected.
"""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import paramiko

from build.artifact.artifact import Artifact
from build.core import log
from build.core.errors import HostError, StepFailed
from build.proxmox.client import Api
from build.proxmox.labels import Label
from build.publish.upload import UploadedImage
from build.spec.cluster import Settings

CONNECT_SECONDS = 30.0
COMMAND_SECONDS = 7200.0
# The directory where Proxmox itself stores uploads temporarily.
PLACE = PurePosixPath("/var/tmp")
USER = "root"

# Failures are raised as errors; by default paramiko also writes a traceback to standard error.
logging.getLogger("paramiko").setLevel(logging.CRITICAL)


class SshFailed(StepFailed):
    """A command on a node failed over SSH, or the node did not respond."""


@dataclass(frozen=True)
class Ssh:
    """The SSH settings for nodes: the user's SSH configuration and known hosts."""

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
            raise HostError(f"the host key of {node} differs from the known one", details=str(error),
                            hint="find out why it changed before you connect again") from error  # fmt: skip
        except paramiko.AuthenticationException as error:
            raise HostError(f"{node} rejected SSH authentication", hint=f"test it with: ssh {USER}@{node} true") from error
        except paramiko.SSHException as error:
            hint = f"test it with: ssh {USER}@{node} true; add its host key to {self.known_hosts}"
            raise HostError(f"{node} cannot be reached over SSH: {error}", hint=hint) from error
        except OSError as error:
            raise SshFailed(f"the connection to {node} failed: {error}", hint="check that the node is up") from error
        finally:
            client.close()

    def _options(self, node: str) -> Mapping[str, Any]:
        ssh_config = paramiko.SSHConfig()
        if self.config.is_file():
            ssh_config = paramiko.SSHConfig.from_path(os.fspath(self.config))
        options: Mapping[str, Any] = ssh_config.lookup(node)
        return options


class OverSsh:
    """A Media that needs no content type ``import``."""

    def __init__(self, api: Api, settings: Settings, ssh: Ssh) -> None:
        self.api, self.settings, self.ssh = api, settings, ssh

    def find(self, node: str, source: Artifact, label: Label) -> UploadedImage | None:
        path = _path(label)
        with self.ssh.connect(node) as client, client.open_sftp() as sftp:
            try:
                size = sftp.stat(str(path)).st_size
            except FileNotFoundError:
                return None
        # The file gets this name only after its hash was checked.
        if size != source.image.stat().st_size:
            return None
        log.info(f"{node}: {path} already exists: not uploading it again")
        return UploadedImage(str(path))

    def bring(self, node: str, source: Artifact, label: Label, tell: Callable[[int], None]) -> UploadedImage:
        path, part = _path(label), _part(label)
        with self.ssh.connect(node) as client:
            with client.open_sftp() as sftp:
                sftp.put(os.fspath(source.image), str(part), callback=lambda sent, _size: tell(sent))
            received_hash = execute(client, node, ["sha256sum", str(part)]).split()[0]
            if received_hash != label.digest:
                raise SshFailed(f"{node}: the image was damaged during the upload", hint="run the same command again")
            execute(client, node, ["mv", str(part), str(path)])
        return UploadedImage(str(path))

    def disk(self, uploaded: UploadedImage) -> dict[str, Any]:  # noqa: ARG002 (every Media has it)
        """Return no keys: ``attach`` creates the disk."""
        return {}

    def attach(self, node: str, vmid: int, uploaded: UploadedImage) -> None:
        with self.ssh.connect(node) as client:
            execute(client, node, ["qm", "disk", "import", str(vmid), uploaded.volume, self.settings.storage])
        path = f"/nodes/{node}/qemu/{vmid}/config"
        config = self.api.get(path)
        unused = sorted(key for key in config if key.startswith("unused"))
        if not unused:
            raise StepFailed(f"{node}: VM {vmid} got no disk by qm disk import", hint="check the node's task list")
        # In one call: the boot order may only name an existing disk.
        self.api.put(path, scsi0=f"{config[unused[-1]]},discard=on,iothread=1", boot="order=scsi0")

    def remove(self, node: str, label: Label) -> None:
        with self.ssh.connect(node) as client:
            execute(client, node, ["rm", "-f", str(_path(label)), str(_part(label))])


def _path(label: Label) -> PurePosixPath:
    return PLACE / label.medium


def _part(label: Label) -> PurePosixPath:
    return PLACE / f"{label.medium}.part"


def execute(client: paramiko.SSHClient, node: str, argv: list[str]) -> str:
    """Run a command on a node until it ends; return its output."""
    _stdin, stdout, stderr = client.exec_command(shlex.join(argv), timeout=COMMAND_SECONDS)
    text, complaints = str(stdout.read(), errors="replace"), str(stderr.read(), errors="replace")
    status = stdout.channel.recv_exit_status()
    if status != 0:
        raise SshFailed(
            f"{node}: {' '.join(argv[:3])} failed with status {status}", details=complaints.strip() or text.strip(),
            hint="run it manually on the node for more details",
        )  # fmt: skip
    return text
