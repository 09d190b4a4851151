"""The verb ``lock --check``: what is told of pending updates, and the exit code."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from build import base, layers, lock, updates
from build import spec as specs
from build.apt import private_apt
from build.errors import SpecError, StepFailed, VerificationFailed
from build.pipeline import Options
from build.updates import Looked, Question, Update

SETS = ("rootfs", "installer")


def options(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("what", nargs="*", choices=[*SETS, "wheels", []], help="only these (default: all)")
    parser.add_argument(
        "--check", action="store_true",
        help="write nothing: name pending updates of rootfs and installer by apt (3: security updates are pending)",
    )  # fmt: skip
    parser.add_argument("--strict", action="store_true", help="for --check: 3 for every pending update")


def fit(arguments: argparse.Namespace) -> None:
    """Raise SpecError for options that do not fit together."""
    if arguments.strict and not arguments.check:
        raise SpecError("--strict is an option of --check", hint="nox -s lock -- --check --strict")
    if arguments.check and "wheels" in arguments.what:
        raise SpecError(
            "apt knows nothing of wheels: --check looks at rootfs and installer",
            hint="nox -s lock -- wheels   writes their lock anew; git diff shows what changed",
        )


def run(options: Options, asked: argparse.Namespace) -> tuple[str, int]:
    """Look at the locked sets that are named, with fresh lists; return what there is to tell, and the exit code."""
    project = options.project
    spec = specs.load(project.spec)
    stack = layers.load_stack(project.overlays, spec)
    question = Question(
        lock.parse(project.rootfs_lock), base.request_digest(spec, stack), base.requested_packages(spec, stack)
    )
    installer = lock.parse(project.installer_lock)
    with private_apt(options.cache.root / "apt", options.mirrors, spec.release) as apt:
        looks = {
            "rootfs": lambda: updates.look_rootfs(apt, question),
            "installer": lambda: updates.look_installer(apt, installer),
        }
        looked = [looks[name]() for name in SETS if name in (asked.what or SETS)]
    return (_json(looked) if asked.json else text_of(looked)), exit_code(looked, strict=asked.strict)


def exit_code(looked: Sequence[Looked], *, strict: bool) -> int:
    """Return 3 when security updates are pending (``strict``: any change), 1 when a set was not looked at, else 0."""
    if any(one.security or (strict and (one.updates or one.note)) for one in looked):
        return VerificationFailed.exit_code
    return StepFailed.exit_code if any(one.problem for one in looked) else 0


def _json(looked: Sequence[Looked]) -> str:
    counts = {"security": sum(len(one.security) for one in looked), "other": sum(len(one.other) for one in looked)}
    return json.dumps({**counts, "sets": updates.facts(looked)}, indent=1, sort_keys=True)


def text_of(looked: Sequence[Looked]) -> str:
    """Return what there is to tell, for people: security updates first."""
    lines: list[str] = []
    for one in looked:
        if one.problem:
            lines.append(f"{one.set}: not looked at: {one.problem}")
        else:
            lines.append(f"{one.set}: {_count(one)}; locked as of {one.locked_as_of}, the archive as of {one.archive_as_of}")
        lines += [f"  note: {one.note}"] if one.note else []
        lines += [_line(update) for update in (*one.security, *one.other)]
    if any(one.updates or one.note for one in looked):
        lines.append("-> nox -s lock, look at the changes, commit them")
    return "\n".join(lines)


def _count(one: Looked) -> str:
    fixes = f"{len(one.security)} pending security update{'s' * (len(one.security) != 1)}"
    return f"{fixes}, {len(one.other)} other" if one.other else fixes


def _line(update: Update) -> str:
    kind = "security" if update.security else "other"
    return f"  {kind:<8}  {update.package}  {update.locked or '(new)'} -> {update.candidate or '(gone)'}"
