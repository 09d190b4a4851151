"""Publishes a verified artifact to a cluster: the same bytes on every node, tested there with clones, then immutable.

Publishing adds and never replaces: the same image is not published twice, and a name that is used by another image is
rejected. On failure or interrupt, everything this run created is removed (and nothing else). A killed run is continued
by the next one: an uploaded image is used, an incomplete VM of the same image is removed and created again.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from build.artifact import artifact, verification
from build.artifact.artifact import Artifact
from build.artifact.verification import NO_TRUST, Trust
from build.core import log
from build.core.errors import GoldsmithError, SpecError, StepFailed, VerificationFailed
from build.core.units import stamp_now
from build.proxmox import guest_list, labels, preflight, vms
from build.proxmox.client import Api
from build.proxmox.labels import Label, State
from build.proxmox.vms import Stopped, Undo, VmIds, remove
from build.publish import heartbeat
from build.publish.template import Machine, recorded
from build.publish.upload import Media, UploadedImage, Uploads
from build.release import channels
from build.release.entry import Assignment
from build.release.ledger import LedgerFile
from build.spec.cluster import Role, Settings

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Subject:
    """The VM that a verifier tests: a stopped VM on a node, which it clones.

    ``ids`` gives VM ids for the clones; ``check`` raises if the user interrupts: a verifier calls it regularly.
    """

    node: str
    vmid: int
    label: Label
    ids: VmIds
    check: Callable[[], None]


Verifier = Callable[[Subject], None]


class Outcome(StrEnum):
    """The result on a node."""

    PUBLISHED = "published"
    THERE = "was there already"
    FINISHED = "was verified before, and is finished now"


@dataclass(frozen=True)
class Template:
    """A template on the cluster."""

    node: str
    vmid: int
    name: str
    outcome: Outcome


@dataclass(frozen=True)
class Job:
    """Parameters of a publishing run."""

    artifact: Artifact
    settings: Settings
    api: Api
    verifier: Verifier
    nodes: tuple[str, ...]
    tokens: Mapping[Role, Api]
    media: Callable[[Api], Media]
    # True if ``media`` does not need the content type import, as for Proxmox VE before 8.4.
    over_ssh: bool = False
    # The signers whose signatures the artifact must have.
    trust: Trust = NO_TRUST
    # The ledger of releases: a version revoked there is not published, even if the cluster has no record of it.
    book: LedgerFile | None = None


def publish(job: Job) -> list[Template]:
    """Publish an artifact; return the templates, in the order of the nodes.

    Raises SpecError if it is revoked or its name is taken, HostError if the cluster is not ready, VerificationFailed if
    the artifact does not verify or clones failed on a node, StepFailed if a step failed. After a failure, everything
    this run created is removed.
    """
    verification.require_verified(job.artifact, job.trust)
    label = labels.of(
        job.artifact, state=State.PUBLISHING, published=stamp_now(), run=secrets.token_hex(8),
        machine=recorded(job.settings), seal=verification.seal(job.artifact, job.trust),
    )  # fmt: skip
    image = job.artifact.manifest.image
    with log.step("Checking the cluster", done="the cluster is ready"):
        need = preflight.Need(image.bytes, image.virtual_mib << 20)
        view = preflight.look(
            job.api, job.settings, nodes=job.nodes, need=need, tokens=job.tokens, ssh=job.over_ssh
        )  # fmt: skip
        view.require()
        guests = guest_list.listed(job.api)
        _require_unrevoked(job, label, guests)
        targets = places(job.api, job.nodes, label, guests, shared=view.disks_shared)
    if all(place.outcome is Outcome.THERE and not place.leftovers for place in targets):
        return [_already(job, label, place) for place in targets]
    taken = {int(guest["vmid"]) for guest in guests}
    run = _Run(job, label, places=len(targets), taken=taken, media_shared=view.media_shared)
    with log.step(f"Publishing {label.template} to {', '.join(place.node for place in targets)}", done="published"):
        return run.all_of(targets)


def _require_unrevoked(job: Job, label: Label, guests: Sequence[Mapping[str, Any]]) -> None:
    known = job.book.read().entries if job.book else ()
    if reason := channels.revocation(job.api, label.name, guests, Assignment(label.version, label.digest), known):
        raise SpecError(
            f"{label.template} ({label.digest[: artifact.DIGEST_HEX]}) is revoked: {reason}",
            hint="raise the version in golden.yaml, build and publish that; or undo the revocation: "
            f"nox -s restore -- {label.version} --reason TEXT",
        )


@dataclass(frozen=True)
class Target:
    """A node to publish to, its existing template, and VMs left by a killed run."""

    node: str
    outcome: Outcome
    vmid: int = 0
    leftovers: tuple[tuple[str, int, Label], ...] = ()
    # The description of the existing template.
    description: str = ""


def places(
    api: Api, nodes: Sequence[str], label: Label, guests: Sequence[Mapping[str, Any]], *, shared: bool
) -> list[Target]:
    """Decide what to do on each node; one configuration is read for each guest with the template's name.

    Raises SpecError if the name is already used for something else.
    """
    nodes = nodes[:1] if shared else nodes
    named: dict[str, list[tuple[Mapping[str, Any], Label, Mapping[str, Any]]]] = {node: [] for node in nodes}
    for guest in guests:
        node = str(guest["node"])
        if not _is_ours(guest, label):
            continue
        if not shared and node not in named:
            continue
        config = api.get(f"/nodes/{node}/{guest['id']}/config")
        theirs = labels.parse(config.get("description", ""))
        if theirs is None or theirs.digest != label.digest:
            raise _taken(label, guest, theirs)
        named[nodes[0] if shared else node].append((guest, theirs, config))
    return [_decide(node, label, named[node]) for node in nodes]


def _is_ours(guest: Mapping[str, Any], label: Label) -> bool:
    """Return True for guests with the template's name, and for its test clones."""
    tags = frozenset({labels.PRODUCT_TAG, labels.version_tag(label.version), labels.digest_tag(label.digest)})
    return guest_list.is_named(guest, label.template, tags) or str(guest.get("name", "")).startswith(label.clone_name())


