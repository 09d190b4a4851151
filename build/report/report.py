"""The report of an artifact: a single HTML page, from the files of this artifact and of earlier ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from build.artifact import artifact
from build.artifact.contents import Side
from build.artifact.manifest import AuditFigure, Manifest
from build.core.errors import StepFailed
from build.core.junit import cases_of
from build.core.log import seconds
from build.packages.updates import Looked, PendingUpdates
from build.report import compare_html, html, plots
from build.report.compare import Comparison
from build.report.plots import Bar, Span
from build.report.requirements import Requirement
from build.verify import boot_plot, inventory

# The number of changes of each kind on the page; `nox -s diff` shows all.
MOST_CHANGES = 100
MOST_DIRECTORIES = 16
MOST_UNITS = 30
MOST_TRENDS = 40
UNTESTED = "not by the image's tests"

_PAGE = """
<header><h1>{{ manifest.name }} {{ manifest.version }}</h1>
<p><strong class="{{ 'failed' if counts.failed else 'passed' }}">{{ counts.passed }} passed, {{ counts.failed }} failed,
{{ counts.skipped }} skipped</strong> on {{ manifest.verification.clones | length }} clones booted from the pristine disk.</p></header>
<nav aria-label="Contents"><ul>{% for id, title in contents %}<li><a href="#{{ id }}">{{ title }}</a></li>{% endfor %}</ul></nav>
<main>
<section id="image"><h2>Image</h2>
<table><caption>What was built</caption><thead><tr><th scope="col">What</th><th scope="col">Is</th></tr></thead><tbody>
<tr><th scope="row">Artifact</th><td><code>{{ name }}</code></td></tr>
<tr><th scope="row">SHA-256</th><td><code>{{ manifest.image.sha256 }}</code></td></tr>
<tr><th scope="row">Size</th><td>{{ "%.0f" | format(manifest.image.bytes / 1e6) }} MB compressed, {{ manifest.image.virtual_mib }} MiB virtual</td></tr>
<tr><th scope="row">Packages</th><td>{{ manifest.packages | length }}, archive as of {{ manifest.inputs.archive_date }}</td></tr>
<tr><th scope="row">Pending updates</th><td>{{ updates }}</td></tr>
<tr><th scope="row">Accelerator</th><td>{{ manifest.accelerator.kind }}: {{ manifest.accelerator.reason }}</td></tr>
<tr><th scope="row">Retries</th><td>{{ manifest.retries.installer }} of the installer, {{ manifest.retries.clones }} of the clones</td></tr>
</tbody></table></section>
<section id="requirements"><h2>Requirements</h2>
{% if requirements %}
<p>{{ proven }} of {{ requirements | length }} are proven by the tests that ran on the clones; {{ absent }} do not apply, because their layers are not in the image; the others are proven by tests of Goldsmith itself.</p>
<div class="wide"><table><caption>Requirements and the worst result of the tests that prove each</caption>
<thead><tr><th scope="col">Id</th><th scope="col">Requirement</th><th scope="col">Result</th></tr></thead><tbody>
{% for requirement, result, reason in requirements %}
<tr><th scope="row" class="id">{{ requirement.name }}</th><td>{{ requirement.text }}{% if requirement.deviation %} <span class="faint">Deviation: {{ requirement.deviation }}</span>{% endif %}</td>
<td class="{{ result or 'faint' }}">{{ result or ("does not apply: " + reason if reason else untested) }}</td></tr>
{% endfor %}
</tbody></table></div>
{% else %}<p>The list of requirements was not available.</p>{% endif %}</section>
<section id="audit"><h2>Auditors</h2>
{% if metrics %}
<p>The metrics that <code>nox -s audit</code> measured on a clone, and the limits for every image.</p>
<div class="wide"><table><caption>Metrics over {{ releases | length }} stored release{{ "s" if releases | length != 1 }}, the oldest at the left</caption>
<thead><tr><th scope="col">Metric</th><th scope="col">Is</th><th scope="col">Must be</th><th scope="col">Trend</th></tr></thead><tbody>
{% for name, metric, plot in metrics %}
<tr><th scope="row"><code>{{ name }}</code></th><td>{{ metric.shown }}</td><td>{{ metric.limit }}</td><td>{{ plot }}</td></tr>
{% endfor %}
</tbody></table></div>
{% else %}<p>No audit is recorded for this image.</p>{% endif %}</section>
<section id="trend"><h2>Over the stored releases</h2>
<div class="wide"><table><caption>{{ releases | join(", ") }}</caption>
<thead><tr><th scope="col">Measure</th><th scope="col">Trend</th></tr></thead><tbody>
{% for measure, plot in trends %}
<tr><th scope="row">{{ measure }}</th><td>{{ plot }}</td></tr>
{% endfor %}
</tbody></table></div></section>
<section id="stages"><h2>Stages</h2>
<figure class="wide">{{ stages }}</figure>
<p class="faint">The time of a stage from the cache is that of the build in which it ran.</p></section>
<section id="size"><h2>Size</h2>
{% if directories %}<h3>By directory</h3><figure class="wide">{{ directories }}</figure>{% endif %}
{% if packages %}<h3>By package, as downloaded</h3><figure class="wide">{{ packages }}</figure>{% endif %}
{% if not directories %}<p>The list of files was not available.</p>{% endif %}</section>
<section id="boot"><h2>Boot</h2>
<table><caption>First boot of the clones, seen from outside</caption>
<thead><tr><th scope="col">Clone</th><th scope="col">What</th></tr></thead><tbody>
{% for clone, times in manifest.verification.boot | dictsort %}
<tr><th scope="row">{{ clone }}</th><td>{% for what, value in times | dictsort(by="value") %}{{ what }} after {{ value }} s{{ ", " if not loop.last }}{% endfor %}</td></tr>
{% endfor %}
</tbody></table>
{% if startup %}
<h3>Inside clone {{ clone }}: {{ startup }}</h3>
<figure class="wide">{{ timeline }}<figcaption class="faint">The {{ shown_units }} units that took longest, by systemd-analyze, ordered by their start.</figcaption></figure>
{% endif %}
{% if boot_svg %}
<details class="screen"><summary>The whole plot of systemd-analyze</summary><div class="tall boot" tabindex="0" role="region" aria-label="Plot of systemd-analyze">{{ boot_svg }}</div></details>
{% endif %}
{% if not startup %}<p>This artifact has no <code>inventory.json</code>: it was made by an older version of Goldsmith.</p>{% endif %}</section>
<section id="changes"><h2>Since the previous release</h2>
{% if changes %}<p>Compared with <code>{{ before }}</code>.</p>{{ changes }}{% else %}<p>There is no earlier artifact.</p>{% endif %}</section>
<section id="tests"><h2>Tests</h2>
<p>Each result has the tested clone in parentheses; "container" is a container with the same root file system, in which long
tests run when the clones are emulated.</p>
<div class="wide"><table><caption>{{ cases | length }} tests, failures first</caption>
<thead><tr><th scope="col">Result</th><th scope="col">Test</th><th scope="col">Requirements</th></tr></thead><tbody>
{% for case in cases %}
<tr><td class="{{ case.result }} id">{{ case.result }}{{ " (%s)" % case.place if case.place }}</td><th scope="row">{{ case.title }}<br><code>{{ case.name }}</code>
{%- if case.message %}<br>{{ case.message }}{% endif %}</th><td>{{ case.requirements }}</td></tr>
{% endfor %}
</tbody></table></div></section>
</main>
"""
_CONTENTS = (
    ("image", "Image"), ("requirements", "Requirements"), ("audit", "Auditors"), ("trend", "Trend"), ("stages", "Stages"),
    ("size", "Size"), ("boot", "Boot"), ("changes", "Changes"), ("tests", "Tests"),
)  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One artifact of the series of releases: its name, and its manifest."""

    name: str
    manifest: Manifest


