"""The line itself: spec -> rootfs -> media -> disk -> verify -> artifact, each stage from the cache or made.

Gathers the inputs, prints the plan with its reasons, and runs what has to run. No stage logic lives here.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from build import (
    accel,
    artifact,
    base,
    checkout,
    disk,
    files,
    host,
    inputs,
    layers,
    locksmith,
    log,
    media,
    packer,
    rootfs,
    run,
    stories,
    verify,
    wheel_lock,
    wheels,
)  # fmt: skip
from build import lock as locks
from build import spec as specs
from build.apt import Mirrors, Store
from build.artifact import Artifact
from build.assemble import assemble
from build.cache import Cache, StageKey, StageResult
from build.errors import SpecError, StepFailed
from build.project import Project

ISO = "installer.iso"
# The stages that stories can run beside: what they need is there.
AFTER_ROOTFS = ("media", "disk", "verify")


@dataclass(frozen=True)
class Options:
    """What the user chose for a build."""

    project: Project
    cache: Cache
    mirrors: Mirrors
    locked: bool = False
    install: bool = True
    accelerator: accel.Kind | None = None
    packer: str = ""
    # Beyond those of golden.yaml: to try an optional layer.
    layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Gathered:
    """The inputs of a build and the keys of its stages; ``settled`` says whether every locked file is here."""

    inputs: inputs.Inputs
    keys: Mapping[str, StageKey]
    changes: tuple[str, ...]


@dataclass(frozen=True)
class PlanLine:
    """What will happen to one stage, and why."""

    stage: str
    action: str
    reason: str


def locksmith_for(options: Options, release: str) -> locksmith.Locksmith:
    """Return the locksmith that works on this build's mirrors and cache."""
    return locksmith.Locksmith(options.mirrors, Store(options.cache.root / "files"), options.cache.root, release)


def gather(options: Options, *, settle: bool) -> Gathered:
    """Read spec, layers and locks; with ``settle``, make sure that every locked file is here or a new set is.

    Without ``settle`` nothing is fetched: the plan takes the locks as they are.
    """
    project = options.project
    spec = specs.load(project.spec).with_layers(options.layers)
    stack = layers.load_stack(project.overlays, spec)
    smith = locksmith_for(options, spec.release)
    request = base.request_digest(spec, stack)
    if settle:
        packages = base.requested_packages(spec, stack)
        rootfs_set = smith.settle_rootfs(project.rootfs_lock, request, packages, locked=options.locked)
        installer_set = smith.settle_installer(project.installer_lock, locked=options.locked)
    else:
        rootfs_set = _as_they_are(smith, project.rootfs_lock, request, locked=options.locked)
        question = locks.parse(project.installer_lock).request
        installer_set = _as_they_are(smith, project.installer_lock, question, locked=options.locked)
    for venv in stack.venvs:
        # A lock that no bill of materials can be written from is told now, not after an hour.
        wheel_lock.parse(venv.requirements)
    gathered = inputs.Inputs(
        project, spec, stack, options.mirrors, rootfs_set.lock, installer_set.lock, checkout.look(project.root)
    )
    return Gathered(gathered, inputs.stage_keys(gathered), rootfs_set.changes + installer_set.changes)


def _as_they_are(smith: locksmith.Locksmith, path: Path, request: str, *, locked: bool) -> locksmith.Settled:
    return smith.choose(path, request, locked=locked) or locksmith.Settled(locks.parse(path))


def plan(options: Options, gathered: Gathered) -> list[PlanLine]:
    """Return what a build would do to each stage; a stage that nothing asks for is skipped."""
    lines: dict[str, PlanLine] = {}

    def need(stage: str) -> None:
        if stage in lines:
            return
        here, where = _presence(options, gathered, stage)
        lines[stage] = PlanLine(stage, "REUSE" if here else "RUN", where)
        for needed in () if here else inputs.NEEDS[stage]:
            need(needed)

    need("artifact")
    return [lines.get(stage) or PlanLine(stage, "SKIP", "what follows is here") for stage in inputs.STAGES]


def _presence(options: Options, gathered: Gathered, stage: str) -> tuple[bool, str]:
    """Say whether a stage's result is here, and where it is or why it has to be made."""
    key = gathered.keys[stage]
    if stage == "artifact":
        found = artifact.find(options.project.artifacts, gathered.keys["artifact"].key)
        return (True, f"artifacts/{found.path.name}") if found else (False, "not in artifacts/")
    here = options.cache.lookup(key) is not None
    return here, "in the cache" if here else options.cache.why(key)


def tell_plan(lines: list[PlanLine]) -> None:
    """Print the plan, one stage a line."""
    for line in lines:
        log.info(f"{line.action:<5}  {line.stage:<8}  {line.reason}")