def _decide(node: str, label: Label, named: Sequence[tuple[Mapping[str, Any], Label, Mapping[str, Any]]]) -> Target:
    leftovers = []
    finished: Target | None = None
    for guest, theirs, config in named:
        where, vmid = str(guest["node"]), int(guest["vmid"])
        if guest.get("name") == label.template and guest.get("template"):
            done = theirs.state is State.TEMPLATE and int(config.get("protection", 0))
            outcome = Outcome.THERE if done else Outcome.FINISHED
            finished = Target(where, outcome, vmid, description=str(config.get("description", "")))
        elif theirs.state is State.PUBLISHING and not int(config.get("protection", 0)) and not guest.get("template"):
            leftovers.append((where, vmid, theirs))
        else:
            raise _taken(label, guest, theirs)
    if finished:
        return replace(finished, leftovers=tuple(leftovers))
    return Target(node, Outcome.PUBLISHED, 0, tuple(leftovers))


def clear(api: Api, place: Target, label: Label, check: Callable[[], None]) -> None:
    """Remove incomplete VMs left by a killed run. Raises ConcurrentRun if another run still works on one of them."""
    if not place.leftovers:
        return
    heartbeat.require_abandoned(api, [(where, vmid) for where, vmid, _ in place.leftovers], check)
    for where, vmid, theirs in (*place.leftovers, *_late_clones(api, place, label)):
        remove(api, where, vmid)
        log.info(f"{where}: VM {vmid} was left incomplete by an interrupted run ({theirs.run}); it was removed")


