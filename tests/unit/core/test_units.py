"""Sizes are powers of two, times are UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from build.core import units


@pytest.mark.parametrize(
    ("number", "unit", "expected"),
    [("1", "K", 1024), ("1.5", "G", 1_610_612_736), ("16", "G", 16 << 30), ("2", "T", 2 << 40)],
)
def test_sizes_are_powers_of_two(number: str, unit: str, expected: int) -> None:
    assert units.size_bytes(number, unit) == expected


def test_a_time_of_another_zone_is_written_in_utc() -> None:
    when = datetime(2026, 11, 29, 1, 30, tzinfo=timezone(timedelta(hours=2)))
    assert units.stamp(when) == "2026-11-28T23:30:00Z"
    assert units.seconds_of(units.stamp(when)) == when.timestamp()
    assert units.stamp_of(0) == "1970-01-01T00:00:00Z"


def test_now_is_now() -> None:
    assert abs(units.seconds_of(units.stamp_now()) - datetime.now(UTC).timestamp()) < 60


@pytest.mark.parametrize("text", ["", "2026-11-29", "2026-11-29T25:00:00Z", "2026-11-29T01:00:00+02:00"])
def test_another_form_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"time data|unconverted"):
        units.seconds_of(text)
