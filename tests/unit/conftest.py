"""Fixtures of the unit tests."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk, which would take most of the time; test_files checks that it is flushed."""
    monkeypatch.setattr("os.fsync", lambda _descriptor: None)
