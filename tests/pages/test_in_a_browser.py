"""Goldsmith's pages in a real browser: no network request, nothing too wide, no overlapping text."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from build.artifact.contents import Side
from build.report import compare_html, report
from build.report.compare import Comparison
from tests.browser import Browser, Page, browsing
from tests.unit.artifacts import FILES, JUNIT, compared, image, make_side, manifest, parts, requirement
from tests.unit.inventories import inventory_of

WIDTHS = (1280, 390)
# A sheet of A4 between its margins.
PAPER = 718
# What the eye does not see as touching, in pixels.
TOLERANCE = 1.0
LOOK = """(() => {
  document.querySelectorAll('details').forEach(one => one.open = true);
  const box = one => { const b = one.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; };
  const plots = [...document.querySelectorAll('svg')].map(svg => ({
    box: box(svg), title: (svg.querySelector('title') || {}).textContent || '', kind: svg.getAttribute('class') || 'boot',
    texts: [...svg.querySelectorAll('text')].map(one => ({text: one.textContent, box: box(one)})) }));
  const root = document.documentElement;
  return JSON.stringify({ plots, wide: root.scrollWidth, window: root.clientWidth, tall: root.scrollHeight,
    text: document.body.innerText.length, back: getComputedStyle(document.body).backgroundColor });
})()"""
CONTRAST = """(() => {
  const numbers = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = colour => { const [r, g, b] = colour.slice(0, 3).map(v => { v /= 255;
    return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const back = light(numbers(getComputedStyle(document.body).backgroundColor));
  return JSON.stringify(['body', '.passed', '.failed', '.skipped', '.faint', 'svg.plot text'].map(name => {
    const one = document.querySelector(name); if (!one) return [name, 99]; const style = getComputedStyle(one);
    const ink = light(numbers(name.startsWith('svg') ? style.fill : style.color));
    return [name, (Math.max(ink, back) + 0.05) / (Math.min(ink, back) + 0.05)]; }));
})()"""


@pytest.fixture(scope="module")
def browser(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(chromium, tmp_path_factory.mktemp("browser")) as found:
        yield found


def plot(units: int) -> str:
    """Return a plot as systemd draws it, of this number of units."""
    rows = "".join(
        f'<g><title>unit-{number}.service</title><rect class="activating" x="{number * 7}.000" y="{number * 20}.000" '
        f'width="{number * 3}.000" height="19.000" /><text class="{"right" if number > units / 2 else "left"}" '
        f'x="{number * 7 + 5}.000" y="{number * 20 + 14}.000">unit-with-a-rather-long-name-{number}.service '
        f"({number / 100:.3f}s)</text></g>\n"
        for number in range(units)
    )
    return (
        f'<svg width="3565px" height="{units * 20 + 200}px" version="1.1" xmlns="http://www.w3.org/2000/svg">'
        f'<rect class="background" width="100%" height="100%" /><g transform="translate(20.000,100)">{rows}</g></svg>'
    )


def busy() -> tuple[Side, list[Side], Comparison]:
    """Return an artifact with much to show, a dozen before it, and the comparison with the last of them."""
    audit: dict[str, dict[str, Any]] = {
        f"auditor.figure number {number}": {"value": 91.25 + number, "shown": f"{91.25 + number} % ({number} of 487)",
                                            "limit": ">= 90 %"}
        for number in range(20)
    }  # fmt: skip
    files = FILES + "".join(
        f"/usr/lib/a-directory-with-a-long-name-{number % 30}/{'deep/' * 9}file{number}\tfile\t0644\t0:0\t{number * 999}"
        f"\t{'44' * 32}\n" for number in range(3000)
    )  # fmt: skip
    tests = "".join(
        f'<testcase classname="tests.image.test_{number % 9}" name="test_{"a_long_name_" * 6}{number}"><properties>'
        '<property name="requirements" value="R41 R7" /><property name="place" value="container" /></properties></testcase>'
        for number in range(300)
    )  # fmt: skip
    units = plot(120)
    boot = {
        "startup": {"kernel": 30.5, "initrd": 44.1, "userspace": 266.0, "total": 340.6},
        "units": [{"name": f"unit-with-a-rather-long-name-{number}-{'x' * (number % 50)}.service", "start": number * 2.2,
                   "seconds": (number * 37 % 90) / 1.3} for number in range(120)],
    }  # fmt: skip
    contents = parts(**{
        "rootfs.files.tsv": files, "boot.svg": units, "inventory.json": json.dumps(inventory_of(boot=boot)),
        "verification/junit.xml": JUNIT.replace("</testsuite>", f"{tests}</testsuite>", 1),
    })  # fmt: skip
    packages = {f"package-with-a-long-name-{number}": f"1:{number}.0~rc1+dfsg-1+deb13u{number}" for number in range(300)}
    new = make_side(manifest(audit=audit, packages=packages), contents)
    earlier = [
        make_side(manifest(version=f"1.0.{number}", image=image(f"{number:x}", bytes=300_000_000 + number * 7_000_000),
                           audit={name: {**one, "value": one["value"] - number % 5} for name, one in audit.items()}))
        for number in range(12)
    ]  # fmt: skip
    return new, earlier, compared(earlier[-1], new)


@pytest.fixture(scope="module", params=["report", "first report", "comparison"])
def page(request: pytest.FixtureRequest, browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Page:
    new, earlier, changes = busy()
    listed = [requirement(f"R{number}", "A requirement, in a line or two of text; " * 4) for number in range(1, 60)]
    text = {
        "report": lambda: report.render(new, earlier=earlier, comparison=changes, requirements=listed),
        "first report": lambda: report.render(make_side(), earlier=[], comparison=None, requirements=listed),
        "comparison": lambda: compare_html.page(changes),
    }[request.param]()
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(text, encoding="utf-8")
    return browser.open(path.as_uri())


def seen(page: Page) -> dict[str, Any]:
    return dict(json.loads(page.evaluate(LOOK)))


def upon_each_other(texts: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return the pairs of texts whose boxes share more than the tolerance in both directions."""
    found = []
    for number, one in enumerate(texts):
        for other in texts[number + 1 :]:
            (left, top, right, bottom), (left2, top2, right2, bottom2) = one["box"], other["box"]
            # Lines of text have room above and below their letters: a row may touch the next.
            across = min(right, right2) - max(left, left2) > TOLERANCE
            along = min(bottom, bottom2) - max(top, top2) > (bottom - top) / 3
            if across and along:
                found.append((one["text"], other["text"]))
    return found


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_its_window(page: Page, width: int) -> None:
    page.look(width=width)
    found = seen(page)
    assert found["text"] > 1000
    assert found["wide"] <= found["window"] == width


@pytest.mark.parametrize("width", WIDTHS)
def test_no_text_of_a_plot_lies_upon_another_or_outside(page: Page, width: int) -> None:
    page.look(width=width)
    for plot in seen(page)["plots"]:
        assert upon_each_other(plot["texts"]) == [], plot["title"]
        left, _top, right, _bottom = plot["box"]
        outside = [one["text"] for one in plot["texts"] if one["box"][0] < left - 1 or one["box"][2] > right + 1]
        assert outside == [] or plot["kind"] == "boot", plot["title"]
        assert plot["texts"], plot["title"]


def test_nothing_is_asked_of_a_network_and_nothing_complains(page: Page) -> None:
    page.look(width=1280)
    seen(page)
    assert [address.partition(":")[0] for address in page.requests] == ["file"]
    assert page.console == []


def test_on_paper_everything_has_room(page: Page) -> None:
    page.look(width=PAPER, media="print")
    found = seen(page)
    assert found["wide"] <= found["window"]
    hidden = page.evaluate("[...document.querySelectorAll('nav')].every(one => getComputedStyle(one).display == 'none')")
    assert hidden


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_schemes_can_be_read(page: Page, scheme: str) -> None:
    page.look(width=1280, scheme=scheme)
    # WCAG 2.2, 1.4.3: 4.5 to 1 for text of this size.
    assert [name for name, ratio in json.loads(page.evaluate(CONTRAST)) if ratio < 4.5] == []
    back = [int(part) for part in seen(page)["back"].strip("rgb()").split(",")]
    assert (sum(back) < 150) == (scheme == "dark")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_picture_shows_the_page(page: Page, scheme: str, tmp_path: Path) -> None:
    page.look(width=1280, scheme=scheme)
    picture = page.screenshot()
    (tmp_path / "page.png").write_bytes(picture)
    width, height, colours = read_png(picture)
    assert width == 1280
    assert height >= 900
    assert colours > 20, "an empty page has one colour"


def read_png(data: bytes) -> tuple[int, int, int]:
    """Return width, height, and how many different bytes the picture's lines hold (PNG specification, chunks)."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    pixels, place = b"", 8
    while place < len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        if kind == b"IDAT":
            pixels += data[place + 8 : place + 8 + length]
        place += 12 + length
    return width, height, len(set(zlib.decompress(pixels)))
