"""Packer's proxmox-iso builder: found on the host, configured by one JSON file, credentials in its environment.

An API token is passed in the variable that the plugin reads. It is in no file and in no argument, and Packer's detailed
log, which shows the plugin's configuration, stays off.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from build.core import files, run
from build.core.errors import HostError
from build.disk import packer
from build.disk.packer import Packer, Workspace
from build.spec.cluster import Settings, Token

PLUGIN = "github.com/hashicorp/proxmox"
PLUGIN_FILE = "packer-plugin-proxmox_v*_x5.*_linux_*"
# The oldest plugin that does not convert the VM to a template (skip_convert_to_template); packer/proxmox/plugin
# requires it.
PLUGIN_SINCE = (1, 2, 4)
QUIET = {"CHECKPOINT_DISABLE": "1"}
SOURCES, WITH_PLUGIN, BUNDLED = "proxmox", "plugin", "bundled"


@dataclass(frozen=True, kw_only=True)
class Job:
    """An installation by Packer on a node: from ``medium``, a volume on the node, to an empty disk of ``disk_mib``."""

    node: str
    vmid: int
    name: str
    medium: str
    storage_type: str
    disk_mib: int
    cpu: str
    memory_mib: int
    seconds: int


def locate(*, tools: Path, cache: Path, chosen: str = "") -> Packer:
    """Return a Packer with the proxmox plugin: the chosen one, or that of PATH, or the compiled one.

    Raises HostError if there is none, with the command to install one. Plugins are installed by the user: ``packer
    plugins install``.
    """
    problems = []
    for path in _candidates(tools=tools, cache=cache, chosen=chosen):
        version = packer.packer_version(path)
        if version < packer.FIRST_WITHOUT_BUILDERS:
            problems.append(f"{path} is {Packer(path, version).name}, whose builder does not support API tokens")
        elif plugins := installed_plugins(path):
            return Packer(path, version, plugins)
        else:
            required = ".".join(map(str, PLUGIN_SINCE))
            problems.append(f"{path} has no proxmox plugin {required} or later; install it: {path} plugins install {PLUGIN}")
    raise HostError(
        "no Packer on this host can build on Proxmox VE", details="\n".join(problems),
        hint=f"install Packer 1.10 or later, set $PACKER to its path, and run: packer plugins install {PLUGIN}",
    )  # fmt: skip


def _candidates(*, tools: Path, cache: Path, chosen: str) -> list[Path]:
    program = shutil.which(chosen or "packer", path=run.search_path())
    compiled = packer.locked_directory(tools=tools, cache=cache) / "packer"
    return [*([Path(program)] if program else []), *([compiled] if compiled.exists() and not chosen else [])]


def installed_plugins(path: Path) -> Path | None:
    """Return the user's plugin directory if it contains a proxmox plugin that is new enough, else None."""
    done = run.run([path, "plugins", "installed"], timeout=packer.ANSWER_SECONDS, env=QUIET, check=False)
    for line in done.stdout.splitlines():
        plugin = Path(line.strip())
        match = re.search(r"_v(\d+)\.(\d+)\.(\d+)", plugin.name)
        if plugin.match(f"{PLUGIN}/{PLUGIN_FILE}") and match and tuple(map(int, match.groups())) >= PLUGIN_SINCE:
            return plugin.parents[len(Path(PLUGIN).parts)]
    return None


def prepare(directory: Path, *, found: Packer, templates: Path, settings: Settings, job: Job) -> Workspace:
    """Prepare ``directory`` (which must exist) for one run of Packer and return the workspace; no secret is written."""
    workspace = Workspace(directory, found)
    kind = WITH_PLUGIN if found.version >= packer.FIRST_WITHOUT_BUILDERS else BUNDLED
    for place in (templates / SOURCES, templates / SOURCES / kind):
        for source in sorted(place.glob("*.pkr.hcl")):
            shutil.copyfile(source, directory / source.name)
    for name in (packer.HOME, packer.TEMPORARY, packer.CACHE):
        (directory / name).mkdir()
    content = json.dumps(variables(settings, job), indent=2, sort_keys=True) + "\n"
    files.write_atomic(directory / packer.VARIABLES, content)
    return workspace


def variables(settings: Settings, job: Job) -> dict[str, Any]:
    """Return the values of the template's variables."""
    return {
        "node": job.node,
        "pool": settings.pool,
        "vm_id": job.vmid,
        "vm_name": job.name,
        "iso_file": job.medium,
        "cpu_type": job.cpu,
        "cores": settings.cores,
        "memory": job.memory_mib,
        "storage": settings.storage,
        "storage_type": job.storage_type,
        # The builder counts in whole gigabytes.
        "disk_size": f"{math.ceil(job.disk_mib / 1024)}G",
        "install_time": f"{job.seconds}s",
    }


def environment(workspace: Workspace, settings: Settings, token: Token) -> dict[str, str]:
    """Return the environment of Packer: the credentials are only here."""
    kept = {name: text for name, text in workspace.environment().items() if not name.startswith("PACKER_LOG")}
    return kept | credentials(settings, user=token.identity, secret={"PROXMOX_TOKEN": token.secret})


def credentials(settings: Settings, *, user: str, secret: Mapping[str, str]) -> dict[str, str]:
    """Return the builder's own variables; the cluster's CA is passed to Go, which then trusts only this one."""
    return {
        "PROXMOX_URL": f"https://{settings.host}:{settings.port}/api2/json",
        "PROXMOX_USERNAME": user,
        **secret,
        **({"SSL_CERT_FILE": str(settings.ca.resolve())} if settings.ca else {}),
    }
