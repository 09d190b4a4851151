"""The verbs ``diff``, ``notes`` and ``report``: from words to artifacts, and where the answer goes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from build import artifact, compare, compare_page, compare_text, files, log, release_notes
from build import lock as locks
from build.desk import Desk
from build.errors import SpecError
from build.project import Project

# As git's: 1 says that something differs.
DIFFERS = 1
Verb = Callable[[argparse.Namespace], int]


def add(verb: Callable[[str, Verb, str], argparse.ArgumentParser]) -> None:
    """Add the three verbs to the command line by its own function, which takes name, function and help."""
    parser = verb("diff", _diff, "compare two artifacts: packages, files, units, sockets, results and more")
    parser.add_argument("before", nargs="?", metavar="A", help="directory, name, version, digest (default: that before B)")
    parser.add_argument("after", nargs="?", metavar="B", help="the same (default: the newest)")
    parser.add_argument("--all", dest="whole", action="store_true", help="tell every change")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page instead")
    parser.add_argument("--exit-code", action="store_true", help="end with 1 when something differs, as git diff does")
    parser = verb("notes", _notes, "print the release note of an artifact, in Markdown")
    parser.add_argument("artifact", nargs="?", metavar="VERSION", help="or directory, name, digest (default: the newest)")
    parser.add_argument("--since", metavar="A", help="compare with this one (default: the last one of another version)")
    parser = verb("report", _report, "write the report of an artifact anew: one HTML page, with the trend until now")
    parser.add_argument("artifact", nargs="?", metavar="ARTIFACT", help="directory, name, version, digest (default: newest)")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: report-NAME.html here")


def _diff(arguments: argparse.Namespace) -> int:
    desk = _desk(arguments)
    new = desk.find(arguments.after)
    after = compare.side_of(new)
    before = desk.find(arguments.before) if arguments.before else desk.previous(after)
    if before is None:
        raise SpecError(f"there is no artifact before {after.name}", hint="name two: nox -s diff -- A B")
    found = desk.compare(compare.side_of(before), after, desk.changelogs(new))
    if arguments.html:
        files.write_atomic(arguments.html, compare_page.page(found))
        log.info(f"written: {arguments.html}")
    elif arguments.json:
        print(json.dumps(compare_text.data_of(found), indent=1, sort_keys=True))
    else:
        print(compare_text.text_of(found, whole=arguments.whole))
    return DIFFERS if arguments.exit_code and found.differs else 0


def _notes(arguments: argparse.Namespace) -> int:
    desk = _desk(arguments)
    new = desk.find(arguments.artifact)
    side, told = compare.side_of(new), desk.changelogs(new)
    before = desk.find(arguments.since) if arguments.since else desk.previous(side)
    found = desk.compare(compare.side_of(before), side, told) if before else None
    print(release_notes.render(side, found, told), end="")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    """Write the report where it is asked for; an artifact's own stays as it was when the artifact was made."""
    desk = _desk(arguments)
    found = desk.find(arguments.artifact)
    output: Path = arguments.output or Path(f"report-{found.path.name}.html")
    if found.path.resolve() in output.resolve().parents:
        raise SpecError(f"{output} lies in the artifact, which is immutable", hint="name another place: -o FILE")
    files.write_atomic(output, desk.report(compare.side_of(found), locks.parse(found.path / artifact.ROOTFS_LOCK)))
    print(output)
    return 0


def _desk(arguments: argparse.Namespace) -> Desk:
    return Desk(Project(arguments.project.resolve()), arguments.cache.resolve())
