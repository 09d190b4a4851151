"""The command ``bench``: measures builds and a baseline installation, and writes docs/reference/benchmarks.md."""

from __future__ import annotations

import argparse
from dataclasses import replace

from build.bench import bench
from build.cli import options as common


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``bench``."""
    common.add_downloads(parser)
    common.add_accelerator(parser)
    common.add_packer(parser)
    parser.add_argument(
        "part", nargs="*", choices=[*bench.PARTS, []], metavar="PART",
        help=f"measure only these of {', '.join(bench.PARTS)} (default: all)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Measure the parts."""
    chosen = replace(common.downloads_of(arguments), accelerator=arguments.accel, packer=common.packer_of(arguments))
    bench.run_all(chosen, tuple(arguments.part) or bench.PARTS)
    return 0
