"""The verb ``reproduce``: where it works, what is told, and the exit code."""

from __future__ import annotations

import argparse
from pathlib import Path

from build import reproduce
from build.errors import SpecError, StepFailed, VerificationFailed
from build.pipeline import Options


def options(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("artifact", nargs="?", type=Path, help="artifact directory (default: the newest)")
    parser.add_argument("--disk", action="store_true", help="install anew too, and compare the disks")
    parser.add_argument("--here", action="store_true", help="with this checkout, or not at all")


def run(given: Options, asked: argparse.Namespace) -> tuple[str, int]:
    """Build again and compare; return what there is to tell (nothing when another commit's code told it), and the exit code.

    Raises SpecError when neither this checkout nor the artifact's commit can build it, VerificationFailed when the
    artifact was changed.
    """
    found = reproduce.load(given, asked.artifact)
    gathered = reproduce.gather(given, found)
    strange = reproduce.strange(found, gathered, with_disk=asked.disk)
    if not strange:
        report = reproduce.here(given, found, gathered, with_disk=asked.disk)
        code = VerificationFailed.exit_code if not report.same else 0 if report.whole else StepFailed.exit_code
        return reproduce.render(report, as_json=asked.json), code
    commit = reproduce.commit_of(found)
    if asked.here or not commit:
        raise SpecError(
            f"this checkout does not build {found.path.name}: other inputs of {', '.join(strange)}",
            details=_why(strange, commit), hint="check out its commit, and name the mirrors it was built with",
        )  # fmt: skip
    with reproduce.checkout(given, commit) as tree:
        return "", reproduce.elsewhere(tree, _words(given, asked, found.path))


def _why(strange: list[str], commit: str) -> str:
    if "base" not in strange:
        return "base is the same: are the mirrors (--mirror, --security-mirror)? They stand in the image's apt sources"
    return f"the artifact names the commit {commit}" if commit else "the artifact names no commit"


def _words(given: Options, asked: argparse.Namespace, path: Path) -> list[str]:
    mirrors = given.mirrors
    words = ["reproduce", str(path.resolve()), "--cache", str(given.cache.root), "--mirror", mirrors.debian,
             "--security-mirror", mirrors.security]  # fmt: skip
    words += ["--snapshot", mirrors.snapshot] if mirrors.snapshot else []
    words += ["--accel", given.accelerator] if given.accelerator else []
    words += ["--packer", given.packer] if given.packer else []
    flags = {"--disk": asked.disk, "--json": asked.json, "--verbose": asked.verbose, "--no-install": not given.install}
    return words + [flag for flag, wanted in flags.items() if wanted]
