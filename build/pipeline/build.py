"""The pipeline: spec -> rootfs -> media -> disk -> verify -> artifact, each stage from the cache or built.

Gathers the inputs, prints the plan with its reasons, and runs the required stages. It contains no stage logic.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from build.artifact import artifact
from build.artifact.artifact import Artifact
from build.artifact.assemble import assemble
from build.core import files, git, host, log, programs
from build.core.cache import Cache, StageKey, StageResult
from build.core.errors import SpecError, StepFailed
from build.core.project import Project
from build.core.records import Record
from build.disk import installation, packer
from build.machines import acceleration, disk_image
from build.media import iso_image
from build.packages import lock as locks
from build.packages import resolve, wheel_lock, wheels
from build.packages.apt import Mirrors, Store
from build.packages.updates import PendingUpdates
from build.pipeline import pending
from build.pipeline.host_tools import Toolset, plays_stories
from build.report import report, vulnerability_survey
from build.report.context import ReportContext
from build.rootfs import base, rootfs
from build.spec import golden_yaml as specs
from build.spec import inputs, layers
from build.verify import long_tests, verify  # fmt: skip

ISO = "installer.iso"
# The stages that long service tests can run in parallel with: their inputs exist.
AFTER_ROOTFS = ("media", "disk", "verify")


@dataclass(frozen=True)
class Options:
    """The user's options for a build."""

    project: Project
    cache: Cache
    mirrors: Mirrors
    locked: bool = False
    # Resolve new package sets first, and build from them.
    fresh: bool = False
    install: bool = True
    accelerator: acceleration.Kind | None = None
    packer: str = ""
    # In addition to those of golden.yaml: to try an optional layer.
    layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Gathered:
    """The inputs of a build and the keys of its stages; ``changes`` lists the changes of re-resolved locks."""

    inputs: inputs.Inputs
    keys: Mapping[str, StageKey]
    changes: tuple[str, ...]


@dataclass(frozen=True)
class PlanLine:
    """The planned action for one stage, and its reason."""

    stage: str
    action: str
    reason: str


def lock_resolver_for(options: Options, release: str) -> resolve.LockResolver:
    """Return the resolver of locks for this build's mirrors and cache."""
    return resolve.LockResolver(options.mirrors, Store(options.cache.root / "files"), options.cache.root, release)


def gather(options: Options, *, settle: bool) -> Gathered:
    """Read spec, layers and locks; with ``settle``, fetch every locked file, or resolve a new set; else fetch nothing."""
    project = options.project
    spec = spec_of(options)
    stack = layers.load_stack(project.overlays, spec)
    resolver = lock_resolver_for(options, spec.release)
    request = layers.request_digest(spec, stack)
    if settle:
        packages = layers.requested_packages(spec, stack)
        rootfs_set = resolver.settle_rootfs(project.rootfs_lock, request, packages, locked=options.locked)
        installer_set = resolver.settle_installer(project.installer_lock, locked=options.locked)
    else:
        rootfs_set = _as_they_are(resolver, project.rootfs_lock, request, locked=options.locked)
        question = locks.parse(project.installer_lock).request
        installer_set = _as_they_are(resolver, project.installer_lock, question, locked=options.locked)
    for venv in stack.venvs:
        # A lock from which no SBOM can be written is reported now, not after an hour.
        wheel_lock.parse(venv.requirements)
    checkout = git.checkout_of(project.root)
    gathered = inputs.Inputs(project, spec, stack, options.mirrors, rootfs_set.lock, installer_set.lock, checkout)
    return Gathered(gathered, inputs.stage_keys(gathered), rootfs_set.changes + installer_set.changes)


def _as_they_are(resolver: resolve.LockResolver, path: Path, request: str, *, locked: bool) -> resolve.Settled:
    return resolver.choose(path, request, locked=locked) or resolve.Settled(locks.parse(path))


def plan(options: Options, gathered: Gathered, until: str = "artifact") -> list[PlanLine]:
    """Return the plan of a build up to the stage ``until``; a stage that is not needed is skipped."""
    lines: dict[str, PlanLine] = {}

    def need(stage: str) -> None:
        if stage in lines:
            return
        here, where = _presence(options, gathered, stage)
        lines[stage] = PlanLine(stage, "REUSE" if here else "RUN", where)
        for needed in () if here else inputs.NEEDS[stage]:
            need(needed)

    need(until)
    later = inputs.STAGES[inputs.STAGES.index(until) + 1 :]
    why = {
        stage: f"the build ends with {until}" if stage in later else "not needed: a later stage is cached"
        for stage in inputs.STAGES
    }
    return [lines.get(stage) or PlanLine(stage, "SKIP", why[stage]) for stage in inputs.STAGES]


