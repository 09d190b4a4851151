"""tests/image/planes.md is made of diagrams in which every arrow names what enforces it."""

from __future__ import annotations

import pytest

from tests.image.planes import diagrams


@pytest.mark.req("R2")
def test_every_arrow_joins_known_nodes_and_names_its_enforcer() -> None:
    found = diagrams()
    assert len(found) == 3
    for nodes, arrows, rest in found:
        assert rest == []
        assert {arrow.source for arrow in arrows} | {arrow.target for arrow in arrows} == nodes
        assert all(arrow.words for arrow in arrows)