def build(options: Options) -> Artifact:
    """Build and verify the image, or find that it is built already; return the artifact."""
    gathered = gather(options, settle=False)
    lines = plan(options, gathered)
    tell_plan(lines)
    found = artifact.find(options.project.artifacts, gathered.keys["artifact"].key)
    if found:
        return found
    host.ensure(host.needed(), install=options.install, extra_packages=packer_package(options))
    if any(line.action == "RUN" and line.stage in ("base", "media") for line in lines):
        fetched = _settle(options)
        if fetched.keys != gathered.keys:
            log.info("The locked sets changed; the plan is now:")
            lines = plan(options, fetched)
            tell_plan(lines)
            found = artifact.find(options.project.artifacts, fetched.keys["artifact"].key)
            if found:
                return found
        gathered = fetched
    return _Line(options, gathered).run([line.stage for line in lines if line.action == "RUN"])


def build_rootfs(options: Options) -> tuple[Path, specs.Spec]:
    """Build only the root file system, or find it in the cache; return the squashfs and the spec."""
    path, spec = _build_to(options, ["base", "rootfs"])
    return path / rootfs.SQUASHFS, spec


def build_media(options: Options) -> tuple[Path, specs.Spec]:
    """Build only the installation medium, or find it in the cache; return the ISO and the spec."""
    host.ensure(host.needed(), install=options.install)
    path, spec = _build_to(options, ["base", "rootfs", "media"])
    return path / ISO, spec


def _build_to(options: Options, stages: list[str]) -> tuple[Path, specs.Spec]:
    """Make the stages unless the last one is in the cache; return its directory and the spec."""
    gathered = gather(options, settle=False)
    if options.cache.lookup(gathered.keys[stages[-1]]) is None:
        gathered = _settle(options)
        _Line(options, gathered).make(stages)
    return options.cache.stage_path(gathered.keys[stages[-1]]), gathered.inputs.spec


def gather_locked(options: Options, rootfs_lock: locks.Lock, installer_lock: locks.Lock) -> Gathered:
    """Return the inputs with these locks in place of the committed ones; nothing is fetched."""
    spec = specs.load(options.project.spec).with_layers(options.layers)
    stack = layers.load_stack(options.project.overlays, spec)
    gathered = inputs.Inputs(options.project, spec, stack, options.mirrors, rootfs_lock, installer_lock)
    return Gathered(gathered, inputs.stage_keys(gathered), ())


def make(options: Options, gathered: Gathered, stages: list[str]) -> dict[str, StageResult]:
    """Make the stages from exactly these inputs; raise SpecError when the archive has lost a locked file."""
    host.ensure(host.needed(), install=options.install, extra_packages=packer_package(options))
    host.require_space(options.cache.root)
    wanted = gathered.inputs.rootfs_lock.entries + gathered.inputs.installer_lock.entries
    gone = Store(options.cache.root / "files").fetch(wanted, options.mirrors)
    if gone:
        raise SpecError(
            f"the archive no longer has {len(gone)} of the {len(wanted)} locked files",
            details="\n".join(entry.filename for entry in gone), hint="name a snapshot archive: --snapshot http://…/debian",
        )  # fmt: skip
    return _Line(options, gathered).make(stages)


def packer_package(options: Options) -> tuple[str, ...]:
    """Return Debian's package of Packer when nothing else brings Packer and this Debian has one."""
    tools, cache = options.project.packer / "tools", options.cache.root / "packer"
    if packer.find(tools=tools, cache=cache, chosen=options.packer):
        return ()
    return ("packer",) if host.has_package("packer") else ()


def _settle(options: Options) -> Gathered:
    host.require_space(options.cache.root)
    with log.step("Looking for every locked file", done="every locked file is here"):
        return gather(options, settle=True)


def plays_stories(accelerator: accel.Accelerator) -> bool:
    """Say whether a container plays the stories: where that is quicker than on a clone, and possible."""
    return accelerator.kind is accel.Kind.TCG and run.is_root()


