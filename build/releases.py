"""The verbs on versions: point a channel at one, go back, take one out of use, and back into it.

Only what is verified, published on every node, unrevoked, and past the gates of golden.yaml is ever pointed at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from build import channels, proof, publish, release_gates, release_moves
from build.artifact import Artifact
from build.channels import REVOKED, Template
from build.errors import SpecError, StepFailed
from build.labels import version_tag
from build.release_entry import NOBODY, Action, Assignment
from build.release_gates import Gate
from build.release_moves import Outcome, Report, concluded, move
from build.release_policy import CANDIDATE
from build.release_view import (
    Job,
    View,
    artifacts,
    find,
    is_so,
    last_commit,
    look,
    pointed_at,
    require_published,
    require_unrevoked,
)


def promote(
    job: Job, version: str, channel: str, *, reason: str = "", images: Sequence[Artifact] = (), dry_run: bool = False
) -> Report:
    """Point a channel at a version, on every node; ``images``: one of these artifacts of it, and no other.

    Raises SpecError when there is no such version or channel, or it is revoked or not published everywhere,
    VerificationFailed when a gate is not passed, Overtaken when somebody else was first, StepFailed when nodes are missing.
    """
    _require_channel(job, channel)
    with job.book.held():
        view = look(job)
        begun, image = view.state.open.get(channel), None
        if begun is not None and begun.action is Action.PROMOTE and begun.version == version and not images:
            # What was begun has passed its gates, maybe on another machine that has the artifact.
            wanted, commit = begun.subject, begun.commit
        else:
            image = _published_artifact(job, view, version, images)
            wanted, commit = Assignment(version, image.manifest["image"]["sha256"]), _commit(image)
        require_unrevoked(view, wanted)
        targets = require_published(job, view, wanted)
        before = pointed_at(view, channel, wanted)
        report = Report(Action.PROMOTE, channel, wanted, before, Outcome.DONE, _places(targets))
        if begun is None and view.state.current(channel) == wanted and is_so(view, channel, wanted):
            return concluded(report, Outcome.THERE)
        if image is not None:
            report = replace(report, gates=tuple(_gates(job, view, image, targets)))
            release_gates.require(report.gates, f"{job.product}-{version}")
        if dry_run:
            return concluded(report, Outcome.PLANNED)
        return move(job, view, report, reason=reason, commit=commit)


def rollback(job: Job, channel: str, *, reason: str = "", dry_run: bool = False) -> Report:
    """Point a channel at what it pointed at before; what is revoked is passed over. No gates: they were passed once.

    A promotion that was cut in the middle is taken back by it. Raises SpecError when there is nothing to go back to.
    """
    _require_channel(job, channel)
    with job.book.held():
        view = look(job)
        begun, now = view.state.open.get(channel), view.state.goal(channel)
        wanted = view.state.back(channel)
        if not wanted and begun is None:
            raise SpecError(
                f"there is no earlier assignment of {channel} to go back to", details=f"it is {now.version or 'nothing'}",
                hint="nox -s history shows them all; to point it elsewhere: nox -s promote -- VERSION " + channel,
            )  # fmt: skip
        require_unrevoked(view, wanted)
        targets = require_published(job, view, wanted) if wanted else []
        report = Report(Action.ROLLBACK, channel, wanted, now, Outcome.DONE, _places(targets))
        if dry_run:
            return concluded(report, Outcome.PLANNED)
        return move(job, view, report, reason=reason, commit=last_commit(view, wanted))


def revoke(job: Job, version: str, *, reason: str, dry_run: bool = False) -> Report:
    """Take a version out of use: nobody promotes, clones or publishes it any more.

    Raises SpecError while a channel points at it: then everybody who clones from the channel would be stopped.
    """
    return _judgement(job, Action.REVOKE, version, reason=reason, dry_run=dry_run)


def restore(job: Job, version: str, *, reason: str, dry_run: bool = False) -> Report:
    """Take a revocation back."""
    return _judgement(job, Action.RESTORE, version, reason=reason, dry_run=dry_run)


def _judgement(job: Job, action: Action, version: str, *, reason: str, dry_run: bool) -> Report:
    with job.book.held():
        view = look(job)
        wanted = find(job, view, version)
        revoking, found = action is Action.REVOKE, view.of(wanted)
        report = Report(action, "", wanted, NOBODY, Outcome.DONE, _places(found))
        held = view.state.revocation(wanted.digest) is not None
        # A template that missed a restoration would still be refused by clone, for what its mirror says.
        told = {said for one in found for said in (REVOKED in one.tags, channels.own_revocation(one) is not None)}
        if view.state.open.get(wanted.digest) is None and held == revoking and told <= {revoking}:
            return concluded(report, Outcome.THERE)
        if revoking:
            _require_unused(job, view, wanted)
        if dry_run:
            return concluded(report, Outcome.PLANNED)
        return release_moves.mark(job, view, report, reason=reason, commit=last_commit(view, wanted))


def _require_channel(job: Job, channel: str) -> None:
    if channel not in job.policy.channels:
        own = "every published version is a candidate, and nobody moves that" if channel == CANDIDATE else ""
        raise SpecError(
            f"golden.yaml knows no channel {channel}", details=own,
            hint=f"it has: {', '.join(job.policy.channels)}; releases.channels in golden.yaml names them",
        )  # fmt: skip


def _require_unused(job: Job, view: View, wanted: Assignment) -> None:
    """Raise SpecError while a channel points at an image, by the ledger or on some node."""
    begun = [one.channel for one in view.state.open.values() if one.channel]
    names = dict.fromkeys([*job.policy.channels, *view.state.stacks, *begun])
    used = [
        name for name in names
        if wanted in (view.state.current(name), view.state.goal(name)) or any(name in one.tags for one in view.of(wanted))
    ]  # fmt: skip
    if used:
        raise SpecError(
            f"{wanted.version} is what {', '.join(used)} points at: who clones from there would get nothing",
            hint="point it elsewhere first: " + "; ".join(f"nox -s rollback -- {name}" for name in used),
        )


def _published_artifact(job: Job, view: View, version: str, images: Sequence[Artifact]) -> Artifact:
    """Return the artifact here that the templates of a version were made of. Raises SpecError when there is none."""
    known = images or artifacts(job, version)
    published = {one.label.digest for one in view.templates if one.label and one.label.version == version}
    found = [one for one in known if one.manifest["image"]["sha256"] in published]
    if found:
        return found[0]
    if not known:
        raise SpecError(
            f"there is no artifact of {job.product} {version} in {job.artifacts}: it decides whether it may be promoted",
            hint="promote on the machine that built it, or copy its directory here",
        )
    if unread := [one for one in view.templates if one.problem and version_tag(version) in one.tags]:
        raise StepFailed(
            f"no template of {version} can be read: nothing was changed",
            details="\n".join(f"{one.place}: {one.problem}" for one in unread), hint="are the nodes online?",
        )  # fmt: skip
    raise SpecError(
        f"{known[-1].path.name} is not published",
        details="published as that version: " + (", ".join(published) or "nothing"),
        hint=f"publish it: nox -s publish -- --artifact {known[-1].path}",
    )  # fmt: skip


def _gates(job: Job, view: View, image: Artifact, targets: Sequence[Template]) -> list[Gate]:
    # Whose signatures it needs is a gate of its own.
    publish.check_artifact(image, proof.NOBODY)
    published = [one.label.published for one in targets if one.label]
    return release_gates.judge(
        image, job.policy, published=published, now=job.clock(), last=view.ledger.last_time, signatures=job.signatures
    )


def _commit(image: Artifact) -> str:
    return str(image.manifest["inputs"].get("commit") or "")


def _places(found: Sequence[Template]) -> tuple[str, ...]:
    return tuple(one.place for one in found)
