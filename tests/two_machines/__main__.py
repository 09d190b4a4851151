"""Boots the application's machine and the database's in containers, joins them, and tests the site that they are.

    nox -s two-machines               the site, and all image tests of the application's machine
    nox -s two-machines -- --site     only the site

Built from profiles/app.yaml and profiles/db.yaml. Needs root.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from build.cli import options as common
from build.core import files, log
from build.core.errors import EXIT_INTERRUPTED
from build.core.project import Project
from build.machines import nspawn
from build.pipeline import build
from build.pipeline.build import Options
from build.spec.golden_yaml import Spec
from build.verify import container, image_tests
from tests import sessions
from tests.two_machines import joining

TESTS = Path(__file__).parent
PROFILES = {"app": "profiles/app.yaml", "database": "profiles/db.yaml"}
TEST_SECONDS = 1200


def main() -> int:
    """Test the site; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="nox -s two-machines --", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common.add_log(parser)
    common.add_downloads(parser)
    common.add_locked(parser)
    parser.add_argument("--site", action="store_true", help="only the tests of the site, and not the image tests")
    arguments = parser.parse_args()
    log.configure(json_lines=arguments.log_json, verbose=arguments.verbose)
    return sessions.exit_code(lambda: act(arguments))


def act(arguments: argparse.Namespace) -> int:
    """Test the site. Raises GoldsmithError."""
    chosen = replace(common.downloads_of(arguments), locked=arguments.locked)
    sessions.need_container(install=chosen.install)
    test(chosen, only_site=arguments.site)
    return 0


def test(chosen: Options, *, only_site: bool) -> None:
    """Boot, join and test the two machines; logs stay in the cache. Raises GoldsmithError."""
    images: dict[str, tuple[Path, Spec]] = {}
    for machine, profile in PROFILES.items():
        with log.step(f"The root file system of {profile}"):
            images[machine] = build.build_rootfs(
                replace(chosen, project=Project(chosen.project.root, chosen.project.root / profile))
            )
    workdir = chosen.cache.root / "two-machines"
    with ExitStack() as stack:
        scratch = stack.enter_context(files.scratch(workdir))
        leaders: dict[str, int] = {}
        for machine, (squashfs, spec) in images.items():
            place = scratch / machine
            place.mkdir()
            leaders[machine] = stack.enter_context(nspawn.booted(squashfs, spec=spec, scratch=place))
        stack.enter_context(joining.cable(leaders["app"], leaders["database"]))
        joining.make_authority(scratch / "authority")
        with log.step("Joining the machines"):
            for machine in ("database", "app"):
                joining.settle(machine, scratch / machine / "root", leaders[machine], scratch / "authority")
        spec = images["app"][1]
        context = container.write_context(scratch, leaders["app"], spec)
        if not only_site:
            run_tests(chosen.project.image_tests, context, workdir / "image", select=image_tests.NO_VM)
        facts = json.loads(context.read_text())
        files.write_json(context, {**facts, "leaders": leaders, "scratch": str(scratch), "squashfs": str(images["app"][0])})
        run_tests(TESTS, context, workdir / "site", select="")


def run_tests(tests: Path, context: Path, out: Path, *, select: str) -> None:
    """Run the tests of a directory. Raises VerificationFailed when one fails."""
    out.mkdir(exist_ok=True)
    with log.step(f"Testing: {tests.name}"):
        status = image_tests.run_tests(tests, context, out=out, timeout=TEST_SECONDS, select=select)
    verdict = image_tests.judge(out / image_tests.JUNIT, status=status)
    log.info(f"{verdict.passed} tests passed, {verdict.skipped} skipped; see {out / image_tests.OUTPUT}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_INTERRUPTED))
    sys.exit(main())
