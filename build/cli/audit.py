"""The command ``audit``: runs the security scanners against a test VM, and compares the results with the baseline."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from build.audit import audit
from build.audit.auditors import AUDITORS
from build.cli import options as common


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``audit``."""
    common.add_downloads(parser)
    common.add_accelerator(parser)
    common.add_image(parser)
    parser.add_argument(
        "auditor", nargs="*", choices=[*AUDITORS, []], metavar="SCANNER",
        help=f"run only these of {', '.join(AUDITORS)} (default: all)",
    )  # fmt: skip
    parser.add_argument("--context", type=Path, metavar="FILE", help="audit a VM that is already running")
    parser.add_argument("--update", action="store_true", help="write the results to the baseline")
    parser.add_argument("--lock", action="store_true", help="lock the newest packages of the scanners, and exit")


def run(arguments: argparse.Namespace) -> int:
    """Audit, or write the locks; print the table of the results.

    Raises VerificationFailed when a result is worse than its limit or the baseline.
    """
    chosen = replace(common.downloads_of(arguments), accelerator=arguments.accel)
    if arguments.lock:
        audit.write_locks(chosen)
        return 0
    request = audit.Wanted(
        tuple(arguments.auditor) or tuple(AUDITORS), arguments.artifact, unverified=arguments.unverified,
        context=arguments.context, update=arguments.update,
    )  # fmt: skip
    return common.show(audit.audit(chosen, request))