def render(
    side: Side, *, earlier: Sequence[Side], comparison: Comparison | None, requirements: Sequence[Requirement],
    absent: Mapping[str, str] | None = None,
) -> str:  # fmt: skip
    """Return the page of an artifact; ``earlier``: the artifacts of the same name made before it, the oldest first.

    ``absent``: the requirements that do not apply to the image, and why.

    Raises StepFailed when the artifact lacks its test results.
    """
    junit = side.read(artifact.JUNIT)
    if junit is None:
        raise StepFailed(
            f"{side.name} has no {artifact.JUNIT}", hint="compare the artifact with its checksums: nox -s check"
        )
    manifest, cases = side.manifest, cases_of(junit)
    releases = [*(Point(entry.name, entry.manifest) for entry in earlier), Point(side.name, manifest)][-MOST_TRENDS:]
    results = side.requirements or {}
    body = html.environment().from_string(_PAGE).render(
        manifest=manifest, name=side.name, contents=_CONTENTS, cases=cases, untested=UNTESTED,
        counts={result: sum(case.result == result for case in cases) for result in ("passed", "failed", "skipped")},
        requirements=[
            (requirement, results.get(requirement.name, ""), (absent or {}).get(requirement.name, ""))
            for requirement in requirements
        ],
        absent=len(absent or {}),
        updates=pending(manifest.updates),
        proven=sum(results.get(requirement.name) == "passed" for requirement in requirements),
        metrics=_metrics(releases), releases=[point.name for point in releases], trends=_trends(releases),
        stages=_stages(manifest), directories=_directories(side), packages=_packages(side), **_boot(side),
        before=comparison.before.name if comparison else "",
        changes=html.trusted(compare_html.part(comparison, level=3, most=MOST_CHANGES)) if comparison else "",
    )  # fmt: skip
    return html.document(f"{manifest.name} {manifest.version}: report", body)


def _metrics(releases: Sequence[Point]) -> list[tuple[str, AuditFigure, str]]:
    """Return the metrics of the newest artifact with their trend."""
    rows = []
    for name, newest in sorted((releases[-1].manifest.audit or {}).items()):
        values = [
            (point.name, float(metric.value)) for point in releases
            if (metric := (point.manifest.audit or {}).get(name))
        ]  # fmt: skip
        rows.append((name, newest, _spark(values, f"{name} over {len(values)} releases", "g")))
    return rows