class _Line:
    """One run along the line; each stage has a method that makes it in the directory it is given."""

    def __init__(self, options: Options, gathered: Gathered) -> None:
        self.options = options
        self.cache = options.cache
        self.keys = gathered.keys
        self.inputs = gathered.inputs
        self.changes = gathered.changes
        self.store = Store(options.cache.root / "files")
        self.stories: stories.Stories | None = None
        self.begun = time.time()

    def run(self, stages: list[str]) -> Artifact:
        """Make the stages that have to be made, in order, and commit the artifact."""
        results = self.make(stages)
        with log.step("Stage artifact"):
            return assemble(self.inputs, self.keys, self.cache, made=results, changes=self.changes, begun=self.begun)

    def make(self, stages: list[str]) -> dict[str, StageResult]:
        """Make the named stages, in order, each from the cache when it is there."""
        makers: dict[str, Callable[[Path], Mapping[str, Any]]] = {
            "base": self.base, "rootfs": self.rootfs, "media": self.media, "disk": self.disk, "verify": self.verify,
        }  # fmt: skip
        results: dict[str, StageResult] = {}
        with ExitStack() as beside:
            for stage in stages:
                if stage not in makers:
                    continue
                if self.stories:
                    self.stories.check()
                elif "verify" in stages and stage in AFTER_ROOTFS and plays_stories(self.accelerator):
                    self.stories = beside.enter_context(self._playing())
                with log.step(f"Stage {stage}"):
                    results[stage] = self.cache.obtain(self.keys[stage], makers[stage])
        return results

    def _playing(self) -> AbstractContextManager[stories.Stories]:
        out = self._logs("verify", "stories")
        squashfs = self.result("rootfs") / rootfs.SQUASHFS
        return stories.playing(squashfs, project=self.options.project.root, cache=self.options.cache.root, out=out)

    def result(self, stage: str) -> Path:
        """Return the directory of a finished stage."""
        found = self.cache.lookup(self.keys[stage])
        if found is None:
            raise StepFailed(f"stage {stage} {self.keys[stage].key} vanished from the cache", hint="run the build again")
        return found.path

    @cached_property
    def accelerator(self) -> accel.Accelerator:
        """The accelerator, probed once a run."""
        with log.step("Probing the accelerator"), files.scratch(self.cache.root / "probe") as scratch:
            found = accel.probe(workdir=scratch, wanted=self.options.accelerator)
            log.info(f"{found.kind}: {found.reason}")
            return found

    def base(self, out: Path) -> Mapping[str, Any]:
        return base.make_base(
            out, spec=self.inputs.spec, stack=self.inputs.stack, lock=self.inputs.rootfs_lock, store=self.store,
            log_file=self._logs("base") / "base.log",
        )  # fmt: skip

    def rootfs(self, out: Path) -> Mapping[str, Any]:
        houses = {venv.path: wheels.fetch(venv.requirements, cache=self.cache.root) for venv in self.inputs.stack.venvs}
        return rootfs.make_rootfs(
            out, base=self.result("base"), spec=self.inputs.spec, stack=self.inputs.stack, lock=self.inputs.rootfs_lock,
            mirrors=self.inputs.mirrors, wheelhouses=houses, log_file=self._logs("rootfs") / "rootfs.log",
        )  # fmt: skip

    def media(self, out: Path) -> Mapping[str, Any]:
        iso = out / ISO
        inside = media.make_media(
            self.inputs.spec, squashfs=self.result("rootfs") / rootfs.SQUASHFS,
            installer={entry.filename: self.store.path(entry) for entry in self.inputs.installer_lock.entries},
            out=iso, epoch=self.inputs.rootfs_lock.epoch, log=self._logs("media") / "media.log",
        )  # fmt: skip
        return {**inside, "iso_bytes": iso.stat().st_size, "iso_sha256": files.sha256_file(iso)}

    def disk(self, out: Path) -> Mapping[str, Any]:
        found = packer.locate(
            tools=self.options.project.packer / "tools", cache=self.cache.root / "packer", chosen=self.options.packer
        )
        made = disk.make_disk(
            iso=self.result("media") / ISO, spec=self.inputs.spec, packer=found, templates=self.options.project.packer,
            accelerator=self.accelerator, out=out, logs=(logs := self._logs("disk")),
            expected=self.cache.expected_seconds("disk"),
        )  # fmt: skip
        shutil.copytree(logs, out, dirs_exist_ok=True)
        return {**made, "packer": found.name, "accelerator": dataclasses.asdict(self.accelerator)}

    def verify(self, out: Path) -> Mapping[str, Any]:
        host.require_memory()
        logs = self._logs("verify")
        with files.scratch(self.cache.root / "clones") as scratch:
            verdict = verify.verify(
                self.result("disk") / artifact.IMAGE, spec=self.inputs.spec, tests=self.options.project.image_tests,
                out=logs, scratch=scratch, accelerator=self.accelerator, expected_seconds=self._expected_boot(),
                stories=self.stories,
            )  # fmt: skip
        if self.stories:
            shutil.copytree(self.stories.out, out / "stories")
        shutil.copytree(logs, out, dirs_exist_ok=True)
        counts = {"passed": verdict.passed, "failed": verdict.failed, "skipped": verdict.skipped}
        return {**verdict.facts, **counts, "accelerator": dataclasses.asdict(self.accelerator)}

    def _expected_boot(self) -> float:
        """Return how many seconds the slower clone took to be ready the last time, or 0."""
        boots = self.cache.last_facts("verify").get("boot", {})
        return max((float(times["ready"]) for times in boots.values()), default=0.0)

    def _logs(self, stage: str, name: str = "") -> Path:
        """Return an empty directory for a stage's logs that outlives its failure; errors name files in it."""
        path = self.cache.root / "logs" / f"{name or stage}-{self.keys[stage].key}"
        files.remove_tree(path)
        path.mkdir(parents=True)
        return path
