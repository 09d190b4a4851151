"""Compares every published template with its published configuration, and with the local artifact if there is one.

Read-only: it reads one list of the cluster's guests, one list per node, and one configuration per template, for any
number of guests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import Any

from build.artifact import artifact
from build.artifact.artifact import Artifact
from build.artifact.statement import Seal, Statement
from build.core.errors import GoldsmithError, SpecError
from build.drift import channels as drift_channels
from build.drift import config as drift_config
from build.drift.config import DISK, LAST, NOTHING, Change, Seen
from build.drift.disk import Disks
from build.proxmox import guest_list, labels, vms
from build.proxmox.client import Api, ApiError, each
from build.proxmox.labels import CloneState, Label, State
from build.proxmox.preflight import MOST_CONNECTIONS
from build.publish import template
from build.release import channels
from build.release.ledger import LedgerFile
from build.spec.cluster import Settings
from build.spec.release_policy import Policy

UNREADABLE = "the disk's bytes are not readable through the API: --ssh reads them on the node"


@dataclass
class TemplateReport:
    """The findings for one guest; ``problem``: the reason if its configuration could not be read."""

    node: str
    vmid: int
    name: str
    is_template: bool = True
    problem: str = ""
    changes: list[Change] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Job:
    """Parameters of a comparison; ``disks`` reads disks on their nodes, None to skip them.

    ``book``: the ledger of releases, None to compare channels only with its mirror.
    """

    api: Api
    settings: Settings
    product: str
    artifacts: Path
    disks: Disks | None = None
    policy: Policy = field(default_factory=Policy)
    book: LedgerFile | None = None


def drift(job: Job) -> list[TemplateReport]:
    """Return the findings for each guest with Goldsmith's tag, by node and VM id. Raises SpecError if there is none."""
    guests = [guest for guest in guest_list.listed(job.api) if _ours(guest, job.product)]
    guests.sort(key=lambda guest: (str(guest["node"]), int(guest["vmid"])))
    read = each(job.api, channels.config_of, guests, most=MOST_CONNECTIONS)
    present = [not _is_past(job.api, guest, config) for guest, config in zip(guests, read, strict=True)]
    guests, read = list(compress(guests, present)), list(compress(read, present))
    if not guests:
        raise SpecError(
            f"there is no published template on the cluster that {job.api.token.identity} can see",
            hint="publish one with nox -s publish, or check the token with nox -s doctor -- --proxmox",
        )
    artifacts = {path.name: path for path in artifact.committed(job.artifacts)}
    comparison = drift_channels.compared(job.book, job.policy, job.settings.nodes, guests, read)
    reports = [_check(job, guest, config, artifacts) for guest, config in zip(guests, read, strict=True)]
    for report in reports:
        if report.is_template and not report.problem:
            report.changes += comparison.changes.get(report.vmid, [])
    # General notes are reported with the first template.
    reports[0].notes += comparison.notes
    reports[0].problem = "; ".join(filter(None, (reports[0].problem, comparison.problem)))
    return reports


def _is_past(api: Api, guest: Mapping[str, Any], config: Mapping[str, Any] | ApiError) -> bool:
    """Return True for a clone that was removed, or got its own tags, since it was listed; never for a template."""
    if guest.get("template"):
        return False
    if isinstance(config, ApiError):
        return vms.is_gone(api, config, int(guest["vmid"]))
    return labels.PRODUCT_TAG not in labels.split_tags(str(config.get("tags", "")))


def _ours(guest: Mapping[str, Any], product: str) -> bool:
    """Return True if a guest has Goldsmith's tag, or is a template with the product's name that lost its tag.

    The templates of other products of Goldsmith are left out.
    """
    if guest.get("type") != "qemu":
        return False
    named = labels.product_of(str(guest.get("name", "")))
    if named == product:
        return bool(guest.get("template")) or labels.PRODUCT_TAG in labels.split_tags(str(guest.get("tags", "")))
    return not named and labels.PRODUCT_TAG in labels.split_tags(str(guest.get("tags", "")))


def _check(
    job: Job, guest: Mapping[str, Any], config: Mapping[str, Any] | ApiError, artifacts: Mapping[str, Path]
) -> TemplateReport:
    report = TemplateReport(str(guest["node"]), int(guest["vmid"]), str(guest.get("name", "")))
    if isinstance(config, ApiError):
        report.problem = config.brief
        return report
    seen = Seen(guest, config)
    if "lock" in config:
        report.notes.append(f"a task holds its lock ({config['lock']})")
    label = labels.parse(str(config.get("description", "")))
    if other := _no_template(seen, label):
        report.is_template = False
        report.notes.append(other)
        return report
    source = _artifact(seen, label, artifacts, report)
    if label is None and source is None:
        report.changes.append(_unmarked())
        return report
    _compare(job, seen, label, source, report)
    return report


