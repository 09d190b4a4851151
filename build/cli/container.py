"""The command ``container``: boots a root file system under systemd-nspawn, to test it or to look at it."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from build.cli import options as common
from build.core import host, programs
from build.pipeline import build
from build.spec import golden_yaml as specs
from build.verify import container, image_tests


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``container``."""
    common.add_downloads(parser)
    common.add_locked(parser)
    parser.add_argument(
        "only", nargs="*", metavar="TEST", help="run these only: tests/image/test_x.py, or with ::test_name (default: all)"
    )
    parser.add_argument(
        "--layer", action="append", default=[], metavar="NN-NOUN", help="add this layer; can be given several times"
    )
    parser.add_argument(
        "--squashfs", type=Path, metavar="FILE", help="boot this root file system (default: the one of golden.yaml)"
    )
    parser.add_argument(
        "--stories", type=Path, metavar="DIR", help="run only the long service tests; write log and JUnit XML to DIR"
    )
    parser.add_argument(
        "--inventory", type=Path, metavar="DIR", help="run no tests; write the inventory and the boot plot to DIR"
    )
    parser.add_argument("--shell", action="store_true", help="run no tests; open a shell in the container")


def run(arguments: argparse.Namespace) -> int:
    """Boot a root file system (the one of golden.yaml by default) under systemd-nspawn, and test it or open a shell."""
    # Only building the root file system needs the mirrors.
    chosen = common.offline_of(arguments) if arguments.squashfs else common.downloads_of(arguments)
    chosen = replace(chosen, locked=arguments.locked, layers=tuple(arguments.layer))
    host.ensure(host.needed((host.CONTAINER,), container=True), install=chosen.install)
    squashfs, spec = arguments.squashfs, specs.load(chosen.project.spec)
    if squashfs is None:
        squashfs, spec = build.build_rootfs(chosen)
    with programs.recorded(host.CONTAINER, chosen.cache.root / "logs"):
        return container.run_container(
            squashfs, spec=spec, tests=chosen.project.image_tests,
            workdir=arguments.stories or chosen.cache.root / "container" / spec.name,
            select=image_tests.STORIES if arguments.stories else image_tests.NO_VM, shell=arguments.shell,
            inventory=arguments.inventory, only=arguments.only,
        )  # fmt: skip
