"""Takes foreign Django projects through their lives on the image, each in a separate container.

    nox -s projects                          those that need no golden-app.yaml
    nox -s projects -- startproject wagtail  only these

Each project is made when the test runs, by its own tool (`django-admin startproject`, `wagtail start`) out of the wheels
that its requirements.lock names; of their code none is in this repository. Then: bundle, deploy, log in to the
administration, upload a picture and get it through nginx, deploy a second version under load, a migration that fails, roll
back, back up, restore. Needs root.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from build.cli import options as common
from build.core import files, log
from build.core.errors import EXIT_INTERRUPTED
from build.machines import nspawn
from build.packages import wheel_lock, wheels
from build.pipeline import build
from build.spec import golden_yaml as specs
from build.spec.golden_yaml import Spec
from build.verify import container, image_tests
from tests import sessions
from tests.projects.making import PROJECTS

TESTS = Path(__file__).parent
# Those that need no golden-app.yaml.
DEFAULT = ("startproject", "wagtail", "compiled")
TEST_SECONDS = 1200


def main() -> int:
    """Run the lives that the command line asks for; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="nox -s projects --", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common.add_log(parser)
    common.add_downloads(parser)
    common.add_locked(parser)
    known = f"of {', '.join(PROJECTS)} (default: {', '.join(DEFAULT)})"
    parser.add_argument("names", nargs="*", metavar="PROJECT", help=known)
    parser.add_argument("--squashfs", type=Path, metavar="FILE", help="root file system (default: the one of golden.yaml)")
    parser.add_argument("--lock", action="store_true", help="write the requirements.lock of the projects again, and end")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.names) - set(PROJECTS)):
        parser.error(f"no such project: {', '.join(unknown)}; there are {', '.join(PROJECTS)}")
    log.configure(json_lines=arguments.log_json, verbose=arguments.verbose)
    return sessions.exit_code(lambda: lock_all(arguments.names or PROJECTS) if arguments.lock else live_all(arguments))


def lock_all(names: Iterable[str]) -> int:
    """Resolve each project's requirements.in for the clone's Python, and write its lock."""
    for name in names:
        with log.step(f"Resolving the packages of {name}"), tempfile.TemporaryDirectory() as scratch:
            found = wheels.resolve(TESTS / name / "requirements.in", scratch=Path(scratch))
            files.write_atomic(TESTS / name / "requirements.lock", wheel_lock.render(found))
    return 0


def live_all(arguments: argparse.Namespace) -> int:
    """Boot a container for each project and run its tests there. Raises GoldsmithError for the first that fails."""
    chosen = common.offline_of(arguments) if arguments.squashfs else common.downloads_of(arguments)
    sessions.need_container(install=chosen.install)
    squashfs, spec = arguments.squashfs, specs.load(chosen.project.spec)
    if squashfs is None:
        squashfs, spec = build.build_rootfs(chosen)
    for name in arguments.names or DEFAULT:
        live(name, squashfs, spec, chosen.cache.root)
    return 0


def live(name: str, squashfs: Path, spec: Spec, cache: Path) -> None:
    """Run the tests of one project in a new container; log and JUnit stay in the cache. Raises VerificationFailed."""
    begun, workdir = time.monotonic(), cache / "projects" / name
    with log.step(f"The project {name}"), files.scratch(workdir) as scratch:
        with nspawn.booted(squashfs, spec=spec, scratch=scratch) as leader:
            context = container.write_context(scratch, leader, spec)
            facts = json.loads(context.read_text())
            files.write_json(context, {**facts, "project": name, "root": str(scratch / "root"), "cache": str(cache)})
            with log.step("Testing"):
                status = image_tests.run_tests(TESTS, context, out=workdir, timeout=TEST_SECONDS)
        verdict = image_tests.judge(workdir / image_tests.JUNIT, status=status)
    took = time.monotonic() - begun
    log.info(f"{name}: {verdict.passed} tests passed in {took:.0f} s; see {workdir / image_tests.OUTPUT}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_INTERRUPTED))
    sys.exit(main())
