"""The command ``build``: builds and verifies the image; completed stages are reused from the cache."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from build.cli import loading, plan
from build.cli import options as common
from build.core import log
from build.core.errors import SpecError
from build.pipeline import build
from build.spec import inputs


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``build``."""
    common.add_build(parser)
    parser.add_argument("--plan", action="store_true", help="print which stages would run and why, and exit")
    parser.add_argument(
        "--until", choices=inputs.STAGES, default="artifact", metavar="STAGE",
        help=f"stop after this stage, and print the directory of its result: {', '.join(inputs.STAGES[:-1])}",
    )  # fmt: skip
    parser.add_argument(
        "--fresh", action="store_true", help="resolve the newest packages and installer first, and build from them"
    )
    parser.add_argument("--on", choices=["proxmox"], help="run the installer on a node of the cluster in golden.yaml")
    parser.add_argument(
        "--node", action="append", default=[], metavar="NAME", help="with --on: the node (default: the first one)"
    )
    parser.add_argument(
        "--secrets", type=Path, metavar="FILE", help="with --on: file with the API tokens (mode 0600; see golden.yaml)"
    )
    parser.add_argument(
        "--install-minutes", type=int, default=15, metavar="N",
        help="with --on: installation timeout in minutes (default: %(default)s)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Build, or print the plan; print the directory of the artifact, or of the stage that was asked for."""
    _check(arguments)
    if arguments.on and not arguments.plan:
        # A separate module: it needs the packages of the commands for Proxmox VE.
        return loading.load("build-on-proxmox").run(arguments)
    chosen = replace(common.build_of(arguments), fresh=arguments.fresh)
    if arguments.plan:
        return plan.show(chosen, arguments.until)
    if arguments.until != "artifact":
        print(build.build_until(chosen, arguments.until))
        return 0
    artifact = build.build(chosen)
    counts = artifact.manifest.verification
    log.info(f"Verified: {counts.passed} tests passed on {len(counts.clones)} clones.")
    print(artifact.path)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Raise SpecError for options that contradict each other."""
    if arguments.fresh and arguments.locked:
        raise SpecError(
            "--fresh and --locked contradict each other",
            details="--fresh builds from the newest packages, --locked from the committed locks alone",
            hint="leave one out; newest packages for a release: nox -s lock, commit the locks, then build with --locked",
        )
    if arguments.fresh and arguments.plan:
        raise SpecError(
            "--fresh fetches package lists, and --plan fetches nothing",
            hint="nox -s lock -- --check names what --fresh would change",
        )
