"""A whole life of two versions in the lab: published, promoted, cloned, rolled back, revoked, pruned, compared, proved.

Each step is a command of every day, and what it must have done is looked up on the cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from build.artifact.artifact import Artifact
from build.core.errors import SpecError
from build.proxmox import labels
from tests.fakes.proxmox import Proxmox

STABLE = "stable"
REASON = "a defect that only the lab knows"


class Commands(Protocol):
    """Runs the commands under test, and notes what came of them."""

    def do(self, name: str, *words: str, expected: int = 0) -> bool: ...

    def check(self, name: str, problems: list[str]) -> None: ...


def live(commands: Commands, lab: Proxmox, first: Artifact, second: Artifact, *, machine: Sequence[str]) -> None:
    """Take two versions through everything that can become of them; ``machine``: the options of an operator's machine."""
    old, new = (one.manifest.version for one in (first, second))

    def points(name: str, version: str) -> None:
        found = sorted(vm.name for vm in lab.vms if vm.template and STABLE in tags_of(vm))
        wanted = [f"{first.manifest.name}-{version}"]
        commands.check(name, [] if found == wanted else [f"{STABLE} is at {found}, not at {wanted}"])

    if not commands.do(f"publish {old}, two clones verified", "publish", "--artifact", str(first.path)):
        return
    commands.do(f"promote {old}", "promote", old, STABLE, "--reason", "the first one")
    points(f"{STABLE} is {old}", old)
    if not commands.do(f"publish {new}, two clones verified", "publish", "--artifact", str(second.path)):
        return
    points(f"publishing {new} moved nothing", old)
    commands.do(f"promote {new}", "promote", new, STABLE, "--reason", "the next one")
    points(f"{STABLE} is {new}", new)
    commands.do(f"{new} cannot be revoked while {STABLE} points at it", "revoke", new, "--reason", REASON, expected=2)
    commands.do(f"clone {STABLE}, and it answers", "clone", *machine, "--channel", STABLE)
    commands.check(
        "the machine is of the promoted version",
        [f"{vm.name} carries {sorted(tags_of(vm))}" for vm in lab.vms
         if labels.CLONE_TAG in tags_of(vm) and labels.version_tag(new) not in tags_of(vm)],
    )  # fmt: skip
    commands.do("roll back", "rollback", STABLE, "--reason", REASON)
    points(f"{STABLE} is {old} again", old)
    commands.do(f"revoke {new}", "revoke", new, "--reason", REASON)
    template = f"{second.manifest.name}-{new}"
    commands.do(f"{new} can no longer be cloned", "clone", *machine, "--template", template, expected=2)
    commands.do(f"{new} can no longer be promoted", "promote", new, STABLE, expected=2)
    commands.do("no template has changed", "drift")
    commands.do("what prune would do", "prune", "--days", "0")
    commands.do("prune", "prune", "--days", "0", "--apply")
    points(f"{STABLE} is {old} still", old)
    commands.do("the ledger verifies itself", "history")


def compare(commands: Commands, first: Artifact, second: Artifact, out: Path) -> None:
    """Compare and prove the two artifacts, which needs no cluster."""
    out.mkdir(parents=True, exist_ok=True)
    commands.do("diff", "diff", str(first.path), str(second.path), "--html", str(out / "diff.html"))
    commands.do("release note", "notes", second.manifest.version)
    commands.do("report", "report", str(second.path), "-o", str(out / "report.html"))
    for one in (first, second):
        commands.do(f"{one.manifest.version} verifies", "verify-artifact", str(one.path))


def tags_of(vm: Any) -> frozenset[str]:
    """Return the tags of a guest of the fake."""
    return labels.split_tags(str(vm.config.get("tags", "")))


def different(first: Artifact, second: Artifact) -> None:
    """Raise SpecError unless these are two versions of one product."""
    one, two = ((made.manifest.name, made.manifest.version) for made in (first, second))
    if one[0] != two[0] or one[1] == two[1]:
        raise SpecError(
            f"{first.path.name} and {second.path.name} are not two versions of one image",
            hint="raise the version in golden.yaml and build: nox -s build",
        )