def _late_clones(api: Api, place: Target, label: Label) -> list[tuple[str, int, Label]]:
    """Return the clones of a killed run that were not visible before: Proxmox adds a complete clone to its pool last."""
    nodes, known = {where for where, _, _ in place.leftovers}, {vmid for _, vmid, _ in place.leftovers}
    late = []
    for guest in guest_list.listed(api):
        where, vmid = str(guest["node"]), int(guest["vmid"])
        if where not in nodes or vmid in known or not str(guest.get("name", "")).startswith(label.clone_name()):
            continue
        config = vms.config_of(api, where, vmid) or {}
        theirs = labels.parse(str(config.get("description", "")))
        if theirs and (theirs.digest, theirs.state) == (label.digest, State.PUBLISHING):
            late.append((where, vmid, theirs))
    return late


def _taken(label: Label, guest: Mapping[str, Any], theirs: Label | None) -> SpecError:
    owner = f"image {theirs.digest[: artifact.DIGEST_HEX]}" if theirs else "a VM that Goldsmith did not create"
    return SpecError(
        f"{guest.get('name')} on {guest['node']} (VM {guest['vmid']}) is {owner}, not {label.digest[: artifact.DIGEST_HEX]}",
        hint="raise the version in golden.yaml, build, and publish that: a published version cannot be replaced",
    )


class _Run:
    """One run over all its nodes: a bounded number of threads, each with its own connection."""

    def __init__(self, job: Job, label: Label, *, places: int, taken: set[int], media_shared: bool) -> None:
        self.job, self.label = job, label
        self.ids = VmIds(job.settings.vmids, taken)
        self.stop = threading.Event()
        self.uploads = Uploads(job.artifact.image.stat().st_size, 1 if media_shared else places)
        # If True, all nodes import from one file: it is uploaded once, and removed after the last node.
        self.media_shared = media_shared
        self._uploading = threading.Lock()
        self._uploaded = False

    def all_of(self, places: Sequence[Target]) -> list[Template]:
        """Publish to every node; return the templates, or raise the error after all nodes have finished."""
        with ThreadPoolExecutor(min(len(places), preflight.MOST_CONNECTIONS)) as pool:
            futures = [pool.submit(self._one, place) for place in places]
            try:
                _settle(futures)
            except KeyboardInterrupt:
                self.stop.set()
                log.warn("interrupted: everything this run created is being removed; please wait")
                _settle_patiently(futures)
                raise
            finally:
                self.uploads.progress.finish()
                if self.media_shared and futures[0].done():
                    self._remove_shared(places[0].node, futures)
        return _results(places, futures)

    def _one(self, place: Target) -> Template:
        """Publish to one node; roll back if that fails."""
        undo = Undo()
        with self.job.api.another() as api:
            api.before = self._check
            try:
                return self._steps(api, place, undo)
            except BaseException:
                # An interrupt stops only new work: incomplete VMs must still be removed.
                api.before = _nothing
                for problem in undo.run():
                    log.warn(f"{place.node}: {problem}")
                raise

    def _check(self) -> None:
        if self.stop.is_set():
            raise Stopped("publishing was interrupted", hint="run the same command again: it continues")

    def _steps(self, api: Api, place: Target, undo: Undo) -> Template:
        node = place.node
        clear(api, place, self.label, self._check)
        media = self.job.media(api)
        machine = Machine(api, self.job.settings, node, self.label, ids=self.ids, undo=undo, vmid=place.vmid)
        if place.outcome is Outcome.PUBLISHED:
            machine.create(media, self._bring(media, node, undo))
            log.info(f"{node}: VM {machine.vmid} was created from the image; its clones are verified next")
            with heartbeat.beating(api, machine.path, self.label):
                self.job.verifier(Subject(node, machine.vmid, self.label, self.ids, self._check))
                machine.to_template()
        if place.outcome is not Outcome.THERE:
            machine.finish()
        # From here on it is published: nothing is rolled back.
        undo.forget()
        if not self.media_shared:
            tidy(media, node, self.label)
        log.info(f"{node}: {self.label.template} is VM {machine.vmid}: {place.outcome}")
        return Template(node, machine.vmid, self.label.template, place.outcome)

    def _bring(self, media: Media, node: str, undo: Undo) -> UploadedImage:
        if not self.media_shared:
            medium = self.label.medium
            return self._find_or_bring(media, node, lambda: undo.add(medium, lambda: media.remove(node, self.label)))
        with self._uploading:
            return self._find_or_bring(media, node, self._note_upload)

    def _find_or_bring(self, media: Media, node: str, ahead: Callable[[], None]) -> UploadedImage:
        self._check()
        source = self.job.artifact
        if uploaded := media.find(node, source, self.label):
            return uploaded
        ahead()
        return media.bring(node, source, self.label, self.uploads.teller(node, self._check))

    def _note_upload(self) -> None:
        self._uploaded = True

    def _remove_shared(self, node: str, futures: Sequence[Future[Template]]) -> None:
        complete = all(future.done() and future.exception() is None for future in futures)
        if self._uploaded or complete:
            with self.job.api.another() as api:
                tidy(self.job.media(api), node, self.label)