def _presence(options: Options, gathered: Gathered, stage: str) -> tuple[bool, str]:
    """Return whether a stage's result exists, and its place or the reason why the stage has to run."""
    key = gathered.keys[stage]
    if stage == "artifact":
        existing = artifact.find(options.project.artifacts, gathered.keys["artifact"].key)
        return (True, f"artifacts/{existing.path.name}") if existing else (False, "not in artifacts/")
    here = options.cache.lookup(key) is not None
    return here, "in the cache" if here else options.cache.why(key)


def tell_plan(lines: list[PlanLine]) -> None:
    """Print the plan, one stage a line."""
    for line in lines:
        log.info(f"{line.action:<5}  {line.stage:<8}  {line.reason}")


def known_updates(options: Options, build_inputs: inputs.Inputs) -> PlanLine:
    """Return the pending updates of the last check, as a line of the plan; nothing is fetched."""
    return _updates_line(pending.known(build_inputs, options.cache.root))


def _updates_line(updates: PendingUpdates) -> PlanLine:
    return PlanLine("updates", "NOTE", report.pending(updates))


def _freshen(options: Options) -> None:
    """Resolve the newest package sets; :func:`gather` uses them afterwards."""
    project, spec = options.project, spec_of(options)
    stack = layers.load_stack(project.overlays, spec)
    resolver = lock_resolver_for(options, spec.release)
    host.ensure(host.needed((host.LOCKS,)), install=options.install)
    host.require_space(options.cache.root)
    with programs.recorded(host.LOCKS, options.cache.root / "logs"), log.step("Resolving the newest packages"):
        packages = layers.requested_packages(spec, stack)
        resolver.freshen_rootfs(project.rootfs_lock, layers.request_digest(spec, stack), packages)
        resolver.freshen_installer(project.installer_lock)


def build(options: Options) -> Artifact:
    """Build and verify the image, or return the existing artifact."""
    line, stages = _prepared(options, "artifact")
    if stages:
        updates = pending.look(line.inputs, options.cache.root)
        tell_plan([_updates_line(updates)])
        return _looked_up(options, line.inputs, line.run(stages, updates))
    tell_plan([known_updates(options, line.inputs)])
    existing = artifact.find(options.project.artifacts, line.keys["artifact"].key)
    assert existing is not None, "a plan without stages to run has the artifact"
    return existing


def _looked_up(options: Options, gathered: inputs.Inputs, image: Artifact) -> Artifact:
    """Log which vulnerabilities of a new artifact are known, and keep them beside it; return the artifact."""
    result = vulnerability_survey.at_build(
        image, gathered.spec.releases, project=options.project, cache=options.cache.root, now=datetime.now(UTC)
    )  # fmt: skip
    log.info(f"known vulnerabilities: {result}")
    return image


def build_until(options: Options, stage: str) -> Path:
    """Build up to a stage before the artifact, or use the cached result; return the directory of the result."""
    line, stages = _prepared(options, stage)
    line.make(stages)
    return line.result(stage)


def _prepared(options: Options, until: str) -> tuple[_Line, list[str]]:
    """Print the plan, install host tools, fetch locked files; return the pipeline and the stages to run."""
    if options.fresh:
        _freshen(options)
    gathered = gather(options, settle=False)
    stages = _planned(options, gathered, until)
    accelerator = toolset(options, stages).bring(install=options.install) if stages else None
    if {"base", "media"} & {*stages}:
        settled = _settle(options)
        if settled.keys != gathered.keys:
            log.info("The locked sets changed; the plan is now:")
            stages = _planned(options, settled, until)
            accelerator = toolset(options, stages).bring(install=options.install, probed=accelerator)
        gathered = settled
    return _Line(options, gathered, accelerator), stages


def _planned(options: Options, gathered: Gathered, until: str) -> list[str]:
    """Print the plan; return the names of the stages that have to run."""
    lines = plan(options, gathered, until)
    tell_plan(lines)
    return [line.stage for line in lines if line.action == "RUN"]


