"""Checks before a release: reads the ledger and the templates, and checks whether they agree.

It reads one list of the cluster's guests, one list per node, and one configuration per template, for any number of
guests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from build.artifact import artifact
from build.artifact.artifact import Artifact
from build.core import log
from build.core.errors import SpecError
from build.proxmox.client import Api
from build.release import channels
from build.release import state as release_state
from build.release.channels import REVOKED, Template
from build.release.entry import NONE, Assignment, Entry
from build.release.gates import Signatures
from build.release.ledger import Ledger, LedgerFile
from build.release.state import State
from build.spec.cluster import Settings
from build.spec.release_policy import Policy


@dataclass(frozen=True)
class Job:
    """The cluster, the ledger, the user and the policy. ``signatures``: None if signatures cannot be checked."""

    api: Api
    settings: Settings
    product: str
    policy: Policy
    book: LedgerFile
    who: str
    artifacts: Path
    clock: Callable[[], datetime]
    signatures: Signatures | None = None


@dataclass(frozen=True)
class View:
    """The ledger, the templates by number, and the state that follows from the entries."""

    ledger: Ledger
    templates: Sequence[Template]
    state: State

    def of(self, image: Assignment) -> list[Template]:
        """Return the templates of an image."""
        return [template for template in self.templates if image and template.is_of(image)]


def look(job: Job) -> View:
    """Read ledger and cluster, and compare them.

    Raises LedgerError if the ledger was modified, or lacks entries that the cluster mirrors.
    """
    ledger = job.book.read()
    templates = channels.look(job.api, job.product)
    for template in templates:
        for problem in template.mirrored[1]:
            log.warn(f"{template.place} {template.name}: {problem}; it is skipped")
    entries = channels.mirrored(templates)
    ledger = _settled(job, ledger, entries, whole=not any(template.problem for template in templates))
    channels.require_up_to_date(ledger, entries, str(job.book.path))
    for gap in ledger.gaps:
        log.warn(f"{job.book.path} was rebuilt from the cluster, and lacks {gap}")
    return View(ledger, templates, release_state.fold(ledger.entries))


def _settled(job: Job, ledger: Ledger, entries: Sequence[Entry], *, whole: bool) -> Ledger:
    """Complete the entry that a killed run was writing: if the cluster has it, it is added; otherwise it is dropped.

    While a template cannot be read, it is unknown whether the cluster has it: then it is kept.
    """
    pending = job.book.proposed()
    if pending is None:
        return ledger
    follows = (pending.number, pending.previous) == (ledger.head + 1, ledger.head_hash)
    if follows and pending.hash in {entry.hash for entry in entries}:
        log.info(f"entry {pending.number} was written by a killed run: adding it to {job.book.path}")
        return job.book.append(pending)
    if whole or not follows:
        job.book.withdraw()
    return ledger


def find(job: Job, view: View, version: str) -> Assignment:
    """Return the image of a version: from the cluster, else from the ledger, else from the local artifacts.

    Raises SpecError when there is none, or more than one.
    """
    labelled = [template.label for template in view.templates if template.label]
    for where, digests in (
        ("the cluster", {label.digest for label in labelled if label.version == version}),
        (str(job.book.path), {entry.digest for entry in view.ledger.entries if entry.version == version}),
        (str(job.artifacts), {image.manifest.image.sha256 for image in artifacts(job, version)}),
    ):
        if len(digests) > 1:
            raise SpecError(
                f"{version} is ambiguous: there are several images in {where}", details="\n".join(sorted(digests)),
                hint="run nox -s drift, which lists the templates that differ from the published image",
            )  # fmt: skip
        if digests:
            return Assignment(version, digests.pop())
    known = sorted({label.version for label in labelled})
    raise SpecError(
        f"unknown version {version} of {job.product}",
        hint=f"choose a published version: {', '.join(known) or 'there is none'}",
    )


def artifacts(job: Job, version: str) -> list[Artifact]:
    """Return the local artifacts of a version."""
    paths = artifact.committed(job.artifacts)
    local = [artifact.load(path) for path in paths if artifact.image_name(path) == job.product]
    return [image for image in local if image.manifest.version == version]


def require_published(job: Job, view: View, image: Assignment) -> list[Template]:
    """Return the templates of an image; raise SpecError unless it is on every node, or on a storage that all share."""
    templates = view.of(image)
    for template in templates:
        label = template.label
        if (label is not None and label.digest != image.digest) or (label is None and not template.problem):
            raise SpecError(
                f"{template.place} {template.name} is not as published: its description and its tags disagree",
                hint="run nox -s drift, which lists the changes",
            )
    lacking = [node for node in job.settings.nodes if node not in {template.node for template in templates}]
    if templates and lacking and _shared(job, templates):
        lacking = []
    if lacking:
        raise SpecError(
            f"{artifact.name_of(job.product, image.version, image.digest)} is not published on {', '.join(lacking)}",
            details="a template that was there has been removed by hand" if _known(view, image) else "",
            hint="publish it: nox -s publish -- --artifact DIR; or remove the node from proxmox.nodes in golden.yaml",
        )
    return templates


def _known(view: View, image: Assignment) -> bool:
    return image.digest in view.state.touched


def _shared(job: Job, templates: Sequence[Template]) -> bool:
    readable = next((template for template in templates if not template.problem), None)
    if readable is None:
        return False
    storages = {storage["storage"]: storage for storage in job.api.get(f"/nodes/{readable.node}/storage")}
    return bool(storages.get(job.settings.storage, {}).get("shared"))


def require_unrevoked(view: View, image: Assignment) -> None:
    """Raise SpecError if an image is revoked, by the ledger or by a tag on some node."""
    revoked = view.state.revocation(image.digest) if image else None
    by_hand = [template.place for template in view.of(image) if REVOKED in template.tags]
    if revoked or by_hand:
        by_entry = f"by {revoked.who} at {revoked.time}: {revoked.reason}" if revoked else ""
        detail = by_entry or f"the tag is on {', '.join(by_hand)}"
        raise SpecError(
            f"{image.version} is revoked", details=detail,
            hint=f"choose another version, or undo the revocation: nox -s restore -- {image.version} --reason TEXT",
        )  # fmt: skip


def last_commit(view: View, image: Assignment) -> str:
    """Return the commit that an image was built from, according to the ledger; empty if it is not recorded."""
    commits = [entry.commit for entry in view.ledger.entries if entry.digest == image.digest and entry.commit]
    return commits[-1] if commits else ""


def pointed_at(view: View, channel: str, image: Assignment) -> Assignment:
    """Return the image that the channel points at: from the ledger, else from the tags if they agree."""
    if current := view.state.current(channel):
        return current
    tagged = channels.pointed(view.templates, channel) - {image}
    return tagged.pop() if len(tagged) == 1 else NONE


def is_so(view: View, channel: str, image: Assignment) -> bool:
    """Return True if a channel's tag is on the templates of an image, and on no other."""
    return all((channel in template.tags) == template.is_of(image) for template in view.templates)
