"""What a release looks at before anything is changed: the ledger, the templates, and whether both tell the same story.

One list of the cluster's guests and one configuration for each template, however many guests there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from build import artifact, channels, log, release_state
from build.artifact import Artifact
from build.channels import REVOKED, Template
from build.cluster import Settings
from build.errors import SpecError
from build.pve import Api
from build.release_entry import NOBODY, Assignment, Entry
from build.release_gates import Signatures
from build.release_ledger import Book, Ledger
from build.release_policy import Policy
from build.release_state import State


@dataclass(frozen=True)
class Job:
    """The cluster, the ledger, who acts, and by which rules. ``signatures``: None when nothing here can check them."""

    api: Api
    settings: Settings
    product: str
    policy: Policy
    book: Book
    who: str
    artifacts: Path
    clock: Callable[[], datetime]
    signatures: Signatures | None = None


@dataclass(frozen=True)
class View:
    """What was found: the ledger, the templates by number, and what the entries add up to."""

    ledger: Ledger
    templates: Sequence[Template]
    state: State

    def of(self, wanted: Assignment) -> list[Template]:
        """Return the templates of an image."""
        return [one for one in self.templates if wanted and one.is_of(wanted)]


def look(job: Job) -> View:
    """Read ledger and cluster, and hold them against each other.

    Raises LedgerError when the ledger was changed, or is behind what the cluster mirrors.
    """
    ledger = job.book.read()
    templates = channels.look(job.api, job.product)
    for one in templates:
        for problem in one.mirrored[1]:
            log.warn(f"{one.place} {one.name}: {problem}; it is passed over")
    entries = channels.mirrored(templates)
    ledger = _settled(job, ledger, entries, whole=not any(one.problem for one in templates))
    channels.require_up_to_date(ledger, entries, str(job.book.path))
    for gap in ledger.gaps:
        log.warn(f"{job.book.path} was rebuilt from the cluster, and lacks {gap}")
    return View(ledger, templates, release_state.fold(ledger.entries))


def _settled(job: Job, ledger: Ledger, entries: Sequence[Entry], *, whole: bool) -> Ledger:
    """Finish what a run that was killed was writing: an entry that the cluster has is taken, another one is forgotten.

    While a template cannot be read, nobody knows whether it has it: then it is kept.
    """
    pending = job.book.proposed()
    if pending is None:
        return ledger
    follows = (pending.number, pending.previous) == (ledger.head + 1, ledger.head_hash)
    if follows and pending.hash in {one.hash for one in entries}:
        log.info(f"entry {pending.number} was written by a run that was killed: it is added to {job.book.path}")
        return job.book.append(pending)
    if whole or not follows:
        job.book.withdraw()
    return ledger


def find(job: Job, view: View, version: str) -> Assignment:
    """Return the image that a version stands for: on the cluster, else in the ledger, else here.

    Raises SpecError when there is none, or more than one.
    """
    for where, digests in (
        ("the cluster", {one.label.digest for one in view.templates if one.label and one.label.version == version}),
        (str(job.book.path), {one.digest for one in view.ledger.entries if one.version == version}),
        (str(job.artifacts), {str(one.manifest["image"]["sha256"]) for one in artifacts(job, version)}),
    ):
        if len(digests) > 1:
            raise SpecError(
                f"{version} stands for several images in {where}", details="\n".join(sorted(digests)),
                hint="nox -s drift says which template is not what was published",
            )  # fmt: skip
        if digests:
            return Assignment(version, digests.pop())
    known = sorted({one.label.version for one in view.templates if one.label})
    raise SpecError(
        f"nobody knows a version {version} of {job.product}", hint=f"published are: {', '.join(known) or 'none'}"
    )


def artifacts(job: Job, version: str) -> list[Artifact]:
    """Return the artifacts of a version that are here."""
    found = [artifact.load(path) for path in artifact.committed(job.artifacts) if path.name.startswith(f"{job.product}-")]
    return [one for one in found if one.manifest["version"] == version]


def require_published(job: Job, view: View, wanted: Assignment) -> list[Template]:
    """Return the templates of an image; raise SpecError unless it is on every node, or on a storage that all share."""
    found = view.of(wanted)
    for one in found:
        if (one.label is not None and one.label.digest != wanted.digest) or (one.label is None and not one.problem):
            raise SpecError(
                f"{one.place} {one.name} is not what publish left: its description and tags do not fit",
                hint="nox -s drift says what was changed",
            )
    lacking = [node for node in job.settings.nodes if node not in {one.node for one in found}]
    if found and lacking and _shared(job, found):
        lacking = []
    if lacking:
        raise SpecError(
            f"{artifact.name_of(job.product, wanted.version, wanted.digest)} is not published on {', '.join(lacking)}",
            details="a template that was there has been removed by hand" if _known(view, wanted) else "",
            hint="publish it: nox -s publish -- --artifact DIR; or take the node out of golden.yaml: proxmox.nodes",
        )
    return found


def _known(view: View, wanted: Assignment) -> bool:
    return wanted.digest in view.state.touched


def _shared(job: Job, found: Sequence[Template]) -> bool:
    readable = next((one for one in found if not one.problem), None)
    if readable is None:
        return False
    storages = {one["storage"]: one for one in job.api.get(f"/nodes/{readable.node}/storage")}
    return bool(storages.get(job.settings.storage, {}).get("shared"))


def require_unrevoked(view: View, wanted: Assignment) -> None:
    """Raise SpecError when an image is revoked, by the ledger or by a tag on some node."""
    why = view.state.revocation(wanted.digest) if wanted else None
    by_hand = [one.place for one in view.of(wanted) if REVOKED in one.tags]
    if why or by_hand:
        told = f"by {why.who} at {why.time}: {why.reason}" if why else f"the tag is on {', '.join(by_hand)}"
        raise SpecError(
            f"{wanted.version} is revoked", details=told,
            hint=f"take another version; if it is good after all: nox -s restore -- {wanted.version} --reason TEXT",
        )  # fmt: skip


def last_commit(view: View, wanted: Assignment) -> str:
    """Return the commit that an image was built from, as the ledger has it; empty when it does not say."""
    told = [one.commit for one in view.ledger.entries if one.digest == wanted.digest and one.commit]
    return told[-1] if told else ""


def pointed_at(view: View, channel: str, wanted: Assignment) -> Assignment:
    """Return what the channel points at: by the ledger, and where it says nothing by the tags, if they are of one mind."""
    if found := view.state.current(channel):
        return found
    tagged = channels.pointed(view.templates, channel) - {wanted}
    return tagged.pop() if len(tagged) == 1 else NOBODY


def is_so(view: View, channel: str, wanted: Assignment) -> bool:
    """Say whether a channel's tag is on the templates of an image, and on no other."""
    return all((channel in one.tags) == one.is_of(wanted) for one in view.templates)
