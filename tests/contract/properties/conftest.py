"""The fixtures of the property-based tests."""

from tests.contract.interleaving import _no_patience

__all__ = ["_no_patience"]