def _already(job: Job, label: Label, place: Target) -> Template:
    log.info(f"{label.template} is already published on {place.node} as VM {place.vmid}.")
    _bring_signatures(job.api, label, place)
    # A run that was killed at its end leaves the uploaded image.
    tidy(job.media(job.api), place.node, label)
    return Template(place.node, place.vmid, label.template, Outcome.THERE)


def _bring_signatures(api: Api, label: Label, place: Target) -> None:
    """Add new signatures of the artifact to a published template; nothing else changes."""
    theirs = labels.parse(place.description)
    if theirs is None or theirs.proof == label.proof:
        return
    try:
        fresh = labels.relabel(place.description, replace(theirs, proof=label.proof, provenance=label.provenance))
    except ValueError:
        log.warn(f"{place.node}: the description of {label.template} was edited manually, so the signatures are not added")
        return
    api.configure(f"/nodes/{place.node}/qemu/{place.vmid}", description=fresh)
    log.info(f"{place.node}: {label.template} now has the signatures of: {label.provenance.get('Signed by') or 'none'}")


def _nothing() -> None:
    pass


def tidy(media: Media, node: str, label: Label) -> None:
    """Remove the uploaded image; the template is complete without it, so a failure is only a warning."""
    try:
        media.remove(node, label)
    except GoldsmithError as error:
        log.warn(f"{node}: {label.medium} could not be removed: {error.brief}; the next run tries again")


def _settle(futures: Sequence[Future[Template]]) -> None:
    pending = set(futures)
    while pending:
        # With a timeout: an unlimited wait would not notice Ctrl-C on every platform.
        _done, pending = wait(pending, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)


def _settle_patiently(futures: Sequence[Future[Template]]) -> None:
    while True:
        try:
            return _settle(futures)
        except KeyboardInterrupt:
            log.warn("everything this run created is still being removed; please wait")


def _results(places: Sequence[Target], futures: Sequence[Future[Template]]) -> list[Template]:
    errors = {place.node: error for place, future in zip(places, futures, strict=True) if (error := future.exception())}
    if not errors:
        return [future.result() for future in futures]
    for error in errors.values():
        if len(places) == 1 or not isinstance(error, GoldsmithError):
            raise error
    failed = any(isinstance(error, VerificationFailed) for error in errors.values())
    kind: type[GoldsmithError] = VerificationFailed if failed else StepFailed
    raise kind(
        f"publishing failed on {len(errors)} of {len(places)} nodes; the templates on the others are kept",
        details="\n".join(f"{node}: {_rendered(error)}" for node, error in errors.items()),
        hint="run the same command again: it continues with the missing nodes",
    )


def _rendered(error: BaseException) -> str:
    return error.render() if isinstance(error, GoldsmithError) else str(error)
