"""The command ``diff``: compares two artifacts."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from build.artifact import contents
from build.cli import options as common
from build.core import files, log
from build.core.errors import SpecError
from build.report import compare_html, compare_text
from build.report.context import ReportContext

# As git's: 1 when something differs.
DIFFERS = 1


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``diff``."""
    common.add_project(parser)
    common.add_cache(parser)
    parser.add_argument(
        "before", nargs="?", metavar="A", help="directory, name, version or digest (default: the artifact before B)"
    )
    parser.add_argument("after", nargs="?", metavar="B", help="the same (default: the newest artifact)")
    parser.add_argument("--all", dest="whole", action="store_true", help="list every change")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write an HTML page instead")
    parser.add_argument("--exit-code", action="store_true", help="exit with 1 if something differs, as git diff does")
    common.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Compare; print the differences, or write the page."""
    context = context_of(arguments)
    new = context.find(arguments.after)
    after = contents.side_of(new)
    before = context.find(arguments.before) if arguments.before else context.previous(after)
    if before is None:
        raise SpecError(f"there is no artifact before {after.name}", hint="name two: nox -s diff -- A B")
    comparison = context.compare(contents.side_of(before), after, context.changelogs(new))
    if arguments.html:
        files.write_atomic(arguments.html, compare_html.page(comparison))
        log.info(f"written: {arguments.html}")
    elif arguments.json:
        print(json.dumps(compare_text.data_of(comparison), indent=1, sort_keys=True))
    else:
        print(compare_text.text_of(comparison, whole=arguments.whole))
    return DIFFERS if arguments.exit_code and comparison.differs else 0


def context_of(arguments: argparse.Namespace) -> ReportContext:
    """Return the artifacts of the checkout, and what the cache knows of them."""
    return ReportContext(common.project_of(arguments), common.cache_of(arguments).root)
