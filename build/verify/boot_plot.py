"""The plot of ``systemd-analyze plot``: what it shows, read as data, and the plot itself with nothing in it that acts.

It comes from a machine, and is shown in a browser: only shapes and text that are named here are kept, each attribute only
when its value is a plain one; scripts, links, styles and references are left out by being not named.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from xml.etree import ElementTree

from build.core.errors import StepFailed

SVG = "http://www.w3.org/2000/svg"
# analyze-plot.c of systemd: a second is so many pixels wide.
PIXELS_PER_SECOND = 100.0
TAGS = {"svg", "g", "title", "rect", "line", "text"}
ATTRIBUTES = {"x", "y", "x1", "x2", "y1", "y2", "width", "height", "class", "transform", "version"}
PLAIN = re.compile(r"[-A-Za-z0-9 .,()%]*")
# A line every tenth of a second: ten thousand of them in a slow boot.
TENTHS = "sec01"
COLOURS = (
    ("background", "#fff"), ("box", "#f0f0f0"), ("activating", "#f44"), ("active", "#c99"), ("deactivating", "#966"),
    ("kernel", "#999"), ("initrd", "#999"), ("firmware", "#999"), ("loader", "#999"), ("userspace", "#999"),
    ("security", "#9e9"), ("generators", "#6cf"), ("unitsload", "#5bf"),
)  # fmt: skip


def rows(svg: str) -> Iterator[tuple[str, float, float]]:
    """Yield each unit of the plot: name, when it began to start, how long that took (seconds; from where the plot begins).

    Raises StepFailed when the text is no such plot.
    """
    any_unit = False
    for group in _root(svg).iter(f"{{{SVG}}}g"):
        shape = group.find(f"{{{SVG}}}rect[@class='activating']")
        label = group.find(f"{{{SVG}}}text")
        # The legend's group holds several shapes; a unit's has a title, and its label may end in the time it took.
        if shape is not None and label is not None and group.find(f"{{{SVG}}}title") is not None:
            any_unit = True
            name = re.sub(r" \([^()]*\)$", "", (label.text or "").strip())
            start, width = float(shape.get("x", "0")), float(shape.get("width", "0"))
            yield name, round(start / PIXELS_PER_SECOND, 3), round(max(0.0, width) / PIXELS_PER_SECOND, 3)
    if not any_unit:
        raise StepFailed("systemd-analyze plotted no unit", hint="did it change its plot? see build/verify/boot_plot.py")


def sanitise(svg: str) -> str:
    """Return the plot as a separate file. Raises StepFailed when it is no SVG."""
    root = _root(svg)
    style = "text { font: 14px sans-serif; } .right { text-anchor: end; } .sec { font-size: 10px; } line { stroke: #ccc; }"
    style += "".join(f" rect.{name} {{ fill: {colour}; }}" for name, colour in COLOURS)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{_copy(root, inside=f"<style>{style}</style>", tenths=True)}\n'


def embedded(svg: str, *, title: str) -> str:
    """Return the plot for a page: as it is, without its style and without the lines of tenths of a second."""
    return _copy(_root(svg), inside=f"<title>{html.escape(title)}</title>", tenths=False)


def _root(svg: str) -> ElementTree.Element:
    if "<!ENTITY" in svg:
        raise StepFailed("the plot of systemd-analyze declares entities, which no plot does")
    try:
        root = ElementTree.fromstring(svg)
    except ElementTree.ParseError as error:
        raise StepFailed(f"the plot of systemd-analyze is no SVG: {error}") from error
    if root.tag != f"{{{SVG}}}svg":
        raise StepFailed(f"the plot of systemd-analyze is no SVG: it begins with {root.tag}")
    return root


def _copy(element: ElementTree.Element, *, inside: str, tenths: bool) -> str:
    """Return the element and what is kept of it as text; ``inside`` is put first."""
    tag = element.tag.removeprefix(f"{{{SVG}}}")
    kept = {name: value for name, value in element.attrib.items() if name in ATTRIBUTES and PLAIN.fullmatch(value)}
    if tag == "svg":
        kept = {"xmlns": SVG, "role": "img", **kept}
    attributes = "".join(f' {name}="{html.escape(value)}"' for name, value in kept.items())
    text = html.escape(element.text or "") if tag in ("title", "text") else ""
    children = [
        _copy(child, inside="", tenths=tenths) for child in element
        if child.tag in {f"{{{SVG}}}{name}" for name in TAGS} and (tenths or child.get("class") != TENTHS)
    ]  # fmt: skip
    return f"<{tag}{attributes}>{inside}{text}{chr(10).join(children)}</{tag}>"
