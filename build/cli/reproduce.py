"""The command ``reproduce``: builds the installer ISO (and disk) of an artifact again, and compares the hashes."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from build.cli import options as common
from build.core import log
from build.core.errors import SpecError, StepFailed, VerificationFailed
from build.pipeline.build import Options
from build.reproduce import reproduce

LOG_JSON = "--log-json"


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``reproduce``."""
    common.add_downloads(parser)
    common.add_accelerator(parser)
    common.add_packer(parser)
    common.add_artifact(parser)
    parser.add_argument("--disk", action="store_true", help="run the installer again too, and compare the disks")
    parser.add_argument("--here", action="store_true", help="use the code of this checkout, or fail")
    common.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Build again, print the comparison, and return 3 when something differs.

    When the code of another commit has to do it, that prints and decides. Raises SpecError when neither this checkout nor
    the artifact's commit can build it, VerificationFailed when the artifact was changed.
    """
    chosen = replace(common.downloads_of(arguments), accelerator=arguments.accel, packer=common.packer_of(arguments))
    artifact = reproduce.load(chosen, arguments.artifact)
    gathered = reproduce.gather(chosen, artifact)
    strange = reproduce.strange(artifact, gathered, with_disk=arguments.disk)
    if not strange:
        report = reproduce.here(chosen, artifact, gathered, with_disk=arguments.disk)
        print(reproduce.render(report, as_json=arguments.json))
        return VerificationFailed.exit_code if not report.same else 0 if report.whole else StepFailed.exit_code
    commit = reproduce.commit_of(artifact)
    if arguments.here or not commit:
        raise SpecError(
            f"this checkout does not build {artifact.path.name}: other inputs of {', '.join(strange)}",
            details=_why(strange, commit), hint="check out its commit, and name the mirrors it was built with",
        )  # fmt: skip
    with reproduce.checkout(chosen, commit) as tree:
        return reproduce.elsewhere(tree, _arguments_of(chosen, arguments, artifact.path, tree))


def _why(strange: list[str], commit: str) -> str:
    if "base" not in strange:
        return "base is the same: are the mirrors (--mirror, --security-mirror)? They stand in the image's apt sources"
    return f"the artifact names the commit {commit}" if commit else "the artifact names no commit"


def _arguments_of(chosen: Options, arguments: argparse.Namespace, path: Path, tree: Path) -> list[str]:
    """Return the command line for the code of another commit in ``tree``."""
    mirrors = chosen.mirrors
    argv = ["reproduce", str(path.resolve()), "--cache", str(chosen.cache.root), "--mirror", mirrors.debian,
            "--security-mirror", mirrors.security]  # fmt: skip
    argv += ["--snapshot", mirrors.snapshot] if mirrors.snapshot else []
    argv += ["--accel", chosen.accelerator] if chosen.accelerator else []
    argv += ["--packer", chosen.packer] if chosen.packer else []
    flags = {
        "--disk": arguments.disk, "--json": arguments.json, "--verbose": arguments.verbose,
        "--no-install": not chosen.install, LOG_JSON: arguments.log_json and _logs_json(tree, as_json=arguments.json),
    }  # fmt: skip
    return argv + [flag for flag, is_set in flags.items() if is_set]


def _logs_json(tree: Path, *, as_json: bool) -> bool:
    """Return True if the code in ``tree`` has ``--log-json``.

    Older code has one option, ``--json``, for the form of both result and log.
    """
    if LOG_JSON in reproduce.help_elsewhere(tree):
        return True
    if not as_json:
        log.warn(f"the Goldsmith of that commit has no {LOG_JSON}: its log is text (with --json, its log is JSON too)")
    return False