def _no_template(seen: Seen, label: Label | None) -> str:
    """Return a note for a guest with Goldsmith's tag that is not a template; empty for a template."""
    clone_label = labels.parse_clone(str(seen.config.get("description", "")))
    if clone_label is not None and clone_label.state is not CloneState.MADE:
        # It has the tags of its template until it is configured.
        return "clone or replace is working on it, or was killed: the same command again finishes it"
    if label is not None and label.state is State.PUBLISHING:
        return "publish is working on it, or was killed: the next publish of this image removes or finishes it"
    if seen.guest.get("template") or f"base-{seen.vmid}-disk-" in seen.value(DISK):
        return ""
    return f"it is not a template, and was cloned by other means: replace its tags: {seen.set('tags', labels.CLONE_TAG)}"


def _artifact(seen: Seen, label: Label | None, artifacts: Mapping[str, Path], report: TemplateReport) -> Artifact | None:
    """Return the artifact that a template was published from: by its label, else by its digest tag."""
    tags = labels.split_tags(str(seen.config.get("tags", "")))
    digests = [tag.partition("-")[2] for tag in tags if tag.startswith("sha256-")]
    names = [label.artifact] if label else [name for name in artifacts if name.rpartition("-")[2] in digests]
    for name in names:
        if name in artifacts:
            return artifact.load(artifacts[name])
    if label is not None:
        installed = "it was installed on the cluster and has no artifact"
        reason = f"{label.artifact} is not on this host" if label.artifact else installed
        report.notes.append(f"{reason}: it is compared with its own description only")
    return None


def _compare(job: Job, seen: Seen, label: Label | None, source: Artifact | None, report: TemplateReport) -> None:
    if label is None:
        report.changes.append(_unmarked())
    truth, disk_mib = _truth(label, source)
    settings = template.as_recorded(job.settings, truth.machine)
    changes = drift_config.changes(seen, truth, settings, channels=job.policy.channels, disk_mib=disk_mib)
    # Without its label every line of the description differs; the missing label is already reported.
    report.changes += [change for change in changes if label is not None or change.key != "description"]
    now = template.recorded(job.settings)
    report.notes += [
        f"golden.yaml now has {key}: {now[key]}; it was published with {then}"
        for key, then in sorted(truth.machine.items()) if now.get(key, then) != then
    ]  # fmt: skip
    if job.disks is None:
        report.notes.append(UNREADABLE)
    elif source is not None:
        _compare_disk(job.disks, seen, source, report)


def _truth(label: Label | None, source: Artifact | None) -> tuple[Label, int]:
    """Return the expected label, and the size of the disk in MiB: from the artifact if there is one."""
    if source is None:
        assert label is not None
        name = artifact.name_of(label.name, label.version, label.digest)
        return (label if label.artifact in ("", name) else _contradiction(label, name)), 0
    published, run = (label.published, label.run) if label else ("", "")
    machine = label.machine if label else None
    truth = labels.of(
        source, state=State.TEMPLATE, published=published, run=run, machine=machine, seal=_seal(source, label)
    )  # fmt: skip
    return truth, source.manifest.image.virtual_mib


def _seal(source: Artifact, label: Label | None) -> Seal | None:
    """Return the expected signatures of the label: the artifact's digests, with the signatures of the label."""
    signed = Seal.parse(label.proof) if label else None
    if signed is None:
        return None
    now = Statement.of(source)
    return Seal(now.sums, now.provenance, signed.signatures)


def _contradiction(label: Label, name: str) -> Label:
    """Return a consistent label, from which the inconsistent description differs."""
    return Label(**{**vars(label), "artifact": name})


def _compare_disk(disks: Disks, seen: Seen, source: Artifact, report: TemplateReport) -> None:
    volume = seen.value(DISK).split(",")[0]
    if volume == NOTHING:
        return
    try:
        present = disks.found(seen.node, volume)
    except GoldsmithError as error:
        report.problem = f"the disk was not read: {error.brief}" + (f": {error.details}" if error.details else "")
        return
    expected = disks.expected(source)
    if present != expected:
        report.changes.append(Change("disk content", expected, present, LAST))
    else:
        report.notes.append(f"the disk's bytes are those of the artifact (SHA-256 {present})")


def _unmarked() -> Change:
    return Change("description", "the label that publish wrote", "no label", f"find out who changed it; otherwise {LAST}")
