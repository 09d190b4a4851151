"""The machines as one HTML page, for example for a wall display, and as text."""

from __future__ import annotations

from collections.abc import Sequence

from build.fleet import fleet
from build.fleet.fleet import Fact
from build.report import html

_BODY = """<h1>{{ product }}: {{ facts | length }} machines</h1>
<p class="faint">{{ time }}; {{ attention }} need attention</p>
<div class="wide"><table><caption>The machines</caption>
<thead><tr>{% for title in titles %}<th scope="col">{{ title }}</th>{% endfor %}</tr></thead><tbody>
{% for fact in facts %}
<tr><th scope="row">{{ fact.name }}<br><code>{{ fact.node }}/{{ fact.vmid }}</code></th>
{% for cell in cells(fact) %}<td>{{ cell }}</td>{% endfor %}
<td>{% if fact.problem %}<span class="failed">{{ fact.problem }}</span>{% endif %}
{% if fact.differences %}<ul class="notes">{% for difference in fact.differences %}
<li>{{ difference.what }}{% if difference.since %} ({{ difference.since }}){% endif %}</li>{% endfor %}</ul>
{% elif not fact.problem %}<span class="passed">as it should be</span>{% endif %}</td></tr>
{% endfor %}
</tbody></table></div>
"""
TITLES = ("Machine", "State", "System", "Channels", "Checks", "Backup", "Certificate", "Data disk", "Differences")
UNKNOWN = "-"


def cells(fact: Fact) -> list[str]:
    """Return the text of a machine for each column between its name and its differences."""
    checks = {True: "passed", False: "failed", None: UNKNOWN}[fact.healthy]
    left = fleet.days_left(fact.certificate_until)
    age = fleet.days_left(fact.backup)
    return [
        f"{fact.status}, kept" if fact.kept else fact.status,
        (fact.template or UNKNOWN) + (" (revoked)" if fact.revoked else ""),
        ", ".join(fact.channels) or UNKNOWN, checks, UNKNOWN if age is None else f"{max(0, -age - 1)} d old",
        UNKNOWN if left is None else f"{left} d", f"{fact.data_gib} GiB" if fact.data_gib else UNKNOWN,
    ]  # fmt: skip


def page(product: str, facts: Sequence[Fact], *, time: str) -> str:
    """Return one HTML page, without scripts and requests."""
    body = html.environment().from_string(_BODY).render(
        product=product, facts=facts, time=time, titles=TITLES, cells=cells, attention=len(fleet.attention(facts))
    )  # fmt: skip
    return html.document(f"{product}: machines", body)


def text(facts: Sequence[Fact]) -> str:
    """Return the machines as a table, with the differences below each."""
    if not facts:
        return "no machine that this token may see: clone one, or check the token with nox -s doctor -- --proxmox"
    rows = [[f"{fact.name} {fact.node}/{fact.vmid}", *cells(fact)] for fact in facts]
    table = [list(TITLES[:-1]), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(TITLES) - 1)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(table[0], widths, strict=True)).rstrip()]
    for fact, row in zip(facts, rows, strict=True):
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        lines += differences(fact)
    return "\n".join(lines)


def differences(fact: Fact) -> list[str]:
    """Return the lines with the differences of a machine."""
    since = [f"  {entry.what}" + (f" (known since {entry.since})" if entry.since else "") for entry in fact.differences]
    return since + ([f"  {fact.problem}"] if fact.problem else [])
