"""Common parts of the HTML pages: single files without scripts and network access; light, dark, and for print."""

from __future__ import annotations

import html

import jinja2
from markupsafe import Markup

from build.core.log import seconds

# The page may use only its inline style: text from other sources in it cannot load or run anything.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
STYLE = """
:root { color-scheme: light dark; --text: #1c1c1c; --back: #fff; --faint: #5c5c5c; --rule: #d8d8d8; --bar: #3b6ea5;
  --good: #1a6b2f; --bad: #b00020; --odd: #7a5a00; --box: #f5f5f3; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e6e6; --back: #161618; --faint: #a8a8a8; --rule: #3a3a3e;
  --bar: #7fb0e6; --good: #7ed492; --bad: #ff8a95; --odd: #e3c15a; --box: #1f1f23; } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: var(--text);
  background: var(--back); }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; } h3 { font-size: 1rem; margin-bottom: .3rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1rem; list-style: none; padding: 0; }
a { color: inherit; }
.wide { overflow-x: auto; margin: .5rem 0; } .tall { max-height: 40rem; overflow: auto; border: 1px solid var(--rule); }
table { border-collapse: collapse; width: 100%; }
caption { text-align: left; color: var(--faint); padding-bottom: .25rem; }
th, td { text-align: left; padding: .25rem .75rem .25rem 0; vertical-align: top; font-weight: normal; }
thead th { font-weight: 600; } tbody tr { border-top: 1px solid var(--rule); }
td, th { overflow-wrap: break-word; } .id { white-space: nowrap; }
code { font-size: .9em; overflow-wrap: anywhere; }
.passed, .added { color: var(--good); } .failed, .removed { color: var(--bad); font-weight: 600; }
.skipped, .changed { color: var(--odd); } .faint { color: var(--faint); }
details > summary { cursor: pointer; } ul.notes { margin: .2rem 0; padding-left: 1.2rem; color: var(--faint); }
svg.plot { display: block; } svg.plot text { fill: var(--text); font-family: system-ui, sans-serif; }
svg.plot .bar { fill: var(--bar); } svg.plot .mark { stroke: var(--rule); } svg.plot circle { fill: var(--bar); }
svg.plot .line { fill: none; stroke: var(--bar); stroke-width: 1.5; }
.boot { background: #fff; color: #000; } .boot text { font: 14px sans-serif; } .boot .right { text-anchor: end; }
.boot .sec { font-size: 10px; } .boot line { stroke: #ccc; } .boot rect.background { fill: #fff; }
.boot rect.box { fill: #f4f4f4; } .boot rect.activating { fill: #e03030; } .boot rect.active { fill: #d8b0b0; }
.boot rect.deactivating { fill: #966; } .boot rect.generators, .boot rect.unitsload { fill: #6cf; }
.boot rect.security { fill: #9e9; }
.boot rect.kernel, .boot rect.initrd, .boot rect.firmware, .boot rect.loader, .boot rect.userspace { fill: #bbb; }
@media print { :root { --text: #000; --back: #fff; --faint: #444; --rule: #bbb; --bar: #3b6ea5; --good: #1a6b2f;
  --bad: #b00020; --odd: #7a5a00; } body { margin: 0; max-width: none; font-size: 10pt; } nav, .screen { display: none; }
  svg.plot { max-width: 100%; height: auto; } .wide { overflow: visible; }
  td, th { overflow-wrap: anywhere; } tr, figure, svg.plot { break-inside: avoid; }
  h2, h3 { break-after: avoid; } thead { display: table-header-group; } }
@media (max-width: 40rem) { body { margin: 1rem auto; } th, td { padding-right: .4rem; } }
"""


def environment() -> jinja2.Environment:
    """Return the templates' environment: everything is escaped, and an undefined name is an error."""
    result = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    result.filters["seconds"] = seconds
    return result


def document(title: str, body: str) -> str:
    """Return a whole page; ``body`` is HTML that is already escaped."""
    head = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n<title>{html.escape(title)}</title>'
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n{head}\n<style>{STYLE}</style>\n</head>\n'
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def trusted(markup: str) -> Markup:
    """Mark HTML or SVG that Goldsmith made as safe for a template, which escapes everything else."""
    return Markup(markup)  # noqa: S704 (only for output of build/report/plots.py, build/verify/boot_plot.py and the templates)
