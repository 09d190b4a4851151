"""Links between pages point at files and headings that exist, and every page can be reached from the README."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.unit.helpers import ROOT

LINK = re.compile(r"\]\((?P<target>[^)\s#]*)(?:#(?P<heading>[^)\s]+))?\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
MODULE = re.compile(r"`((?:build|tests)/[a-z0-9_/-]+\.(?:py|yaml|json|md|conf|lock))`")
PAGES = sorted(
    path for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part == "artifacts" for part in path.relative_to(ROOT).parts)
)  # fmt: skip


def links(page: Path) -> list[tuple[Path, str]]:
    """Return the pages of this repository that a page links to, with the headings."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    found = [(match["target"], match["heading"] or "") for match in LINK.finditer(text) if ":" not in match["target"]]
    return [((page.parent / target).resolve() if target else page, heading) for target, heading in found]


def headings(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    lines = FENCE.sub("", page.read_text(encoding="utf-8")).splitlines()
    titles = [line.lstrip("#").strip().lower() for line in lines if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target, heading in links(page):
        assert target.exists(), f"{page.name} links to {target.name}, which does not exist"
        assert not heading or heading in headings(target), f"{page.name} links to a heading of {target.name}: {heading}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_named_exist(page: Path) -> None:
    if page.name == "CHANGELOG.md":
        return  # It names files of its time.
    missing = [name for name in MODULE.findall(page.read_text(encoding="utf-8")) if not (ROOT / name).exists()]
    assert not missing


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page not in reached and page.suffix == ".md" and page.is_file():
            reached.add(page)
            waiting += [target for target, _ in links(page)]
    assert {page for page in PAGES if page.is_relative_to(ROOT / "docs")} <= reached
