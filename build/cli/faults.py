"""The command ``faults``: injects faults into disposable test VMs under load, and reports the result of each."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from build.cli import options as common
from build.faults import faults
from build.faults.machines import Target


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``faults``."""
    common.add_downloads(parser)
    common.add_locked(parser)
    common.add_accelerator(parser)
    common.add_image(parser)
    parser.add_argument("fault", nargs="*", metavar="ID", help="inject only these, such as F04 F16 (default: all)")
    parser.add_argument(
        "--target", type=Target, choices=list(Target), default=Target.VM,
        help="VMs of the newest image, or a container of its root file system, which can show only some (default: vm)",
    )  # fmt: skip
    parser.add_argument(
        "--squashfs", type=Path, metavar="FILE", help="root file system of the container (default: the one of golden.yaml)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Inject the faults, and print the table of the results. Raises VerificationFailed when one broke its promise."""
    # Only building the root file system needs the mirrors.
    builds = arguments.target is Target.CONTAINER and arguments.squashfs is None
    chosen = common.downloads_of(arguments) if builds else common.offline_of(arguments)
    return common.show(
        faults.run_faults(
            replace(chosen, locked=arguments.locked, accelerator=arguments.accel), arguments.fault,
            target=arguments.target, directory=arguments.artifact, unverified=arguments.unverified,
            squashfs=arguments.squashfs,
        )
    )  # fmt: skip
