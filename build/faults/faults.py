"""Injects faults into disposable machines under load, and reports what each fault did: F01 to F35.

The newest artifact's clones (``vm``) or its root file system (``container``) go to the tests in tests/faults. The results
become a table and JSON: each fault, its promise, the result, its numbers, and the line that an administrator finds.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from build.artifact import find
from build.core import files, host, log, run
from build.core.errors import HostError, SpecError, StepFailed, VerificationFailed
from build.core.result import Result
from build.core.units import stamp_now
from build.faults import report
from build.faults.machines import Target
from build.machines import acceleration, nocloud, nspawn
from build.packages import lock
from build.packages.apt import Store
from build.pipeline import build
from build.pipeline.build import Options
from build.spec import golden_yaml as specs
from build.verify import image_tests

CONTEXT = "context.json"
JUNIT = "junit.xml"
OUTPUT = "pytest.log"
REPORT = "faults.json"
REINSTALLED = ("nginx", "nginx-common")
# The whole list takes about twenty minutes in a container; each machine that boots is bounded by itself.
TEST_SECONDS = {Target.CONTAINER: 3600.0, Target.VM: 1800.0}
POLL_SECONDS = 1.0


def run_faults(
    options: Options, ids: Sequence[str], *, target: Target, directory: Path | None = None, unverified: bool = False,
    squashfs: Path | None = None,
) -> Result:  # fmt: skip
    """Inject the faults named by ``ids`` (all without one); return the table of the results.

    ``directory`` is an artifact instead of the newest, ``unverified`` takes the cache's newest disk;
    ``squashfs`` is a root file system for the container instead of this checkout's. The table comes
    with a VerificationFailed when a fault broke its promise, or could not be tried because the image lacks what it needs.
    """
    chosen = _check_ids(ids)
    spec = specs.load(options.project.spec)
    host.ensure(host.needed(container=target is Target.CONTAINER), install=options.install)
    logs = options.cache.root / "logs" / f"faults-{target}"
    files.remove_tree(logs)
    logs.mkdir(parents=True)
    with files.scratch(options.cache.root / "faults") as scratch:
        accelerator = None
        if target is Target.CONTAINER:
            image, subject = _tree(options, spec, scratch, squashfs), "the root file system in a container"
        else:
            image = find.find_image(options.project, options.cache.root, directory=directory, unverified=unverified)
            subject = image.parent.name
            with log.step("Probing the accelerator"):
                accelerator = acceleration.probe(workdir=scratch, wanted=options.accelerator)
        context: dict[str, Any] = {
            "target": target, "spec": spec.as_inputs(), "clones": [], "sealed": "", "image": str(image),
            "scratch": str(scratch), "accelerator": dataclasses.asdict(accelerator) if accelerator else None,
            "debs": [str(path) for path in _debs(options, image.parent)],
        }  # fmt: skip
        files.write_json(scratch / CONTEXT, context)
        scale = accelerator.timeout_scale if accelerator else 1.0
        status = _break_things(options, scratch, logs, target=target, ids=chosen, timeout=TEST_SECONDS[target] * scale)
        # Before the scratch directory is removed, which takes a while.
        results = report.read(logs / JUNIT, target=target, ids=chosen)
    written = [logs / REPORT]
    if target is Target.VM and not unverified and chosen == report.IDS:
        # The artifact itself is read-only.
        written.append(image.parent.with_name(f"{subject}.{REPORT}"))
    return _conclude(results, written, subject=subject, target=target, status=status)


def _check_ids(ids: Sequence[str]) -> tuple[str, ...]:
    """Return the faults to try, in order; raise SpecError for a name that is none."""
    wrong = [name for name in ids if name not in report.IDS]
    if wrong:
        raise SpecError(f"no such fault: {', '.join(wrong)}", hint=f"{report.IDS[0]} to {report.IDS[-1]}")
    return tuple(name for name in report.IDS if name in ids or not ids)


def _debs(options: Options, directory: Path) -> list[Path]:
    """Return the files of the web server's packages, as the image's lock names them."""
    beside = directory / options.project.rootfs_lock.name
    locked = lock.parse(beside if beside.is_file() else options.project.rootfs_lock)
    store = Store(options.cache.root / "files")
    return [store.path(entry) for entry in locked.entries if entry.package in REINSTALLED]


def _tree(options: Options, spec: specs.Spec, scratch: Path, squashfs: Path | None) -> Path:
    """Unpack the root file system with a clone's seed; return its directory."""
    if not run.is_root():
        raise HostError("a container that boots systemd needs root", hint="run it as root, or on clones: --target vm")
    if squashfs is None:
        squashfs, _ = build.build_rootfs(options)
    tree = scratch / "tree"
    with log.step("Unpacking the root file system"):
        run.run(["unsquashfs", "-quiet", "-no-progress", "-dest", tree, squashfs], timeout=nspawn.UNPACK_SECONDS)
    nspawn.plant_seed(tree, nocloud.make_identity(scratch / "identity", spec.admin.user))
    return tree


