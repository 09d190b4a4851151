"""The command ``promote``: moves a channel to a published version, on every node."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack

from build.cli import options as common
from build.cli import release
from build.core.errors import SpecError
from build.core.project import Project
from build.pipeline import build
from build.release import promote, tag
from build.release.operation import Report
from build.release.preconditions import Job
from build.spec.release_policy import STABLE


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``promote``."""
    release.add_move(parser)
    common.add_cache(parser)
    parser.add_argument(
        "names", nargs="*", metavar="VERSION [CHANNEL]", help=f"with --tag only the channel (default: {STABLE})"
    )
    parser.add_argument(
        "--tag", default="", metavar="vVERSION", help="the version whose artifact was built from the commit of this tag"
    )


def run(arguments: argparse.Namespace) -> int:
    """Move the channel; print the gates and the result."""
    version, channel = _names(arguments.names, tag_name=arguments.tag)
    reason, project = release.reason_of(arguments), common.project_of(arguments)
    with ExitStack() as stack:
        job = release.open_job(stack, project, arguments.secrets)
        if arguments.tag:
            report = _promote_tag(arguments, project, job, channel, reason)
        else:
            report = promote.promote(job, version, channel, reason=reason, dry_run=arguments.dry_run)
    return release.show(report, as_json=arguments.json)


def _promote_tag(arguments: argparse.Namespace, project: Project, job: Job, channel: str, reason: str) -> Report:
    def key() -> str:
        """Return the artifact key of this checkout; the mirrors, which it depends on, are those that a build would use."""
        chosen = build.Options(project, common.cache_of(arguments), common.mirrors(install=True))
        return build.gather(chosen, settle=False).keys["artifact"].key

    images = tag.artifacts_of(
        project.root, project.artifacts, arguments.tag, name=job.product, ledger=job.policy.ledger, key=key
    )
    version = images[0].manifest.version
    return promote.promote(job, version, channel, reason=reason, images=images, dry_run=arguments.dry_run)


def _names(names: Sequence[str], *, tag_name: str) -> tuple[str, str]:
    """Return version and channel; raise SpecError when they do not fit together."""
    if tag_name:
        if len(names) > 1:
            raise SpecError("with --tag, the tag names the version", hint=f"nox -s promote -- --tag {tag_name} [CHANNEL]")
        return "", names[0] if names else STABLE
    if not 1 <= len(names) <= 2:
        raise SpecError(
            "promote needs a version, or --tag", hint="nox -s promote -- 1.4.0 [CHANNEL]; nox -s prune lists the versions"
        )
    return release.version_of(names[0]), names[1] if len(names) == 2 else STABLE
