"""The command ``long-tests``: runs all the long service tests over SSH on two VMs of an image, whatever the host has.

A build on a host without KVM leaves most of them to a container.
"""

from __future__ import annotations

import argparse

from build.artifact import find
from build.cli import options as common
from build.core import files, host, log
from build.machines import acceleration
from build.spec import golden_yaml as specs
from build.verify import image_tests, verify

LONG_TESTS = "long-tests"


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``long-tests``."""
    common.add_project(parser)
    common.add_cache(parser)
    common.add_host_tools(parser)
    common.add_accelerator(parser)
    common.add_image(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the tests; log and JUnit XML are kept in the cache's ``logs/long-tests``.

    Raises VerificationFailed when a test fails.
    """
    project, cache = common.project_of(arguments), common.cache_of(arguments)
    image = find.find_image(project, cache.root, directory=arguments.artifact, unverified=arguments.unverified)
    spec = specs.load(project.spec)
    host.ensure(host.needed(("verify",)), install=arguments.install)
    host.require_memory()
    logs = cache.root / "logs" / LONG_TESTS
    files.remove_tree(logs)
    logs.mkdir(parents=True)
    with files.scratch(cache.root / "clones") as scratch:
        with log.step("Probing the accelerator"):
            accelerator = acceleration.probe(workdir=scratch, wanted=arguments.accel)
        verdict = verify.verify(
            image, spec=spec, tests=project.image_tests, out=logs, scratch=scratch, accelerator=accelerator,
            expected_seconds=0.0, select=image_tests.STORIES,
        )  # fmt: skip
    log.info(f"{verdict.passed} long service tests passed on VMs, {verdict.skipped} skipped; see {logs}")
    return 0
