"""Takes a verified artifact to a cluster: the same bytes on every node, proved by clones there, then kept immutable.

Publishing adds and never replaces: the same image is not published twice, and a name that stands for another image is
refused. What fails, or is interrupted, is taken back: what this run made, and nothing else. A run that was killed is
continued by the next one: an uploaded image is used, a half-made machine of the same image is removed and made anew.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from build import artifact, channels, labels, log, preflight, proof
from build.artifact import Artifact
from build.cluster import Role, Settings
from build.errors import GoldsmithError, SpecError, StepFailed, VerificationFailed
from build.labels import Label, State
from build.proof import NOBODY, Trust
from build.publish_machine import Machine, Stopped, Undo, VmIds, recorded, remove
from build.publish_media import Brought, Media, Uploads
from build.pve import Api
from build.release_entry import Assignment
from build.release_ledger import Book

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Subject:
    """What a verifier judges: a stopped machine on a node, from which it makes its clones.

    ``ids`` gives numbers for them; ``check`` raises when the user wants to stop: a verifier calls it now and then.
    """

    node: str
    vmid: int
    label: Label
    ids: VmIds
    check: Callable[[], None]


Verifier = Callable[[Subject], None]


class Outcome(StrEnum):
    """What became of a node."""

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
    """What a run publishes, where, and with what."""

    artifact: Artifact
    settings: Settings
    api: Api
    verifier: Verifier
    nodes: tuple[str, ...]
    tokens: Mapping[Role, Api]
    media: Callable[[Api], Media]
    # Whether ``media`` needs no content type import: the way for Proxmox VE before 8.4.
    over_ssh: bool = False
    # Whose signatures the artifact must have.
    trust: Trust = NOBODY
    # The ledger of releases: what is revoked there is not published, even where the cluster has forgotten it.
    book: Book | None = None


def publish(job: Job) -> list[Template]:
    """Publish an artifact; return the templates, in the order of the nodes.

    Raises SpecError when it is revoked or its name is taken, HostError when the cluster is not ready, VerificationFailed
    when the artifact does not verify or clones failed on a node, StepFailed when a step failed: what was made is gone then.
    """
    check_artifact(job.artifact, job.trust)
    label = labels.of(
        job.artifact, state=State.PUBLISHING, published=now(), run=secrets.token_hex(8), machine=recorded(job.settings),
        seal=proof.seal(job.artifact, job.trust),
    )  # fmt: skip
    image = job.artifact.manifest["image"]
    with log.step("Looking at the cluster", done="the cluster is ready"):
        need = preflight.Need(int(image["bytes"]), int(image["virtual_mib"]) << 20)
        view = preflight.look(
            job.api, job.settings, nodes=job.nodes, need=need, tokens=job.tokens, ssh=job.over_ssh
        )  # fmt: skip
        view.require()
        guests = job.api.get("/cluster/resources", type="vm")
        _require_unrevoked(job, label, guests)
        found = places(job.api, job.nodes, label, guests, shared=view.disks_shared)
    if all(place.outcome is Outcome.THERE and not place.leftovers for place in found):
        return [_already(job, label, place) for place in found]
    taken = {int(one["vmid"]) for one in guests}
    run = _Run(job, label, places=len(found), taken=taken, media_shared=view.media_shared)
    with log.step(f"Publishing {label.template} to {', '.join(place.node for place in found)}", done="published"):
        return run.all_of(found)


def _require_unrevoked(job: Job, label: Label, guests: Sequence[Mapping[str, Any]]) -> None:
    known = job.book.read().entries if job.book else ()
    if why := channels.revocation(job.api, label.name, guests, Assignment(label.version, label.digest), known):
        raise SpecError(
            f"{label.template} ({label.digest[:artifact.DIGEST_HEX]}) is revoked: {why}",
            hint="raise the version in golden.yaml, build, and publish that; if it is good after all: "
            f"nox -s restore -- {label.version} --reason TEXT",
        )


def check_artifact(found: Artifact, trust: Trust) -> None:
    """Raise VerificationFailed unless the artifact is whole, free of contradiction, and signed as ``trust`` asks for."""
    with log.step(f"Verifying {found.path.name}", done="it is what was built and verified"):
        proof.require(found, trust)


@dataclass(frozen=True)
class Place:
    """A node that shall have the template, what is there already, and what a run that was killed left."""

    node: str
    outcome: Outcome
    vmid: int = 0
    leftovers: tuple[tuple[str, int, Label], ...] = ()
    # Of the template that is there.
    description: str = ""


def places(
    api: Api, nodes: Sequence[str], label: Label, guests: Sequence[Mapping[str, Any]], *, shared: bool
) -> list[Place]:
    """Decide what to do on each node; one configuration is read for each guest that bears our name.

    Raises SpecError when the name stands for something else already.
    """
    nodes = nodes[:1] if shared else nodes
    found: dict[str, list[tuple[Mapping[str, Any], Label, Mapping[str, Any]]]] = {node: [] for node in nodes}
    for guest in guests:
        name, node = str(guest.get("name", "")), str(guest["node"])
        if name != label.template and not name.startswith(label.clone_name()):
            continue
        if not shared and node not in found:
            continue
        config = api.get(f"/nodes/{node}/{guest['id']}/config")
        theirs = labels.parse(config.get("description", ""))
        if theirs is None or theirs.digest != label.digest:
            raise _taken(label, guest, theirs)
        found[nodes[0] if shared else node].append((guest, theirs, config))
    return [_decide(node, label, found[node]) for node in nodes]


def _decide(node: str, label: Label, found: Sequence[tuple[Mapping[str, Any], Label, Mapping[str, Any]]]) -> Place:
    leftovers = []
    finished: Place | None = None
    for guest, theirs, config in found:
        where, vmid = str(guest["node"]), int(guest["vmid"])
        if guest.get("name") == label.template and guest.get("template"):
            done = theirs.state is State.TEMPLATE and int(config.get("protection", 0))
            outcome = Outcome.THERE if done else Outcome.FINISHED
            finished = Place(where, outcome, vmid, description=str(config.get("description", "")))
        elif theirs.state is State.PUBLISHING and not int(config.get("protection", 0)) and not guest.get("template"):
            leftovers.append((where, vmid, theirs))
        else:
            raise _taken(label, guest, theirs)
    if finished:
        return replace(finished, leftovers=tuple(leftovers))
    return Place(node, Outcome.PUBLISHED, 0, tuple(leftovers))


def clear(api: Api, place: Place) -> None:
    """Remove what a run that was killed has left half-made."""
    for where, vmid, theirs in place.leftovers:
        remove(api, where, vmid)
        log.info(f"{where}: VM {vmid} was left half-made by a run that was killed ({theirs.run}): it is removed")


def _taken(label: Label, guest: Mapping[str, Any], theirs: Label | None) -> SpecError:
    what = f"image {theirs.digest[:artifact.DIGEST_HEX]}" if theirs else "a machine that Goldsmith did not make"
    return SpecError(
        f"{guest.get('name')} on {guest['node']} (VM {guest['vmid']}) is {what}, not {label.digest[:artifact.DIGEST_HEX]}",
        hint="a published name is never given to other bytes: raise the version in golden.yaml, build, and publish that",
    )


class _Run:
    """One run over all its nodes: a bounded number of threads, each with a connection of its own."""

    def __init__(self, job: Job, label: Label, *, places: int, taken: set[int], media_shared: bool) -> None:
        self.job, self.label = job, label
        self.ids = VmIds(job.settings.vmids, taken)
        self.stop = threading.Event()
        self.uploads = Uploads(job.artifact.image.stat().st_size, 1 if media_shared else places)
        # All nodes import from one file then: it is uploaded once, and removed when the last one is done.
        self.media_shared = media_shared
        self._uploading = threading.Lock()
        self._uploaded = False

    def all_of(self, places: Sequence[Place]) -> list[Template]:
        """Publish to every place; return the templates, or raise what went wrong after everything has settled."""
        with ThreadPoolExecutor(min(len(places), preflight.MOST_CONNECTIONS)) as pool:
            futures = [pool.submit(self._one, place) for place in places]
            try:
                _settle(futures)
            except KeyboardInterrupt:
                self.stop.set()
                log.warn("interrupted: what this run has made is being removed; please wait")
                _settle_patiently(futures)
                raise
            finally:
                self.uploads.progress.finish()
                if self.media_shared and futures[0].done():
                    self._remove_shared(places[0].node, futures)
        return _results(places, futures)

    def _one(self, place: Place) -> Template:
        """Publish to one node; take back what was made when that fails."""
        undo = Undo()
        with self.job.api.another() as api:
            api.before = self._check
            try:
                return self._steps(api, place, undo)
            except BaseException:
                # Only new work is refused to somebody who wants to stop: what is half-made has to go.
                api.before = _nothing
                for problem in undo.run():
                    log.warn(f"{place.node}: {problem}")
                raise

    def _check(self) -> None:
        if self.stop.is_set():
            raise Stopped("publishing was interrupted", hint="run the same command again: it continues")

    def _steps(self, api: Api, place: Place, undo: Undo) -> Template:
        node = place.node
        clear(api, place)
        media = self.job.media(api)
        machine = Machine(api, self.job.settings, node, self.label, ids=self.ids, undo=undo, vmid=place.vmid)
        if place.outcome is Outcome.PUBLISHED:
            machine.create(media, self._bring(media, node, undo))
            log.info(f"{node}: VM {machine.vmid} is made of the image; clones of it are verified next")
            self.job.verifier(Subject(node, machine.vmid, self.label, self.ids, self._check))
            machine.to_template()
        if place.outcome is not Outcome.THERE:
            machine.finish()
        # From here on it is published: nothing of it is taken back.
        undo.forget()
        if not self.media_shared:
            tidy(media, node, self.label)
        log.info(f"{node}: {self.label.template} is VM {machine.vmid}: {place.outcome}")
        return Template(node, machine.vmid, self.label.template, place.outcome)

    def _bring(self, media: Media, node: str, undo: Undo) -> Brought:
        if not self.media_shared:
            medium = self.label.medium
            return self._find_or_bring(media, node, lambda: undo.add(medium, lambda: media.remove(node, self.label)))
        with self._uploading:
            return self._find_or_bring(media, node, self._note_upload)

    def _find_or_bring(self, media: Media, node: str, ahead: Callable[[], None]) -> Brought:
        self._check()
        source = self.job.artifact
        if found := media.find(node, source, self.label):
            return found
        ahead()
        return media.bring(node, source, self.label, self.uploads.teller(node, self._check))

    def _note_upload(self) -> None:
        self._uploaded = True

    def _remove_shared(self, node: str, futures: Sequence[Future[Template]]) -> None:
        complete = all(future.done() and future.exception() is None for future in futures)
        if self._uploaded or complete:
            with self.job.api.another() as api:
                tidy(self.job.media(api), node, self.label)


def _already(job: Job, label: Label, place: Place) -> Template:
    log.info(f"{label.template} is on {place.node} already, as {place.vmid}: the same image is not published twice.")
    _bring_signatures(job.api, label, place)
    # A run that was killed at its very end leaves the uploaded image.
    tidy(job.media(job.api), place.node, label)
    return Template(place.node, place.vmid, label.template, Outcome.THERE)


def _bring_signatures(api: Api, label: Label, place: Place) -> None:
    """Give a published template the signatures that its artifact got since; nothing else of it changes."""
    theirs = labels.parse(place.description)
    if theirs is None or theirs.proof == label.proof:
        return
    try:
        fresh = labels.relabel(place.description, replace(theirs, proof=label.proof, provenance=label.provenance))
    except ValueError:
        log.warn(f"{place.node}: the description of {label.template} was changed by hand, and does not get the signatures")
        return
    api.configure(f"/nodes/{place.node}/qemu/{place.vmid}", description=fresh)
    log.info(f"{place.node}: {label.template} carries the signatures of {label.provenance.get('Signed by') or 'nobody'}")


def _nothing() -> None:
    pass


def tidy(media: Media, node: str, label: Label) -> None:
    """Remove the uploaded image; the template is complete without it, so that a failure is only told."""
    try:
        media.remove(node, label)
    except GoldsmithError as error:
        log.warn(f"{node}: {label.medium} could not be removed: {error.brief}; the next run tries again")


def _settle(futures: Sequence[Future[Template]]) -> None:
    pending = set(futures)
    while pending:
        # In pieces: a wait without end would not notice Ctrl-C on every platform.
        _done, pending = wait(pending, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)


def _settle_patiently(futures: Sequence[Future[Template]]) -> None:
    while True:
        try:
            return _settle(futures)
        except KeyboardInterrupt:
            log.warn("what this run has made is still being removed; please wait")


def _results(places: Sequence[Place], futures: Sequence[Future[Template]]) -> list[Template]:
    errors = {place.node: error for place, future in zip(places, futures, strict=True) if (error := future.exception())}
    if not errors:
        return [future.result() for future in futures]
    for error in errors.values():
        if len(places) == 1 or not isinstance(error, GoldsmithError):
            raise error
    failed = any(isinstance(error, VerificationFailed) for error in errors.values())
    kind: type[GoldsmithError] = VerificationFailed if failed else StepFailed
    raise kind(
        f"publishing failed on {len(errors)} of {len(places)} nodes; what is published on the others stays",
        details="\n".join(f"{node}: {_rendered(error)}" for node, error in errors.items()),
        hint="run the same command again: it continues with the nodes that are missing",
    )


def _rendered(error: BaseException) -> str:
    return error.render() if isinstance(error, GoldsmithError) else str(error)


def now() -> str:
    """Return the time as a label has it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
