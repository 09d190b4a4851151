"""Commands on versions: promote, rollback, revoke, restore.

A channel only ever points at a version that is verified, published on every node, not revoked, and passes the gates of
golden.yaml.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from build.artifact import verification
from build.artifact.artifact import Artifact
from build.core.errors import SpecError, StepFailed
from build.proxmox.labels import version_tag
from build.release import channels, gates, operation
from build.release.channels import REVOKED, Template
from build.release.entry import NONE, Action, Assignment
from build.release.gates import Gate
from build.release.operation import Outcome, Report, concluded, move
from build.release.preconditions import (
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
from build.spec.release_policy import CANDIDATE


def promote(
    job: Job, version: str, channel: str, *, reason: str = "", images: Sequence[Artifact] = (), dry_run: bool = False
) -> Report:
    """Point a channel at a version, on every node; ``images``: use only one of these artifacts.

    Raises SpecError when there is no such version or channel, or it is revoked or not published everywhere,
    VerificationFailed if a gate is not passed, ConcurrentUpdate after a concurrent update, StepFailed if nodes are missing.
    """
    _require_channel(job, channel)
    with job.book.held():
        view = look(job)
        unfinished, image = view.state.open.get(channel), None
        if unfinished is not None and unfinished.action is Action.PROMOTE and unfinished.version == version and not images:
            # The unfinished promotion has passed its gates, maybe on another host that has the artifact.
            target, commit = unfinished.subject, unfinished.commit
        else:
            image = _published_artifact(job, view, version, images)
            target, commit = Assignment(version, image.manifest.image.sha256), _commit(image)
        require_unrevoked(view, target)
        templates = require_published(job, view, target)
        before = pointed_at(view, channel, target)
        report = Report(Action.PROMOTE, channel, target, before, Outcome.DONE, _places(templates))
        if unfinished is None and view.state.current(channel) == target and is_so(view, channel, target):
            return concluded(report, Outcome.THERE)
        if image is not None:
            report = replace(report, gates=tuple(_gates(job, view, image, templates)))
            gates.require(report.gates, f"{job.product}-{version}")
        if dry_run:
            return concluded(report, Outcome.PLANNED)
        return move(job, view, report, reason=reason, commit=commit)


def rollback(job: Job, channel: str, *, reason: str = "", dry_run: bool = False) -> Report:
    """Move a channel back to its previous version; revoked versions are skipped. The gates were passed before.

    An interrupted promotion is undone. Raises SpecError if there is no earlier version.
    """
    _require_channel(job, channel)
    with job.book.held():
        view = look(job)
        unfinished, present = view.state.open.get(channel), view.state.goal(channel)
        target = view.state.back(channel)
        if not target and unfinished is None:
            raise SpecError(
                f"{channel} has no earlier version to go back to", details=f"it is {present.version or 'nothing'}",
                hint="list all versions with nox -s history; choose one with nox -s promote -- VERSION " + channel,
            )  # fmt: skip
        require_unrevoked(view, target)
        templates = require_published(job, view, target) if target else []
        report = Report(Action.ROLLBACK, channel, target, present, Outcome.DONE, _places(templates))
        if dry_run:
            return concluded(report, Outcome.PLANNED)
        return move(job, view, report, reason=reason, commit=last_commit(view, target))


def revoke(job: Job, version: str, *, reason: str, dry_run: bool = False) -> Report:
    """Revoke a version: it can no longer be promoted, cloned or published.

    Raises SpecError while a channel points at it: clones from that channel would fail.
    """
    return _set_revocation(job, Action.REVOKE, version, reason=reason, dry_run=dry_run)


def restore(job: Job, version: str, *, reason: str, dry_run: bool = False) -> Report:
    """Undo a revocation."""
    return _set_revocation(job, Action.RESTORE, version, reason=reason, dry_run=dry_run)


def _set_revocation(job: Job, action: Action, version: str, *, reason: str, dry_run: bool) -> Report:
    with job.book.held():
        view = look(job)
        image = find(job, view, version)
        revoking, templates = action is Action.REVOKE, view.of(image)
        report = Report(action, "", image, NONE, Outcome.DONE, _places(templates))
        revoked = view.state.revocation(image.digest) is not None
        # Clone would still reject a template that missed a restoration, because of its mirror.
        states = {
            state for template in templates
            for state in (REVOKED in template.tags, channels.own_revocation(template) is not None)
        }  # fmt: skip
        if view.state.open.get(image.digest) is None and revoked == revoking and states <= {revoking}:
            return concluded(report, Outcome.THERE)
        if revoking:
            _require_unused(job, view, image)
        if dry_run:
            return concluded(report, Outcome.PLANNED)
        return operation.mark(job, view, report, reason=reason, commit=last_commit(view, image))


def _require_channel(job: Job, channel: str) -> None:
    if channel not in job.policy.channels:
        details = "every published version is a candidate; this channel cannot be moved" if channel == CANDIDATE else ""
        raise SpecError(
            f"golden.yaml has no channel {channel}", details=details,
            hint=f"choose one of {', '.join(job.policy.channels)}, or add it to releases.channels in golden.yaml",
        )  # fmt: skip


def _require_unused(job: Job, view: View, image: Assignment) -> None:
    """Raise SpecError while a channel points at an image, by the ledger or on some node."""
    unfinished = [entry.channel for entry in view.state.open.values() if entry.channel]
    names = dict.fromkeys([*job.policy.channels, *view.state.stacks, *unfinished])
    used = [
        name for name in names
        if image in (view.state.current(name), view.state.goal(name)) or any(name in entry.tags for entry in view.of(image))
    ]  # fmt: skip
    if used:
        raise SpecError(
            f"{image.version} is used by {', '.join(used)}: clones from this channel would fail",
            hint="point it elsewhere first: " + "; ".join(f"nox -s rollback -- {name}" for name in used),
        )


def _published_artifact(job: Job, view: View, version: str, images: Sequence[Artifact]) -> Artifact:
    """Return the local artifact that the templates of a version were published from. Raises SpecError if there is none."""
    known = images or artifacts(job, version)
    published = {image.label.digest for image in view.templates if image.label and image.label.version == version}
    matching = [image for image in known if image.manifest.image.sha256 in published]
    if matching:
        return matching[0]
    if not known:
        raise SpecError(
            f"there is no artifact of {job.product} {version} in {job.artifacts}: promotion needs its manifest",
            hint="promote on the host that built it, or copy its directory to this host",
        )
    if unread := [image for image in view.templates if image.problem and version_tag(version) in image.tags]:
        raise StepFailed(
            f"no template of {version} can be read: nothing was changed",
            details="\n".join(f"{image.place}: {image.problem}" for image in unread), hint="check that the nodes "
            "are online: nox -s doctor -- --proxmox",
        )  # fmt: skip
    raise SpecError(
        f"{known[-1].path.name} is not published",
        details="published as that version: " + (", ".join(published) or "nothing"),
        hint=f"publish it: nox -s publish -- --artifact {known[-1].path}",
    )  # fmt: skip


def _gates(job: Job, view: View, image: Artifact, targets: Sequence[Template]) -> list[Gate]:
    # The required signatures are a separate gate.
    verification.require_verified(image, verification.NO_TRUST)
    published = [template.label.published for template in targets if template.label]
    return gates.evaluate(
        image, job.policy, published=published, now=job.clock(), last=view.ledger.last_time, signatures=job.signatures
    )


def _commit(image: Artifact) -> str:
    return image.manifest.inputs.commit or ""


def _places(templates: Sequence[Template]) -> tuple[str, ...]:
    return tuple(template.place for template in templates)