def _trends(releases: Sequence[Point]) -> list[tuple[str, str]]:
    """Return the measures that every manifest has, with their trend."""
    measures: dict[str, list[tuple[str, float]]] = {
        "Image, MB": [(release.name, release.manifest.image.bytes / 1e6) for release in releases],
        "Packages": [(release.name, float(len(release.manifest.packages))) for release in releases],
        "Tests passed": [(release.name, float(release.manifest.verification.passed)) for release in releases],
        "First boot of the slower clone, s": [
            (release.name, max(times)) for release in releases
            if (times := release.manifest.verification.ready_seconds)
        ],
        "Stages, s": [(release.name, sum(stage.seconds for stage in release.manifest.stages)) for release in releases],
    }  # fmt: skip
    return [(name, _spark(values, name, ".0f")) for name, values in measures.items() if values]


def _spark(values: Sequence[tuple[str, float]], title: str, form: str) -> str:
    first, last = (f"{value:{form}}" for value in (values[0][1], values[-1][1]))
    description = f"from {first} ({values[0][0]}) to {last} ({values[-1][0]})"
    return html.trusted(plots.sparkline(values, shown=(first, last), title=title, description=description))


def _stages(manifest: Manifest) -> str:
    rows = [
        Bar(stage.stage, stage.seconds, seconds(stage.seconds) + (", from the cache" if stage.reused else ""))
        for stage in manifest.stages
    ]
    return html.trusted(plots.bars(rows, title="Duration of each stage", description=_descriptions(rows)))


def _descriptions(rows: Sequence[Bar]) -> str:
    return "; ".join(f"{row.label}: {row.shown}" for row in rows)


def _directories(side: Side) -> str:
    """Return the largest directories, two levels deep."""
    sizes: dict[str, int] = {}
    for path, columns in (side.paths or {}).items():
        if columns[0] == "file":
            place = "/".join(path.split("/")[:3]) if path.count("/") > 2 else path.rpartition("/")[0] or "/"
            sizes[place] = sizes.get(place, 0) + int(columns[3])
    return _largest(sizes, "directories") if sizes else ""


def _packages(side: Side) -> str:
    """Return the largest packages by the size of the downloaded file, from the lock in the artifact."""
    rows = (line.split("\t") for line in (side.read(artifact.ROOTFS_LOCK) or "").splitlines() if not line.startswith("#"))
    sizes = {row[0]: int(row[4]) for row in rows if len(row) > 4 and row[4].isdigit()}
    return _largest(sizes, "packages") if sizes else ""


def _largest(sizes: Mapping[str, int], what: str) -> str:
    order = sorted(sizes, key=lambda name: -sizes[name])
    rows = [Bar(name, sizes[name], f"{sizes[name] / 1e6:.1f} MB") for name in order[:MOST_DIRECTORIES]]
    if rest := sum(sizes[name] for name in order[MOST_DIRECTORIES:]):
        rows.append(Bar(f"{len(order) - MOST_DIRECTORIES} others", rest, f"{rest / 1e6:.1f} MB"))
    return html.trusted(plots.bars(rows, title=f"The largest {what}", description=_descriptions(rows)))


def _boot(side: Side) -> dict[str, Any]:
    """Return the page's data about the boot inside the clone; empty values when the artifact has no inventory."""
    empty: dict[str, Any] = {"startup": "", "clone": "", "timeline": "", "shown_units": 0, "boot_svg": ""}
    if side.inventory is None:
        return empty
    boot = side.inventory.boot
    longest = sorted(boot.units, key=lambda unit: -unit.seconds)[:MOST_UNITS]
    rows = [
        Span(unit.name, unit.start, unit.seconds, seconds(unit.seconds))
        for unit in sorted(longest, key=lambda unit: unit.start)
    ]
    description = "; ".join(f"{row.label} from {row.start:g} s, for {row.shown}" for row in rows)
    parts = ", ".join(f"{part} {seconds(value)}" for part, value in boot.startup.items())
    svg = side.read(inventory.PLOT)
    return empty | {
        "startup": parts, "clone": side.inventory.clone, "shown_units": len(rows),
        "timeline": html.trusted(plots.timeline(rows, title="Units that took longest to start", description=description)),
        "boot_svg": html.trusted(boot_plot.embedded(svg, title="The boot, by systemd-analyze plot")) if svg else "",
    }  # fmt: skip


def pending(updates: PendingUpdates | None) -> str:
    """Return the updates that were pending when the image was built, or why they are not known; never empty."""
    if updates is None or not updates.looked:
        return f"not checked: {(updates and updates.reason) or 'the manifest has no record of it'}"
    return "; ".join(_pending_of(looked) for looked in updates.sets or ())


def _pending_of(looked: Looked) -> str:
    if looked.problem:
        return f"{looked.set}: not checked: {looked.problem}"
    fixes = [f"{update.package} {update.candidate}" for update in looked.security]
    text = f"{looked.set}: {len(fixes)} security{' (' + ', '.join(fixes) + ')' if fixes else ''}, {len(looked.other)} other"
    return f"{text}, archive as of {looked.archive_as_of}"
