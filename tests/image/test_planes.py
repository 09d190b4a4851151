"""The diagrams of tests/image/planes.md are true for this image."""

from __future__ import annotations

import pytest
from testinfra.host import Host

from .facts import gather
from .planes import diagrams


@pytest.mark.layers("25-firewall", "30-postgresql", "40-app", "50-nginx")
@pytest.mark.req("R2", "R3")
def test_every_arrow_is_enforced(host: Host) -> None:
    """Every arrow of the diagrams is enforced by the file or unit that it names"""
    arrows = [arrow for _, found, _ in diagrams() for arrow in found]
    facts = gather(host, {str(index): arrow.check for index, arrow in enumerate(arrows)})
    missing = [f"{arrow.enforcer}: {arrow.words}" for arrow, fact in zip(arrows, facts.values(), strict=True) if fact.status]
    assert missing == []
