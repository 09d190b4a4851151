"""The command ``plan``: prints which stages a build would run, and why."""

from __future__ import annotations

import argparse

from build.cli import options as common
from build.pipeline import build, host_tools


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``plan``."""
    common.add_build(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the plan of a whole build."""
    return show(common.build_of(arguments), "artifact")


def show(options: build.Options, until: str) -> int:
    """Print the plan of a build up to a stage, and the host tools that it lacks; return 0. Nothing is fetched."""
    gathered = build.gather(options, settle=False)
    lines = build.plan(options, gathered, until)
    for line in [*lines, build.known_updates(options, gathered.inputs)]:
        print(f"{line.action:<5}  {line.stage:<8}  {line.reason}")
    stages = [line.stage for line in lines if line.action == "RUN"]
    missing = host_tools.missing_lines(build.toolset(options, stages).tools()) if stages else ""
    if missing:
        print(f"\n{missing}")
    return 0
