"""The command ``boot``: starts a disposable test VM of an image, and keeps it until Ctrl-C."""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack

from build.artifact import find
from build.cli import options as common
from build.core import files, host, log
from build.machines import acceleration, nocloud, vm
from build.spec import golden_yaml as specs
from build.spec import layer_tests

POLL_SECONDS = 0.5


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``boot``."""
    common.add_project(parser)
    common.add_cache(parser)
    common.add_host_tools(parser)
    common.add_accelerator(parser)
    common.add_image(parser)
    parser.add_argument("--uefi", action="store_true", help="boot by UEFI with Secure Boot instead of BIOS")
    parser.add_argument("--ssh-port", type=int, default=0, metavar="N", help="host port that is forwarded to SSH")
    parser.add_argument("--http-port", type=int, default=0, metavar="N", help="host port that is forwarded to HTTP")
    parser.add_argument("--https-port", type=int, default=0, metavar="N", help="host port that is forwarded to HTTPS")


def run(arguments: argparse.Namespace) -> int:
    """Start a VM of an image, print how to reach it, and keep it until Ctrl-C; then it is removed."""
    project, cache = common.project_of(arguments), common.cache_of(arguments)
    image = find.find_image(project, cache.root, directory=arguments.artifact, unverified=arguments.unverified)
    spec = specs.load(project.spec)
    host.ensure(host.needed(("verify",)), install=arguments.install)
    ports = {"ssh": arguments.ssh_port, "http": arguments.http_port, "https": arguments.https_port}
    with ExitStack() as stack:
        scratch = stack.enter_context(files.scratch(cache.root / "clones"))
        with log.step("Probing the accelerator"):
            accelerator = acceleration.probe(workdir=scratch, wanted=arguments.accel)
        identity = nocloud.make_identity(scratch / "identity", spec.admin.user)
        config = vm.CloneConfig("look", vm.Firmware.UEFI if arguments.uefi else vm.Firmware.BIOS)
        clone = stack.enter_context(
            vm.clone(image, config, directory=scratch / "look", accelerator=accelerator, identity=identity, ports=ports)
        )
        progress = log.Progress("booting")
        with log.step(f"Booting a VM of {image}"):
            vm.wait_ready(clone, identity, tell=progress.update)
            progress.finish()
        has_page = "application" in layer_tests.words(project.overlays, spec.layers)
        print(vm.describe(clone, spec.application.server_name if has_page else ""), flush=True)
        log.info("Ctrl-C ends the VM and removes it.")
        try:
            while clone.process.wait(POLL_SECONDS) is None:
                time.sleep(POLL_SECONDS)
            log.info("The VM powered off.")
        except KeyboardInterrupt:
            log.info("The VM is removed.")
    return 0
