"""The verification report: one HTML page that stands alone, from the JUnit file and the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jinja2

from build.log import seconds

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{{ manifest.name }} {{ manifest.version }}: verification</title>
<style>
  body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #1c1c1c; }
  h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
  table { border-collapse: collapse; width: 100%; } th, td { text-align: left; padding: .25rem .75rem .25rem 0; vertical-align: top; }
  tr + tr td { border-top: 1px solid #e2e2e2; } code { font-size: .9em; overflow-wrap: anywhere; }
  .passed { color: #1a6b2f; } .failed { color: #b00020; font-weight: 600; } .skipped { color: #7a5a00; }
</style>
<h1>{{ manifest.name }} {{ manifest.version }}</h1>
<p><strong class="{{ 'failed' if counts.failed else 'passed' }}">{{ counts.passed }} passed, {{ counts.failed }} failed,
{{ counts.skipped }} skipped</strong> on {{ manifest.verification.clones | length }} clones booted from the sealed disk.</p>
<h2>Image</h2>
<table>
<tr><td>SHA-256</td><td><code>{{ manifest.image.sha256 }}</code></td></tr>
<tr><td>Size</td><td>{{ "%.0f" | format(manifest.image.bytes / 1e6) }} MB compressed, {{ manifest.image.virtual_mib }} MiB virtual</td></tr>
<tr><td>Packages</td><td>{{ manifest.packages | length }}, archive as of {{ manifest.inputs.archive_date }}</td></tr>
<tr><td>Pending updates</td><td>{{ updates }}</td></tr>
<tr><td>Accelerator</td><td>{{ manifest.accelerator.kind }}: {{ manifest.accelerator.reason }}</td></tr>
<tr><td>Retries</td><td>{{ manifest.retries.installer }} of the installer, {{ manifest.retries.clones }} of the clones</td></tr>
</table>
<h2>Stages</h2>
<table><tr><th>Stage</th><th>Took</th><th></th></tr>
{% for stage in manifest.stages -%}
<tr><td>{{ stage.stage }}</td><td>{{ stage.seconds | seconds }}</td><td>{{ "from the cache" if stage.reused else "" }}</td></tr>
{% endfor %}</table>
<h2>Boot of the clones</h2>
<table>
{% for name, times in manifest.verification.boot | dictsort -%}
<tr><td>{{ name }}</td><td>{% for what, value in times | dictsort(by="value") %}{{ what }} after {{ value }} s{{ ", " if not loop.last }}{% endfor %}</td></tr>
{% endfor %}</table>
{% if manifest.audit -%}
<h2>Auditors</h2>
<p>What the auditors of <code>nox -s audit</code> have measured on a clone and hold every image to.</p>
<table><tr><th>Figure</th><th>Is</th><th>Must be</th></tr>
{% for name, figure in manifest.audit | dictsort -%}
<tr><td><code>{{ name }}</code></td><td>{{ figure.shown }}</td><td>{{ figure.limit }}</td></tr>
{% endfor %}</table>
{% endif -%}
<h2>Tests</h2>
<p>Beside each result stands the clone that was tested; "container" is one of the same root file system, which plays long
stories where clones are emulated.</p>
<table><tr><th>Result</th><th>Test</th><th>Requirements</th></tr>
{% for case in cases -%}
<tr><td class="{{ case.result }}">{{ case.result }}{{ " (%s)" % case.place if case.place }}</td><td>{{ case.title }}<br><code>{{ case.name }}</code>
{%- if case.message %}<br>{{ case.message }}{% endif %}</td><td>{{ case.requirements }}</td></tr>
{% endfor %}</table>
</html>
"""


@dataclass(frozen=True)
class Case:
    """One test of the JUnit file."""

    name: str
    title: str
    requirements: str
    place: str
    result: str
    message: str


def read_cases(junit: Path) -> list[Case]:
    """Return the tests of a JUnit file, failures first, then by name."""
    cases = [_case(element) for element in ElementTree.parse(junit).getroot().iter("testcase")]
    order = {"failed": 0, "skipped": 1, "passed": 2}
    return sorted(cases, key=lambda case: (order[case.result], case.name))


def _case(element: ElementTree.Element) -> Case:
    result, message = "passed", ""
    for tag, verdict in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
        found = element.find(tag)
        if found is not None:
            result, message = verdict, found.get("message") or ""
    properties = {item.get("name"): item.get("value") or "" for item in element.iter("property")}
    module = (element.get("classname") or "").rsplit(".", 1)[-1]
    name = f"{module}::{element.get('name')}"
    return Case(name, properties.get("title") or name, properties.get("requirements") or "", properties.get("place") or "", result, message)


def render(junit: Path, manifest: Mapping[str, Any]) -> str:
    """Return the report as an HTML page without any outside reference."""
    cases = read_cases(junit)
    counts = {result: sum(case.result == result for case in cases) for result in ("passed", "failed", "skipped")}
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=True)
    environment.filters["seconds"] = seconds
    return environment.from_string(_PAGE).render(
        manifest=manifest, cases=cases, counts=counts, updates=pending(manifest)
    )


def pending(manifest: Mapping[str, Any]) -> str:
    """Return what is known of the updates that were pending when the image was built; never silence."""
    updates = manifest.get("updates") or {"looked": False, "reason": "the manifest does not say"}
    if not updates["looked"]:
        return f"not looked at: {updates['reason']}"
    return "; ".join(_pending_of(one) for one in updates["sets"])


def _pending_of(one: Mapping[str, Any]) -> str:
    if one["problem"]:
        return f"{one['set']}: not looked at: {one['problem']}"
    fixes = [f"{update['package']} {update['candidate']}" for update in one["updates"] if update["security"]]
    others = len(one["updates"]) - len(fixes)
    said = f"{one['set']}: {len(fixes)} security{' (' + ', '.join(fixes) + ')' if fixes else ''}, {others} other"
    return f"{said}, archive as of {one['archive_as_of']}"
