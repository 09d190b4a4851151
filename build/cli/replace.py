"""The command ``replace``: exchanges the system of machines for a newer template's, and undoes it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from build.artifact.verification import Trust
from build.cli import cluster
from build.cli import options as common
from build.core import files, log
from build.core.errors import GoldsmithError, SpecError, StepFailed
from build.proxmox import guest_list
from build.replace import find, replace
from build.replace.replace import HEALTH_SECONDS, Job, Replaced
from build.spec import golden_yaml as specs
from build.spec.cluster import Role

KEEP_DAYS, BACKUP_HOURS = 7, 24


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``replace``."""
    common.add_project(parser)
    common.add_cache(parser)
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="machines, replaced one after the other")
    add("--all", action="store_true", help="every machine of the cluster that this token may see")
    add("--tag", default="", metavar="TAG", help="every machine with this tag")
    add("--pool", default="", metavar="POOL", help="every machine of this pool")
    add("--to", default="stable", metavar="CHANNEL", help="channel or version of the new system (default: %(default)s)")
    add(
        "--keep-old", type=int, default=KEEP_DAYS, metavar="DAYS",
        help="days that the old VM is kept, stopped (default: %(default)s)",
    )  # fmt: skip
    add(
        "--backup-age", type=int, default=BACKUP_HOURS, metavar="HOURS",
        help="hours that the newest backup may be old; 0: do not check (default: %(default)s)",
    )  # fmt: skip
    add(
        "--timeout", type=float, default=HEALTH_SECONDS, metavar="SECONDS",
        help="seconds that the new system has to become healthy (default: %(default)s)",
    )  # fmt: skip
    add("--undo", action="store_true", help="go back to the VM that was replaced, with the data as they are")
    add("--clean", action="store_true", help="remove the VMs whose time is over, and nothing else")
    common.add_secrets(parser)
    common.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Replace the machines, one after the other; the first failure ends it."""
    _require_valid(arguments)
    project, cache = common.project_of(arguments), common.cache_of(arguments)
    spec = specs.load(project.spec)
    settings = cluster.settings_of(spec)
    lock = files.lock(cache.root / "replace.lock", waiting="another replacement runs on this host: waiting for it")
    with lock, cluster.connect(settings, Role.REPLACER, arguments.secrets) as api:
        job = Job(
            api=api, settings=settings, product=spec.name, to=arguments.to, keep_days=arguments.keep_old,
            backup_hours=arguments.backup_age, timeout=arguments.timeout, trust=Trust.of(spec.releases, project.root),
        )  # fmt: skip
        if arguments.clean:
            return _clean(job, as_json=arguments.json)
        names = arguments.names or find.names(guest_list.listed(api), tag=arguments.tag, pool=arguments.pool)
        if not names:
            raise SpecError("no machine matches", hint="nox -s fleet lists the machines")
        results, failed = _each(job, names, undo=arguments.undo)
    facts = [_facts(result) for result in results]
    print(json.dumps(facts, indent=1, sort_keys=True) if arguments.json else "\n".join(map(_text, results)))
    if failed is not None:
        left = names[len(results) + 1 :]
        if left:
            log.warn(f"not begun: {', '.join(left)}")
        raise failed
    return 0


def _require_valid(arguments: argparse.Namespace) -> None:
    """Raise SpecError that lists every problem of the options."""
    chosen = [bool(arguments.names), arguments.all, bool(arguments.tag), bool(arguments.pool), arguments.clean]
    problems = [] if sum(chosen) == 1 else ["write names of machines, or one of --all, --tag, --pool and --clean"]
    limits = {"--keep-old": (arguments.keep_old, 0), "--backup-age": (arguments.backup_age, 0)}
    for option, (number, least) in {**limits, "--timeout": (arguments.timeout, 1)}.items():
        if number < least:
            problems.append(f"{option}: {number}: write a number from {least}")
    if arguments.undo and not arguments.names:
        problems.append("--undo: write the names of the machines")
    if problems:
        raise SpecError("the options of replace are not valid", details="\n".join(problems), hint="nothing was changed")


def _each(job: Job, names: Sequence[str], *, undo: bool) -> tuple[list[Replaced], GoldsmithError | None]:
    """Return what was replaced, and the error that ended it."""
    results = []
    for name in names:
        try:
            with log.step(f"{'Going back' if undo else 'Replacing'}: {name}"):
                results.append(replace.undo(job, name) if undo else replace.replace_machine(job, name))
        except (StepFailed, SpecError) as error:
            return results, error
    return results, None


def _clean(job: Job, *, as_json: bool) -> int:
    removed = replace.clean(job, now=datetime.now(UTC))
    print(json.dumps(removed) if as_json else "\n".join(f"removed {name}" for name in removed) or "nothing to remove")
    return 0


def _facts(result: Replaced) -> dict[str, Any]:
    return {
        "name": result.name, "node": result.machine.node, "vmid": result.machine.vmid, "template": result.template,
        "changed": result.changed, "kept_vmid": result.kept or None, "keep_until": result.keep_until or None,
        "seconds_without_service": round(result.without_service, 1),
    }  # fmt: skip


def _text(result: Replaced) -> str:
    place = f"{result.name} is VM {result.machine.vmid} on {result.machine.node}, {result.template}"
    if not result.changed:
        return f"{place}: nothing to do"
    kept = f"; VM {result.kept} is kept" if result.kept else ""
    until = f" until {result.keep_until}" if result.keep_until else ""
    return f"{place}: {result.without_service:.0f} s without service{kept}{until}"