def toolset(options: Options, stages: Sequence[str]) -> Toolset:
    """Return the host tools of the stages."""
    return Toolset(
        tuple(stages), options.cache.root, options.project.packer / "tools", chosen_packer=options.packer,
        wanted=options.accelerator,
    )  # fmt: skip


def build_rootfs(options: Options) -> tuple[Path, specs.Spec]:
    """Build only the root file system, or use the cached one; return the squashfs and the spec."""
    return build_until(options, "rootfs") / rootfs.SQUASHFS, spec_of(options)


def build_media(options: Options) -> tuple[Path, specs.Spec]:
    """Build only the installer ISO, or use the cached one; return the ISO and the spec."""
    return build_until(options, "media") / ISO, spec_of(options)


def spec_of(options: Options) -> specs.Spec:
    """Return the spec of golden.yaml with the layers that the user chose."""
    return specs.load(options.project.spec).with_layers(options.layers)


def gather_locked(options: Options, rootfs_lock: locks.Lock, installer_lock: locks.Lock) -> Gathered:
    """Return the inputs with these locks instead of the committed ones; nothing is fetched."""
    spec = spec_of(options)
    stack = layers.load_stack(options.project.overlays, spec)
    gathered = inputs.Inputs(options.project, spec, stack, options.mirrors, rootfs_lock, installer_lock)
    return Gathered(gathered, inputs.stage_keys(gathered), ())


def make(options: Options, gathered: Gathered, stages: list[str]) -> dict[str, StageResult]:
    """Run the stages with exactly these inputs; raise SpecError if the archive no longer has a locked file."""
    accelerator = toolset(options, stages).bring(install=options.install)
    host.require_space(options.cache.root)
    locked_files = gathered.inputs.rootfs_lock.entries + gathered.inputs.installer_lock.entries
    missing = Store(options.cache.root / "files").fetch(locked_files, options.mirrors)
    if missing:
        raise SpecError(
            f"the archive no longer has {len(missing)} of the {len(locked_files)} locked files",
            details="\n".join(entry.filename for entry in missing), hint="use a snapshot archive: --snapshot http://…/debian",
        )  # fmt: skip
    return _Line(options, gathered, accelerator).make(stages)


def _settle(options: Options) -> Gathered:
    host.require_space(options.cache.root)
    logs = options.cache.root / "logs"
    with programs.recorded(host.LOCKS, logs), log.step("Checking the locked files", done="all locked files are available"):
        return gather(options, settle=True)


