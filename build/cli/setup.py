"""The command ``setup``: installs the host tools that a build needs."""

from __future__ import annotations

import argparse
from dataclasses import replace

from build.cli import options as common
from build.core import host, log
from build.pipeline import build
from build.spec import inputs


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``setup``."""
    common.add_project(parser)
    common.add_cache(parser)
    common.add_host_tools(parser)
    common.add_accelerator(parser)
    common.add_packer(parser)
    parser.add_argument("--tests", action="store_true", help="also install the tools that only the tests need")


def run(arguments: argparse.Namespace) -> int:
    """Install the tools, or list those that are missing. Raises HostError when one is missing afterwards."""
    chosen = replace(common.offline_of(arguments), accelerator=arguments.accel, packer=common.packer_of(arguments))
    tools = build.toolset(chosen, inputs.STAGES).tools() + (host.TEST_TOOLS if arguments.tests else ())
    host.ensure(tools, install=chosen.install)
    log.info("Every host tool is here.")
    return 0
