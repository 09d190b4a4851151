"""Runs Debian's debsecan, which downloads its own data, for the packages of the image instead of this host's."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from build.core import run
from build.core.errors import CommandFailed, StepFailed
from build.vulnerabilities.feeds import UNNAMED, Component, Known

TOOL = "debsecan"
ASK_SECONDS = 300
_LINE = re.compile(r"(?P<id>[A-Z]+-\S+) (?P<package>[a-z0-9][a-z0-9+.-]*)(?: \((?P<notes>[^)]*)\))?")


def installed() -> bool:
    """Return True if debsecan is installed."""
    return shutil.which(TOOL, path=run.search_path()) is not None


def ask(release: str, components: Sequence[Component]) -> Iterator[Known]:
    """Yield the vulnerabilities that debsecan lists for the components.

    Raises StepFailed if it cannot download its data.

    Its format "summary" (debsecan(1)): id, package, and in brackets "fixed", "remotely exploitable", "high urgency",
    "obsolete". It names no versions.
    """
    main_components = [component for component in components if not component.inside]
    by_package = {package: component for component in main_components for package in component.packages}
    with tempfile.TemporaryDirectory() as scratch:
        status = Path(scratch) / "status"
        status.write_text("\n".join(_stanzas(main_components)), encoding="utf-8")
        try:
            done = run.run([TOOL, "--suite", release, "--status", status, "--format", "summary"], timeout=ASK_SECONDS)
        except CommandFailed as error:
            raise StepFailed(
                "debsecan failed: known vulnerabilities were not checked", details=error.details,
                hint="check that its data source is reachable, or use data from a file: --debsecan, --osv, --tracker",
            ) from error  # fmt: skip
    for line in done.stdout.splitlines():
        match = _LINE.fullmatch(line.strip())
        if not match or match["package"] not in by_package:
            raise StepFailed(f"unknown output of debsecan: {line!r}")
        notes = (match["notes"] or "").split(", ")
        urgency = next((note.removesuffix(" urgency") for note in notes if note.endswith(" urgency")), "unassigned")
        fixed = UNNAMED if "fixed" in notes else ""
        yield Known(match["id"], by_package[match["package"]], urgency, fixed)


def _stanzas(components: Sequence[Component]) -> Iterator[str]:
    for component in components:
        for package, version in component.packages.items():
            yield (
                f"Package: {package}\nStatus: install ok installed\nArchitecture: amd64\n"
                f"Source: {component.source} ({component.version})\nVersion: {version}\n"
            )
