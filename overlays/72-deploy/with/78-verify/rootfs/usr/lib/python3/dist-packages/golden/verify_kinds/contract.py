"""A kind of check of golden-verify: the contract of the release that serves."""

from __future__ import annotations

from golden import contract_check
from golden.verify import Check, Skip, System


def find(system: System, _check: Check) -> list[str]:
    """Find differences between the contract of the release that serves and what the machine grants it."""
    found = contract_check.compare(system.path, system.properties)
    if found is None:
        raise Skip("the application has no contract")
    return found
