"""The command ``requirements``: writes docs/reference/requirements.md: requirements, their tests, the results."""

from __future__ import annotations

import argparse
from pathlib import Path

from build.artifact import find
from build.cli import options as common
from build.core import files, junit, log
from build.report import requirements


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``requirements``."""
    common.add_project(parser)
    parser.add_argument(
        "junit", nargs="*", type=Path, metavar="FILE", help="JUnit XML with results (default: that of the newest artifact)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the page, and report how many requirements have no test."""
    project = common.project_of(arguments)
    newest = find.newest(project)
    sources = arguments.junit or [newest.path / "verification" / "junit.xml"]
    files.write_json(
        project.root / requirements.RESULTS, {"source": f"`{newest.path.name}`", "results": junit.results(sources)}
    )
    page = requirements.page(project.root)
    files.write_atomic(project.root / requirements.PAGE, page)
    missing = page.count("**nothing yet**")
    log.info(f"written: {requirements.PAGE}; {missing} without a test" if missing else f"written: {requirements.PAGE}")
    return 0
