"""Builds the image without one of its layers, and without those that require it; boots the rest in a container and tests it.

    nox -s compositions                    each layer of golden.yaml in turn: hours
    nox -s compositions -- 26-bans 70-backup
    nox -s compositions -- --list          what is left without each layer

The packages of each composition are resolved, as `nox -s lock` does. A composition that fails does not stop the others.
Needs root.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from build.cli import lock
from build.cli import options as common
from build.core import files, log
from build.core.errors import EXIT_INTERRUPTED, GoldsmithError, VerificationFailed
from build.core.project import Project
from build.pipeline import build
from build.pipeline.build import Options
from build.spec import golden_yaml as specs
from build.spec import layers
from build.verify import container, image_tests
from tests import sessions


def main() -> int:
    """Test the compositions that the command line asks for; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="nox -s compositions --", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common.add_log(parser)
    common.add_downloads(parser)
    parser.add_argument("names", nargs="*", metavar="NN-NOUN", help="the layers to leave out, one at a time (default: all)")
    parser.add_argument("--list", action="store_true", help="print what is left without each layer, and build nothing")
    arguments = parser.parse_args()
    log.configure(json_lines=arguments.log_json, verbose=arguments.verbose)
    return sessions.exit_code(lambda: act(parser, arguments))


def act(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """List or test the compositions. Raises GoldsmithError."""
    chosen = common.downloads_of(arguments)
    wanted = compositions(chosen.project)
    if unknown := sorted(set(arguments.names) - set(wanted)):
        parser.error(f"no such layer in {chosen.project.spec.name}: {', '.join(unknown)}; there are {', '.join(wanted)}")
    wanted = {name: wanted[name] for name in arguments.names or wanted}
    if arguments.list:
        print("\n".join(f"without {name}: {' '.join(left) or 'nothing is left'}" for name, left in wanted.items()))
    else:
        test_all(wanted, chosen)
    return 0


def compositions(project: Project) -> dict[str, tuple[str, ...]]:
    """Return for each layer of the spec the layers that are left without it."""
    spec = specs.load(project.spec)
    stack = layers.load_stack(project.overlays, spec)
    return {name: layers.without(stack.layers, name) for name in spec.layers}


def write_spec(directory: Path, project: Project, name: str, left: Sequence[str]) -> Project:
    """Write a spec with the layers that are left, and return the checkout with it. Its locks will be beside it."""
    found = specs.load(project.spec)
    places = [str(found.outside[layer]) if layer in found.outside else layer for layer in left]
    content = {"extends": str(project.spec), "name": f"{found.name}-without-{name}", "layers": places}
    path = directory / f"{name}.yaml"
    files.write_atomic(path, yaml.safe_dump(content, sort_keys=False))
    return Project(project.root, path)


def test_all(wanted: Mapping[str, Sequence[str]], chosen: Options) -> None:
    """Test each composition; raise VerificationFailed naming those that failed when all were tested."""
    sessions.need_container(install=chosen.install)
    failed: dict[str, str] = {}
    directory = chosen.cache.root / "compositions"
    directory.mkdir(parents=True, exist_ok=True)
    for name, left in wanted.items():
        if not left:
            log.info(f"without {name}: every layer requires it")
            continue
        begun = time.monotonic()
        try:
            with log.step(f"Without {name}: {len(left)} layers"):
                test(name, replace(chosen, project=write_spec(directory, chosen.project, name, left)))
        except GoldsmithError as error:
            log.error(error.render())
            failed[name] = error.brief
        log.info(f"without {name}: {'failed' if name in failed else 'passed'} in {time.monotonic() - begun:.0f} s")
    if failed:
        raise VerificationFailed(
            f"{len(failed)} of {len(wanted)} compositions failed",
            details="\n".join(f"without {name}: {brief}" for name, brief in failed.items()),
            hint=f"their logs are in {directory}; to repeat one: nox -s compositions -- {next(iter(failed))}",
        )  # fmt: skip


def test(name: str, chosen: Options) -> None:
    """Resolve, build and test one composition; its logs stay in the cache. Raises GoldsmithError."""
    lock.write_locks(chosen, ("rootfs",))
    squashfs, spec = build.build_rootfs(chosen)
    workdir = chosen.cache.root / "compositions" / name
    container.run_container(
        squashfs, spec=spec, tests=chosen.project.image_tests, workdir=workdir, select=image_tests.NO_VM
    )  # fmt: skip


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_INTERRUPTED))
    sys.exit(main())
