"""``audit``: security scanners against a disposable clone, their figures compared with limits and a committed ledger.

The clone is thrown away afterwards; its image never holds an auditor. Everything that was written is kept below the
cache's logs; the ledger and the locks of the auditors stand in tests/audit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from build.artifact import find
from build.audit import ledger
from build.audit import tools as audit_tools
from build.audit.auditors import AUDITORS, HOST_TOOLS, Job, furnish, settle
from build.audit.ledger import Figure, Line
from build.core import files, host, log
from build.core.errors import GoldsmithError, StepFailed, VerificationFailed
from build.core.result import Result
from build.machines import acceleration, boots, nocloud, target, vm
from build.machines.target import Target
from build.packages import lock
from build.pipeline import build
from build.pipeline.build import Options
from build.spec import audit_ledger, layers
from build.spec import golden_yaml as specs

TAILORING = "cis-tailoring.conf"
SHOWN_FAILURES = 20


@dataclass(frozen=True)
class Wanted:
    """What to audit and how: the auditors by name, and the image or running machine."""

    auditors: tuple[str, ...]
    directory: Path | None = None
    unverified: bool = False
    context: Path | None = None
    update: bool = False


def write_locks(options: Options) -> None:
    """Lock the newest packages of the auditors."""
    image = [entry.package for entry in lock.parse(options.project.rootfs_lock).entries]
    spec = specs.load(options.project.spec)
    store = build.lock_resolver_for(options, spec.release).store
    with files.scratch(options.cache.root / "apt") as scratch:
        audit_tools.write_locks(options.project.auditors, store=store, mirrors=options.mirrors, scratch=scratch, image=image)


def audit(options: Options, wanted: Wanted) -> Result:
    """Run the auditors; return the table, with a VerificationFailed when a figure is worse than its limit or the ledger.

    The error of an auditor that was not measured is returned with the table of the others.
    """
    host.ensure((*host.needed(), *HOST_TOOLS), install=options.install)
    out = options.cache.root / "logs" / "audit"
    out.mkdir(parents=True, exist_ok=True)
    spec = specs.load(options.project.spec)
    store = build.lock_resolver_for(options, spec.release).store
    with ExitStack() as stack:
        scratch = stack.enter_context(files.scratch(options.cache.root / "clones"))
        with log.step("Fetching the auditors"):
            tools = audit_tools.fetch(options.project.auditors, store=store, mirrors=options.mirrors, into=scratch / "tools")
        place, image = stack.enter_context(_place(options, wanted, spec, scratch))
        job = Job(
            place, tools, out, scratch, layers.load_stack(options.project.overlays, spec), spec.application.server_name,
            options.project.auditors / TAILORING,
        )  # fmt: skip
        by_auditor, failures = _measure(job, wanted.auditors)
    failure = failures[0] if failures else None
    if not by_auditor:
        return Result("", failure)
    done = dataclasses.replace(wanted, auditors=tuple(by_auditor))
    figures = [figure for measured in by_auditor.values() for figure in measured]
    result = conclude(options, done, figures, tools=tools, image=image, out=out)
    return Result(result.text, result.error or failure)


@contextmanager
def _place(options: Options, wanted: Wanted, spec: specs.Spec, scratch: Path) -> Iterator[tuple[Target, Path]]:
    """Yield the machine to audit and its image: one that a context file names, or a clone that ends with the audit."""
    if wanted.context:
        yield target.of_context(wanted.context), wanted.context
        return
    image = find.find_image(options.project, options.cache.root, directory=wanted.directory, unverified=wanted.unverified)
    identity = nocloud.make_identity(scratch / "identity", spec.admin.user)
    with log.step("Probing the accelerator"):
        accelerator = acceleration.probe(workdir=scratch, wanted=options.accelerator)
    # Under BIOS, where the benchmark's rule for the boot loader reads the file that Debian has.
    config = vm.CloneConfig("audit", vm.Firmware.BIOS)
    with ExitStack() as stack:
        with log.step(f"Booting a clone of {image}"):
            ready = stack.enter_context(
                boots.clones(image, [config], directory=scratch, accelerator=accelerator, identity=identity)
            )
        place = target.of_clone(ready[0])
        with log.step("Giving the clone a collector of its logs"):
            furnish(place)
        yield place, image


def _measure(job: Job, auditors: Sequence[str]) -> tuple[dict[str, list[Figure]], list[GoldsmithError]]:
    """Send the auditors' programs to the place and let them work, one after the other.

    Return the figures of each that came to its end, and why others did not: an hour's work is not thrown away for them.
    """
    parts = sorted({part for name in auditors for part in audit_tools.PARTS[name]})
    if parts:
        with log.step("Sending the auditors to the machine"):
            job.place.send(job.tools.root, parts, target=audit_tools.HOME, output=job.out / "send.log")
    with log.step("Waiting for the machine to settle"):
        settle(job.place)
    figures: dict[str, list[Figure]] = {}
    failures: list[GoldsmithError] = []
    for name in auditors:
        try:
            with log.step(f"Auditing: {name}"):
                figures[name] = AUDITORS[name](job)
        except StepFailed as error:
            log.warn(f"{name} is not measured: {error.brief}")
            failures.append(error)
    return figures, failures


def conclude(
    options: Options, wanted: Wanted, figures: Sequence[Figure], *, tools: audit_tools.Tools, image: Path, out: Path
) -> Result:
    """Compare, write the report, and update the ledger when asked to; return the table.

    It comes with a VerificationFailed when a figure fails.
    """
    path = options.project.audit_ledger
    before = audit_ledger.load(path)
    mine = {key: entry for key, entry in before.items() if key.split(".")[0] in wanted.auditors}
    # A machine that was started elsewhere may be any machine: only the limits apply there.
    lines = ledger.compare(figures, {} if wanted.context else mine)
    table = ledger.render(lines, title=f"Audit of {image.parent.name}", tools=tools.versions)
    written = [out / "audit"]
    if not (wanted.context or wanted.unverified) and set(wanted.auditors) == set(AUDITORS):
        # The artifact itself is read-only.
        written.append(image.parent.with_name(f"{image.parent.name}.audit"))
    for base in written:
        files.write_atomic(base.with_name(f"{base.name}.md"), table)
        files.write_json(base.with_name(f"{base.name}.json"), _as_json(lines, figures, image=image, tools=tools))
    log.info(f"written: {', '.join(f'{base}.md and .json' for base in written)}; {out} has the output of each auditor")
    if wanted.update:
        kept = {key: entry for key, entry in before.items() if key not in mine}
        ledger.save(path, figures, kept=kept, tools=tools.versions)
        log.info(f"written: {path}")
        lines = ledger.compare(figures, {})
    elif any(line.verdict in ("better", "new") for line in lines) and not wanted.context:
        log.info("The ledger knows less than this: keep it with  nox -s audit -- --update")
    return Result(table, _failure([line for line in lines if line.fails]))


def _failure(failed: Sequence[Line]) -> VerificationFailed | None:
    if not failed:
        return None
    return VerificationFailed(
        f"the audit found {len(failed)} figures worse than they must be",
        details="\n".join(
            f"{line.name}: {line.shown}" + (f", must be {line.limit}" if line.verdict == "limit" else f", was {line.before}")
            + (f": {', '.join(line.items[:SHOWN_FAILURES])}" if line.items else "")
            for line in failed
        ),
        hint="if the image is meant to be so: nox -s audit -- --update, and review the change of the ledger",
    )  # fmt: skip


def _as_json(lines: Sequence[Line], figures: Sequence[Figure], *, image: Path, tools: audit_tools.Tools) -> dict[str, Any]:
    by_name = {figure.name: figure for figure in figures}
    return {
        "image": image.parent.name, "tools": tools.versions,
        "figures": {
            line.name: {
                "verdict": line.verdict, "shown": line.shown, "limit": line.limit, "ledger": line.before,
                "value": by_name[line.name].value if line.name in by_name else None,
                "items": list(by_name[line.name].items) if line.name in by_name else [],
            }
            for line in lines
        },
    }  # fmt: skip
