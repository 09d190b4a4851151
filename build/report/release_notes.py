"""Generates release notes: Markdown from the comparison with the previous artifact."""

from __future__ import annotations

import re
from collections.abc import Callable

from build.artifact.contents import Side
from build.artifact.manifest import Manifest
from build.core.log import seconds
from build.packages.changelogs import Changelogs
from build.report.compare import Change, Comparison, Section
from build.report.compare_text import counts, missing

# Longer lists are cut; `nox -s diff` shows all of them.
MOST_CHANGES = 40
MOST_LINES = 4
LEFT_OUT = ("packages", "files", "requirements", "tests", "audit", "sizes", "boot", "stages", "installer")


def render(new: Side, comparison: Comparison | None, changelogs: Changelogs) -> str:
    """Return the release note for ``new``; without a comparison it is the first release."""
    manifest = new.manifest
    parts = [f"# {_plain(manifest.name)} {_plain(manifest.version)}", _summary(new, comparison)]
    if comparison is not None:
        parts += [
            _security(comparison.section("packages"), changelogs), _packages(comparison.section("packages")),
            _requirements(comparison.section("requirements")),
            *(_list(section) for section in comparison.sections if section.key not in LEFT_OUT and section.changes),
            _files(comparison),
        ]  # fmt: skip
    parts += [_audit(manifest, comparison), _measures(new, comparison), _verify(new)]
    if comparison is not None:
        parts += [f"_Not compared: {', '.join(titles)}: {_plain(why)}._" for why, titles in missing(comparison).items()]
    return "\n\n".join(part for part in parts if part) + "\n"


def _summary(new: Side, comparison: Comparison | None) -> str:
    manifest = new.manifest
    passed, clones = manifest.verification.passed, len(manifest.verification.clones)
    verified = f"It passed {passed} tests on {clones} clones; packages as of {manifest.inputs.archive_date[:10]}."
    if comparison is None:
        return f"The first release: there is no earlier artifact to compare it with. {verified}"
    if not comparison.differs:
        return f"Nothing differs from `{comparison.before.name}`. {verified}"
    shown = [f"{section.title.split(' (')[0].lower()}: {counts(section)}" for section in comparison.sections
            if section.changes and not section.measured]  # fmt: skip
    return f"Compared with `{comparison.before.name}`: {'; '.join(shown)}. {verified}"


def _security(packages: Section, changelogs: Changelogs) -> str:
    """Return the vulnerabilities that are listed in the changelogs of changed packages."""
    sources: dict[str, tuple[str, set[str]]] = {}
    unknown = []
    for change in packages.changes:
        if change.kind != "changed":
            continue
        entries = changelogs.entries(change.name, change.before, change.after)
        if entries is None:
            unknown.append(change.name)
        elif cves := {cve for entry in entries for cve in entry.cves}:
            _, known = sources.setdefault(changelogs.source(change.name), (f"{change.before} → {change.after}", set()))
            known |= cves
    lines = [
        f"- {_plain(source)} {_plain(versions)}: {', '.join(sorted(cves))}"
        for source, (versions, cves) in sorted(sources.items())
    ]
    if unknown:
        lines.append(f"- No changelog is available for {', '.join(_plain(name) for name in unknown)}.")
    return _titled("Security fixes, by Debian's changelogs", lines or ["None is listed."] if packages.changes else [])


def _packages(packages: Section) -> str:
    lines = []
    for change in packages.changes[:MOST_CHANGES]:
        lines.append(_line(change))
        lines += [f"  - {_plain(note)}" for note in change.notes[:MOST_LINES]]
    return _titled(f"Packages: {counts(packages)}", _cut(lines, packages)) if packages.changes else ""


def _requirements(section: Section) -> str:
    lines = [f"{_line(change)}{': ' + _plain(change.notes[0]) if change.notes else ''}" for change in section.changes]
    return _titled(f"Requirements: {counts(section)}", lines) if lines else ""


def _list(section: Section) -> str:
    lines = [_line(change) for change in section.changes[:MOST_CHANGES]]
    return _titled(f"{section.title}: {counts(section)}", _cut(lines, section))


def _cut(lines: list[str], section: Section) -> list[str]:
    more = len(section.changes) - MOST_CHANGES
    return lines + ([f"- and {more} more"] if more > 0 else [])


def _files(comparison: Comparison) -> str:
    section = comparison.section("files")
    command = f"nox -s diff -- {comparison.before.name} {comparison.after.name}"
    return _titled("Files", [f"{counts(section)}. All of it: `{command}`"]) if section.changes else ""


def _audit(manifest: Manifest, comparison: Comparison | None) -> str:
    figures = manifest.audit or {}
    if not figures:
        return _titled("Auditors", ["No audit is recorded for this image."])
    before = (comparison.before.manifest.audit or {}) if comparison is not None else {}
    lines = ["| metric | is | was | must be |", "|---|---|---|---|"]
    for name, metric in sorted(figures.items()):
        was = before[name].shown if name in before else ""
        lines.append(f"| {_plain(name)} | {_plain(metric.shown)} | {_plain(was)} | {_plain(metric.limit)} |")
    return _titled("Auditors", lines)


def _measures(new: Side, comparison: Comparison | None) -> str:
    manifest = new.manifest
    lines = [f"- image: {_megabytes(manifest)}{_was(comparison, _megabytes)}"]
    boot = _ready(manifest)
    if boot:
        lines.append(f"- first boot of a clone, {manifest.accelerator.kind}: {boot}{_was(comparison, _ready)}")
    return _titled("Size and boot", lines)


def _megabytes(manifest: Manifest) -> str:
    return f"{manifest.image.bytes / 1e6:.1f} MB"


def _ready(manifest: Manifest) -> str:
    times = manifest.verification.ready_seconds
    return seconds(max(times)) if times else ""


def _was(comparison: Comparison | None, ask: Callable[[Manifest], str]) -> str:
    return f" (was {ask(comparison.before.manifest)})" if comparison is not None else ""


def _verify(new: Side) -> str:
    manifest = new.manifest
    return _titled("How to verify it", [
        f"The image's SHA-256 is `{manifest.image.sha256}`. Every file of the artifact is in `SHA256SUMS`; Goldsmith",
        "verifies the rest offline too: signatures, provenance, SBOMs, locks, tests.",
        "",
        "```sh",
        f"(cd artifacts/{new.name} && sha256sum --check --strict SHA256SUMS)",
        f"nox -s verify-artifact -- artifacts/{new.name}",
        "```",
    ])  # fmt: skip


def _titled(title: str, lines: list[str]) -> str:
    return f"## {_plain(title)}\n\n" + "\n".join(lines) if lines else ""


def _line(change: Change) -> str:
    if change.kind == "changed":
        return f"- `{_code(change.name)}` {_plain(change.before)} → {_plain(change.after)}"
    return f"- {change.kind}: `{_code(change.name)}` {_plain(change.before or change.after)}"


def _plain(text: object) -> str:
    """Return text escaped for Markdown."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " ".join(str(text).split()))


def _code(text: str) -> str:
    return text.replace("`", "'")
