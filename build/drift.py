"""Compares every published template with what publish wrote, and with the artifact when it is here. Changes nothing.

One list of the cluster's guests and one configuration for each template, however many guests there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from build import artifact, channels, drift_channels, drift_config, labels, publish_machine
from build.artifact import Artifact
from build.cluster import Settings
from build.drift_config import DISK, LAST, NOTHING, Change, Seen
from build.drift_disk import Disks
from build.errors import GoldsmithError, SpecError
from build.labels import Label, State
from build.preflight import MOST_CONNECTIONS
from build.pve import Api, ApiError, each
from build.release_ledger import Book
from build.release_policy import Policy
from build.statement import Seal, Statement

UNREADABLE = "the disk's bytes are not readable through the API: --ssh reads them on the node"


@dataclass
class Verdict:
    """What is to say of one guest; ``judged``: whether it is a template, ``problem``: why it was not read."""

    node: str
    vmid: int
    name: str
    judged: bool = True
    problem: str = ""
    changes: list[Change] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Job:
    """What is compared, with what; ``disks`` reads disks on their nodes, None when nobody asked for it.

    ``book``: the ledger of releases, None when channels are compared with its mirror alone.
    """

    api: Api
    settings: Settings
    product: str
    artifacts: Path
    disks: Disks | None = None
    policy: Policy = field(default_factory=Policy)
    book: Book | None = None


def drift(job: Job) -> list[Verdict]:
    """Return what there is to say of each guest that bears our tag, by node and number. Raises SpecError without any."""
    guests = [one for one in job.api.get("/cluster/resources", type="vm") if _ours(one, job.product)]
    if not guests:
        raise SpecError(
            f"there is no published template on the cluster, as far as {job.api.token.identity} may see",
            hint="publish one: nox -s publish; what the token lacks: python -m build doctor --proxmox",
        )
    guests.sort(key=lambda one: (str(one["node"]), int(one["vmid"])))
    artifacts = {path.name: path for path in artifact.committed(job.artifacts)}
    read = each(job.api, channels.config_of, guests, most=MOST_CONNECTIONS)
    told = drift_channels.compared(job.book, job.policy, job.settings.nodes, guests, read)
    verdicts = [_judge(job, guest, config, artifacts) for guest, config in zip(guests, read, strict=True)]
    for verdict in verdicts:
        if verdict.judged and not verdict.problem:
            verdict.changes += told.changes.get(verdict.vmid, [])
    # What concerns no template alone is told with the first one.
    verdicts[0].notes += told.notes
    verdicts[0].problem = "; ".join(filter(None, (verdicts[0].problem, told.problem)))
    return verdicts


def _ours(guest: Mapping[str, Any], product: str) -> bool:
    """Return whether a guest bears our tag; a template of our name that lost its tag is ours too."""
    if guest.get("type") != "qemu":
        return False
    named = bool(guest.get("template")) and str(guest.get("name", "")).startswith(f"{product}-")
    return named or labels.PRODUCT_TAG in labels.split_tags(str(guest.get("tags", "")))


def _judge(
    job: Job, guest: Mapping[str, Any], config: Mapping[str, Any] | ApiError, artifacts: Mapping[str, Path]
) -> Verdict:
    verdict = Verdict(str(guest["node"]), int(guest["vmid"]), str(guest.get("name", "")))
    if isinstance(config, ApiError):
        verdict.problem = config.brief
        return verdict
    seen = Seen(guest, config)
    if "lock" in config:
        verdict.notes.append(f"a task holds its lock ({config['lock']})")
    label = labels.parse(str(config.get("description", "")))
    if other := _no_template(seen, label):
        verdict.judged = False
        verdict.notes.append(other)
        return verdict
    found = _artifact(seen, label, artifacts, verdict)
    if label is None and found is None:
        verdict.changes.append(_unmarked())
        return verdict
    _compare(job, seen, label, found, verdict)
    return verdict


def _no_template(seen: Seen, label: Label | None) -> str:
    """Return what a guest with our tag is, when it is no template of ours; empty when it is one, or was."""
    if label is not None and label.state is State.PUBLISHING:
        return "publish is working on it, or was killed: the next publish of this image removes or finishes it"
    if seen.guest.get("template") or f"base-{seen.vmid}-disk-" in seen.value(DISK):
        return ""
    return f"it is no template, and was cloned by other means: take our tags away: {seen.set('tags', labels.CLONE_TAG)}"


def _artifact(seen: Seen, label: Label | None, artifacts: Mapping[str, Path], verdict: Verdict) -> Artifact | None:
    """Return the artifact that a template was made of: by its label, else by its digest tag."""
    tags = labels.split_tags(str(seen.config.get("tags", "")))
    digests = [tag.partition("-")[2] for tag in tags if tag.startswith("sha256-")]
    names = [label.artifact] if label else [name for name in artifacts if name.rpartition("-")[2] in digests]
    for name in names:
        if name in artifacts:
            return artifact.load(artifacts[name])
    if label is not None:
        why = f"{label.artifact} is not here" if label.artifact else "it was installed on the cluster and has no artifact"
        verdict.notes.append(f"{why}: it is compared with its own description only")
    return None


def _compare(job: Job, seen: Seen, label: Label | None, found: Artifact | None, verdict: Verdict) -> None:
    if label is None:
        verdict.changes.append(_unmarked())
    truth, disk_mib = _truth(label, found)
    settings = publish_machine.as_recorded(job.settings, truth.machine)
    changes = drift_config.changes(seen, truth, settings, channels=job.policy.channels, disk_mib=disk_mib)
    # Without its label every line of the description differs: that it lacks it has been said.
    verdict.changes += [one for one in changes if label is not None or one.key != "description"]
    now = publish_machine.recorded(job.settings)
    verdict.notes += [
        f"golden.yaml says {key}: {now[key]} by now; it was published with {then}"
        for key, then in sorted(truth.machine.items()) if now.get(key, then) != then
    ]  # fmt: skip
    if job.disks is None:
        verdict.notes.append(UNREADABLE)
    elif found is not None:
        _compare_disk(job.disks, seen, found, verdict)


def _truth(label: Label | None, found: Artifact | None) -> tuple[Label, int]:
    """Return what the label has to say, and the size of the disk in MiB: by the artifact when there is one."""
    if found is None:
        assert label is not None
        whole = artifact.name_of(label.name, label.version, label.digest)
        return (label if label.artifact in ("", whole) else _contradiction(label, whole)), 0
    published, run = (label.published, label.run) if label else ("", "")
    machine = label.machine if label else None
    truth = labels.of(
        found, state=State.TEMPLATE, published=published, run=run, machine=machine, seal=_seal(found, label)
    )  # fmt: skip
    return truth, int(found.manifest["image"]["virtual_mib"])


def _seal(found: Artifact, label: Label | None) -> Seal | None:
    """Return what the label has to say of signatures: the artifact's digests; who signed by then is the label's to know."""
    said = Seal.parse(label.proof) if label else None
    if said is None:
        return None
    now = Statement.of(found)
    return Seal(now.sums, now.provenance, said.signatures)


def _contradiction(label: Label, whole: str) -> Label:
    """Return a label whose parts fit: the description, which does not, differs from it."""
    return Label(**{**vars(label), "artifact": whole})


def _compare_disk(disks: Disks, seen: Seen, found: Artifact, verdict: Verdict) -> None:
    volume = seen.value(DISK).split(",")[0]
    if volume == NOTHING:
        return
    try:
        got = disks.found(seen.node, volume)
    except GoldsmithError as error:
        verdict.problem = f"the disk was not read: {error.brief}" + (f": {error.details}" if error.details else "")
        return
    expected = disks.expected(found)
    if got != expected:
        verdict.changes.append(Change("disk content", expected, got, LAST))
    else:
        verdict.notes.append(f"the disk's bytes are those of the artifact (SHA-256 {got})")


def _unmarked() -> Change:
    return Change("description", "the label that publish wrote", "no label", f"see who changed it; else {LAST}")
