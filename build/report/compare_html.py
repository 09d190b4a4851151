"""A comparison as HTML: a separate page, or a part of another page."""

from __future__ import annotations

from build.report import html
from build.report.compare import Comparison
from build.report.compare_text import counts, groups, missing

# A browser could show more, but longer tables are not useful to the reader.
MOST_ROWS = 2000
_BODY = """
{% for section in shown %}
<section id="diff-{{ section.key }}"><h{{ level }}>{{ section.title }}: {{ counts(section) }}{{ " (measured in each build)" if section.measured }}</h{{ level }}>
{% if section.key == "files" and section.changes | length > 40 %}
<div class="wide"><table><caption>Changed paths by directory</caption>
<thead><tr><th scope="col">Directory</th><th scope="col">Changes</th></tr></thead><tbody>
{% for group in groups(section.changes) %}
<tr><th scope="row"><code>{{ group.place }}</code></th><td class="id">{{ group.shown }}</td></tr>
{% endfor %}
</tbody></table></div>
{% endif %}
<details{{ " open" if section.changes | length <= 40 }}><summary>{{ section.changes | length }} changes</summary>
<div class="wide"><table>
<thead><tr><th scope="col">Change</th><th scope="col">Name</th><th scope="col">Before</th><th scope="col">After</th></tr></thead><tbody>
{% for change in section.changes[:most] %}
<tr><td class="{{ change.kind }} id">{{ change.kind }}</td><th scope="row"><code>{{ change.name }}</code>
{% if change.notes %}<ul class="notes">{% for note in change.notes %}<li>{{ note }}</li>{% endfor %}</ul>{% endif %}</th>
<td>{{ change.before }}</td><td>{{ change.after }}</td></tr>
{% endfor %}
</tbody></table></div>
{% if section.changes | length > most %}<p>{{ section.changes | length - most }} more: <code>nox -s diff -- {{ before }} {{ after }} --all</code></p>{% endif %}
</details></section>
{% endfor %}
{% if same %}<p>The same: {{ same | join(", ") }}.</p>{% endif %}
{% for why, titles in missing.items() %}<p>Not compared: {{ titles | join(", ") }}: {{ why }}.</p>{% endfor %}
{% if not shown %}<p>Nothing differs.</p>{% endif %}
"""
_HEAD = """<h1>{{ before }} → {{ after }}</h1>
<div class="wide"><table><caption>The two artifacts</caption>
<thead><tr><th scope="col"></th><th scope="col">Before</th><th scope="col">After</th></tr></thead><tbody>
<tr><th scope="row">Version</th><td>{{ old.version }}</td><td>{{ new.version }}</td></tr>
<tr><th scope="row">SHA-256</th><td><code>{{ old.image.sha256 }}</code></td><td><code>{{ new.image.sha256 }}</code></td></tr>
<tr><th scope="row">Archive as of</th><td>{{ old.inputs.archive_date }}</td><td>{{ new.inputs.archive_date }}</td></tr>
</tbody></table></div>
"""


def page(comparison: Comparison) -> str:
    """Return the comparison as a separate page."""
    before, after = comparison.before, comparison.after
    head = html.environment().from_string(_HEAD).render(
        before=before.name, after=after.name, old=before.manifest, new=after.manifest
    )  # fmt: skip
    return html.document(f"{before.name} → {after.name}", head + part(comparison, level=2))


def part(comparison: Comparison, *, level: int, most: int = MOST_ROWS) -> str:
    """Return the sections as HTML with headings of ``level``, and at most ``most`` changes of each section."""
    return html.environment().from_string(_BODY).render(
        shown=[section for section in comparison.sections if section.changes],
        same=[section.title for section in comparison.sections if not section.changes and not section.missing],
        missing=missing(comparison), counts=counts, groups=groups, level=level, most=most,
        before=comparison.before.name, after=comparison.after.name,
    )  # fmt: skip
