"""What people do around a build: refresh locks, look around in a clone, try the root file system in a container."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from build import (
    accel,
    artifact,
    base,
    files,
    host,
    image_tests,
    layers,
    lock,
    locksmith,
    log,
    pipeline,
    seed,
    vm,
    wheel_lock,
    wheels,
)
from build import container as containers
from build import spec as specs
from build.apt import private_apt
from build.cache import RECORD
from build.errors import SpecError
from build.pipeline import Options

POLL_SECONDS = 0.5


def write_locks(options: Options, what: Sequence[str]) -> int:
    """Resolve anew what is named (``rootfs``, ``installer``, ``wheels``), write the lock files, and tell the changes."""
    project = options.project
    spec = specs.load(project.spec)
    if "wheels" in what:
        _write_wheel_locks(project.overlays, spec)
    stack = layers.load_stack(project.overlays, spec)
    smith = pipeline.locksmith_for(options, spec.release)
    with private_apt(options.cache.root / "apt", options.mirrors, spec.release) as apt:
        if "rootfs" in what:
            packages = base.requested_packages(spec, stack)
            fresh = smith.resolve_rootfs(apt, base.request_digest(spec, stack), packages)
            _replace(project.rootfs_lock, fresh, locksmith.ROOTFS_TITLE)
        if "installer" in what:
            _replace(project.installer_lock, smith.resolve_installer(apt, lock.parse(project.installer_lock)),
                     locksmith.INSTALLER_TITLE)  # fmt: skip
    return 0


def _replace(path: Path, fresh: lock.Lock, title: str) -> None:
    old = lock.parse(path).entries if path.exists() else ()
    changes = lock.compare(old, fresh.entries)
    files.write_atomic(path, fresh.render(title))
    log.info(f"{path.name}: {len(fresh.entries)} files, {len(changes)} changes, archive as of {fresh.date}")
    for line in changes:
        log.info(f"  {line}")


def _write_wheel_locks(overlays: Path, spec: specs.Spec) -> None:
    for name in spec.layers:
        source = overlays / name / "requirements.in"
        if source.is_file():
            with log.step(f"Resolving {name}/requirements.in"), tempfile.TemporaryDirectory() as scratch:
                found = wheels.resolve(source, scratch=Path(scratch))
            files.write_atomic(source.with_suffix(".lock"), wheel_lock.render(found))
            log.info(", ".join(f"{wheel.name} {wheel.version}" for wheel in found))


def boot(
    options: Options, *, directory: Path | None, unverified: bool, uefi: bool, ports: Mapping[str, int]
) -> int:
    """Start a clone of an image, say how to reach it, and keep it until Ctrl-C; then it is gone."""
    image = find_image(options, directory=directory, unverified=unverified)
    spec = specs.load(options.project.spec)
    host.ensure(host.needed(), install=options.install)
    with ExitStack() as stack:
        scratch = stack.enter_context(files.scratch(options.cache.root / "clones"))
        with log.step("Probing the accelerator"):
            accelerator = accel.probe(workdir=scratch, wanted=options.accelerator)
        identity = seed.make_identity(scratch / "identity", spec.admin.user)
        wish = vm.Wish("look", vm.Firmware.UEFI if uefi else vm.Firmware.BIOS)
        made = stack.enter_context(
            vm.clone(image, wish, directory=scratch / "look", accelerator=accelerator, identity=identity, ports=dict(ports))
        )
        progress = log.Progress("booting")
        with log.step(f"Booting a clone of {image}"):
            vm.wait_ready(made, identity, tell=progress.update)
            progress.finish()
        print(vm.describe(made, spec.application.server_name), flush=True)
        log.info("Ctrl-C ends the clone and throws it away.")
        try:
            while made.process.wait(POLL_SECONDS) is None:
                time.sleep(POLL_SECONDS)
            log.info("The clone powered off.")
        except KeyboardInterrupt:
            log.info("The clone is thrown away.")
    return 0


def find_image(options: Options, *, directory: Path | None, unverified: bool) -> Path:
    """Return the sealed disk of an artifact (the newest one's without a directory), or the cache's newest disk."""
    if unverified:
        return newest_result(options.cache.root, "disk") / artifact.IMAGE
    return (artifact.load(directory) if directory else artifact.newest(options.project.artifacts)).image


def newest_result(cache: Path, stage: str) -> Path:
    """Return the directory of the newest result of a stage, verified or not; raise SpecError when there is none."""
    found = sorted((cache / "stages" / stage).glob(f"*/{RECORD}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise SpecError(f"the cache holds no {stage}", hint="build one: nox -s build")
    return found[-1].parent


def container(
    options: Options, *, squashfs: Path | None, stories: Path | None, inventory: Path | None, shell: bool
) -> int:
    """Boot a root file system (the spec's, if none is named) under systemd-nspawn, and test it or open a shell.

    With ``stories`` only those are played, and their log and JUnit go there; with ``inventory`` nothing is tested, and
    inventory and plot of the boot go there.
    """
    host.ensure(host.needed(container=True), install=options.install)
    spec = specs.load(options.project.spec)
    if squashfs is None:
        squashfs, spec = pipeline.build_rootfs(options)
    return containers.run_container(
        squashfs, spec=spec, tests=options.project.image_tests, workdir=stories or options.cache.root / "container",
        select=image_tests.STORIES if stories else image_tests.NO_VM, shell=shell,
        inventory=inventory,
    )  # fmt: skip
