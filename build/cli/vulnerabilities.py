"""The command ``vulnerabilities``: lists known vulnerabilities of an artifact's packages, from Debian's security data."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from build.artifact import artifact, find
from build.cli import options as common
from build.core.errors import HostError, VerificationFailed
from build.report import vulnerability_survey
from build.spec import golden_yaml
from build.vulnerabilities import accepted
from build.vulnerabilities.feeds import URGENCIES
from build.vulnerabilities.findings import Finding, Given

NO_DATA = "known vulnerabilities were not looked at: there is no data"
NO_DATA_HINT = (
    "give a file: --debsecan FILE, --osv PATH or --tracker FILE (sources: docs/how-to/vulnerabilities.md), "
    "or install the tool that fetches its own: apt-get install --yes debsecan   (as root)"
)


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``vulnerabilities``."""
    common.add_project(parser)
    common.add_cache(parser)
    common.add_artifact(parser)
    parser.add_argument("--debsecan", type=Path, action="append", default=[], metavar="FILE", help="data of debsecan")
    parser.add_argument("--osv", type=Path, action="append", default=[], metavar="PATH", help="OSV: JSON, directory or zip")
    parser.add_argument(
        "--tracker", type=Path, action="append", default=[], metavar="FILE", help="JSON of Debian's security tracker"
    )
    parser.add_argument("--all", action="store_true", help="also list those without a fix, and the accepted ones")
    parser.add_argument("--strict", action="store_true", help="exit 3 also for those without a fix, except unimportant ones")
    common.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the known vulnerabilities; return 3 when one has a fix. Raises HostError when there is no data."""
    project = common.project_of(arguments)
    chosen = artifact.load(arguments.artifact) if arguments.artifact else find.newest(project)
    data = _named(arguments) or vulnerability_survey.data_of(project, golden_yaml.load(project.spec).releases)
    if not data:
        raise HostError(NO_DATA, hint=NO_DATA_HINT)
    looked = vulnerability_survey.survey(
        chosen, data, project=project, cache=common.cache_of(arguments).root, now=datetime.now(UTC)
    )  # fmt: skip
    vulnerability_survey.keep(chosen.path, looked.facts)
    if arguments.json:
        print(json.dumps(looked.facts, indent=1, sort_keys=True))
    else:
        print(text_of(looked.facts, looked.findings, whole=arguments.all))
    return exit_code(looked.findings, strict=arguments.strict)


def _named(arguments: argparse.Namespace) -> list[Given]:
    """Return the files that the command line names."""
    files_of = {"debsecan": arguments.debsecan, "osv": arguments.osv, "tracker": arguments.tracker}
    return [Given(kind, path) for kind, paths in files_of.items() for path in paths]


def exit_code(findings: Sequence[Finding], *, strict: bool) -> int:
    """Return 3 when a finding that was not accepted has a fix (``strict``: or is more than unimportant), else 0."""
    due = any(finding.open and (finding.fixed or (strict and finding.urgency != "unimportant")) for finding in findings)
    return VerificationFailed.exit_code if due else 0


def text_of(facts: Mapping[str, Any], findings: Sequence[Finding], *, whole: bool) -> str:
    """Return the findings, for people."""
    data = ", ".join(f"{source['kind']} {source['file']}".strip() for source in facts["data"])
    lines = [f"{facts['artifact']}: {facts['packages']} packages of {facts['sources']} sources; data: {data}"]
    fixable = [finding for finding in findings if finding.open and finding.fixed]
    rest = [finding for finding in findings if finding.open and not finding.fixed]
    taken = [finding for finding in findings if not finding.open]
    lines += [_line(finding) for finding in findings if whole or finding in fixable]
    counts = Counter(finding.urgency for finding in rest)
    lines.append(
        f"{len(fixable)} with a fix; {len(rest)} without"
        + (f" ({', '.join(f'{counts[name]} {name}' for name in URGENCIES if counts[name])})" if rest else "")
        + f"; {len(taken)} accepted" + ("" if whole or not (rest or taken) else "   (--all lists every one)")
    )  # fmt: skip
    lines += [f"note: {name} is accepted in {accepted.PAGE} and found no more" for name in facts["needless"]]
    if facts["uncertain"]:
        lines.append(f"note: the source of {len(facts['uncertain'])} packages was guessed from their paths in the archive")
    lines += [f"note: {text}" for text in facts["not_covered"]]
    if any(finding.in_lock for finding in fixable):
        lines.append("-> the committed lock has fixes already: nox -s build")
    if any(not finding.in_lock for finding in fixable):
        lines.append(f"-> nox -s lock, then nox -s build; or accept one for a time, with a reason, in {accepted.PAGE}")
    return "\n".join(lines)


def _line(finding: Finding) -> str:
    where = f"inside {', '.join(finding.packages)}" if finding.inside else ", ".join(finding.packages)
    fix = f"fixed in {finding.fixed}" if finding.fixed else "no fix"
    fix += ", which the committed lock has" if finding.fixed and finding.in_lock else ""
    parts = [f"{finding.urgency:<11} {finding.id:<15} {finding.source} {finding.version} ({where}): {fix}"]
    parts += [finding.note] if finding.note else []
    if finding.accepted:
        parts.append(f"accepted: {finding.accepted}{' (until a day that is over)' if finding.expired else ''}")
    return "; ".join(parts)