class _Line:
    """One run of the pipeline; each stage has a method that builds it in a given directory."""

    def __init__(self, options: Options, gathered: Gathered, accelerator: acceleration.Accelerator | None) -> None:
        self.options = options
        self._accelerator = accelerator
        self.cache = options.cache
        self.keys = gathered.keys
        self.inputs = gathered.inputs
        self.changes = gathered.changes
        self.store = Store(options.cache.root / "files")
        self.stories: long_tests.Stories | None = None
        self.begun = time.time()

    def run(self, stages: list[str], updates: PendingUpdates) -> Artifact:
        """Run the required stages, in order, and commit the artifact; ``updates``: the pending updates."""
        results = self.make(stages)
        with log.step("Stage artifact"), self._recorded("artifact"):
            context = ReportContext(self.inputs.project, self.cache.root)
            return assemble(
                self.inputs, self.keys, self.cache, made=results, changes=self.changes, updates=updates, begun=self.begun,
                render_report=lambda side: context.report(side, self.inputs.rootfs_lock),
            )  # fmt: skip

    def make(self, stages: list[str]) -> dict[str, StageResult]:
        """Run the given stages, in order; a cached stage is reused."""
        makers: dict[str, Callable[[Path], Record]] = {
            "base": self.base, "rootfs": self.rootfs, "media": self.media, "disk": self.disk, "verify": self.verify,
        }  # fmt: skip
        results: dict[str, StageResult] = {}
        with ExitStack() as beside:
            for stage in stages:
                if stage not in makers:
                    continue
                self._check_stories()
                if not self.stories and "verify" in stages and stage in AFTER_ROOTFS and plays_stories(self.accelerator):
                    self.stories = beside.enter_context(self._playing())
                with log.step(f"Stage {stage}"), self._recorded(stage):
                    results[stage] = self.cache.obtain(self.keys[stage], makers[stage])
        return results

    def _recorded(self, stage: str) -> AbstractContextManager[None]:
        chosen = (host.Tool(Path(self.options.packer).name, "", "", stages=("disk",)),) if self.options.packer else ()
        return programs.recorded(stage, self.cache.root / "logs", packer.PACKAGE, packer.COMPILER, *chosen)

    def _playing(self) -> AbstractContextManager[long_tests.Stories]:
        out = self._logs("verify", "stories")
        squashfs = self.result("rootfs") / rootfs.SQUASHFS
        return long_tests.playing(
            squashfs,
            project=self.options.project.root,
            spec=self.options.project.spec,
            cache=self.options.cache.root,
            out=out,
        )

    def result(self, stage: str) -> Path:
        """Return the directory of a finished stage."""
        stage_result = self.cache.lookup(self.keys[stage])
        if stage_result is None:
            raise StepFailed(f"stage {stage} {self.keys[stage].key} vanished from the cache", hint="run the build again")
        return stage_result.path

    @property
    def accelerator(self) -> acceleration.Accelerator:
        assert self._accelerator is not None, "a stage with a guest was prepared without an accelerator"
        return self._accelerator

    def base(self, out: Path) -> base.BaseFacts:
        return base.make_base(
            out, spec=self.inputs.spec, stack=self.inputs.stack, lock=self.inputs.rootfs_lock, store=self.store,
            log_file=self._logs("base") / "base.log",
        )  # fmt: skip

    def rootfs(self, out: Path) -> rootfs.RootfsFacts:
        houses = {venv.path: wheels.fetch(venv.requirements, cache=self.cache.root) for venv in self.inputs.stack.venvs}
        return rootfs.make_rootfs(
            out, base=self.result("base"), spec=self.inputs.spec, stack=self.inputs.stack, lock=self.inputs.rootfs_lock,
            mirrors=self.inputs.mirrors, wheelhouses=houses, log_file=self._logs("rootfs") / "rootfs.log",
        )  # fmt: skip

    def media(self, out: Path) -> iso_image.MediaFacts:
        return iso_image.make_media(
            self.inputs.spec, squashfs=self.result("rootfs") / rootfs.SQUASHFS,
            installer={entry.filename: self.store.path(entry) for entry in self.inputs.installer_lock.entries},
            out=out / ISO, epoch=self.inputs.rootfs_lock.epoch, log=self._logs("media") / "media.log",
        )  # fmt: skip

    def disk(self, out: Path) -> installation.DiskFacts:
        packer_tool = packer.locate(
            tools=self.options.project.packer / "tools", cache=self.cache.root / "packer", chosen=self.options.packer
        )
        facts = installation.make_disk(
            iso=self.result("media") / ISO, spec=self.inputs.spec, packer=packer_tool, templates=self.options.project.packer,
            accelerator=self.accelerator, out=out, logs=(logs := self._logs("disk")),
            expected=self.cache.expected_seconds("disk"), check=self._check_stories,
        )  # fmt: skip
        shutil.copytree(logs, out, dirs_exist_ok=True)
        return facts

    def verify(self, out: Path) -> verify.VerifyFacts:
        host.require_memory()
        logs = self._logs("verify")
        with files.scratch(self.cache.root / "clones") as scratch:
            facts = verify.verify(
                self.result("disk") / disk_image.IMAGE, spec=self.inputs.spec, tests=self.options.project.image_tests,
                out=logs, scratch=scratch, accelerator=self.accelerator,
                expected_seconds=self.cache.expected_seconds("verify"), stories=self.stories,
            )  # fmt: skip
        if self.stories:
            shutil.copytree(self.stories.out, out / "stories")
        shutil.copytree(logs, out, dirs_exist_ok=True)
        return facts

    def _check_stories(self) -> None:
        """Raise an error of the long service tests, so that a stage that runs in parallel ends at once."""
        if self.stories:
            self.stories.check()

    def _logs(self, stage: str, name: str = "") -> Path:
        """Return an empty directory for a stage's logs, which is kept after a failure; errors name files in it."""
        path = self.cache.root / "logs" / f"{name or stage}-{self.keys[stage].key}"
        files.remove_tree(path)
        path.mkdir(parents=True)
        return path
