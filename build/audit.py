"""``audit``: the field's auditors against a throw-away clone, their figures against limits and a committed ledger.

The clone is thrown away afterwards; its image never holds an auditor. Everything that was written is kept below the
cache's logs; the ledger and the locks of the auditors stand in tests/peers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from build import (
    accel,
    audit_ledger,
    audit_place,
    audit_tools,
    files,
    host,
    layers,
    lock,
    log,
    pipeline,
    seed,
    vm,
    workshop,
)
from build import spec as specs
from build.audit_field import AUDITORS, HOST_TOOLS, Job, furnish, settle
from build.audit_ledger import Figure, Line
from build.audit_place import Place
from build.errors import GoldsmithError, StepFailed, VerificationFailed
from build.pipeline import Options

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


def write_locks(options: Options) -> int:
    """Lock the newest packages of the auditors."""
    image = [entry.package for entry in lock.parse(options.project.rootfs_lock).entries]
    spec = specs.load(options.project.spec)
    store = pipeline.locksmith_for(options, spec.release).store
    with files.scratch(options.cache.root / "apt") as scratch:
        audit_tools.write_locks(options.project.auditors, store=store, mirrors=options.mirrors, scratch=scratch, image=image)
    return 0


def audit(options: Options, wanted: Wanted) -> int:
    """Run the auditors; print the table; raise VerificationFailed when a figure is worse than its limit or the ledger."""
    host.ensure((*host.needed(), *HOST_TOOLS), install=options.install)
    out = options.cache.root / "logs" / "audit"
    out.mkdir(parents=True, exist_ok=True)
    spec = specs.load(options.project.spec)
    store = pipeline.locksmith_for(options, spec.release).store
    with ExitStack() as stack:
        scratch = stack.enter_context(files.scratch(options.cache.root / "clones"))
        with log.step("Fetching the auditors"):
            tools = audit_tools.fetch(options.project.auditors, store=store, mirrors=options.mirrors, into=scratch / "tools")
        place, image = stack.enter_context(_place(options, wanted, spec, scratch))
        job = Job(
            place, tools, out, scratch, layers.load_stack(options.project.overlays, spec), spec.application.server_name,
            options.project.auditors / TAILORING,
        )  # fmt: skip
        found, failures = _measure(job, wanted.auditors)
    if found:
        done = dataclasses.replace(wanted, auditors=tuple(found))
        conclude(options, done, [figure for each in found.values() for figure in each], tools=tools, image=image, out=out)
    if failures:
        raise failures[0]
    return 0


@contextmanager
def _place(options: Options, wanted: Wanted, spec: specs.Spec, scratch: Path) -> Iterator[tuple[Place, Path]]:
    """Yield the machine to audit and its image: one that a context file names, or a clone that ends with the audit."""
    if wanted.context:
        yield audit_place.of_context(wanted.context), wanted.context
        return
    image = workshop.find_image(options, directory=wanted.directory, unverified=wanted.unverified)
    identity = seed.make_identity(scratch / "identity", spec.admin.user)
    with log.step("Probing the accelerator"):
        accelerator = accel.probe(workdir=scratch, wanted=options.accelerator)
    # Under BIOS, where the benchmark's rule for the boot loader reads the file that Debian has.
    wish = vm.Wish("audit", vm.Firmware.BIOS)
    with ExitStack() as stack:
        with log.step(f"Booting a clone of {image}"):
            ready = stack.enter_context(
                vm.clones(image, [wish], directory=scratch, accelerator=accelerator, identity=identity)
            )
        place = audit_place.of_clone(ready[0])
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
) -> None:
    """Compare, write the report, update the ledger when asked to, and raise VerificationFailed when a figure fails."""
    path = options.project.audit_ledger
    before = audit_ledger.load(path)
    mine = {key: entry for key, entry in before.items() if key.split(".")[0] in wanted.auditors}
    # A machine that somebody else started may be any machine: only the limits hold there.
    lines = audit_ledger.compare(figures, {} if wanted.context else mine)
    table = audit_ledger.render(lines, title=f"Audit of {image.parent.name}", tools=tools.versions)
    written = [out / "audit"]
    if not (wanted.context or wanted.unverified) and set(wanted.auditors) == set(AUDITORS):
        # The artifact itself is read-only.
        written.append(image.parent.with_name(f"{image.parent.name}.audit"))
    for base in written:
        files.write_atomic(base.with_name(f"{base.name}.md"), table)
        files.write_json(base.with_name(f"{base.name}.json"), _as_json(lines, figures, image=image, tools=tools))
    print(table)
    log.info(f"written: {', '.join(f'{base}.md and .json' for base in written)}; {out} holds what each auditor said")
    if wanted.update:
        kept = {key: entry for key, entry in before.items() if key not in mine}
        audit_ledger.save(path, figures, kept=kept, tools=tools.versions)
        log.info(f"written: {path}")
        lines = audit_ledger.compare(figures, {})
    elif any(line.verdict in ("better", "new") for line in lines) and not wanted.context:
        log.info("The ledger knows less than this: keep it with  nox -s audit -- --update")
    _complain([line for line in lines if line.fails])


def _complain(failed: Sequence[Line]) -> None:
    if not failed:
        return
    raise VerificationFailed(
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
