"""The command ``check``: compares an artifact's files with its SHA256SUMS."""

from __future__ import annotations

import argparse

from build.artifact import artifact, find
from build.cli import options as common
from build.core import log


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``check``."""
    common.add_project(parser)
    common.add_artifact(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print whether the artifact is intact; return 1 if it is not."""
    project = common.project_of(arguments)
    chosen = artifact.load(arguments.artifact) if arguments.artifact else find.newest(project)
    problems = artifact.check(chosen.path)
    for problem in problems:
        log.warn(problem)
    print(f"{chosen.path}: {'changed' if problems else 'whole'}")
    return 1 if problems else 0
