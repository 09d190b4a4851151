"""The command ``lock``: resolves packages, installer and wheels, and writes the lock files; ``--check`` lists updates."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from build.cli import options as common
from build.core import files, log
from build.core.errors import SpecError, StepFailed, VerificationFailed
from build.core.yaml_table import raise_problems
from build.packages import lock, resolve, updates, wheel_lock, wheels
from build.packages.updates import Looked, Update
from build.pipeline import build, pending
from build.pipeline.build import Options
from build.spec import golden_yaml as specs
from build.spec import layers

SETS = ("rootfs", "installer")
WHEELS = "wheels"


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``lock``."""
    common.add_downloads(parser)
    parser.add_argument(
        "what", nargs="*", choices=[*SETS, WHEELS, []], metavar="SET",
        help=f"only these of {', '.join([*SETS, WHEELS])} (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--check", action="store_true",
        help="write nothing; list pending updates of rootfs and installer by apt (exit 3: security updates are pending)",
    )  # fmt: skip
    parser.add_argument("--strict", action="store_true", help="with --check: exit 3 for every pending update")
    parser.add_argument("--json", action="store_true", help="with --check: print the result as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Write the locks, or print the pending updates."""
    _check(arguments)
    chosen = common.downloads_of(arguments)
    if not arguments.check:
        write_locks(chosen, arguments.what or [*SETS, WHEELS])
        return 0
    looked = look(chosen, arguments.what or SETS)
    print(to_json(looked) if arguments.json else text_of(looked))
    return exit_code(looked, strict=arguments.strict)


def _check(arguments: argparse.Namespace) -> None:
    """Raise SpecError for options that do not fit together."""
    for name, is_set in (("--strict", arguments.strict), ("--json", arguments.json)):
        if is_set and not arguments.check:
            raise SpecError(f"{name} is an option of --check", hint=f"nox -s lock -- --check {name}")
    if arguments.check and WHEELS in arguments.what:
        raise SpecError(
            "apt knows nothing of wheels: --check looks at rootfs and installer",
            hint="nox -s lock -- wheels   writes their lock again; git diff shows what changed",
        )


def look(options: Options, what: Sequence[str]) -> list[Looked]:
    """Compare the locked sets that are named with fresh package lists."""
    project = options.project
    spec = specs.load(project.spec)
    stack = layers.load_stack(project.overlays, spec)
    question = pending.question(lock.parse(project.rootfs_lock), spec, stack)
    installer = lock.parse(project.installer_lock)
    place = updates.Place(options.cache.root / "apt", options.mirrors, spec.release)
    looks = {
        "rootfs": lambda: updates.look_rootfs(place, question),
        "installer": lambda: updates.look_installer(place, installer),
    }
    return [looks[name]() for name in SETS if name in what]


def exit_code(looked: Sequence[Looked], *, strict: bool) -> int:
    """Return 3 when security updates are pending (``strict``: any change), 1 when a set was not checked, else 0."""
    if any(result.security or (strict and (result.updates or result.note)) for result in looked):
        return VerificationFailed.exit_code
    return StepFailed.exit_code if any(result.problem for result in looked) else 0


def to_json(looked: Sequence[Looked]) -> str:
    """Return the pending updates, for programs."""
    counts = {
        "security": sum(len(result.security) for result in looked), "other": sum(len(result.other) for result in looked),
    }  # fmt: skip
    return json.dumps({**counts, "sets": updates.facts(looked)}, indent=1, sort_keys=True)


def text_of(looked: Sequence[Looked]) -> str:
    """Return the pending updates, for people: security updates first."""
    lines: list[str] = []
    for result in looked:
        if result.problem:
            lines.append(f"{result.set}: not checked: {result.problem}")
        else:
            dates = f"locked as of {result.locked_as_of}, the archive as of {result.archive_as_of}"
            lines.append(f"{result.set}: {_count(result)}; {dates}")
        lines += [f"  note: {result.note}"] if result.note else []
        lines += [_line(update) for update in (*result.security, *result.other)]
    if any(result.updates or result.note for result in looked):
        lines.append("-> nox -s lock, look at the changes, commit them")
    return "\n".join(lines)


def _count(result: Looked) -> str:
    fixes = f"{len(result.security)} pending security update{'s' * (len(result.security) != 1)}"
    return f"{fixes}, {len(result.other)} other" if result.other else fixes


def _line(update: Update) -> str:
    kind = "security" if update.security else "other"
    return f"  {kind:<8}  {update.package}  {update.locked or '(new)'} -> {update.candidate or '(gone)'}"


def write_locks(options: Options, what: Sequence[str]) -> None:
    """Resolve what is named (``rootfs``, ``installer``, ``wheels``), write the lock files, and print the changes.

    Each lock is written by itself. Raises StepFailed naming those that were not written, when the others are.
    """
    project = options.project
    spec = specs.load(project.spec)
    resolver = build.lock_resolver_for(options, spec.release)

    def rootfs() -> None:
        stack = layers.load_stack(project.overlays, spec)
        fresh = resolver.resolve_rootfs(layers.request_digest(spec, stack), layers.requested_packages(spec, stack))
        _replace(project.rootfs_lock, fresh, resolve.ROOTFS_TITLE)

    def installer() -> None:
        fresh = resolver.resolve_installer(lock.parse(project.installer_lock))
        _replace(project.installer_lock, fresh, resolve.INSTALLER_TITLE)

    def wheel_locks() -> None:
        problems: list[str] = []
        places = layers.directories(project.overlays, spec, problems)
        raise_problems(project.spec, problems)
        _write_wheel_locks(places)

    writers = {"wheels": wheel_locks, "rootfs": rootfs, "installer": installer}
    resolve.write_each({name: write for name, write in writers.items() if name in what})


def _replace(path: Path, fresh: lock.Lock, title: str) -> None:
    old = lock.parse(path).entries if path.exists() else ()
    changes = lock.compare(old, fresh.entries)
    files.write_atomic(path, fresh.render(title))
    log.info(f"{path.name}: {len(fresh.entries)} files, {len(changes)} changes, archive as of {fresh.date}")
    for line in changes:
        log.info(f"  {line}")


def _write_wheel_locks(places: Sequence[Path]) -> None:
    for place in places:
        source = place / "requirements.in"
        if source.is_file():
            with log.step(f"Resolving {place.name}/requirements.in"), tempfile.TemporaryDirectory() as scratch:
                resolved = wheels.resolve(source, scratch=Path(scratch))
            files.write_atomic(source.with_suffix(".lock"), wheel_lock.render(resolved))
            log.info(", ".join(f"{wheel.name} {wheel.version}" for wheel in resolved))
