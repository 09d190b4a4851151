"""What a run of the lab needs around the cluster: a project that names it, tokens, rights, and an artifact."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from build.artifact import artifact
from build.core import files
from build.core.errors import SpecError
from build.core.project import Project
from build.machines import vm
from build.proxmox import roles
from build.spec import cluster
from build.spec import golden_yaml as specs
from build.spec.cluster import Role, Settings, Token
from tests import proven
from tests.fakes.proxmox import Proxmox

ROOT = Path(__file__).parents[2]
USER = "goldsmith@pve"
POOLS = "/pool/"
POOL, STORAGE, MEDIA, NODE = "golden", "local-lvm", "local", "pve1"
# The lab's own copy of the tests would otherwise bring its logs along.
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc")


@dataclass(frozen=True)
class Choice:
    """The subject of a run: an artifact or an unverified disk, the image tests to run, and an older artifact.

    ``medium``: nothing is published, the installer runs on the node.
    """

    artifact: Path | None = None
    disk: Path | None = None
    tests: tuple[str, ...] = ()
    firmware: str = "uefi"
    older: Path | None = None
    medium: Path | None = None


def write_project(target: Path, choice: Choice, *, host: str, port: int, ca: Path) -> Project:
    """Write a checkout beside this one: the same, but for golden.yaml's cluster, and the image tests that were chosen."""
    target.mkdir(parents=True)
    for entry in ROOT.iterdir():
        if not entry.name.startswith(".") and entry.name not in ("golden.yaml", "tests", "artifacts"):
            (target / entry.name).symlink_to(entry)
    content: dict[str, Any] = yaml.safe_load((ROOT / "golden.yaml").read_text(encoding="utf-8"))
    content["proxmox"] = {
        "host": host, "port": port, "ca": str(ca), "nodes": [NODE], "storage": STORAGE, "media": MEDIA, "pool": POOL,
        "firmware": choice.firmware,
    }  # fmt: skip
    (target / "golden.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    shutil.copytree(ROOT / "tests", target / "tests", ignore=LEFT_OUT)
    project = Project(target)
    _select(project.image_tests, choice.tests)
    if choice.disk:
        vouch(project, choice.disk)
    elif not choice.medium:
        found = artifact.load(choice.artifact) if choice.artifact else artifact.newest(Project(ROOT).artifacts)
        project.artifacts.mkdir()
        for path in (found.path, *([choice.older.resolve()] if choice.older else [])):
            (project.artifacts / path.name).symlink_to(path)
    return project


def _select(tests: Path, wanted: Sequence[str]) -> None:
    """Leave only the named modules of the image tests; all of them without a name."""
    present = {path.stem.removeprefix("test_"): path for path in tests.glob("test_*.py")}
    if unknown := sorted(set(wanted) - set(present)):
        raise SpecError(f"there are no image tests {', '.join(unknown)}", hint=f"there are: {', '.join(sorted(present))}")
    for name, path in present.items():
        if wanted and name not in wanted:
            path.unlink()


def vouch(project: Project, disk: Path) -> artifact.Artifact:
    """Make an artifact from an unverified disk: in the lab it is tested by the clones on the node.

    It never leaves the lab; only the disk and the spec in its manifest are real.
    """
    spec = specs.load(project.spec)
    return proven.make(
        project.artifacts, disk, name=spec.name, version=spec.version, virtual_mib=vm.virtual_size_mib(disk),
        spec=spec.as_inputs(), by="the lab: it is not tested",
    )  # fmt: skip


def admit(lab: Proxmox, settings: Settings) -> dict[Role, Token]:
    """Give the cluster a token for each role, with the rights that `doctor --roles` prints and no more, and their pools."""
    tokens = {role: Token(USER, role.value, str(uuid.uuid4())) for role in Role}
    for role, token in tokens.items():
        lab.apitokens[token.identity] = token.secret
        for grant in roles.grants(role, settings, major=lab.version_numbers[0]):
            if grant.path.startswith(POOLS):
                lab.pools.setdefault(grant.path.removeprefix(POOLS), set())
            lab.entitle(token.identity, grant.path, *grant.privileges)
    return tokens


def write_secrets(path: Path, tokens: dict[Role, Token]) -> None:
    """Write the secrets file that the commands under test read."""
    content = {"tokens": {role.value: f"{token.identity}={token.secret}" for role, token in tokens.items()}}
    files.write_atomic(path, yaml.safe_dump(content), mode=0o600)


def settings_of(project: Project) -> Settings:
    """Return the settings of the project's cluster."""
    settings = specs.load(project.spec).proxmox
    assert isinstance(settings, cluster.Settings)
    return settings
