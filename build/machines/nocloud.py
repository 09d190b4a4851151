"""The cloud-init configuration of a test VM (NoCloud), and the temporary SSH key of its administrator."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from build.core import files, run

LOOPBACK = "127.0.0.1"
# The site settings of a VM.
SITE_SETTINGS = "/etc/golden/site.yaml"


@dataclass(frozen=True)
class Identity:
    """The administrator's account on the VMs, with a key pair for this run only."""

    user: str
    key: Path

    @property
    def public(self) -> str:
        return self.key.with_suffix(".pub").read_text().strip()


def make_identity(directory: Path, user: str) -> Identity:
    """Create an ed25519 key pair in ``directory``."""
    key = directory / "id_ed25519"
    directory.mkdir(parents=True, exist_ok=True)
    if not key.exists():
        run.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "goldsmith", "-f", key], timeout=run.LOCAL_SECONDS)
    return Identity(user, key)


def user_data(name: str, identity: Identity, *, admin_cidrs: Sequence[str] = ()) -> str:
    """Return the clone's cloud-config: its name, the administrator with one key, and the networks SSH is reached from."""
    config: dict[str, object] = {"hostname": name, "ssh_authorized_keys": [identity.public]}
    if admin_cidrs:
        content = yaml.safe_dump({"admin_cidrs": list(admin_cidrs)})
        config["write_files"] = [{"path": SITE_SETTINGS, "permissions": "0600", "content": content}]
    return "#cloud-config\n" + yaml.safe_dump(config)


def documents(name: str, identity: Identity, *, admin_cidrs: Sequence[str] = ()) -> dict[str, str]:
    """Return the NoCloud documents of a clone called ``name``, by file name."""
    # A new instance id for every start: cloud-init runs once per instance.
    meta = {"instance-id": f"{name}-{os.urandom(6).hex()}", "local-hostname": name}
    return {"user-data": user_data(name, identity, admin_cidrs=admin_cidrs), "meta-data": yaml.safe_dump(meta)}


def write(directory: Path, name: str, identity: Identity, *, admin_cidrs: Sequence[str] = ()) -> Path:
    """Write the seed ISO of a VM with the name ``name``, with the label that cloud-init expects; return its path."""
    source = directory / "seed"
    source.mkdir(parents=True, exist_ok=True)
    for file, content in documents(name, identity, admin_cidrs=admin_cidrs).items():
        (source / file).write_text(content)
    target = directory / "seed.iso"
    target.unlink(missing_ok=True)
    run.run(
        ["xorriso", "-as", "mkisofs", "-quiet", "-volid", "cidata", "-joliet", "-rational-rock", "-output", target, source],
        timeout=run.LOCAL_SECONDS,
    )
    return target


def write_ssh_config(
    directory: Path, *, alias: str, port: int, host_keys: Sequence[str], identity: Identity, host: str = LOOPBACK
) -> Path:
    """Write the ssh configuration for a VM with known host keys; unknown keys are rejected.

    The control socket is in a directory with a short path: such paths are limited to 108 bytes.
    """
    known = directory / "known_hosts"
    files.write_atomic(known, "".join(f"{alias} {key}\n" for key in host_keys))
    config = {
        "HostName": host, "Port": str(port), "User": identity.user, "IdentityFile": str(identity.key),
        "IdentitiesOnly": "yes", "HostKeyAlias": alias, "UserKnownHostsFile": str(known),
        "GlobalKnownHostsFile": "/dev/null", "StrictHostKeyChecking": "yes", "BatchMode": "yes",
        "PasswordAuthentication": "no", "ConnectTimeout": "20", "ConnectionAttempts": "1", "LogLevel": "ERROR",
        "ServerAliveInterval": "20", "ServerAliveCountMax": "6",
        "ControlMaster": "no", "ControlPath": f"/tmp/.goldsmith-{os.getpid()}-%C",
    }  # fmt: skip
    text = f"Host {alias}\n" + "".join(f"    {key} {value}\n" for key, value in config.items())
    path = directory / "ssh_config"
    files.write_atomic(path, text, mode=0o600)
    return path
