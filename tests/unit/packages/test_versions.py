"""Versions are sorted in dpkg's order, compared with dpkg itself."""

from __future__ import annotations

import itertools
import random

import pytest

from build.core import run
from build.packages import versions

SAMPLES = (
    "0", "1", "1.0", "1.0-1", "1.0-1+b1", "1.0-1+deb13u1", "1.0-1+deb13u10", "1.0-1+deb13u2", "1.0-1~deb13u1", "1.0~rc1-1",
    "1.0~~", "1.0~", "1.0.1", "1.00", "1.0a", "1.0+dfsg", "1.0-0", "1:0.9", "0:1.0", "2:1.205-2", "1.205-2", "6.12.107-1",
    "6.12.94-1", "20250803+deb13u6", "1.0-1-2", "1.0-1ubuntu", "9.10", "9.9", "1.0.", "a", "1.0-a1", "3.5.4-1~deb13u1",
    "0~", "1.0-1~bpo1", "2.41.5-0+deb13u1", "1:4.16.0-2+really2.41.5-0", "1.0-rc-1", "10", "9",
)  # fmt: skip


def dpkg(pairs: list[tuple[str, str]]) -> list[int]:
    """Return dpkg's order of each pair; one shell for all of them."""
    script = (
        'while read -r a b; do if dpkg --compare-versions "$a" lt "$b"; then echo -1; '
        'elif dpkg --compare-versions "$a" gt "$b"; then echo 1; else echo 0; fi; done'
    )
    told = "".join(f"{a} {b}\n" for a, b in pairs).encode()
    return [int(line) for line in run.run(["sh", "-c", script], timeout=120, stdin=told).stdout.split()]


def ours(pairs: list[tuple[str, str]]) -> list[int]:
    return [(order > 0) - (order < 0) for order in (versions.compare(a, b) for a, b in pairs)]


def test_known_versions_stand_as_dpkg_orders_them() -> None:
    pairs = list(itertools.combinations(SAMPLES, 2))
    assert ours(pairs) == dpkg(pairs)
    assert ours([(b, a) for a, b in pairs]) == [-order for order in ours(pairs)]


def test_random_versions_stand_as_dpkg_orders_them() -> None:
    chance = random.Random(5)

    def one() -> str:
        upstream = str(chance.randint(0, 2)) + "".join(chance.choice("019.+~ab") for _ in range(chance.randint(0, 6)))
        return chance.choice(("", "0:", "1:")) + upstream + chance.choice(("", "-1", "-1~", "-0", "-1+b1"))

    pairs = [(one(), one()) for _ in range(400)]
    assert ours(pairs) == dpkg(pairs)


@pytest.mark.parametrize(
    ("a", "b", "is_newer"),
    [("2", "1", True), ("1", "1", False), ("1", "2", False), ("1", "", True), ("", "1", False)],
)
def test_every_version_is_newer_than_none(a: str, b: str, *, is_newer: bool) -> None:
    assert versions.newer(a, b) is is_newer
