"""Packer's proxmox-iso builder: found on the host, told everything in one flat file, and credentials by its environment.

An API token goes through the variable that the plugin reads; it stands in no file and in no argument, and Packer's
detailed log, which shows what the plugin is told, stays off.
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

from build import files, packer, run
from build.cluster import Settings, Token
from build.errors import HostError
from build.packer import Packer, Workspace

PLUGIN = "github.com/hashicorp/proxmox"
PLUGIN_FILE = "packer-plugin-proxmox_v*_x5.*_linux_*"
# The oldest plugin that keeps the machine a machine (skip_convert_to_template), and packer/proxmox/plugin asks for it.
PLUGIN_SINCE = (1, 2, 4)
QUIET = {"CHECKPOINT_DISABLE": "1"}
SOURCES, WITH_PLUGIN, BUNDLED = "proxmox", "plugin", "bundled"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What Packer shall do on a node: install from ``medium``, a volume there, onto an empty disk of ``disk_mib``."""

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

    Raises HostError that says how to get one. Plugins are the user's own: ``packer plugins install``.
    """
    seen = []
    for path in _candidates(tools=tools, cache=cache, chosen=chosen):
        version = packer.packer_version(path)
        if version < packer.FIRST_WITHOUT_BUILDERS:
            seen.append(f"{path} is {Packer(path, version).name}, whose builder knows no API tokens")
        elif plugins := installed_plugins(path):
            return Packer(path, version, plugins)
        else:
            wanted = ".".join(map(str, PLUGIN_SINCE))
            seen.append(f"{path} has no proxmox plugin {wanted} or later; get it: {path} plugins install {PLUGIN}")
    raise HostError(
        "no Packer here can build on Proxmox VE", details="\n".join(seen),
        hint=f"Packer 1.10 or later, named in $PACKER, and its plugin: packer plugins install {PLUGIN}",
    )  # fmt: skip


def _candidates(*, tools: Path, cache: Path, chosen: str) -> list[Path]:
    found = shutil.which(chosen or "packer", path=run.search_path())
    compiled = packer.locked_directory(tools=tools, cache=cache) / "packer"
    return [*([Path(found)] if found else []), *([compiled] if compiled.exists() and not chosen else [])]


def installed_plugins(path: Path) -> Path | None:
    """Return the directory of the user's own plugins, when a proxmox plugin is among them that is new enough."""
    done = run.run([path, "plugins", "installed"], timeout=packer.ANSWER_SECONDS, env=QUIET, check=False)
    for line in done.stdout.splitlines():
        plugin = Path(line.strip())
        found = re.search(r"_v(\d+)\.(\d+)\.(\d+)", plugin.name)
        if plugin.match(f"{PLUGIN}/{PLUGIN_FILE}") and found and tuple(map(int, found.groups())) >= PLUGIN_SINCE:
            return plugin.parents[len(Path(PLUGIN).parts)]
    return None


def prepare(directory: Path, *, found: Packer, templates: Path, settings: Settings, job: Job) -> Workspace:
    """Lay out ``directory`` (which must exist) for one run of Packer and return it; no secret is written."""
    workspace = Workspace(directory, found)
    kind = WITH_PLUGIN if found.version >= packer.FIRST_WITHOUT_BUILDERS else BUNDLED
    for place in (templates / SOURCES, templates / SOURCES / kind):
        for source in sorted(place.glob("*.pkr.hcl")):
            shutil.copyfile(source, directory / source.name)
    for name in (packer.HOME, packer.TEMPORARY, packer.CACHE):
        (directory / name).mkdir()
    given = json.dumps(variables(settings, job), indent=2, sort_keys=True) + "\n"
    files.write_atomic(directory / packer.VARIABLES, given)
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
    """Return the variables Packer is started with: the credentials are here and nowhere else."""
    own = {name: text for name, text in workspace.environment().items() if not name.startswith("PACKER_LOG")}
    return own | credentials(settings, user=token.identity, secret={"PROXMOX_TOKEN": token.secret})


def credentials(settings: Settings, *, user: str, secret: Mapping[str, str]) -> dict[str, str]:
    """Return the builder's own variables; the cluster's authority is given to Go, which has no other one then."""
    return {
        "PROXMOX_URL": f"https://{settings.host}:{settings.port}/api2/json",
        "PROXMOX_USERNAME": user,
        **secret,
        **({"SSL_CERT_FILE": str(settings.ca.resolve())} if settings.ca else {}),
    }
