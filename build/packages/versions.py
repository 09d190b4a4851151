"""Compares Debian version numbers by the rules of Debian Policy 5.6.12 (deb-version(7)); a test compares it with dpkg.

Not done with dpkg, because a report compares thousands of them: a process for each comparison would take too long.
"""

from __future__ import annotations

import re
from itertools import zip_longest

_PIECES = re.compile(r"([^0-9]*)([0-9]*)")


def compare(a: str, b: str) -> int:
    """Return a negative number, 0 or a positive one, as version ``a`` is earlier than ``b``, the same, or later."""
    for left, right in zip(_parts(a), _parts(b), strict=True):
        if order := _compare_part(left, right):
            return order
    return 0


def newer(a: str, b: str) -> bool:
    """Return True if version ``a`` is later than ``b``; every version is later than an empty one."""
    return compare(a, b) > 0 if a and b else bool(a)


def _parts(version: str) -> tuple[str, str, str]:
    """Return epoch, upstream version and Debian revision; what is left out counts as 0."""
    epoch, colon, rest = version.strip().partition(":")
    upstream, dash, revision = (rest if colon else version.strip()).rpartition("-")
    return (epoch if colon else "0", upstream if dash else revision, revision if dash else "0")


def _compare_part(a: str, b: str) -> int:
    for (text_a, number_a), (text_b, number_b) in zip_longest(_PIECES.findall(a), _PIECES.findall(b), fillvalue=("", "")):
        for x, y in zip_longest(text_a, text_b, fillvalue=""):
            if order := _weight(x) - _weight(y):
                return order
        # Compared as text: a version in foreign data may have more digits than Python converts to a number.
        digits_a, digits_b = number_a.lstrip("0"), number_b.lstrip("0")
        if digits_a != digits_b:
            return -1 if (len(digits_a), digits_a) < (len(digits_b), digits_b) else 1
    return 0


def _weight(character: str) -> int:
    """Return the rank of a character: ``~`` before the end, the end before letters, letters before the rest."""
    if character == "~":
        return -1
    if not character:
        return 0
    return ord(character) if character.isalpha() else ord(character) + 256