def _break_things(
    options: Options, scratch: Path, logs: Path, *, target: Target, ids: tuple[str, ...], timeout: float
) -> int:
    """Run the tests; return pytest's exit status."""
    # The machines' mounts are made in a namespace that ends with the tests, however they end.
    apart = ["unshare", "--mount", "--propagation", "private", "--"] if target is Target.CONTAINER else []
    argv: list[str | Path] = [
        *apart, sys.executable, "-m", "pytest", options.project.fault_tests, "-p", "no:cacheprovider", "-v", "-ra",
        "--tb=short", "--context", scratch / CONTEXT, "--faults", ",".join(ids), f"--junitxml={logs / JUNIT}",
        "-o", "junit_family=xunit1", *(["-m", "not vm"] if target is Target.CONTAINER else []),
    ]  # fmt: skip
    output = logs / OUTPUT
    progress = log.Progress("breaking things")
    with (
        log.step(f"Trying {len(ids)} faults"),
        run.spawn(argv, log=output, cwd=options.project.root, env=image_tests.ENVIRONMENT, contained=False) as process,
    ):
        deadline = time.monotonic() + timeout
        while (status := process.wait(POLL_SECONDS)) is None:
            progress.update(_last_test(output))
            if time.monotonic() > deadline:
                raise StepFailed(f"the faults did not end within {timeout:.0f} s", details=run.tail(output.read_text()))
        progress.finish()
    if not (logs / JUNIT).is_file():
        raise StepFailed("the faults could not be tried", details=run.tail(output.read_text()), hint=f"see {output}")
    return status


def _last_test(output: Path) -> str:
    """Return the name of the test that pytest named last."""
    lines = [line for line in output.read_text(errors="replace").splitlines() if "::" in line]
    return lines[-1].split("::", 1)[1].split(" ", 1)[0] if lines else "starting"


def _conclude(
    results: Sequence[report.Result], written: Sequence[Path], *, subject: str, target: Target, status: int
) -> Result:
    """Write the report to each path; return its table, and the error when a fault broke its promise."""
    about: Mapping[str, Any] = {"subject": subject, "target": target, "time": stamp_now()}
    for path in written:
        files.write_json(path, {**about, "faults": [dataclasses.asdict(result) for result in results]})
        log.info(f"written: {path}")
    table = report.render(results).rstrip("\n")
    broken = [result for result in results if result.outcome in report.BROKEN]
    if broken or status != 0:
        error = VerificationFailed(
            f"{len(broken)} of {len(results)} faults broke their promise" if broken else f"pytest ended with {status}",
            details="\n".join(f"{result.id}: {result.outcome}: {result.problem}" for result in broken),
            hint=f"see {written[0].with_name(OUTPUT)}",
        )
        return Result(table, error)
    return Result(table)
